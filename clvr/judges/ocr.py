"""A judge that reads: whether the text in quotation marks stands in the picture (the extra `ocr`)."""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..errors import HostError, SettingError
from ..trajectory import Box, Check, CheckVerdict, Evidence, Outcome, Verdict
from .spelling import MATCHES, SIMILAR, Match, inside_longer, missing_words, nearest, quoted

if TYPE_CHECKING:
    from PIL.Image import Image

NAME = "OCR"
SURE = 0.8
"""Confidence from which a line counts as read without doubt."""
_SHOWN = 120  # characters of what was read that evidence quotes
_NEGATED = re.compile(r"\b(no|not|without|absent|free of|missing|n't)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Line:
    """A line of text that was read, with its confidence in [0, 1]."""

    text: str
    confidence: float
    box: Box


@dataclass(frozen=True)
class _Finding:
    outcome: Outcome
    note: str
    boxes: tuple[Box, ...] = ()


class OCRVerifier:
    """`ports.Verifier` for checks of kind `text` that quote a text; everything else is unjudged.

    `exact`: the text stands there, whatever its case, spacing and punctuation. `similar`: at an edit-distance
    similarity of at least `similarity`. `words`: each of its words was read, in any order. Nothing read, or a
    mismatch while a line could not be read without doubt or runs on, is unjudged: text that OCR misses may still be
    there. A pass says that the text is in the picture, not on which object.

    Raises HostError where rapidocr is not installed, SettingError for an unknown match."""

    def __init__(self, match: Match = "exact", similarity: float = SIMILAR, sure: float = SURE) -> None:
        if match not in MATCHES:
            raise SettingError(f"There is no text match {match!r}.", f"Use {', '.join(MATCHES)}.")
        if find_spec("rapidocr") is None or find_spec("onnxruntime") is None:
            raise HostError(
                "Reading text needs rapidocr, which is not installed.",
                'Install the extra: pip install "comfyui-clvr[ocr]", or: pip install rapidocr onnxruntime',
            )
        self._match: Match = match
        self._similarity = similarity
        self._sure = sure
        self._engine: Any = None
        self._read: tuple[str, tuple[Line, ...]] = ("", ())
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return f"{NAME} ({self._match})"

    def judge(self, image: Image, checks: Sequence[Check], references: Sequence[Image] = ()) -> Verdict:
        wanted = {check.id: asked(check) for check in checks}
        lines = self.read(image) if any(wanted.values()) else ()
        return Verdict(tuple(self._result(check, wanted[check.id], lines) for check in checks))

    def read(self, image: Image) -> tuple[Line, ...]:
        """From top to bottom. The last image's lines are kept: it is often judged twice."""
        key = hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()
        with self._lock:
            if self._read[0] != key:
                self._engine = self._engine or _open()
                self._read = (key, _lines(self._engine, image))
            return self._read[1]

    def _result(self, check: Check, wanted: Sequence[str], lines: Sequence[Line]) -> CheckVerdict:
        if not wanted:
            return CheckVerdict(check.id, "unjudged")
        findings = [self._find(text, lines) for text in wanted]
        said = {f.outcome for f in findings}
        outcome: Outcome = "fail" if "fail" in said else "unjudged" if "unjudged" in said else "pass"
        note = " ".join(dict.fromkeys(f.note for f in findings))
        boxes = tuple(dict.fromkeys(box for f in findings for box in f.boxes))
        raw = "\n".join(f"{line.confidence:.3f} {line.text}" for line in lines)
        return CheckVerdict(check.id, outcome, None, (Evidence(NAME, note, boxes),), raw)

    def _find(self, wanted: str, lines: Sequence[Line]) -> _Finding:
        texts = [line.text for line in lines]
        closest = nearest(wanted, texts)
        if closest is None:
            return _Finding("unjudged", "No text was read.")
        boxes = tuple(lines[number].box for number in closest.lines)
        if self._match == "words":
            lacking = missing_words(wanted, texts)
            holds, said = not lacking, f"missing: {', '.join(lacking)}; read “{_short(texts)}”."
            boxes = tuple(line.box for line in lines)
        else:
            holds = closest.similarity >= (1.0 if self._match == "exact" else self._similarity)
            said = f"read “{closest.text}” where “{wanted}” is wanted (similarity {closest.similarity:.2f})."
        if holds:
            return _Finding("pass", f"Read “{closest.text if self._match != 'words' else _short(texts)}”.", boxes)
        if self._match != "words" and inside_longer(wanted, texts):
            return _Finding("unjudged", f"Not sure where words end: {said}", boxes)
        doubtful = [line.text for line in lines if line.confidence < self._sure]
        if doubtful:
            return _Finding("unjudged", f"Not sure: {said} “{_short(doubtful)}” is hard to read.", boxes)
        return _Finding("fail", f"{said[0].upper()}{said[1:]}", boxes)


def asked(check: Check) -> tuple[str, ...]:
    """The texts that a check wants to be read; none where it is no such check, or asks for their absence."""
    if check.kind != "text":
        return ()
    texts = quoted(check.question)
    rest = check.question
    for text in texts:
        rest = rest.replace(text, "")
    return () if _NEGATED.search(rest) else texts


def _open() -> Any:  # noqa: ANN401
    """The engine with the weights of its own wheel; nothing is fetched."""
    from rapidocr import RapidOCR  # pyright: ignore[reportMissingImports]

    return RapidOCR(params={"Global.log_level": "critical", "Global.text_score": 0.0})


def _lines(engine: Any, image: Image) -> tuple[Line, ...]:  # noqa: ANN401
    import numpy as np

    found = engine(np.asarray(image.convert("RGB"))[:, :, ::-1])
    if found.boxes is None or found.txts is None:
        return ()
    rows = zip(found.txts, found.scores, found.boxes, strict=True)
    return tuple(Line(text, float(score), _box(corners, image.size)) for text, score, corners in rows if text.strip())


def _box(corners: Any, size: tuple[int, int]) -> Box:  # noqa: ANN401
    """Four corners in pixels as the box around them, in fractions."""
    across = [min(1.0, max(0.0, float(x) / size[0])) for x, _ in corners]
    down = [min(1.0, max(0.0, float(y) / size[1])) for _, y in corners]
    return min(across), min(down), max(across), max(down)


def _short(texts: Sequence[str]) -> str:
    text = " / ".join(texts)
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"
