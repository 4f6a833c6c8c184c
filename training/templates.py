"""Prompts of training are files in `prompts/`, with their version in the name. A changed text is a new file."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from string import Template

_FOLDER = Path(__file__).with_name("prompts")


@cache
def text(name: str) -> str:
    """A prompt by its name with version, such as 'proxy.v1'."""
    return (_FOLDER / f"{name}.md").read_text(encoding="utf-8").strip()


def filled(name: str, **values: str) -> str:
    """A prompt with its `$fields` filled in."""
    return Template(text(name)).substitute(values)
