"""MODEL DATA, then pairs of RECIPE and OUT: trains each, in however many processes torchrun started."""

from __future__ import annotations

import sys
from pathlib import Path

from training.recipe import load
from training.sft_dit import SFTConfig, start

if __name__ == "__main__":
    model, data, *pairs = sys.argv[1:]
    for recipe, out in zip(pairs[::2], pairs[1::2], strict=True):
        start(load(Path(recipe), SFTConfig), model, Path(data), Path(out))
