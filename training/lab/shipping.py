"""The laboratory's weights, put beside the built-in model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from clvr.dswm.merge import merge
from clvr.errors import MissingFileError

from .chain import Chain

TRAINED = {"sft": "sft", "distilled": "distilled"}
"""Variants of clvr/builtin, and the stages whose folders they are."""
MERGED = ("merged", "dswm-pprl")
LORAS = ("simple", "pprl")


def ship(chain: Chain, root: Path, out: Path) -> Iterator[Path]:
    """Write what the finished stages under `root` made into `out`, replacing what is there: klein folders, the merged
    one in bf16 as the others, and both LoRAs of RL. Yields each path. Raises MissingFileError for a stage that is not
    done."""
    needed = (*TRAINED.values(), MERGED[1], *LORAS)
    for name in needed:
        if not chain.stages[name].done(root):
            raise MissingFileError(f"The stage {name} is not done.", f"python -m training.lab --only {name}")
    folders = {name: chain.stages[name].folder(root) for name in needed}
    for variant, stage in TRAINED.items():
        yield _copied(folders[stage] / "model", out / variant)
    yield merge(chain.merged(MERGED[1], folders, out / MERGED[0], "bf16")).path
    for name in LORAS:
        yield _copied(folders[name] / "lora", out / "loras" / name)


def _copied(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target
