"""python -m clvr.flux2.export FOLDER OUT.safetensors: a folder's transformer as BFL's single bf16 file, for
ComfyUI's own loader."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..errors import ClvrError, RunFolderError
from ..hub import weight_files
from .folder import WEIGHTS, inspect
from .keymap import to_bfl


def export(folder: Path, out: Path) -> None:
    """Write `out`, which must not exist. Raises MissingFileError, WeightsError, RunFolderError."""
    inspect(folder)
    if out.exists():
        raise RunFolderError(f"{out} is already there.", "Name a new file.")
    tensors = {}
    for file in weight_files(folder / "transformer", WEIGHTS["transformer"]):
        tensors |= load_file(file)
    twin = {key: tensor.to(torch.bfloat16).contiguous() for key, tensor in to_bfl(tensors).items()}
    partial = out.with_name(f".{out.name}.partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_file(twin, partial, metadata={"format": "pt"})
            os.replace(partial, out)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise RunFolderError(f"Cannot write {out}: {error}.", "Free some space or name another place.") from error


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m clvr.flux2.export", description=__doc__)
    parser.add_argument("folder", type=Path, help="a FLUX.2 [klein] folder in diffusers' layout")
    parser.add_argument("out", type=Path, help="the file to write")
    arguments = parser.parse_args()
    try:
        export(arguments.folder, arguments.out)
    except ClvrError as error:
        parser.exit(1, f"{error}\n")


if __name__ == "__main__":
    main()
