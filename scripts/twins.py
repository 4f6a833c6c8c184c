"""Small models under the names that the templates use, so that the templates run anywhere.

The base is the built-in model's twin in ComfyUI's format. The distilled and the aligned model differ from it by
random increments of a size that training makes; the LoRA is random too."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from clvr import builtin
from clvr.flux2.export import export

BASE, DISTILLED, ALIGNED, LORA = (
    "flux-2-klein-base-4b.safetensors",
    "flux-2-klein-4b.safetensors",
    "my-klein-base-4b-sft.safetensors",
    "my-klein-base-4b-rl-lora.safetensors",
)
SHIFT = 0.01
"""Relative shift of an increment, ‖Δ‖/‖W‖."""
SIDE = 64
"""Pixels of the built-in model's drawings."""
PROMPT = "two red circles above a blue square and a green triangle"
VLMS = ("CLVRVLMFromCLIP", "CLVRVLMServer", "CLVRVLMTransformers")
STAND_INS = Path(__file__).parent / "standins"


def lay_out(base: Path, number: torch.dtype = torch.bfloat16) -> Path:
    """Write the models into a server's folder, and the stand-ins for text encoder and VAE; the models' folder."""
    models, packs = base / "models", base / "custom_nodes"
    for folder in (models / "diffusion_models", models / "loras", packs):
        folder.mkdir(parents=True, exist_ok=True)
    export(builtin.PATH, models / "diffusion_models" / BASE)
    weights = load_file(models / "diffusion_models" / BASE)
    for seed, name in enumerate((DISTILLED, ALIGNED)):
        save_file(shifted(weights, seed, number), models / "diffusion_models" / name)
    if number != torch.bfloat16:
        save_file({key: weight.to(number) for key, weight in weights.items()}, models / "diffusion_models" / BASE)
    save_file(low_rank(weights), models / "loras" / LORA)
    (packs / "stand-ins").symlink_to(STAND_INS, target_is_directory=True)
    return models


def shifted(weights: dict[str, Tensor], seed: int, number: torch.dtype) -> dict[str, Tensor]:
    generator, found = torch.Generator().manual_seed(seed), {}
    for key, weight in weights.items():
        noise = torch.randn(weight.shape, generator=generator)
        found[key] = (weight.float() + SHIFT * weight.float().square().mean().sqrt() * noise).to(number)
    return found


def low_rank(weights: dict[str, Tensor], rank: int = 4) -> dict[str, Tensor]:
    """A LoRA of the blocks' matrices."""
    generator, found = torch.Generator().manual_seed(9), {}
    for key, weight in weights.items():
        if "_blocks." in key and weight.ndim == 2:
            module = f"diffusion_model.{key.removesuffix('.weight')}"
            size = (SHIFT / 10 * weight.float().square().mean().sqrt().item() / rank**0.5) ** 0.5
            found[f"{module}.lora_A.weight"] = torch.randn(rank, weight.shape[1], generator=generator) * size
            found[f"{module}.lora_B.weight"] = torch.randn(weight.shape[0], rank, generator=generator) * size
    return found


def small(workflow: dict[str, Any]) -> dict[str, Any]:
    """A template's API format for a small machine: the stand-ins in the place of klein's own text encoder and VAE,
    and the built-in planner, with a prompt that it understands, in the place of a VLM."""
    found = copy.deepcopy(workflow)
    unseeing = [node for node in found.values() if node["class_type"] in VLMS]
    for node in unseeing:
        node |= {"class_type": "CLVRControllerBuiltin", "inputs": {}}
    for node in found.values():
        inputs = node["inputs"]
        if node["class_type"] in ("CLIPLoader", "VAELoader"):
            node |= {"class_type": f"StandIn{node['class_type']}", "inputs": {}}
        inputs |= {side: SIDE for side in ("width", "height") if isinstance(inputs.get(side), int)}
        if unseeing and "prompt" in inputs:
            inputs["prompt"] = PROMPT
    return found
