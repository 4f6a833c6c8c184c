"""Rendered text: prompts with the words to show in quotation marks, as DiffusionNFT's OCR set has them."""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import FormatError
from ..trajectory import Check
from .reading import plain
from .suite import Item, Suite

_QUOTED = re.compile(r'"([^"]+)"|“([^”]+)”')


def ocr(path: Path) -> Suite:
    """One check for each quoted text of a prompt."""
    items = tuple(_item(path, number, text) for number, text in plain(path))
    return Suite("ocr", "Rendered text", items, "texts")


def _item(path: Path, number: int, text: str) -> Item:
    quoted = list(dict.fromkeys(" ".join((a or b).split()) for a, b in _QUOTED.findall(text)))
    if not quoted:
        raise FormatError(f"{path} line {number} quotes no text.", 'Put the words to show in quotation marks: "…".')
    made = tuple(Check(f"text-{i}", f'Does the text "{words}" appear in the image?', "text") for i, words in
                 enumerate(quoted, 1))  # fmt: skip
    name = f"{number:04}"
    return Item(name, text, {"texts": str(len(quoted)) if len(quoted) < 4 else "4 or more"}, f"{name}.png", made)
