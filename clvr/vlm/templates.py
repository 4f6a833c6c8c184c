"""Prompts are files in `prompts/`, with their version in the name. A changed text is a new file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from string import Template
from typing import Literal

PromptName = Literal["checklist", "plan", "judge", "repair"]
VERSIONS: dict[PromptName, int] = {"checklist": 1, "plan": 1, "judge": 1, "repair": 1}

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
