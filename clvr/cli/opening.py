"""Who draws, plans and judges, as options of a command."""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from .common import image_size

if TYPE_CHECKING:
    from ..models import Choice
    from ..ports import Generator


def add_models(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--model", default="builtin", metavar="NAME", help="builtin, one of its variants (clvr models lists them), a "
        "FLUX.2 [klein] folder, or a hub id")  # fmt: skip
    add("--vlm", default="", metavar="VLM", help="who plans and judges: builtin, the address of an OpenAI-compatible "
        "server, or transformers:FOLDER (or a hub id), a Qwen3-VL in this process")  # fmt: skip
    add("--vlm-model", default="", metavar="NAME", help="the server's model; its only one when not given")


def add_judges(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--judge", action="append", default=[], dest="judges", metavar="JUDGE", help="who judges, again for each: vlm "
        "(--vlm, when no other VLM is named), another VLM (address, address#model, transformers:FOLDER), and what is "
        "measured beside them and overrules them: ocr, ocr:similar, ocr:words, detector:FOLDER, measuring")  # fmt: skip
    add("--agreement", default="", metavar="HOW", help="of several VLMs: majority (default), all, or weighted=2,1")
    add("--judge-threshold", default="", metavar="FILE", help="P(yes) from which --vlm's yes counts: a file of clvr "
        "calibrate, a number, or two with unjudged between")  # fmt: skip
    add("--spare-vlm", action="store_true", help="do not ask VLMs what was measured")


def add_drawing(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--size", type=image_size, metavar="WxH", help="pixels; the model's own when not given")
    add("--steps", type=int, help="denoising steps; the model's own when not given")
    add("--guidance", type=float, help="classifier-free guidance; the model's own when not given")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps, …")
    add("--dtype", default="auto", help="auto, float32, bfloat16, float16")
    add("--offload", default="none", help="none, model or sequential: keep weights in CPU memory while idle")


def choice_of(options: argparse.Namespace) -> Choice:
    """As named, with what is left open still open."""
    from ..models import Choice

    names = {f.name for f in dataclasses.fields(Choice)} & vars(options).keys()
    choice = Choice(**{name: getattr(options, name) for name in names})
    return dataclasses.replace(choice, judges=tuple(choice.judges))


def open_generator(choice: Choice) -> Generator:
    """The generator, without the loaders' own progress bars between ours."""
    from ..flux2.loading import silence
    from ..models import load_generator

    silence()
    return load_generator(choice)
