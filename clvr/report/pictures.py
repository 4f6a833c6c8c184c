"""What a report shows beside the trajectory: the pictures by label, and what the run was given."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from PIL import Image

from ..budget import Budget
from ..trajectory import Step, Trajectory, generated, referenced

SMALL = 160
"""Pictures up to this many pixels a side are enlarged with hard pixels."""

_LOSSLESS = 256
"""Pictures up to this many pixels a side are embedded as PNG, larger ones as WebP: a page stays a few MB."""

_THUMB = 160


@dataclass(frozen=True)
class RunInfo:
    """What a trajectory does not know about its run: the budget, model names by role ("controller",
    "generator", "verifier"), wall time in seconds, and the policy's name. What is not given is not shown."""

    budget: Budget | None = None
    models: Mapping[str, str] = field(default_factory=dict)
    elapsed: float | None = None
    policy: str = ""


def candidate_label(step: int, candidate: int) -> str:
    """Key under which the picture of one candidate lies beside the album's own labels."""
    return f"{generated(step)}/{candidate}"


@dataclass(frozen=True)
class Picture:
    """An embedded picture: data URI, size in pixels."""

    uri: str
    width: int
    height: int

    @property
    def small(self) -> bool:
        return max(self.width, self.height) <= SMALL

    @property
    def shape(self) -> str:
        """Class that carries the aspect ratio, see `Pictures.shape_rules`."""
        return f"shape-{self.width}x{self.height}"


@dataclass(frozen=True)
class Pictures:
    """Pictures of a run by label, each encoded once."""

    images: Mapping[str, Image.Image]

    @cached_property
    def _encoded(self) -> dict[tuple[str, bool], Picture]:
        return {}

    def image(self, step: Step, candidate: int) -> Image.Image | None:
        """The chosen candidate's picture is also the step's; the others may not have been kept."""
        label = self._label(step, candidate)
        return self.images[label] if label else None

    def candidate(self, step: Step, candidate: int, thumb: bool = False) -> Picture | None:
        label = self._label(step, candidate)
        return self.of(label, thumb) if label else None

    def step(self, step: Step, thumb: bool = False) -> Picture | None:
        return self.candidate(step, step.chosen, thumb)

    def of(self, label: str, thumb: bool = False) -> Picture | None:
        if label not in self.images:
            return None
        key = (label, thumb)
        if key not in self._encoded:
            self._encoded[key] = _embed(self.images[label], _THUMB if thumb else None)
        return self._encoded[key]

    def shape_rules(self) -> str:
        """Aspect ratios of the pictures asked for so far. In the style sheet, because the page's content
        security policy allows no style attributes."""
        shown = {p.shape: p for (_, thumb), p in self._encoded.items() if not thumb}
        return "".join(f".frame.{n}{{--ratio:{p.width / p.height:.5g}}}" for n, p in sorted(shown.items()))

    def _label(self, step: Step, candidate: int) -> str | None:
        label = candidate_label(step.index, candidate)
        if label in self.images:
            return label
        return step.label if candidate == step.chosen and step.label in self.images else None


def thumbnail(image: Image.Image, side: int) -> Picture:
    """At most `side` pixels a side; small pictures losslessly, larger ones as WebP of a few kB."""
    if max(image.size) <= SMALL:
        return _encode(image.convert("RGB"), "PNG", optimize=True)
    image = image.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return _encode(image, "WEBP", quality=80)


def reference_labels(trajectory: Trajectory) -> list[str]:
    return [referenced(i) for i in range(trajectory.goal.references)]


def _embed(image: Image.Image, limit: int | None) -> Picture:
    image = image.convert("RGB")
    if limit is not None and max(image.size) > limit:
        image.thumbnail((limit, limit), Image.Resampling.LANCZOS)
    if max(image.size) <= _LOSSLESS:
        return _encode(image, "PNG", optimize=True)
    return _encode(image, "WEBP", quality=90)


def _encode(image: Image.Image, kind: str, **options: int) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Picture(f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}", *image.size)
