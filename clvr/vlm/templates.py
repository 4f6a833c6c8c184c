"""Prompts are files in `prompts/`, with their version in the name. A changed text is a new file."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from string import Template
from typing import Literal, get_args

from ..trajectory import Tactic

RubricName = Literal[
    "rate_imagine",
    "rate_wise",
    "rate_wise_verified",
    "rate_prism_imagination",
    "rate_prism_entity",
    "rate_prism_text_rendering",
    "rate_prism_style",
    "rate_prism_affection",
    "rate_prism_composition",
    "rate_prism_long_text",
    "rate_prism_aesthetic",
    "rate_director",
]
PromptName = (
    Literal["checklist", "plan", "judge", "compare", "repair", "split", "tactics", "complexity", "trim"] | RubricName
)
VERSIONS: dict[PromptName, int] = {
    "checklist": 2,
    "plan": 1,
    "judge": 1,
    "compare": 1,
    "complexity": 1,
    "trim": 1,
    "repair": 1,
    "split": 1,
    "tactics": 1,
    **dict.fromkeys(get_args(RubricName), 1),
}

_FOLDER = Path(__file__).with_name("prompts")


def identity(name: PromptName) -> str:
    """The prompt's name with its version, as the journal records it."""
    return f"{name}.v{VERSIONS[name]}"


@cache
def text(name: PromptName) -> str:
    return (_FOLDER / f"{identity(name)}.md").read_text(encoding="utf-8").strip()


def repair(error: str) -> str:
    """What a model is told about a reply that could not be used."""
    return Template(text("repair")).substitute(error=error)


def split(questions: Iterable[str]) -> str:
    """What a model is told about questions that ask several things at once, a line each."""
    return Template(text("split")).substitute(questions="\n".join(questions))


def tactic(name: Tactic) -> str:
    """What a controller is told of the tactic that the policy asks for; '' for none."""
    lines = dict(line.split(": ", 1) for line in text("tactics").splitlines())
    return lines[name] if name else ""
