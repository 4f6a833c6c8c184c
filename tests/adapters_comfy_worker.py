"""python adapters_comfy_worker.py COMFYUI TWIN OUT LORA…: what ComfyUI's own loader adds for each LoRA.

Runs in a process of its own. The i-th LoRA's ΔW of a key is `i/key` in OUT, safetensors in fp32. Prints each
key that ComfyUI did not load, after the LoRA's number."""

from __future__ import annotations

import logging
import os
import sys

from flux2_comfy_worker import count_heads


def main(comfy_folder: str, twin: str, out_file: str, *loras: str) -> None:
    sys.argv = ["main.py", "--cpu"]
    sys.path.insert(0, comfy_folder)
    os.chdir(comfy_folder)
    import comfy.options

    comfy.options.enable_args_parsing()
    import comfy.lora
    import comfy.sd
    import torch
    from safetensors.torch import load_file, save_file

    count_heads()
    model = comfy.sd.load_diffusion_model(twin)
    known = comfy.lora.model_lora_keys_unet(model.model, {})
    weights = model.model.state_dict()
    out = {}
    for i, lora in enumerate(loras):
        logging.getLogger().handlers = [Named(i)]
        patched = model.clone()
        patched.add_patches(comfy.lora.load_lora(load_file(lora), known))
        for key, patches in patched.patches.items():
            empty = torch.zeros(weights[key].shape)
            out[f"{i}/{key.removeprefix('diffusion_model.')}"] = comfy.lora.calculate_weight(patches, empty, key)
    save_file({key: tensor.contiguous() for key, tensor in out.items()}, out_file)


class Named(logging.Handler):
    """Prints what ComfyUI complains about."""

    def __init__(self, number: int) -> None:
        super().__init__(logging.WARNING)
        self.number = number

    def emit(self, record: logging.LogRecord) -> None:
        print(self.number, record.getMessage())


if __name__ == "__main__":
    main(*sys.argv[1:])
