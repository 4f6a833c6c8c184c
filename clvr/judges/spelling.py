"""Whether a text stands among the texts that were read."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

Match = Literal["exact", "similar", "words"]
MATCHES: tuple[Match, ...] = get_args(Match)
SIMILAR = 0.85
"""Default of the least similarity: one wrong letter in seven still passes, two do not."""

_QUOTES = (("“”„", "“”"), ('"', '"'), ("«", "»"), ("「", "」"), ("『", "』"), ("‘", "’"))
_QUOTED = [re.compile(rf"(?<!\w)[{a}]([^{a}{b}]+)[{b}](?!\w)") for a, b in _QUOTES]
_APOSTROPHES = re.compile(r"(?<!\w)'(.+?)'(?!\w)")
_CJK = r"\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_CJK}]|[^\W_{_CJK}]+")
_IGNORED = re.compile(r"[\s.,;:!?'’‘\"“”„«»…·_\-‐-―]+")


def quoted(question: str) -> tuple[str, ...]:
    """The texts in quotation marks of any style, in order."""
    found = {m.start(): m[1].strip() for pattern in (*_QUOTED, _APOSTROPHES) for m in pattern.finditer(question)}
    inner = {i: t for i, t in found.items() if not any(i != j and j < i <= j + len(u) for j, u in found.items())}
    return tuple(inner[start] for start in sorted(inner) if letters(inner[start]))


def letters(text: str) -> str:
    """What is compared: width forms made one, without case, spaces and punctuation."""
    return _IGNORED.sub("", unicodedata.normalize("NFKC", text).casefold())


def words(text: str) -> list[str]:
    """Runs of letters and digits, without case; each Chinese or Japanese character is one."""
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())


def distance(one: str, other: str) -> int:
    """Levenshtein's: insertions, deletions and replacements of single characters."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        previous, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            previous, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, previous + (a != b))
    return row[-1]


def similarity(one: str, other: str) -> float:
    """1 - distance / length of the longer, in [0, 1]; 1 for two empty texts."""
    longer = max(len(one), len(other))
    return 1 - distance(one, other) / longer if longer else 1.0


@dataclass(frozen=True)
class Nearest:
    """The place that is most like the wanted text: its lines' numbers, what stands there, how similar."""

    lines: tuple[int, ...]
    text: str
    similarity: float


def nearest(wanted: str, lines: Sequence[str]) -> Nearest | None:
    """Among the runs of words, over the ends of lines too; None where nothing was read."""
    tokens = [(number, word) for number, line in enumerate(lines) for word in line.split() if letters(word)]
    target, best = letters(wanted), None
    for start in range(len(tokens)):
        run = ""
        for end in range(start, len(tokens)):
            run += letters(tokens[end][1])
            likeness = similarity(run, target)
            if best is None or likeness > best[0]:
                best = (likeness, tokens[start : end + 1])
            if len(run) > 2 * len(target):
                break
    if best is None:
        return None
    numbers = tuple(dict.fromkeys(number for number, _ in best[1]))
    return Nearest(numbers, " ".join(word for _, word in best[1]), best[0])


def inside_longer(wanted: str, lines: Sequence[str]) -> bool:
    """Whether the text stands within a run of letters that goes on: another word, or a space that was not read."""
    return letters(wanted) in "".join(letters(line) for line in lines)


def missing_words(wanted: str, lines: Sequence[str]) -> list[str]:
    """Words of the wanted text that were not read, as often as they are wanted; in which order does not matter."""
    read = Counter(word for line in lines for word in words(line))
    lacking = Counter(words(wanted)) - read
    return list(lacking.elements())
