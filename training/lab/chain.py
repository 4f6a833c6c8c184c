"""The stages, in order: base -> distilled; trajectories; SFT; simple RL and PPRL; merges; every row's measurement."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from clvr.dswm import words
from clvr.dswm.merge import merge
from clvr.dswm.plot import draw
from clvr.dswm.recipe import Number, Recipe, Source
from clvr.dswm.report import Report
from clvr.files import write_atomic

from .. import distill, pprl, sft_dit
from ..data import engine
from . import rows
from .config import LabConfig, deciding
from .rows import ROWS, Row
from .speeds import UNKNOWN, Speeds
from .stages import Folders, Stage

MERGES: Mapping[str, tuple[bool, tuple[str, ...]]] = {
    "base-simple": (False, ("sft", "simple")),
    "base-pprl": (False, ("sft", "pprl")),
    "dswm-sft": (True, ("sft",)),
    "dswm-simple": (True, ("sft", "simple")),
    "dswm-pprl": (True, ("sft", "pprl")),
}
"""Whether the distilled increment is in, and the aligned ones."""
CLOCKED = {"clock-base": "base", "clock-dswm": "dswm-pprl"}
REPORT = "merge.json"
_OPENING = 5.0
"""Seconds that a stage takes to load its models."""


class Chain:
    """All stages of a recipe, by name, in the order in which they run."""

    def __init__(self, config: LabConfig, device: torch.device, speeds: Speeds = UNKNOWN) -> None:
        self.config, self.device, self.speeds = config, device, speeds
        self.base = str(config.base)
        self.stages: dict[str, Stage] = {}
        self._trainings()
        for name, (few, parts) in MERGES.items():
            self._merge(name, few, parts)
        for row in ROWS:
            self._row(row)
        for name, model in CLOCKED.items():
            self._clock(name, model)

    def model(self, name: str, folders: Folders) -> Path:
        """The klein folder of a stage, or the base."""
        return self.config.base if name == "base" else folders[name] / "model"

    def _add(self, name: str, about: str, recipe: Mapping[str, Any], work: Any, needs: str, seconds: float) -> None:  # noqa: ANN401
        given = {"base": self.config.model, **recipe}
        needed = tuple(self.stages[need] for need in needs.split() if need != "base")
        self.stages[name] = Stage(name, about, given, work, needed, seconds + _OPENING)

    def _trainings(self) -> None:
        config, speeds = self.config, self.speeds
        cast = dataclasses.replace(config.data.cast, model=config.model)
        data = dataclasses.replace(config.data, cast=cast)
        made = {name: value for name, value in deciding(data).items() if name not in ("run", "shown", "shard")}

        def distilled(out: Path, _: Folders) -> object:
            return distill.start(config.distill, self.base, None, out)

        def trajectories(out: Path, _: Folders) -> object:
            drawn = dataclasses.replace(data, cast=dataclasses.replace(cast, model=self.base))
            return engine.run(drawn, out, lambda line: print(line, flush=True))

        def sft(out: Path, folders: Folders) -> object:
            return sft_dit.start(config.sft, self.base, folders["data"], out)

        self._add("distilled", "the base in a few steps without guidance", deciding(config.distill), distilled, "",
                  speeds.distill(config))  # fmt: skip
        self._add("data", "verified trajectories that the base draws", made, trajectories, "", speeds.data(config))
        self._add("sft", "SFT of the DiT on them", deciding(config.sft), sft, "data", speeds.sft(config))
        for name, about in (("simple", "simple RL on the SFT's weights"), ("pprl", "PPRL on the SFT's weights")):
            told = dataclasses.replace(config.rl, simple=name == "simple")
            recipe = {**deciding(told), "tasks": config.rl_tasks}
            self._add(name, about, recipe, self._rl(told), "sft data", speeds.rl(config))

    def _rl(self, told: pprl.PPRLConfig) -> Any:  # noqa: ANN401
        def work(out: Path, folders: Folders) -> object:
            data = folders["data"] if self.config.rl_tasks == "dataset" else None
            return pprl.start(told, str(folders["sft"] / "model"), data, out)

        return work

    def _merge(self, name: str, few: bool, parts: tuple[str, ...]) -> None:
        def work(out: Path, folders: Folders) -> None:
            recipe = self.merged(name, folders, out / "model", self.config.dtype)
            report = Report.of(merge(recipe))
            write_atomic(out / REPORT, json.dumps(report.json(), indent=1).encode() + b"\n")
            draw(report).save(out / "merge.png")
            for warning in words.warnings(report):
                print(warning, flush=True)

        needs = " ".join((*(["distilled"] if few else []), *parts))
        said = " + ".join((*(["distilled"] if few else []), *parts))
        self._add(name, f"clvr merge: base + {said}", {"dtype": self.config.dtype}, work, needs, 0.0)

    def merged(self, name: str, folders: Folders, out: Path, dtype: Number) -> Recipe:
        """What `clvr merge` is told for one of MERGES, from the folders of the stages that it needs."""
        few, parts = MERGES[name]
        aligned = {"sft": Path("model"), "simple": _lora(folders, "simple"), "pprl": _lora(folders, "pprl")}
        return Recipe(
            out,
            self.config.base,
            Source(folders["distilled"] / "model") if few else None,
            tuple(Source(folders[part] / aligned[part]) for part in parts),
            dtype,
            "diffusers",
            overwrite=True,
            sample=1,
        )

    def _row(self, row: Row) -> None:
        told = self.config.evaluation
        names = ("prompts", "categories", "seed", "shown") + (("rounds", "policy") if row.looped else ())
        recipe = {name: getattr(told, name) for name in names + (() if row.few else ("steps", "guidance"))}

        def work(out: Path, folders: Folders) -> None:
            rows.measure(row, self.model(row.model, folders), told, out, self.device)

        seconds = self.speeds.row(self.config, row)
        self._add(f"row-{row.key}", f"measured: {row.name}", recipe, work, row.model, seconds)

    def _clock(self, name: str, model: str) -> None:
        told = self.config.evaluation
        kept = ("timed", "prompts", "categories", "seed", "rounds", "policy", "steps", "guidance")
        recipe = {**{key: getattr(told, key) for key in kept}, "device": str(self.device)}

        def work(out: Path, folders: Folders) -> None:
            rows.clock(self.model(model, folders), told, out, self.device)

        seconds = self.speeds.clock(self.config, model != "base")
        self._add(name, f"seconds of whole trajectories, {model}", recipe, work, model, seconds)


def _lora(folders: Folders, name: str) -> Path:
    """The LoRA's file within its stage's folder."""
    if name not in folders:
        return Path()
    found = sorted((folders[name] / "lora").glob("*.safetensors"))
    return found[0].relative_to(folders[name])
