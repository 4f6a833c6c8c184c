"""A trained transformer as a folder that Flux2KleinPipeline, `clvr merge` and the generators load."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import Flux2KleinPipeline, Flux2Transformer2DModel
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict
from torch import nn

from clvr.devices import DTYPES
from clvr.flux2.folder import CLASSES, Folder
from clvr.flux2.headers import Entry
from clvr.hub import read_json

from .sharding import gathered

_STORED = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}


def publish(
    folder: Folder,
    weights: Mapping[str, torch.Tensor],
    out: Path,
    index: Mapping[str, Any] | None = None,
    sampling: Mapping[str, Any] | None = None,
) -> None:
    """Write `out`, replacing what is there: the parts of `folder` with these weights as its transformer.
    `index` and `sampling`: fields of model_index.json and clvr.json that differ."""
    partial = out.with_name(f".{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for part in CLASSES:
        if part != "transformer":
            shutil.copytree(folder.path / part, partial / part)
    defaults = folder.path / "clvr.json"
    if defaults.exists() or sampling:
        known = read_json(defaults) if defaults.exists() else {}
        _write_json(partial / "clvr.json", {**known, **(sampling or {})})
    _write_json(partial / "model_index.json", {**read_json(folder.path / "model_index.json"), **(index or {})})
    _save_transformer(folder, weights, partial / "transformer")
    shutil.rmtree(out, ignore_errors=True)
    os.replace(partial, out)


def _save_transformer(folder: Folder, weights: Mapping[str, torch.Tensor], out: Path) -> None:
    with torch.device("meta"):
        made: Any = Flux2Transformer2DModel.from_config(read_json(folder.path / "transformer" / "config.json"))
    made.load_state_dict(weights, assign=True)
    made.save_pretrained(out, safe_serialization=True)
    config = read_json(out / "config.json")
    config.pop("_name_or_path", None)
    _write_json(out / "config.json", config)


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2) + "\n")


def stored_dtype(folder: Folder) -> torch.dtype:
    """The number format of the folder's transformer."""
    entry: Entry = next(iter(folder.headers["transformer"].values()))
    return DTYPES[_STORED.get(entry.dtype, "bfloat16")]


def collect(named: Iterable[tuple[str, torch.Tensor]], dtype: torch.dtype, keep: bool) -> dict[str, torch.Tensor]:
    """Whole weights on the CPU; all processes take part, those with `keep` get them."""
    found = {}
    for name, tensor in gathered(named):
        if keep:
            found[name] = tensor.detach().to("cpu", dtype, copy=True)
    return found


def fused(transformer: nn.Module) -> dict[str, torch.Tensor]:
    """The state of a transformer with its active LoRA added to the weights, under the names it had without."""
    layers: dict[str, Any] = {k: m for k, m in transformer.named_modules() if isinstance(m, BaseTunerLayer)}
    state = {}
    for name, tensor in transformer.state_dict().items():
        if ".lora_" in name:
            continue
        layer = layers.get(name.removesuffix(".base_layer.weight"))
        if layer is not None:
            tensor = tensor.float() + layer.get_delta_weight(layer.active_adapters[0]).float()
        state[name.replace(".base_layer.", ".")] = tensor.detach()
    return state


def save_lora(transformer: Any, adapter: str, folder: Path) -> None:  # noqa: ANN401
    """An adapter as diffusers names and describes it; `clvr merge` and `load_lora_weights` add it."""
    config = transformer.peft_config[adapter].to_dict()
    adapted = [name for name, module in transformer.named_modules() if isinstance(module, BaseTunerLayer)]
    Flux2KleinPipeline.save_lora_weights(
        folder,
        transformer_lora_layers={**get_peft_model_state_dict(transformer, adapter_name=adapter)},
        transformer_lora_adapter_metadata={**config, "target_modules": sorted(adapted)},
    )
