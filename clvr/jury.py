"""Who judges, as named by --judge: opinions form a panel, witnesses stand beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from .errors import SettingError
from .ports import Verifier

if TYPE_CHECKING:
    from .judges.calibrated import Thresholds
    from .judges.panel import Agreement
    from .judges.spelling import Match

VLM, OCR, DETECTOR, MEASURING = "vlm", "ocr", "detector", "measuring"
_KNOWN = (
    "Use vlm (the one that plans), ocr, ocr:similar, ocr:words, detector:FOLDER, measuring, or another VLM: the "
    "address of a server (address#model where it has several), or transformers:FOLDER."
)


@dataclass(frozen=True)
class Jury:
    """`judges`: names as in _KNOWN. `agreement`: all, majority, or weighted=2,1 with a weight for each VLM in
    order. `threshold`: P(yes) from which the planning VLM's yes counts: a number, two (no below the first, yes from
    the second on), or a file of clvr calibrate. `spare`: the VLMs are not asked what a witness decided."""

    judges: tuple[str, ...] = ()
    agreement: str = "majority"
    threshold: str = ""
    spare: bool = False

    def seated(self, vlm: Verifier, other: Callable[[str], Verifier], device: str = "auto") -> Verifier:
        """Everyone as one judge. `other` opens another VLM by its name. Raises SettingError, HostError for a
        missing extra, MissingFileError and WeightsError for a detector, and what `other` raises."""
        if self.threshold:
            from .judges.calibrated import CalibratedVerifier

            vlm = CalibratedVerifier(vlm, read_threshold(self.threshold))
        opinions = [name for name in self.judges if not _is_witness(name)] or [VLM]
        judges = [vlm if name == VLM else other(name) for name in opinions]
        judge = judges[0] if len(judges) == 1 else self._panel(judges, opinions)
        return self.beside(judge, device)

    def beside(self, judge: Verifier, device: str = "auto") -> Verifier:
        """A judge with the witnesses beside it. Raises what they raise as `seated` does."""
        witnesses = [_witness(name, device) for name in self.judges if _is_witness(name)]
        if not witnesses:
            return judge
        from .judges import Witnessed

        return Witnessed(judge, witnesses, self.spare)

    def _panel(self, judges: Sequence[Verifier], names: Sequence[str]) -> Verifier:
        from .judges import Panel

        agreement, _, weights = self.agreement.partition("=")
        here = any(name.startswith("transformers:") for name in names)
        return Panel(judges, cast("Agreement", agreement), read_weights(weights), concurrent=not here)


def read_threshold(text: str) -> Thresholds:
    """'0.7', '0.4,0.7', or the name of a file. Raises SettingError, MissingFileError, FormatError."""
    from .judges.calibrated import Thresholds

    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        return Thresholds.read(Path(text).expanduser())
    if len(numbers) > 2:
        raise SettingError(f"{text!r} is no threshold.", "Give one number, two, or a file of clvr calibrate.")
    return Thresholds(numbers[0], numbers[-1])


def read_weights(text: str) -> tuple[float, ...]:
    """'2,1'; none for ''. Raises SettingError."""
    try:
        return tuple(float(part) for part in text.split(",")) if text.strip() else ()
    except ValueError:
        raise SettingError(f"{text!r} is no list of weights.", "Write a number a judge, as in weighted=2,1.") from None


def _is_witness(name: str) -> bool:
    kind = name.partition(":")[0]
    if kind in (OCR, DETECTOR, MEASURING):
        return True
    if name != VLM and ":" not in name and "." not in name:
        raise SettingError(f"There is no judge {name!r}.", _KNOWN)
    return False


def _witness(name: str, device: str) -> Verifier:
    kind, _, rest = name.partition(":")
    if kind == MEASURING:
        from .shapes.verifier import MeasuringVerifier

        return MeasuringVerifier()
    if kind == OCR:
        from .judges.ocr import OCRVerifier

        return OCRVerifier(cast("Match", rest or "exact"))
    if not rest:
        raise SettingError("A detector needs the folder of its model.", "Write detector:FOLDER.")
    from .judges.detector import DetectorVerifier, TransformersDetector

    return DetectorVerifier(TransformersDetector(Path(rest).expanduser(), device))
