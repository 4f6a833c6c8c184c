"""A judge whose probabilities count, not its words: yes above one threshold, no below another, else unjudged."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .. import ports
from ..errors import FormatError, MissingFileError, SettingError
from ..ports import Comparer, Verifier, release
from ..trajectory import Check, CheckVerdict, Evidence, Outcome, Verdict
from .seats import Statement, ruled

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = 1


@dataclass(frozen=True)
class Thresholds:
    """Pass at a probability of at least `high`, fail below `low`. `judge`: whom they were made for. Raises
    SettingError unless 0 <= low <= high <= 1."""

    low: float
    high: float
    judge: str = ""

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high <= 1:
            raise SettingError(
                f"The thresholds {self.low:g} and {self.high:g} cannot work.", "Use 0 <= low <= high <= 1."
            )

    def __str__(self) -> str:
        """As `--judge-threshold` takes it."""
        return f"{self.low!r},{self.high!r}"

    @classmethod
    def read(cls, path: Path) -> Thresholds:
        """From a file of `clvr calibrate`. Raises MissingFileError, FormatError."""
        try:
            data: Any = json.loads(path.read_text("utf-8"))
            if data["version"] != VERSION:
                raise ValueError
            return cls(float(data["low"]), float(data["high"]), str(data["judge"]))
        except FileNotFoundError:
            raise MissingFileError(f"There is no file {path}.", "Make one with clvr calibrate.") from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            if isinstance(error, SettingError):
                raise
            raise FormatError(f"{path} holds no thresholds of a judge.", "Make it anew with clvr calibrate.") from error

    def outcome(self, probability: float) -> Outcome:
        if probability >= self.high:
            return "pass"
        return "fail" if probability < self.low else "unjudged"


class CalibratedVerifier:
    """`ports.Verifier` around one that gives probabilities. What has none, or is unjudged, stays as it is."""

    def __init__(self, inner: Verifier, thresholds: Thresholds) -> None:
        self._inner = inner
        self._thresholds = thresholds

    @property
    def name(self) -> str:
        low, high = self._thresholds.low, self._thresholds.high
        return f"{self._inner.name}, yes from {high:.3g}" + (f", no below {low:.3g}" if low < high else "")

    @property
    def at_once(self) -> int:
        return ports.at_once(self._inner)

    @property
    def comparer(self) -> Comparer | None:
        return ports.comparer(self._inner)

    def release(self) -> None:
        release(self._inner)

    def judge(self, image: Image, checks: Sequence[Check], references: Sequence[Image] = ()) -> Verdict:
        verdict = self._inner.judge(image, checks, references)
        return dataclasses.replace(verdict, results=tuple(self._decided(r) for r in verdict.results))

    def _decided(self, result: CheckVerdict) -> CheckVerdict:
        if result.probability is None or result.outcome not in ("pass", "fail"):
            return result
        outcome = self._thresholds.outcome(result.probability)
        if outcome == result.outcome:
            return result
        verb = "is between the thresholds" if outcome == "unjudged" else f"counts as {_WORDS[outcome]}"
        said = Statement(self._inner.name, result).evidence()
        note = Evidence(
            f"{said[0].judge}, calibrated", f"A probability of {result.probability:.2f} {verb}.", says=outcome
        )
        return dataclasses.replace(result, outcome=outcome, evidence=ruled((note, *said), outcome))


_WORDS: dict[Outcome, str] = {"pass": "yes", "fail": "no"}
