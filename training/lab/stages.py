"""Stages: each a folder that is named by its recipe's hash, so that a change begins a new one beside the old."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from clvr.files import write_atomic
from clvr.hub import read_json

STAMP = "stamp.json"
Folders = Mapping[str, Path]
"""Where the stages that a stage needs left their results, by name."""


@dataclass(frozen=True)
class Stage:
    """`recipe` and the stages that it `needs` decide the result. `work` is given its own folder and theirs, and goes on
    where a kill stopped it. `seconds`: what it is expected to take here."""

    name: str
    about: str
    recipe: Mapping[str, Any]
    work: Callable[[Path, Folders], object]
    needs: tuple[Stage, ...] = ()
    seconds: float = 0.0

    @cached_property
    def digest(self) -> str:
        """8 hex digits."""
        told = {"stage": self.name, "recipe": self.recipe, "needs": [stage.digest for stage in self.needs]}
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:8]

    def folder(self, root: Path) -> Path:
        return root / f"{self.name}-{self.digest}"

    def stamp(self, root: Path) -> dict[str, Any]:
        """Seconds spent and whether it is done, as earlier calls left them. Raises WeightsError for a damaged one."""
        path = self.folder(root) / STAMP
        return read_json(path) if path.exists() else {"done": False, "seconds": 0.0}

    def done(self, root: Path) -> bool:
        return self.stamp(root)["done"] is True

    def left(self, root: Path) -> float:
        """Expected seconds from now on."""
        stamp = self.stamp(root)
        return 0.0 if stamp["done"] else max(self.seconds - stamp["seconds"], 0.1 * self.seconds)

    def run(self, root: Path) -> None:
        """Raises what the work raises; the time until then is remembered."""
        out, before, began = self.folder(root), self.stamp(root)["seconds"], time.monotonic()
        out.mkdir(parents=True, exist_ok=True)
        done = False
        try:
            self.work(out, {stage.name: stage.folder(root) for stage in self.needs})
            done = True
        finally:
            spent = before + time.monotonic() - began
            told = {"stage": self.name, "done": done, "seconds": round(spent, 1), "recipe": self.recipe}
            write_atomic(out / STAMP, json.dumps(told, indent=1).encode() + b"\n")
