"""A ComfyUI pack that stands in for klein's text encoder and VAE, whose sizes ComfyUI's own loaders have fixed:
with the built-in model's parts, a workflow for klein runs on a small machine."""

from __future__ import annotations

from functools import lru_cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from clvr.flux2.encodings import KleinPipeline


@lru_cache(1)
def parts() -> KleinPipeline:
    import torch

    from clvr.builtin import PATH
    from clvr.flux2.encodings import KleinPipeline

    return KleinPipeline.from_pretrained(PATH, transformer=None, dtype=torch.float32)


class Encoder:
    """What CLIPTextEncode and the pack's own nodes ask of a CLIP."""

    layer_idx = None

    def __init__(self) -> None:
        self.patcher = SimpleNamespace(patches_uuid=None)

    def tokenize(self, text: str) -> dict[str, list[list[str]]]:
        """One batch, as long as the text's tokens; its first item is the whole text."""
        return {"klein": [[text] * parts().count_tokens(text)]}

    def encode_from_tokens_scheduled(self, tokens: dict[str, list[list[str]]]) -> list[list[Any]]:
        from clvr.builtin import PATH
        from clvr.flux2.folder import read_sampling
        from clvr.flux2.generator import padded_length

        (batch,) = tokens["klein"]
        sampling = read_sampling(PATH, distilled=False)
        length = padded_length(len(batch), sampling.max_sequence_length)
        encoded = parts().encode_text(batch[0], length, sampling.text_encoder_out_layers)
        return [[encoded, {"pooled_output": None}]]


class Coder:
    """What VAEDecode and the pack's own nodes ask of a VAE. Latents [B, 128, H/16, W/16] are normalised."""

    latent_channels = 128

    def decode(self, latents: Tensor) -> Tensor:
        """To pixels [B, H, W, 3] in [0, 1]."""
        import torch

        pipeline = parts()
        norm = pipeline.vae.bn
        deviation = torch.sqrt(norm.running_var + pipeline.vae.config.batch_norm_eps)
        scaled = latents * deviation.view(1, -1, 1, 1) + norm.running_mean.view(1, -1, 1, 1)
        with torch.no_grad():
            pixels = pipeline.vae.decode(pipeline._unpatchify_latents(scaled), return_dict=False)[0]
        return (pixels / 2 + 0.5).clamp(0, 1).movedim(1, -1)

    def encode(self, pixels: Tensor) -> Tensor:
        """From pixels [1, H, W, 3] in [0, 1]."""
        import torch

        with torch.no_grad():
            return parts()._encode_vae_image(pixels.movedim(-1, 1) * 2 - 1, torch.Generator())


class StandInCLIPLoader:
    RETURN_TYPES = ("CLIP",)
    FUNCTION = "load"
    CATEGORY = "CLVR/stand-ins"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def load(self) -> tuple[Encoder]:
        """ComfyUI pads klein's texts to 512 tokens, far more than the built-in model has seen: here it does not."""
        from comfy.model_base import Flux, Flux2  # pyright: ignore[reportMissingImports]

        Flux2.extra_conds = Flux.extra_conds
        return (Encoder(),)


class StandInVAELoader:
    RETURN_TYPES = ("VAE",)
    FUNCTION = "load"
    CATEGORY = "CLVR/stand-ins"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {}}

    def load(self) -> tuple[Coder]:
        return (Coder(),)


NODE_CLASS_MAPPINGS = {"StandInCLIPLoader": StandInCLIPLoader, "StandInVAELoader": StandInVAELoader}
