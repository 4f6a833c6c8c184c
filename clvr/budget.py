"""The thinking budget: how much the loop may spend, and when it may stop earlier."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import BudgetError
from .trajectory import Cost

Preset = Literal["fast", "balanced", "thorough"]
PRESETS: tuple[Preset, ...] = get_args(Preset)


@dataclass(frozen=True)
class Budget:
    """Any mixture of limits; None is no limit. A limit is never passed by more than the call in flight, save that
    a run always draws once: where the VLM used everything up before that, the prompt is drawn as it is.

    steps: drawings of the loop (the paper: at most 8, A.8). candidates: images a step. nfe: function
    evaluations of the generator over the run, an image under CFG counting two a denoising step. seconds: of
    planning, drawing and judging; waiting for a person does not count. vlm_calls: requests to the VLM. tokens: of
    the VLM, read and written. batch: candidates drawn at once, None for all of a step; smaller batches save the
    rest of them once one has passed. verify_every: the goal's whole checklist every n-th step. threshold: the
    score in (0, 1] at which the goal counts as reached. patience: steps in a row that may fail to raise the best
    score."""

    steps: int = 8
    candidates: int = 1
    nfe: int | None = None
    seconds: float | None = None
    vlm_calls: int | None = None
    tokens: int | None = None
    batch: int | None = None
    verify_every: int = 1
    threshold: float = 1.0
    patience: int = 4

    def __post_init__(self) -> None:
        for name in ("steps", "candidates", "verify_every", "patience"):
            _at_least_one(name, getattr(self, name))
        for name in ("nfe", "vlm_calls", "tokens", "batch"):
            if getattr(self, name) is not None:
                _at_least_one(name, getattr(self, name))
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise BudgetError(f"seconds={self.seconds} leaves no time.", "Give a positive number of seconds.")
        if not 0 < self.threshold <= 1:
            raise BudgetError(f"threshold={self.threshold} is no score.", "Scores lie in (0, 1]; 1 is every check.")

    @classmethod
    def preset(cls, name: str) -> Budget:
        """A budget by name. The rounds follow table 8b of the paper (DSWM's columns): of GenEval's prompts 68 % end
        within two iterations and 99 % within four, of PRISM's longer ones 41 % and 98 %. No preset limits
        evaluations, seconds, calls or tokens: what these come to depends on the models and the machine.

        fast: a drawing and one correction, one image each; enough for most short prompts.
        balanced: four rounds, after which hardly a prompt needed another, with a second candidate each, since
        another seed costs no planning; two rounds without a gain end it.
        thorough: the paper's limit of eight rounds and VisionDirector's four candidates, in twos, so that the
        second two are drawn only where the first did not pass; four rounds may pass without a gain.

        Raises BudgetError for any other name."""
        match name:
            case "fast":
                return cls(steps=2, candidates=1, patience=1)
            case "balanced":
                return cls(steps=4, candidates=2, patience=2)
            case "thorough":
                return cls(steps=8, candidates=4, batch=2, patience=4)
        raise BudgetError(f"There is no budget '{name}'.", f"Use {', '.join(PRESETS)}, or limits like steps=6.")

    @classmethod
    def parse(cls, text: str, base: Budget | None = None) -> Budget:
        """'steps=8,nfe=400,seconds=90' as a budget, over `base`; 'none' lifts a limit. A preset's name may come
        first, and takes the place of the base: 'balanced,nfe=400'. Raises BudgetError."""
        fields = {f.name: f for f in dataclasses.fields(cls)}
        changes: dict[str, int | float | None] = {}
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if parts and parts[0] in PRESETS:
            base = cls.preset(parts.pop(0))
        for part in parts:
            name, equals, value = (s.strip() for s in part.partition("="))
            if name not in fields or not equals:
                raise BudgetError(f"'{part}' is no limit.", _HOW.format(limits=", ".join(fields)))
            changes[name] = _number(name, value, optional="None" in str(fields[name].type))
        return dataclasses.replace(base or cls(), **changes)  # type: ignore[arg-type]

    @property
    def name(self) -> str:
        """The preset that it is, apart from limits that no preset sets; '' for none."""
        bare = dataclasses.replace(self, nfe=None, seconds=None, vlm_calls=None, tokens=None)
        return next((name for name in PRESETS if Budget.preset(name) == bare), "")

    def exhausted(self, spent: Cost, steps: int, elapsed: float) -> str:
        """Why no further round may start, or ''. `elapsed` is the run's time in seconds."""
        if steps >= self.steps:
            return f"the budget of {self.steps} steps is used"
        if self.nfe is not None and spent.nfe >= self.nfe:
            return f"the budget of {self.nfe} function evaluations is used ({spent.nfe})"
        return self.used(spent, elapsed)

    def used(self, spent: Cost, elapsed: float, asking: bool = True) -> str:
        """Why nobody may be asked any more, or ''. `asking` is False for who answers without a VLM."""
        if self.seconds is not None and elapsed >= self.seconds:
            return f"the budget of {self.seconds:g} seconds is used ({elapsed:.1f})"
        if asking and self.vlm_calls is not None and spent.usage.calls >= self.vlm_calls:
            return f"the budget of {self.vlm_calls} VLM calls is used ({spent.usage.calls})"
        if asking and self.tokens is not None and spent.usage.tokens >= self.tokens:
            return f"the budget of {self.tokens} tokens is used ({spent.usage.tokens})"
        return ""

    def describe(self) -> str:
        """The limits that are set, as `parse` reads them."""
        shown = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return ",".join(f"{k}={v}" for k, v in shown.items() if v is not None)


_HOW = "Write name=value with {limits}; before them may stand " + " or ".join(PRESETS) + "."


def _at_least_one(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise BudgetError(f"{name}={value!r} leaves nothing to do.", f"{name} must be a whole number from 1.")


def _number(name: str, value: str, optional: bool) -> int | float | None:
    if optional and value.lower() == "none":
        return None
    try:
        return float(value) if name in ("seconds", "threshold") else int(value)
    except ValueError:
        raise BudgetError(f"{name}={value!r} is not a number.", "Write for example steps=8,seconds=90.") from None
