"""python flux2_comfy_worker.py COMFYUI TWIN GIVEN OUT: ComfyUI's own loader, model and sampler on tensors.

Runs in a process of its own: ComfyUI's top-level names and arguments stay there. GIVEN and OUT are
safetensors; latents are [B, 128, H, W]. Prints the model's class, and `48` where this ComfyUI had to be told
the number of heads."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any


def main(comfy_folder: str, twin: str, given_file: str, out_file: str) -> None:
    sys.argv = ["main.py", "--cpu"]
    sys.path.insert(0, comfy_folder)
    os.chdir(comfy_folder)
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.model_management
    import comfy.sample
    import comfy.samplers
    import folder_paths
    import torch
    from comfy_extras.nodes_flux import get_schedule
    from safetensors.torch import load_file, save_file

    import nodes

    folder_paths.add_model_folder_path("diffusion_models", str(Path(twin).parent))
    told = ""
    try:
        (model,) = nodes.UNETLoader().load_unet(Path(twin).name, "default")
    except ValueError as error:
        if "num_heads 48" not in str(error):
            raise
        told = "48"
        count_heads()
        (model,) = nodes.UNETLoader().load_unet(Path(twin).name, "default")
    given = load_file(given_file)
    noise, positive, negative = given["noise"], given["positive"], given["negative"]
    references = [given[k] for k in sorted(given) if k.startswith("reference")]
    comfy.model_management.load_models_gpu([model])
    out = {}
    with torch.no_grad():
        repeated = [reference.repeat(len(noise), 1, 1, 1) for reference in references]
        for name, extra in (("plain", {}), ("referenced", {"ref_latents": repeated})):
            sigma = given["sigma"].expand(len(noise))
            denoised = model.model.apply_model(noise, sigma, c_crossattn=positive, **extra)
            out[f"velocity_{name}"] = (noise - denoised) / given["sigma"]
        out["sigmas"] = get_schedule(int(given["steps"]), noise.shape[-1] * noise.shape[-2])
        options = {"reference_latents": references, "pooled_output": None}
        out["latents"] = comfy.sample.sample_custom(
            model,
            noise,
            float(given["guidance"]),
            comfy.samplers.sampler_object("euler"),
            out["sigmas"],
            [[positive, options]],
            [[negative, options]],
            torch.zeros_like(noise),
            disable_pbar=True,
            seed=0,
        )
    save_file({k: v.float().contiguous() for k, v in out.items()}, out_file)
    print("loaded", type(model.model).__name__, told)


def count_heads() -> None:
    """ComfyUI before klein takes every FLUX.2 for [dev] with its 48 heads: count them from the width."""
    import comfy.model_detection

    detect = comfy.model_detection.detect_unet_config

    def detect_heads(*args: Any, **kwargs: Any) -> dict[str, Any]:
        config = detect(*args, **kwargs)
        return {**config, "num_heads": config["hidden_size"] // sum(config["axes_dim"])}

    comfy.model_detection.detect_unet_config = detect_heads


if __name__ == "__main__":
    main(*sys.argv[1:])
