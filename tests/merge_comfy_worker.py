"""python merge_comfy_worker.py COMFYUI: merges of small MODELs in ComfyUI's own ModelPatcher, as numbers in JSON.

Runs in a process of its own: ComfyUI's top-level names and arguments stay there."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
OUT, IN = 48, 32


def start(comfy_folder: str) -> None:
    """ComfyUI's modules become importable, and the pack as `pack`, as ComfyUI loads it from its folder."""
    sys.argv = ["main.py", "--cpu"]
    sys.path[:0] = [comfy_folder, str(ROOT)]
    os.chdir(comfy_folder)
    import comfy.options

    comfy.options.enable_args_parsing()
    spec = importlib.util.spec_from_file_location("pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    assert spec
    assert spec.loader
    sys.modules["pack"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sys.modules["pack"])


def merging() -> Any:
    return importlib.import_module("pack.nodes.merged_weights")


class Lab:
    """Small models of one architecture: a Linear with bias, one without, and a norm; MODELs around them."""

    def __init__(self, dtype: str) -> None:
        import torch

        self.dtype = getattr(torch, dtype)
        self._seeds = itertools.count()

    def model(self, near: Any = None, shift: float = 0.05) -> Any:
        """A MODEL of random weights, or one whose weights lie near to another's."""
        import comfy.ops
        import torch
        from comfy.model_patcher import ModelPatcher

        generator = torch.Generator().manual_seed(next(self._seeds))
        ops = comfy.ops.disable_weight_init
        inner = torch.nn.Module()
        inner.one = ops.Linear(IN, OUT, bias=True, dtype=self.dtype)
        inner.two = ops.Linear(OUT, IN, bias=False, dtype=self.dtype)
        inner.norm = ops.LayerNorm(IN, dtype=self.dtype)
        outer = torch.nn.Module()
        outer.diffusion_model = inner
        origin = near.model.state_dict() if near else {}
        with torch.no_grad():
            for key, weight in outer.named_parameters():
                noise = torch.randn(weight.shape, generator=generator)
                weight.copy_(origin[key].float() + shift * noise if near else noise)
        device = torch.device("cpu")
        return ModelPatcher(outer.requires_grad_(False), device, device)

    def lora(self, model: Any, key: str = "one.weight", strength: float = 0.7, rank: int = 4) -> Any:
        """A clone with a LoRA on one weight, and the LoRA's ΔW in fp32."""
        import torch
        from comfy.weight_adapter.lora import LoRAAdapter

        key = f"diffusion_model.{key}"
        shape = model.model.state_dict()[key].shape
        generator = torch.Generator().manual_seed(1000 + next(self._seeds))
        up = torch.randn(shape[0], rank, generator=generator) * 0.05
        down = torch.randn(rank, shape[1], generator=generator) * 0.05
        clone = model.clone()
        clone.add_patches({key: LoRAAdapter(set(), (up, down, None, None, None, None))}, strength)
        return clone, {key: strength * torch.mm(up, down)}


def weights(model: Any) -> dict[str, Any]:
    return {key: value.detach().clone() for key, value in model.model.state_dict().items()}


def reference(base: Any, models: list[Any], strengths: list[float], extra: dict[str, Any] | None = None) -> Any:
    """base + Σ λ (model - base), in fp32 and in order; `extra` is added to the last model."""
    found = {}
    for key, weight in weights(base).items():
        b = weight.float()
        total = b.clone()
        for i, (model, strength) in enumerate(zip(models, strengths, strict=True)):
            value = weights(model)[key].float()
            if extra and i == len(models) - 1 and key in extra:
                value = value + extra[key]
            total += (value - b) * strength
        found[key] = total
    return found


def full(model: Any, device: Any = None) -> dict[str, Any]:
    """What lies in the model when it is loaded whole."""
    model.patch_model(device_to=model.load_device)
    try:
        return weights(model)
    finally:
        model.unpatch_model(model.offload_device)


def low(model: Any) -> dict[str, Any]:
    """What its layers compute with when there is no room for any of them: patches applied on the way."""
    import comfy.ops
    import torch

    model.patch_model(device_to=model.load_device, lowvram_model_memory=1)
    try:
        assert model.model.model_lowvram
        found = {}
        for name, layer in model.model.diffusion_model.named_children():
            given = torch.zeros(1, dtype=layer.weight.dtype)
            weight, bias = comfy.ops.cast_bias_weight(layer, given)[:2]
            found[f"diffusion_model.{name}.weight"] = weight.clone()
            if bias is not None:
                found[f"diffusion_model.{name}.bias"] = bias.clone()
        return found
    finally:
        model.unpatch_model(model.offload_device)


def differing(found: dict[str, Any], wanted: dict[str, Any], dtype: Any) -> int:
    """Elements that are not the wanted ones, rounded once."""
    assert found.keys() == wanted.keys()
    assert all(found[key].dtype == dtype for key in found)
    return sum(int((found[key] != wanted[key].to(dtype)).sum()) for key in wanted)


def both(lab: Lab, model: Any, wanted: dict[str, Any]) -> list[int]:
    return [differing(load(model), wanted, lab.dtype) for load in (full, low, full)]


def plain(lab: Lab) -> Any:
    base = lab.model()
    distilled, aligned = lab.model(base), lab.model(base)
    merged = merging().merged(base, distilled, aligned, 1.0, 1.0)
    return both(lab, merged, reference(base, [distilled, aligned], [1.0, 1.0]))


def strengths(lab: Lab) -> Any:
    base = lab.model()
    distilled, aligned = lab.model(base), lab.model(base)
    merged = merging().merged(base, distilled, aligned, 0.75, -0.5)
    return both(lab, merged, reference(base, [distilled, aligned], [0.75, -0.5]))


def nothing_added(lab: Lab) -> Any:
    """Patches of a merge that adds nothing, and weights that differ from the distilled ones."""
    base = lab.model()
    distilled, aligned = lab.model(base), lab.model(base)
    merged = merging().merged(base, distilled, aligned, 1.0, 0.0)
    return [len(merged.patches), *both(lab, merged, weights(distilled))]


def lora_on_aligned(lab: Lab) -> Any:
    base = lab.model()
    distilled, sft = lab.model(base), lab.model(base)
    aligned, delta = lab.lora(sft)
    merged = merging().merged(base, distilled, aligned, 1.0, 0.8)
    return both(lab, merged, reference(base, [distilled, sft], [1.0, 0.8], delta))


def lora_on_base(lab: Lab) -> Any:
    """The aligned MODEL is the base with a LoRA: patches only where the LoRA is."""
    base = lab.model()
    distilled = lab.model(base)
    aligned, delta = lab.lora(base)
    merged = merging().merged(base, distilled, aligned, 1.0, 1.0)
    wanted = {**weights(distilled)}
    for key in delta:
        wanted[key] = reference(base, [distilled, base], [1.0, 1.0], delta)[key]
    return [len(merged.patches), *both(lab, merged, wanted)]


def lora_on_distilled(lab: Lab) -> Any:
    base = lab.model()
    distilled, aligned = lab.model(base), lab.model(base)
    patched, delta = lab.lora(distilled)
    merged = merging().merged(base, patched, aligned, 1.0, 1.0)
    wanted = reference(base, [distilled, aligned], [1.0, 1.0])
    for key, update in delta.items():
        b = weights(base)[key].float()
        wanted[key] = weights(distilled)[key].float() + update + (weights(aligned)[key].float() - b)
    return both(lab, merged, wanted)


def chain(lab: Lab) -> Any:
    """Two aligned models in a row are one sum with one rounding."""
    base = lab.model()
    distilled, one, two = lab.model(base), lab.model(base), lab.model(base)
    first = merging().merged(base, distilled, one, 1.0, 0.5)
    second = merging().merged(base, first, two, 1.0, -0.25)
    return both(lab, second, reference(base, [distilled, one, two], [1.0, 0.5, -0.25]))


def lora_after(lab: Lab) -> Any:
    """A LoRA on the merged MODEL does what it does to a file of the merged weights."""
    base = lab.model()
    distilled, aligned = lab.model(base), lab.model(base)
    merged = merging().merged(base, distilled, aligned, 1.0, 1.0)
    file = lab.model()
    file.model.load_state_dict(full(merged))
    patched, _ = lab.lora(merged)
    twin = file.clone()
    twin.add_patches(
        {key: patch[1] for key, (*_, patch) in patched.patches.items() if len(patched.patches[key]) > 1}, 0.7
    )
    return [differing(load(patched), load(twin), lab.dtype) for load in (full, low)]


def restored(lab: Lab) -> Any:
    """After loading and unloading: weights that changed, and weights that moved in memory, of all three models."""
    base = lab.model()
    models = [base, lab.model(base), lab.model(base)]
    before = [weights(model) for model in models]
    places = [{k: w.data_ptr() for k, w in model.model.state_dict().items()} for model in models]
    merged = merging().merged(*models, 1.0, 1.0)
    full(merged)
    low(merged)
    changed = sum(differing(weights(m), was, lab.dtype) for m, was in zip(models, before, strict=True))
    moved = sum(
        w.data_ptr() != was[k] for m, was in zip(models, places, strict=True) for k, w in m.model.state_dict().items()
    )
    shared = merged.model is models[1].model
    return {"changed": changed, "moved": moved, "shared": shared, "patches": len(models[1].patches)}


def memory(lab: Lab) -> Any:
    """Bytes of tensors that a merge holds beyond its inputs' own, and that loading at low VRAM leaves."""
    import gc

    import torch

    def held() -> int:
        gc.collect()
        storages = {}
        for thing in gc.get_objects():
            if isinstance(thing, torch.Tensor):
                storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
        return sum(storages.values())

    base = lab.model()
    distilled, aligned = lab.model(base), lab.model(base)
    before = held()
    merged = merging().merged(base, distilled, aligned, 1.0, 1.0)
    made = held() - before
    low(merged)
    used, size = held() - before, sum(w.nbytes for w in weights(base).values())
    return {"before": before, "made": made, "used": used, "model": size}


def reloaded(lab: Lab) -> Any:
    """While another MODEL of the same weights is loaded with patches, a merge sees the weights without them."""
    base = lab.model()
    distilled = lab.model(base)
    aligned, delta = lab.lora(base)
    other, _ = lab.lora(base, "two.weight")
    merged = merging().merged(base, distilled, aligned, 1.0, 1.0)
    wanted = {**weights(distilled)}
    for key in delta:
        wanted[key] = reference(base, [distilled, base], [1.0, 1.0], delta)[key]
    other.patch_model(device_to=other.load_device)
    aligned.patch_model(device_to=aligned.load_device)
    during = differing(full(merged), wanted, lab.dtype)
    again = merging().merged(base, distilled, aligned, 1.0, 1.0)
    return [during, differing(full(again), wanted, lab.dtype)]


def remade(lab: Lab) -> Any:
    """A patch that ComfyUI made anew from its parts, as its prefetching does, is the same patch."""
    base = lab.model()
    merged = merging().merged(base, lab.model(base), lab.model(base), 1.0, 1.0)
    wanted = full(merged)
    for key, [(one, patch, *rest)] in merged.patches.items():
        merged.patches[key] = [(one, type(patch)(patch.loaded_keys, patch.weights), *rest)]
    return both(lab, merged, wanted)


def identities(lab: Lab) -> Any:
    """Whether ComfyUI takes a merge for the distilled MODEL, for another merge, for its own clone."""
    base = lab.model()
    distilled, aligned = lab.model(base), lab.model(base)
    one, two = (merging().merged(base, distilled, aligned, 1.0, 1.0) for _ in range(2))
    others = {"distilled": distilled, "another": two, "clone": one.clone()}
    return {name: bool(one.clone_has_same_weights(other)) for name, other in others.items()}


def half(lab: Lab) -> Any:
    """Where ComfyUI hands the weights over in fp16, as it does on many graphics cards."""
    import comfy.model_management as management
    import torch

    known = vars(management).setdefault("LORA_COMPUTE_DTYPES", {})
    known[torch.device("cpu")] = torch.float16
    try:
        return plain(lab)
    finally:
        known.clear()


def naive(lab: Lab) -> Any:
    """What ComfyUI's own patches, + aligned - base, make of it: elements that differ."""
    base = lab.model()
    distilled, aligned = lab.model(base, 0.01), lab.model(base, 0.01)
    merged = distilled.clone()
    merged.add_patches(aligned.get_key_patches("diffusion_model."), 1.0, 1.0)
    merged.add_patches(base.get_key_patches("diffusion_model."), -1.0, 1.0)
    return [differing(low(merged), reference(base, [distilled, aligned], [1.0, 1.0]), lab.dtype)]


def refusals(lab: Lab) -> Any:
    """What is said of models that cannot be merged."""
    import torch
    from comfy.quant_ops import QuantizedTensor

    base = lab.model()
    distilled = lab.model(base)
    smaller, wider, rough, scaled, empty = (lab.model(base) for _ in range(5))
    del smaller.model.diffusion_model.two
    wider.model.diffusion_model.two = torch.nn.Linear(2 * OUT, IN, bias=False)
    for model, lossy in (
        (rough, lambda weight: weight.to(torch.float8_e4m3fn)),
        (scaled, lambda weight: QuantizedTensor.from_float(weight.detach(), "TensorCoreFP8Layout")),
    ):
        layer = model.model.diffusion_model.one
        layer.weight = torch.nn.Parameter(lossy(layer.weight), requires_grad=False)
    empty.model = torch.nn.Module()
    pairs = {
        "smaller aligned": (base, smaller),
        "smaller base": (smaller, base),
        "wider aligned": (base, wider),
        "fp8 aligned": (base, rough),
        "quantised base": (scaled, base),
        "empty aligned": (base, empty),
    }
    return {
        name: said(lambda one=one, two=two: merging().merged(one, distilled, two, 1.0, 1.0))
        for name, (one, two) in pairs.items()
    }


def said(act: Callable[[], object]) -> str:
    try:
        act()
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
    return ""


SCENES = (
    plain,
    strengths,
    nothing_added,
    lora_on_aligned,
    lora_on_base,
    lora_on_distilled,
    chain,
    lora_after,
    restored,
    memory,
    reloaded,
    remade,
    half,
    naive,
    identities,
    refusals,
)


def main(comfy_folder: str) -> None:
    start(comfy_folder)
    found = {dtype: {scene.__name__: scene(Lab(dtype)) for scene in SCENES} for dtype in ("float32", "bfloat16")}
    print("RESULT", json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
