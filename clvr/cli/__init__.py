"""clvr generate | resume | report | export | models | checklist | calibrate | bench | merge | linearity | probe.
Results go to stdout, everything else to stderr."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from .. import __version__
from ..errors import ClvrError
from . import bench, calibrate, checklist, merge, probe, runs
from .common import FAILED, INTERRUPTED, say

EXAMPLES = """examples:
  clvr generate "two red circles above a blue square" --seed 1 --out out/first
  clvr generate "a cat reading a newspaper" --model black-forest-labs/FLUX.2-klein-4B --vlm http://127.0.0.1:8000
  clvr checklist "a cat reading a newspaper" --vlm http://127.0.0.1:8000 --out checks.txt
  clvr resume out/first --budget steps=12
  clvr models
  clvr merge --base BASE --distilled DISTILLED --align MY_LORA:0.8 --out merged.safetensors

environment:
  CLVR_VLM_URL, CLVR_VLM_MODEL   the VLM server that is used when --vlm and --vlm-model are not given
  CLVR_VLM_API_KEY               its key (or OPENAI_API_KEY); it is never written anywhere
  CLVR_STATE_DIR                 where the costs of past steps are kept, for estimates; none of a prompt
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all went well, 2 for what the user can mend, 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    try:
        return options.command(options)
    except ClvrError as error:
        say(f"clvr: {error}")
        return FAILED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        say("clvr: interrupted")
        return INTERRUPTED


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser(
        "clvr",
        description="Draw complex prompts in a closed loop: plan, draw, verify, correct, stop.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action="version", version=f"clvr {__version__}")
    commands = root.add_subparsers(metavar="COMMAND", required=True)
    runs.add_to(commands)
    checklist.add_to(commands)
    calibrate.add_to(commands)
    bench.add_to(commands)
    merge.add_to(commands)
    probe.add_to(commands)
    return root
