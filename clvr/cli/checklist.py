"""The command about checklists: make one, to be edited before a run."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import FormatError, MissingFileError, OutputError
from .common import OK
from .opening import add_models, choice_of

if TYPE_CHECKING:
    from ..trajectory import Check


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("checklist", help="make a prompt's checklist, to be edited and given to generate")
    add = command.add_argument
    add("prompt")
    add("--reference", type=Path, action="append", default=[], metavar="IMG", help="a picture that the prompt is about")
    add_models(command)
    add("--device", default="auto", help="of a VLM in this process: auto, cpu, cuda, cuda:1, mps, …")
    add("--dtype", default="auto", help="of a VLM in this process: auto, float32, bfloat16, float16")
    add("--out", type=Path, metavar="FILE", help="a new text file; without it the checklist is printed")
    command.set_defaults(command=_checklist)


def add_option(command: argparse.ArgumentParser) -> None:
    help = "the checks to go by, as written by clvr checklist and edited; made from the prompt when not given"
    command.add_argument("--checklist", type=Path, metavar="FILE", help=help)


def read_checklist(path: Path | None) -> tuple[Check, ...]:
    """The checks in a file; none without one. Raises MissingFileError, FormatError."""
    from ..checklist import parse_text

    if path is None:
        return ()
    try:
        checks = parse_text(path.read_bytes().decode())
    except OSError as error:
        raise MissingFileError(
            f"Cannot read {path}: {error.strerror}.", "Make one with: clvr checklist PROMPT --out FILE"
        ) from error
    except UnicodeDecodeError as error:
        raise FormatError(f"{path} is not a text in UTF-8.", "Save it as UTF-8.") from error
    except FormatError as error:
        raise FormatError(f"{path}: {error.thing}", error.remedy) from error
    if not checks:
        raise FormatError(f"{path} holds no check.", "Write one a line, or leave --checklist out.")
    return checks


def _checklist(options: argparse.Namespace) -> int:
    from .. import loop
    from ..checklist import GUIDE, to_text
    from ..files import write_atomic
    from ..images import load_image
    from ..models import load_judges
    from ..terminal import Progress
    from ..trajectory import Goal

    if options.out and options.out.exists():
        raise OutputError(f"{options.out} is there already.", "Delete it, or give another --out.")
    controller, _ = load_judges(choice_of(options).resolved())
    references = [load_image(path) for path in options.reference]
    state = loop.start(Goal(options.prompt), references, controller, listen=Progress(0).listen)
    text = GUIDE + to_text(state.trajectory.goal.checks)
    if not options.out:
        sys.stdout.write(text)
        return OK
    write_atomic(options.out, text.encode())
    print(options.out)
    return OK
