"""A small klein folder as ComfyUI's own MODEL, CLIP and VAE, whose loaders know the real sizes alone.

For a process in which ComfyUI can be imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file


def model(twin: Path, dtype: torch.dtype = torch.float32) -> Any:
    import comfy.sd

    return comfy.sd.load_diffusion_model(str(twin), model_options={"dtype": dtype})


def loaded(weights: dict[str, torch.Tensor]) -> Any:
    """A MODEL of weights in BFL's names."""
    import comfy.sd

    return comfy.sd.load_diffusion_model_state_dict(dict(weights), model_options={"dtype": torch.float32})


def clip(folder: Path) -> Any:
    """ComfyUI's klein tokenizer and Qwen3 around the folder's vocabulary, sizes and weights."""
    import comfy.sd

    target = Target()
    target.params, target.clip, target.tokenizer = {}, encoder(folder), tokenizer(folder)
    weights = load_file(folder / "text_encoder" / "model.safetensors")
    return comfy.sd.CLIP(target, state_dict=[weights], model_options={"dtype": torch.float32})


class Target:
    """What comfy.sd.CLIP is made from."""

    params: dict[str, Any]
    clip: Any
    tokenizer: Any


def tokenizer(folder: Path) -> Any:
    from comfy.sd1_clip import SDTokenizer
    from comfy.text_encoders.flux import KleinTokenizer
    from transformers import Qwen2Tokenizer

    words = Qwen2Tokenizer.from_pretrained(folder / "tokenizer")

    class Words(SDTokenizer):
        def __init__(self, embedding_directory: str | None = None, tokenizer_data: Any = None) -> None:
            super().__init__(
                str(folder / "tokenizer"),
                pad_with_end=False,
                embedding_size=int(config(folder)["hidden_size"]),
                embedding_key="qwen3_4b",
                tokenizer_class=Qwen2Tokenizer,
                has_start_token=False,
                has_end_token=False,
                pad_to_max_length=False,
                max_length=99999999,
                min_length=512,
                pad_token=words.pad_token_id,
            )

    class Klein(KleinTokenizer):
        def __init__(self, embedding_directory: str | None = None, tokenizer_data: Any = None) -> None:
            super().__init__(tokenizer_data={"qwen3_4b_tokenizer_class": Words})

    return Klein


def config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "text_encoder" / "config.json").read_text())


def encoder(folder: Path) -> Any:
    from comfy.sd1_clip import SDClipModel
    from comfy.text_encoders import flux, llama
    from transformers import Qwen2Tokenizer

    found = config(folder)
    pad = Qwen2Tokenizer.from_pretrained(folder / "tokenizer").pad_token_id
    layers = json.loads((folder / "clvr.json").read_text())["text_encoder_out_layers"]

    class Sizes(llama.Qwen3_4BConfig):
        head_dim = found["head_dim"]

    class Qwen3(llama.BaseLlama, llama.BaseQwen3, torch.nn.Module):
        def __init__(self, sizes: dict[str, Any], dtype: Any, device: Any, operations: Any) -> None:
            super().__init__()
            made = Sizes(**sizes)
            self.num_layers, self.dtype = made.num_hidden_layers, dtype
            self.model = llama.Llama2_(made, device=device, dtype=dtype, ops=operations)

    class Layers(SDClipModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            super().__init__(
                device=device,
                layer=layers,
                textmodel_json_config={name: found[name] for name in SIZES} | {"rope_theta": rope(found)},
                dtype=dtype,
                special_tokens={"pad": pad},
                layer_norm_hidden_state=False,
                model_class=Qwen3,
                enable_attention_masks=True,
                return_attention_masks=True,
                model_options=model_options or {},
            )

    class Encoder(flux.Flux2TEModel):
        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: Any = None) -> None:
            super().__init__(device, dtype, model_options or {}, name="qwen3_4b", clip_model=Layers)

    return Encoder


SIZES = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
         "num_key_value_heads", "max_position_embeddings", "rms_norm_eps")  # fmt: skip


def rope(found: dict[str, Any]) -> float:
    return found["rope_parameters"]["rope_theta"]


def vae(folder: Path) -> Any:
    import comfy.ldm.modules.diffusionmodules.model as parts
    import comfy.sd

    found = json.loads((folder / "vae" / "config.json").read_text())
    first = found["block_out_channels"][0]
    sizes = {
        "double_z": True,
        "z_channels": found["latent_channels"],
        "resolution": 256,
        "in_channels": 3,
        "out_ch": 3,
        "ch": first,
        "ch_mult": [channels // first for channels in found["block_out_channels"]],
        "num_res_blocks": found["layers_per_block"],
        "attn_resolutions": [],
        "dropout": 0.0,
        "batch_norm_latent": True,
    }
    weights = load_file(folder / "vae" / "diffusion_pytorch_model.safetensors")
    groups = found["norm_num_groups"]
    with patch.object(parts.Normalize, "__defaults__", (groups,)):
        params = {"ddconfig": sizes, "embed_dim": found["latent_channels"]}
        made = comfy.sd.VAE(weights, config={"params": params}, dtype=torch.float32)
    made.latent_channels, made.downscale_ratio, made.upscale_ratio = 128, 16, 16
    return made
