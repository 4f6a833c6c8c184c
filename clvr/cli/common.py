"""What all commands share: exit codes, and how a person is spoken to."""

from __future__ import annotations

import argparse
import re
import sys

OK, FAILED, INTERRUPTED = 0, 2, 130


def say(line: str) -> None:
    print(line, file=sys.stderr)


def image_size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})[x×](\d{1,5})", text.strip().lower())
    if not match or not (int(match[1]) and int(match[2])):
        raise argparse.ArgumentTypeError(f"'{text}' is no size; write for example 1024x768")
    return int(match[1]), int(match[2])
