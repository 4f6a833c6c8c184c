"""A judge that errs on purpose, for measuring what a loop makes of it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import SettingError, VLMError
from ..ports import Verifier, release
from ..trajectory import Check, CheckVerdict, Evidence, Outcome, Verdict

if TYPE_CHECKING:
    from PIL.Image import Image

_FLIPPED: dict[Outcome, Outcome] = {"pass": "fail", "fail": "pass"}


class FaultyVerifier:
    """`ports.Verifier` around another. Shares in [0, 1]: `flip` of the verdicts say the opposite, `fail` of the
    calls raise VLMError, `garbage` of the calls judge nothing.

    The same seed, pixels and checks err in the same way, also when asked again. What errs at a share errs at every
    larger one too, so that a series over shares differs in nothing else. Raises SettingError for a share outside
    [0, 1]."""

    def __init__(
        self, inner: Verifier, seed: int = 0, flip: float = 0.0, fail: float = 0.0, garbage: float = 0.0
    ) -> None:
        for name, share in (("flip", flip), ("fail", fail), ("garbage", garbage)):
            if not 0 <= share <= 1:
                raise SettingError(f"{name}={share:g} is no share.", "Use a number from 0 to 1.")
        self._inner = inner
        self._seed = seed
        self._flip, self._fail, self._garbage = flip, fail, garbage

    @property
    def name(self) -> str:
        shares = (("flip", self._flip), ("fail", self._fail), ("garbage", self._garbage))
        faults = ", ".join(f"{name} {share:g}" for name, share in shares if share) or "no faults"
        return f"{self._inner.name} ({faults})"

    def release(self) -> None:
        release(self._inner)

    def judge(self, image: Image, checks: Sequence[Check], references: Sequence[Image] = ()) -> Verdict:
        """Raises VLMError on purpose."""
        content = hashlib.sha256(image.tobytes()).hexdigest()
        asked = "|".join(check.id for check in checks)
        if self._draw("fail", content, asked) < self._fail:
            raise VLMError("This call failed on purpose.", "Lower the share of failing calls.")
        verdict = self._inner.judge(image, checks, references)
        if self._draw("garbage", content, asked) < self._garbage:
            return Verdict(tuple(self._garbled(check) for check in checks), verdict.usage)
        return dataclasses.replace(verdict, results=tuple(self._flipped(r, content) for r in verdict.results))

    def _flipped(self, result: CheckVerdict, content: str) -> CheckVerdict:
        if result.outcome not in _FLIPPED or self._draw("flip", content, result.check) >= self._flip:
            return result
        sure = None if result.probability is None else 1 - result.probability
        evidence = (Evidence(self.name, "Flipped on purpose."),)
        return CheckVerdict(result.check, _FLIPPED[result.outcome], sure, evidence, result.raw)

    def _garbled(self, check: Check) -> CheckVerdict:
        return CheckVerdict(check.id, "unjudged", None, (Evidence(self.name, "Garbled on purpose."),), "%$#!")

    def _draw(self, fault: str, content: str, what: str) -> float:
        """Uniform in [0, 1)."""
        digest = hashlib.sha256(f"{self._seed}/{fault}/{content}/{what}".encode()).digest()
        return int.from_bytes(digest[:8], "big") / 2**64
