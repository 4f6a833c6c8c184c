"""How much a prompt asks for: its semantic dependency graph, counted and weighed (appendix A.7, eq. 31-33).

    C_task = alpha N ln(1 + N) + beta E + gamma ln(1 + W) + R_extra

N entity instances, E attribute and relation edges, W words, R_extra the weighted hard constraints. The weights are
lost from the paper's text, so that all of them are settings; scores compare only under the same ones."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING

from ..errors import FormatError, SettingError
from ..shapes.phrases import prompt_words

if TYPE_CHECKING:
    from ..shapes.scene import Group, Spec

_WORD = re.compile(
    r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]|[^\s\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+"
)


@dataclass(frozen=True)
class Parts:
    """What the score is made of. `entities` are instances (three cats are three); `attributes` are edges to
    instances (three black cats have three); `relations` join entities or groups of them.

    Hard constraints, which no edge holds: `text` to be written in the picture, a `style`, the `absence` of
    something, and `other` (a viewpoint, a format)."""

    entities: int = 0
    attributes: int = 0
    relations: int = 0
    words: int = 0
    text: int = 0
    style: int = 0
    absence: int = 0
    other: int = 0

    def __post_init__(self) -> None:
        wrong = {name: value for name, value in asdict(self).items() if type(value) is not int or value < 0}
        if wrong:
            raise FormatError(f"A prompt's parts cannot be {wrong}.", "They are counts, from 0 up.")

    @property
    def edges(self) -> int:
        return self.attributes + self.relations

    @property
    def constraints(self) -> int:
        return self.text + self.style + self.absence + self.other

    def to_dict(self) -> dict[str, int]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> Parts:
        """Raises FormatError for anything but counts by the names of the parts."""
        known = {f.name for f in fields(cls)}
        if not isinstance(data, Mapping) or not known.issuperset(data):
            raise FormatError("A prompt's parts are not as expected.", f"They are {', '.join(sorted(known))}.")
        return cls(**data)


@dataclass(frozen=True)
class Weights:
    """The weights of eq. 32 and 33, all of them our choice: edges and the two curves count once. A text must be
    right letter by letter; models draw what they are told to leave out; a style is the easiest to meet."""

    alpha: float = 1.0
    beta: float = 1.0
    gamma: float = 1.0
    text: float = 2.0
    absence: float = 1.5
    other: float = 1.0
    style: float = 0.5

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not (math.isfinite(value) and value >= 0):
                raise SettingError(f"The complexity weight {name} is {value}.", "Weights are finite, from 0 up.")

    @classmethod
    def parse(cls, text: str) -> Weights:
        """From 'alpha=1,text=3'; what is not named stays as it is. Raises SettingError."""
        known = [f.name for f in fields(cls)]
        given: dict[str, float] = {}
        for pair in filter(None, (part.strip() for part in text.split(","))):
            name, _, value = (end.strip() for end in pair.partition("="))
            try:
                given[name] = float(value)
            except ValueError:
                raise SettingError(f"{pair!r:.40} sets no weight.", "Write for example alpha=1,text=3.") from None
            if name not in known:
                raise SettingError(f"There is no complexity weight {name!r:.40}.", f"There are {', '.join(known)}.")
        return cls(**given)


DEFAULT = Weights()


def complexity(parts: Parts, weights: Weights = DEFAULT) -> float:
    """C_task (eq. 32); 0 for nothing."""
    return (
        weights.alpha * parts.entities * math.log1p(parts.entities)
        + weights.beta * parts.edges
        + weights.gamma * math.log1p(parts.words)
        + _extra(parts, weights)
    )


def _extra(parts: Parts, weights: Weights) -> float:
    """R_extra (eq. 33)."""
    return (
        weights.text * parts.text
        + weights.style * parts.style
        + weights.absence * parts.absence
        + weights.other * parts.other
    )


def of_spec(spec: Spec, prompt: str | None = None) -> Parts:
    """The parts of a prompt of the built-in world, exactly. Its words are those of `prompt`, or of the sentence
    that says the spec."""
    return Parts(
        entities=spec.total,
        attributes=sum(group.count * _attributes(group) for group in spec.groups),
        relations=len(spec.relations),
        words=words(prompt_words(spec) if prompt is None else prompt),
        absence=len(spec.absent),
    )


def _attributes(group: Group) -> int:
    """A color, a size and a place each bind to the object; its shape is what it is."""
    return sum(part is not None for part in (group.noun.color, group.noun.size, group.cell))


def words(text: str) -> int:
    """Words between spaces; each character where a script writes none."""
    return len(_WORD.findall(text))
