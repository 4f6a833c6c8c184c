"""A ComfyUI pack that stands in for klein's text encoder and VAE, whose sizes ComfyUI's own loaders have fixed:
with the built-in model's parts, a workflow for klein runs on a small machine."""

from __future__ import annotations

from functools import lru_cache
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
    """What CLIPTextEncode asks of a CLIP."""

    def tokenize(self, text: str) -> str:
        return text

    def encode_from_tokens_scheduled(self, text: str) -> list[list[Any]]:
        from clvr.builtin import PATH
        from clvr.flux2.folder import read_sampling
        from clvr.flux2.generator import padded_length

        sampling = read_sampling(PATH, distilled=False)
        length = padded_length(parts().count_tokens(text), sampling.max_sequence_length)
        encoded = parts().encode_text(text, length, sampling.text_encoder_out_layers)
        return [[encoded, {"pooled_output": None}]]


class Decoder:
    """What VAEDecode asks of a VAE."""

    def decode(self, latents: Tensor) -> Tensor:
        """[B, 128, H/16, W/16], normalised, to pixels [B, H, W, 3] in [0, 1]."""
        import torch

        pipeline = parts()
        norm = pipeline.vae.bn
        deviation = torch.sqrt(norm.running_var + pipeline.vae.config.batch_norm_eps)
        scaled = latents * deviation.view(1, -1, 1, 1) + norm.running_mean.view(1, -1, 1, 1)
        with torch.no_grad():
            pixels = pipeline.vae.decode(pipeline._unpatchify_latents(scaled), return_dict=False)[0]
        return (pixels / 2 + 0.5).clamp(0, 1).movedim(1, -1)


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

    def load(self) -> tuple[Decoder]:
        return (Decoder(),)


NODE_CLASS_MAPPINGS = {"StandInCLIPLoader": StandInCLIPLoader, "StandInVAELoader": StandInVAELoader}
