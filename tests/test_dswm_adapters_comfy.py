"""What ComfyUI's own loader applies is added as ComfyUI adds it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clvr.dswm.adapters import open_adapter
from clvr.flux2.keymap import key_of, to_bfl
from scripts.comfy import ComfyError, find

from .adapters_fixtures import SHAPES, delta, empty_model, loha, lokr, lora, modules, write

pytestmark = pytest.mark.comfy

BFL = modules("bfl")
NORMS = modules("bfl", dimensions=1)
IN_COMFYUI = (".attn.to_q", ".attn.to_k", ".attn.to_v", "_proj", ".to_out.0", "to_add_out", "norm_out", "_embedder")
"""The diffusers modules that every ComfyUI applies; it leaves out others, with a warning."""
LEFT_OUT = ("to_qkv_mlp_proj", "time_guidance_embed")


def alphas(names, first=1.5):
    return {f"{name}.alpha": torch.tensor(first + i) for i, name in enumerate(names)}


def loras(up, down, prefix, shapes, underscored=False):
    found = {}
    for i, (name, shape) in enumerate(shapes.items()):
        written = prefix + (name.replace(".", "_") if underscored else name)
        found[written + up], found[written + down] = lora(shape, 2 + i % 3, seed=i)
    return found


def of_modules(make, shapes=BFL, prefix="diffusion_model."):
    return {
        f"{prefix}{name}.{part}": tensor
        for i, (name, shape) in enumerate(shapes.items())
        for part, tensor in make(shape, seed=i).items()
    }


def kohya(shapes):
    return {
        **loras(".lora_up.weight", ".lora_down.weight", "lora_unet_", shapes, underscored=True),
        **alphas(f"lora_unet_{name.replace('.', '_')}" for name in shapes),
    }


def known_to_comfyui():
    return {
        name: shape
        for name, shape in modules("diffusers").items()
        if any(part in name for part in IN_COMFYUI) and not any(part in name for part in LEFT_OUT)
    }


def norms(suffix):
    return {f"diffusion_model.{name}{suffix}.diff": lora((*shape, 1), 1)[0][:, 0] for name, shape in NORMS.items()}


FORMS = {
    "comfyui": lambda: loras(".lora_up.weight", ".lora_down.weight", "diffusion_model.", BFL),
    "peft's halves": lambda: (
        loras(".lora_B.weight", ".lora_A.weight", "diffusion_model.", BFL)
        | alphas(f"diffusion_model.{name}" for name in BFL)
    ),
    "an adapter's name": lambda: loras(".lora_B.default.weight", ".lora_A.default.weight", "diffusion_model.", BFL),
    "diffusers' old halves": lambda: loras("_lora.up.weight", "_lora.down.weight", "diffusion_model.", BFL),
    "kohya": lambda: kohya(BFL),
    "diffusers": lambda: loras(".lora_B.weight", ".lora_A.weight", "transformer.", known_to_comfyui()),
    "lycoris": lambda: loras(".lora_up.weight", ".lora_down.weight", "lycoris_", known_to_comfyui(), underscored=True),
    "onetrainer": lambda: loras(
        ".lora_up.weight", ".lora_down.weight", "lora_transformer_", known_to_comfyui(), underscored=True
    ),
    "LoKr, whole": lambda: of_modules(lokr) | alphas(f"diffusion_model.{name}" for name in BFL),
    "LoKr, second factor": lambda: (
        of_modules(lambda s, seed: lokr(s, seed, ranks=(None, 3))) | alphas(f"diffusion_model.{name}" for name in BFL)
    ),
    "LoKr, first factor": lambda: (
        of_modules(lambda s, seed: lokr(s, seed, ranks=(2, None))) | alphas(f"diffusion_model.{name}" for name in BFL)
    ),
    "LoKr, both factors": lambda: (
        of_modules(lambda s, seed: lokr(s, seed, ranks=(2, 3))) | alphas(f"diffusion_model.{name}" for name in BFL)
    ),
    "LoKr without alpha": lambda: of_modules(lambda s, seed: lokr(s, seed, ranks=(None, 3))),
    "LoHa": lambda: of_modules(lambda s, seed: loha(s, 3, seed)) | alphas(f"diffusion_model.{name}" for name in BFL),
    "LoHa without alpha": lambda: of_modules(lambda s, seed: loha(s, 3, seed)),
    "difference": lambda: of_modules(lambda s, seed: {"diff": lora(s, 1, seed)[0].expand(s)}),
}
NORM_FORMS = {"norms": lambda: norms(""), "norms by .scale": lambda: norms(".scale")}
"""By version: ComfyUI's norms hold .weight, which names leave out, or .scale."""


@pytest.fixture(scope="module")
def comfy():
    try:
        return find()
    except ComfyError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"NO COMFYUI: {error}")


@pytest.fixture(scope="module")
def applied(comfy, tmp_path_factory):
    """form -> (file, ComfyUI's ΔW by BFL key, its complaints)."""
    everything = FORMS | NORM_FORMS
    folder = tmp_path_factory.mktemp("adapters")
    twin = folder / "twin.safetensors"
    save_file(to_bfl(empty_model().state_dict()), twin)
    files = [write(folder / f"{i}.safetensors", make()) for i, make in enumerate(everything.values())]
    worker = Path(__file__).parent / "adapters_comfy_worker.py"
    command = [sys.executable, str(worker), str(comfy), str(twin), str(folder / "out.safetensors"), *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    out = load_file(folder / "out.safetensors")
    return {
        form: (
            files[i],
            {key.partition("/")[2]: tensor for key, tensor in out.items() if key.startswith(f"{i}/")},
            [line for line in done.stdout.splitlines() if line.startswith(f"{i} ")],
        )
        for i, form in enumerate(everything)
    }


@pytest.mark.parametrize("form", FORMS)
def test_each_form_adds_what_comfyui_adds(applied, form):
    file, wanted, complaints = applied[form]
    assert wanted
    assert not complaints
    assert_same(file, wanted)


def test_differences_of_norms_add_what_comfyui_adds(applied):
    (loaded,) = [form for form in NORM_FORMS if not applied[form][2]]
    assert len(applied[loaded][1]) == len(NORMS)
    for form in NORM_FORMS:
        assert_same(applied[form][0], applied[loaded][1])


def assert_same(file, wanted):
    """wanted: BFL keys -> ΔW, of all that the file changes."""
    adapter = open_adapter(file, SHAPES)
    touched = {key_of(piece, "bfl").replace(".scale", ".weight") for piece in adapter.updates}
    assert touched == {key.replace(".scale", ".weight") for key in wanted}
    for key, tensor in wanted.items():
        torch.testing.assert_close(delta(adapter, key, "bfl"), tensor, rtol=1e-5, atol=1e-5, msg=key)
