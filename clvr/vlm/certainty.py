"""P(yes) from the log-probabilities of a judgement's answer tokens (after VQAScore, arXiv 2404.01291)."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

from .chat import TokenLogprob

_RESULT = re.compile(r'"check"\s*:\s*"([^"\\]+)"[^{}]*?"answer"\s*:\s*"(yes|no)"', re.IGNORECASE)


def probabilities(text: str, logprobs: Sequence[TokenLogprob] | None) -> dict[str, float]:
    """P(yes) / (P(yes) + P(no)) by check id; ids whose answer's token cannot be found are left out."""
    if not logprobs or "".join(t.token for t in logprobs) != text:
        return {}
    starts = list(itertools.accumulate((len(t.token) for t in logprobs), initial=0))
    found: dict[str, float] = {}
    for match in _RESULT.finditer(text):
        index = next(i for i in range(len(logprobs)) if starts[i] <= match.start(2) < starts[i + 1])
        probability = _yes(logprobs[index])
        if probability is not None:
            found[match[1]] = probability
    return found


def _yes(token: TokenLogprob) -> float | None:
    yes = sum(math.exp(p) for t, p in token.top.items() if _word(t) in ("yes", "ye", "y"))
    no = sum(math.exp(p) for t, p in token.top.items() if _word(t) in ("no", "n"))
    return yes / (yes + no) if yes + no > 0 else None


def _word(token: str) -> str:
    return token.strip(' "\n').lower()
