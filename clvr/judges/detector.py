"""A judge that detects: presence, number, colour and place of things, by a zero-shot detector of transformers."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..devices import choose_device
from ..errors import MissingFileError, SettingError, WeightsError
from ..trajectory import Box, Check, CheckVerdict, Evidence, Outcome, Verdict
from . import questions
from .colors import has_color
from .questions import Colored, Number, Placed, Question, Thing

if TYPE_CHECKING:
    from PIL.Image import Image

NAME = "detector"
_MARGIN = 0.03
"""Fraction of the picture's side by which centres must differ for a place to be told."""


@dataclass(frozen=True)
class Detection:
    """One box that may show the thing, with the detector's score in [0, 1]."""

    score: float
    box: Box


@dataclass(frozen=True)
class DetectorSettings:
    """sure: the score from which a box counts. maybe: the score below which it is ignored; between the two it may
    be the thing or not. overlap: the intersection over union from which the weaker of two boxes is dropped."""

    sure: float = 0.35
    maybe: float = 0.15
    overlap: float = 0.5

    def __post_init__(self) -> None:
        if not 0 <= self.maybe <= self.sure <= 1 or not 0 < self.overlap <= 1:
            raise SettingError(
                f"maybe {self.maybe:g}, sure {self.sure:g} and overlap {self.overlap:g} do not fit.",
                "Use 0 <= maybe <= sure <= 1 and 0 < overlap <= 1.",
            )


class Detector(Protocol):
    """Finds things by name."""

    @property
    def name(self) -> str: ...

    def detect(self, image: Image, noun: str, threshold: float) -> list[Detection]:
        """Every box with a score above `threshold`, in any order."""
        ...


@dataclass(frozen=True)
class Seen:
    """Instances of a thing: those that are certain, and those that may be it."""

    sure: tuple[Detection, ...]
    maybe: tuple[Detection, ...]

    @property
    def boxes(self) -> tuple[Box, ...]:
        return tuple(d.box for d in self.sure)


@dataclass(frozen=True)
class _Answer:
    holds: bool | None
    note: str
    boxes: tuple[Box, ...] = ()


class DetectorVerifier:
    """`ports.Verifier`. Questions of another form than `questions` reads are unjudged, and so is whatever depends
    on boxes, colours or places that are not clear."""

    def __init__(self, detector: Detector, settings: DetectorSettings | None = None) -> None:
        self._detector = detector
        self._settings = settings or DetectorSettings()
        self._seen: tuple[str, dict[str, list[Detection]]] = ("", {})
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return f"{NAME} {self._detector.name}"

    def judge(self, image: Image, checks: Sequence[Check], references: Sequence[Image] = ()) -> Verdict:
        return Verdict(tuple(self._result(image, check) for check in checks))

    def _result(self, image: Image, check: Check) -> CheckVerdict:
        question = questions.read(check.question) if check.kind not in ("text", "style", "shape", "size") else None
        if question is None:
            return CheckVerdict(check.id, "unjudged")
        answer = self._answer(image, question)
        outcome: Outcome = "unjudged" if answer.holds is None else "pass" if answer.holds else "fail"
        return CheckVerdict(check.id, outcome, None, (Evidence(self.name, answer.note, answer.boxes),))

    def _answer(self, image: Image, question: Question) -> _Answer:
        if isinstance(question, Number):
            return count(self.look(image, question.thing), question)
        if isinstance(question, Colored):
            return _colored(image, self.look(image, question.thing), question)
        return placed(self.look(image, question.thing), self.look(image, question.other), question)

    def look(self, image: Image, thing: Thing) -> Seen:
        """Instances of a thing, of its colour where it is to have one."""
        found = self._detect(image, thing.noun)
        sure = [d for d in found if d.score >= self._settings.sure]
        maybe = [d for d in found if d.score < self._settings.sure]
        if thing.color is None:
            return Seen(tuple(sure), tuple(maybe))
        colors = {d: has_color(image, d.box, thing.color) for d in found}
        unclear = [d for d in sure if colors[d] is None] + [d for d in maybe if colors[d] is not False]
        return Seen(tuple(d for d in sure if colors[d]), tuple(unclear))

    def _detect(self, image: Image, noun: str) -> list[Detection]:
        """Kept for the last image, which is often judged twice."""
        key = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
        with self._lock:
            if self._seen[0] != key:
                self._seen = (key, {})
            known = self._seen[1]
            if noun not in known:
                found = self._detector.detect(image, noun, self._settings.maybe)
                known[noun] = suppress(found, self._settings.overlap)
            return known[noun]


def suppress(found: Iterable[Detection], overlap: float) -> list[Detection]:
    """Non-maximum suppression, the best score first."""
    kept: list[Detection] = []
    for one in sorted(found, key=lambda d: (-d.score, d.box)):
        if all(intersection_over_union(one.box, other.box) < overlap for other in kept):
            kept.append(one)
    return kept


def intersection_over_union(a: Box, b: Box) -> float:
    wide, high = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0.0, wide) * max(0.0, high)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common
    return common / union if union > 0 else 0.0


def count(seen: Seen, question: Number) -> _Answer:
    """Certain where the answer is the same for every number between the sure and the possible ones."""
    least, most = len(seen.sure), len(seen.sure) + len(seen.maybe)
    answers = {question.holds(number) for number in range(least, most + 1)}
    number = str(least) if least == most else f"{least} to {most}"
    note = f"Detected {number} × {question.thing}."
    return _Answer(answers.pop() if len(answers) == 1 else None, note, seen.boxes or tuple(d.box for d in seen.maybe))


def _colored(image: Image, seen: Seen, question: Colored) -> _Answer:
    if not seen.sure:
        return _Answer(None, f"No {question.thing} was detected.")
    colors = [has_color(image, box, question.color) for box in seen.boxes]
    note = f"{sum(c is True for c in colors)} of {len(colors)} × {question.thing} is {question.color}"
    unclear = sum(c is None for c in colors)
    note += f", {unclear} unclear." if unclear else "."
    holds = False if False in colors else None if None in colors else True
    return _Answer(holds, note, seen.boxes)


def placed(things: Seen, others: Seen, question: Placed) -> _Answer:
    """Certain where every pair of instances says the same."""
    missing = [str(t) for t, s in ((question.thing, things), (question.other, others)) if not s.sure]
    if missing:
        return _Answer(None, f"Not detected: {', '.join(missing)}.")
    boxes = (*things.boxes, *others.boxes)
    pairs = {_lies(one, question.relation, other) for one in things.boxes for other in others.boxes}
    words = {"left": "left of", "right": "right of"}.get(question.relation, question.relation)
    if len(pairs) > 1 or None in pairs:
        return _Answer(None, f"Whether {question.thing} is {words} {question.other} is not clear.", boxes)
    holds = pairs.pop()
    return _Answer(holds, f"{question.thing} is {'' if holds else 'not '}{words} {question.other}.", boxes)


def _lies(one: Box, relation: questions.Relation, other: Box) -> bool | None:
    """By the centres, as GenEval; None within the margin."""
    axis = 0 if relation in ("left", "right") else 1
    lead = (one[axis] + one[axis + 2] - other[axis] - other[axis + 2]) / 2
    lead = -lead if relation in ("left", "above") else lead
    return None if abs(lead) < _MARGIN else lead > 0


class TransformersDetector:
    """OWLv2, OWL-ViT or Grounding DINO from a local folder, opened when something is looked for first. Nothing is
    fetched; safetensors only.

    Raises MissingFileError, WeightsError and SettingError: at once for what can be seen without opening it."""

    def __init__(self, folder: str | Path, device: str = "auto") -> None:
        self._folder = Path(folder).expanduser().resolve()
        self._device = device
        self._opened: tuple[Any, Any] | None = None
        _check(self._folder)

    @property
    def name(self) -> str:
        return self._folder.name

    def detect(self, image: Image, noun: str, threshold: float) -> list[Detection]:
        import torch

        model, processor = self._opened = self._opened or _open(self._folder, self._device)
        dino = "dino" in model.config.model_type
        text = [[f"a {noun}"]] if dino else [[f"a photo of a {noun}"]]
        inputs = processor(images=image, text=text, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            outputs = model(**inputs)
        options: dict[str, Any] = {"threshold": threshold, "target_sizes": [image.size[::-1]]}
        if dino:
            options |= {"input_ids": inputs["input_ids"], "text_threshold": threshold}
        found = processor.post_process_grounded_object_detection(outputs, **options)[0]
        rows = zip(found["scores"].tolist(), found["boxes"].tolist(), strict=True)
        return [d for d in (_detection(score, box, image.size) for score, box in rows) if d is not None]


def _open(path: Path, device: str) -> tuple[Any, Any]:
    """Model and processor."""
    from safetensors import SafetensorError
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

    place = choose_device(device)
    try:
        processor = AutoProcessor.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        loaded: Any = AutoModelForZeroShotObjectDetection.from_pretrained(
            path,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
        said = str(error).strip().splitlines()[0]
        raise WeightsError(f"{path} cannot be opened as a detector: {said:.300}", _REMEDY) from error
    model, report = loaded
    if report["missing_keys"] or report["mismatched_keys"]:
        raise WeightsError(f"The weights in {path} do not fit its config.json.", "Download the folder again.")
    return model.to(place).eval(), processor


_REMEDY = "Name the folder of an OWLv2 or Grounding DINO from transformers, with its processor's files."


def _check(path: Path) -> None:
    if not (path / "config.json").is_file():
        raise MissingFileError(f"{path} holds no detector: there is no config.json.", _REMEDY)
    if not list(path.glob("*.safetensors")):
        raise WeightsError(
            f"{path} holds no .safetensors weights.", "Other formats can run code when they are opened: convert them."
        )


def _detection(score: float, box: Sequence[float], size: tuple[int, int]) -> Detection | None:
    """From pixels to fractions, cut at the picture's edge; None for a box outside of it or without area."""
    x0, y0, x1, y1 = (min(1.0, max(0.0, v / size[i % 2])) for i, v in enumerate(box))
    return Detection(score, (x0, y0, x1, y1)) if x0 < x1 and y0 < y1 else None


__all__ = [
    "Detection",
    "Detector",
    "DetectorSettings",
    "DetectorVerifier",
    "Seen",
    "TransformersDetector",
    "count",
    "placed",
    "suppress",
]
