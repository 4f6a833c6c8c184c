"""python klein_merge_comfy_worker.py COMFYUI MODELS DTYPE OUT: a merge in the graph and the same merge as a file,
sampled by ComfyUI.

MODELS holds diffusion_models/ and loras/ as scripts.twins lays them out, OUT is a safetensors file that takes the
latents, [1, 128, 4, 4]. Prints `48` where this ComfyUI takes every FLUX.2 for [dev] with its 48 heads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from merge_comfy_worker import merging, start

STEPS = 4


def main(comfy_folder: str, models: str, dtype: str, out: str) -> None:
    start(comfy_folder)
    import comfy.sd
    import comfy.utils
    import torch
    from safetensors.torch import save_file

    from clvr.dswm.merge import merge
    from clvr.dswm.recipe import Recipe, Source
    from scripts import twins

    folder = Path(models)
    base, distilled, aligned = (folder / "diffusion_models" / n for n in (twins.BASE, twins.DISTILLED, twins.ALIGNED))
    lora = folder / "loras" / twins.LORA
    number: Any = "fp32" if dtype == "float32" else "bf16"

    def load(path: Path) -> Any:
        return comfy.sd.load_diffusion_model(str(path), model_options={"dtype": getattr(torch, dtype)})

    try:
        load(base)
    except ValueError as error:
        if "num_heads 48" not in str(error):
            raise
        print("48")
        return
    increments = {"plain": (Source(aligned),), "lora": (Source(aligned), Source(lora))}
    latents = {}
    for name, align in increments.items():
        file = folder / "diffusion_models" / f"{name}-{dtype}.safetensors"
        merge(Recipe(file, base, Source(distilled), align, number))
        third = load(aligned)
        if name == "lora":
            third, _ = comfy.sd.load_lora_for_models(third, None, comfy.utils.load_torch_file(str(lora)), 1.0, 0.0)
        merged = merging().merged(load(base), load(distilled), third, 1.0, 1.0)
        for path in ("full", "low"):
            latents[f"{name} {path} graph"] = sampled(merged, path)
            latents[f"{name} {path} file"] = sampled(load(file), path)
    latents["distilled"] = sampled(load(distilled), "full")
    save_file(latents, out)


def sampled(model: Any, path: str) -> Any:
    import comfy.model_management as management
    import comfy.sample
    import comfy.samplers
    import torch
    from comfy_extras.nodes_flux import get_schedule

    management.unload_all_models()
    room = {"full": 1e32, "low": 0.1}[path]
    load = type(model).partially_load
    model.partially_load = lambda device, _, **options: load(model, device, room, **options)
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(1, 128, 4, 4, generator=generator)
    width = model.model.model_config.unet_config["context_in_dim"]
    text = [[torch.randn(1, 64, width, generator=generator), {"pooled_output": None}]]
    found = comfy.sample.sample_custom(
        model,
        noise,
        1.0,
        comfy.samplers.sampler_object("euler"),
        get_schedule(STEPS, 16),
        text,
        text,
        torch.zeros_like(noise),
        disable_pbar=True,
        seed=0,
    )
    assert model.model.model_lowvram is (path == "low")
    return found.float().contiguous()


if __name__ == "__main__":
    main(*sys.argv[1:])
