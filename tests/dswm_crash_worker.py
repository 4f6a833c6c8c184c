"""python -m tests.dswm_crash_worker FOLDER FORM: merges into FOLDER/out again and again, killed each time a
little later, first at every file operation in turn and then at moments in between; prints what was left."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from clvr.dswm.merge import merge
from clvr.dswm.provenance import RECORD
from clvr.dswm.recipe import Recipe, Source, Strength
from clvr.flux2 import headers

WATCHED = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")
MOMENTS = 12


def recipe(folder: Path, form: str, strength: float) -> Recipe:
    sources = Source(folder / "d.safetensors", Strength(strength)), (Source(folder / "a.safetensors"),)
    return Recipe(folder / "out", folder / "b.safetensors", *sources, form=form, overwrite=True, threads=2)


def weights(out: Path) -> Path:
    return out / "diffusion_pytorch_model.safetensors" if out.is_dir() else out


def state(folder: Path) -> str:
    """none, or λ of the distilled model in the output's record; 'damaged' for anything else."""
    if not (folder / "out").exists():
        return "none"
    try:
        record = json.loads(headers.read(weights(folder / "out")).metadata[RECORD])
        found = load_file(weights(folder / "out"))
    except (OSError, ValueError, KeyError, SafetensorError):
        return "damaged"
    finite = all(bool(t.isfinite().all()) and bool(t.any()) for t in found.values())
    return record["inputs"][1]["lambda"] if finite else "damaged"


def die_at(number: int, folder: Path) -> None:
    """Kill this process at its `number`th file operation under `folder` that can change something."""
    seen = 0

    def hook(event: str, arguments: tuple) -> None:
        nonlocal seen
        if event not in WATCHED or not str(arguments[0]).startswith(str(folder)):
            return
        if event == "open" and arguments[1] in ("r", "rb"):
            return
        seen += 1
        if seen > number:
            os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def attempt(folder: Path, form: str, operation: int | None = None, seconds: float | None = None) -> bool:
    """Merge with λ = 0.5 in a child that is killed; whether it got to the end."""
    child = os.fork()
    if not child:
        if operation is not None:
            die_at(operation, folder)
        merge(recipe(folder, form, 0.5))
        os._exit(0)
    if seconds is not None:
        time.sleep(seconds)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    return os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0


def complete(folder: Path, form: str, strength: float) -> None:
    child = os.fork()
    if not child:
        merge(recipe(folder, form, strength))
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0


def one(folder: Path, form: str, old: bool, **kill: float) -> dict[str, object]:
    """A killed merge over an old output or none, and the merge after it."""
    out = folder / "out"
    shutil.rmtree(out) if out.is_dir() else out.unlink(missing_ok=True)
    if old:
        complete(folder, form, 1.0)
    finished = attempt(folder, form, **kill)
    left = state(folder)
    debris = sum(p.name.startswith(".") for p in folder.iterdir())
    complete(folder, form, 0.25)
    names = sorted(p.name for p in folder.iterdir())
    return {
        "old": old,
        "kill": kill,
        "finished": finished,
        "left": left,
        "debris": debris,
        "names": names,
        "after": state(folder),
    }


def main() -> None:
    torch.set_num_threads(1)
    folder, form = Path(sys.argv[1]), sys.argv[2]
    for old in (False, True):
        operation = 0
        while True:
            result = one(folder, form, old, operation=operation)
            print(json.dumps(result), flush=True)
            if result["finished"]:
                break
            operation += 1
        began = time.monotonic()
        complete(folder, form, 1.0)
        whole = time.monotonic() - began
        random.seed(old)
        for _ in range(MOMENTS):
            print(json.dumps(one(folder, form, old, seconds=random.uniform(0, 1.1 * whole))), flush=True)


if __name__ == "__main__":
    main()
