"""What the output is made of: one file, a transformer's folder, or a whole pipeline's."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from ..errors import OutputError
from ..files import sync_folder
from ..flux2 import headers
from ..flux2.folder import CLASSES, WEIGHTS
from ..hub import PICKLES
from .plan import Plan
from .provenance import RECORD
from .recipe import Recipe


@dataclass(frozen=True)
class Places:
    """copies: the files of the pipeline that go along with the transformer."""

    folder: bool
    pipeline: Path | None
    copies: tuple[Path, ...]

    def begin(self, stage: Path, plan: Plan) -> Path:
        """Make the folders and small files under `stage`; where the weights go."""
        if not self.folder:
            return stage
        part = stage / "transformer" if self.pipeline else stage
        part.mkdir(parents=True)
        (part / "config.json").write_text(json.dumps(plan.config(), indent=2) + "\n", "utf-8")
        for path in self.copies:
            assert self.pipeline
            target = stage / path.relative_to(self.pipeline)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        return part / WEIGHTS["transformer"]

    def finish(self, stage: Path) -> None:
        """Flush what was copied to disk."""
        if not self.folder:
            return
        for path in sorted(stage.rglob("*")):
            if path.is_dir():
                sync_folder(path)
            elif path.suffix != ".safetensors" or self.copies:
                with open(path, "rb") as file:
                    os.fsync(file.fileno())
        sync_folder(stage)


def places_of(plan: Plan) -> Places:
    folder = plan.recipe.form == "diffusers"
    pipeline = plan.pipeline if folder else None
    if pipeline is None:
        return Places(folder, None, ())
    kept = [path for path in pipeline.iterdir() if path.suffix in (".json", ".md") or path.name.startswith("LICENSE")]
    for part in CLASSES.keys() - {"transformer"}:
        kept += [path for path in sorted((pipeline / part).rglob("*")) if path.suffix.lower() not in PICKLES]
    return Places(True, pipeline, tuple(path for path in kept if path.is_file()))


def refuse_foreign_folder(recipe: Recipe) -> None:
    """A folder is replaced only by a folder, and only where it is a merge's output itself."""
    out = recipe.out
    if recipe.form != "diffusers" and out.is_dir():
        raise OutputError(f"{out} is a folder.", "Name a file: the one that ComfyUI is to load.")
    if recipe.form == "diffusers" and out.is_file():
        raise OutputError(f"{out} is a file.", "Name a folder for the diffusers form.")
    if recipe.form == "diffusers" and out.is_dir() and recipe.overwrite:
        weights = [out / WEIGHTS["transformer"], out / "transformer" / WEIGHTS["transformer"]]
        if not any(path.exists() and RECORD in headers.read(path).metadata for path in weights):
            raise OutputError(f"{out} is a folder that no merge wrote.", "Name another output.")
