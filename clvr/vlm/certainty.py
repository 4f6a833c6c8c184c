"""Probabilities from the log-probabilities of answer tokens (after VQAScore, arXiv 2404.01291)."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

from .chat import TokenLogprob

_RESULT = re.compile(r'"check"\s*:\s*"([^"\\]+)"[^{}]*?"answer"\s*:\s*"(yes|no)"', re.IGNORECASE)


def probabilities(text: str, logprobs: Sequence[TokenLogprob] | None) -> dict[str, float]:
    """P(yes) / (P(yes) + P(no)) by check id; ids whose answer's token cannot be found are left out."""
    found: dict[str, float] = {}
    for match in _RESULT.finditer(text):
        probability = _between(text, logprobs, match.start(2), "yes", "no")
        if probability is not None:
            found[match[1]] = probability
    return found


def chosen(text: str, logprobs: Sequence[TokenLogprob] | None, field: str, one: str, other: str) -> float | None:
    """P(one) / (P(one) + P(other)) where a field of a JSON object holds either; None where it cannot be told."""
    match = re.search(rf'"{field}"\s*:\s*"({one}|{other})"', text, re.IGNORECASE)
    return _between(text, logprobs, match.start(1), one, other) if match else None


def _between(text: str, logprobs: Sequence[TokenLogprob] | None, at: int, one: str, other: str) -> float | None:
    """Of two words that could begin at character `at`. The tokens may hold more than the text around it, a thinking
    block for example."""
    if not logprobs:
        return None
    before = "".join(t.token for t in logprobs).rfind(text)
    if before < 0:
        return None
    ends = itertools.accumulate(len(t.token) for t in logprobs)
    token = next(t for t, end in zip(logprobs, ends, strict=True) if before + at < end)
    first, second = (sum(math.exp(p) for t, p in token.top.items() if _begins(t, w)) for w in (one, other))
    return first / (first + second) if first + second > 0 else None


def _begins(token: str, word: str) -> bool:
    """Whether the token is the word or its beginning, quotation marks and space around it aside."""
    letters = token.strip(' "\n').lower()
    return bool(letters) and word.startswith(letters)
