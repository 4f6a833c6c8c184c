"""What all commands share: exit codes, and how a person is spoken to."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap

OK, FAILED, INTERRUPTED = 0, 2, 130


def say(line: str) -> None:
    print(line, file=sys.stderr)


def policies() -> str:
    """What --policy takes, a paragraph each, for the end of a command's help."""
    from ..policies import SUMMARIES

    lines = (textwrap.wrap(f"  {name:<10}{text}", 79, subsequent_indent=" " * 12) for name, text in SUMMARIES.items())
    return "\n".join(["policies:", *(line for paragraph in lines for line in paragraph)])


def image_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})[x×](\d{1,5})", text.strip().lower())
    if not match or not (int(match[1]) and int(match[2])):
        raise argparse.ArgumentTypeError(f"'{text}' is no size; write for example 1024x768")
    return int(match[1]), int(match[2])
