"""Loading a FLUX.2 [klein] folder: its tensors are compared with its configs before anything is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.utils import logging as diffusers_logging
from transformers import Qwen3Config, Qwen3ForCausalLM
from transformers.utils import logging as transformers_logging

from ..devices import choose_device, choose_dtype
from ..errors import SettingError, WeightsError
from ..hub import read_json
from .encodings import KleinPipeline
from .folder import Folder

OFFLOADS = ("none", "model", "sequential")
_SHOWN = 4


def silence() -> None:
    """Turn off the progress bars of diffusers and transformers, for a process whose terminal is ours."""
    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def load_pipeline(folder: Folder, device: str = "auto", dtype: str = "auto", offload: str = "none") -> KleinPipeline:
    """The folder's pipeline on its device. dtype auto is bf16 on an accelerator, fp32 on a CPU.

    offload: 'model' moves each part to the device only while it computes, 'sequential' each layer.
    Raises WeightsError, SettingError."""
    if offload not in OFFLOADS:
        raise SettingError(f"There is no offload {offload!r}.", f"Use {', '.join(OFFLOADS)}.")
    place = choose_device(device)
    if offload != "none" and place.type == "cpu":
        raise SettingError(f"offload={offload} needs an accelerator to offload from.", "Set offload to none.")
    kind = choose_dtype(dtype, place)
    check_architecture(folder)
    pipeline = KleinPipeline.from_pretrained(str(folder.path), dtype=kind, use_safetensors=True, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    if offload == "model":
        pipeline.enable_model_cpu_offload(device=place)
    elif offload == "sequential":
        pipeline.enable_sequential_cpu_offload(device=place)
    else:
        pipeline.to(place)
    return pipeline


def check_architecture(folder: Folder) -> None:
    """Names and shapes of all tensors against the modules that the configs describe, made without memory.

    Raises WeightsError naming what differs."""
    configs = {part: read_json(folder.path / part / "config.json") for part in folder.headers}
    try:
        with torch.device("meta"):
            text_config = Qwen3Config.from_dict(configs["text_encoder"])
            modules = {
                "transformer": Flux2Transformer2DModel.from_config(configs["transformer"]),
                "vae": AutoencoderKLFlux2.from_config(configs["vae"]),
                "text_encoder": Qwen3ForCausalLM(text_config),
            }
    except (TypeError, ValueError, KeyError, RuntimeError, ZeroDivisionError) as error:
        raise WeightsError(
            f"The configs of {folder.path} describe no FLUX.2 [klein]: {error}.", "Download the folder again."
        ) from error
    _check_context(folder, configs["transformer"], text_config)
    for part, module in modules.items():
        if "quantization_config" in configs[part]:
            continue
        wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
        found = {name: entry.shape for name, entry in folder.headers[part].items()}
        if part == "text_encoder" and text_config.tie_word_embeddings:
            wanted.pop("lm_head.weight", None)
            found.pop("lm_head.weight", None)
        _compare(folder.path / part, wanted, found)


def _check_context(folder: Folder, transformer: Mapping[str, object], text: Qwen3Config) -> None:
    """The stacked hidden states must be as wide as the DiT's context."""
    layers = folder.sampling.text_encoder_out_layers
    wide, wanted = len(layers) * text.hidden_size, transformer.get("joint_attention_dim")
    if wide != wanted or max(layers) > text.num_hidden_layers:
        raise WeightsError(
            f"Layers {layers} of a text encoder with {text.num_hidden_layers} layers of width "
            f"{text.hidden_size} do not make the context of width {wanted} that the transformer reads.",
            "Use the text encoder of this transformer; clvr.json names the layers of small models.",
        )


def _compare(part: Path, wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> None:
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{name} has no place" for name in found if name not in wanted]
    faults += [
        f"{name} has the shape {found[name]} instead of {shape}"
        for name, shape in wanted.items()
        if found.get(name, shape) != shape
    ]
    if faults:
        more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise WeightsError(
            f"The weights in {part} do not fit its config.json: {'; '.join(faults[:_SHOWN])}{more}.",
            "The files belong to different models: download the folder again.",
        )
