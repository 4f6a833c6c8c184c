"""python -m training.data --recipe FILE --out DIR: prompts in, verified trajectories out.

The same command goes on with what is not done yet. Without a recipe: the built-in world, recipes/data.yaml.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from clvr.errors import ClvrError

from ..recipe import FOLDER, load
from .config import EngineConfig
from .engine import run
from .folder import DROPPED, SHEET, STATISTICS
from .records import shards
from .statistics import Statistics


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all prompts are done, 2 for what the user can mend, 130 after Ctrl-C."""
    options = parser().parse_args(arguments)
    try:
        config = _overridden(load(options.recipe, EngineConfig), options)
        statistics = run(config, options.out, _say)
    except ClvrError as error:
        _say(f"training.data: {error}")
        return 2
    except KeyboardInterrupt:
        _say(f"training.data: interrupted; the same command goes on (so far: {options.out / SHEET})")
        return 130
    _tell(statistics, options.out)
    return 0


def parser() -> argparse.ArgumentParser:
    root = argparse.ArgumentParser("python -m training.data", description=__doc__)
    add = root.add_argument
    add("--recipe", type=Path, default=FOLDER / "data.yaml", metavar="FILE", help="see training/data/config.py")
    add("--out", type=Path, required=True, metavar="DIR", help="the dataset's folder; made, or gone on with")
    add("--prompts", action="append", default=[], metavar="FILE", help="in place of the recipe's: .txt or .jsonl")
    add("--limit", type=int, metavar="N", help="at most N candidates")
    add("--devices", metavar="A,B", help="a process for each, such as cuda:0,cuda:1; cpu,cpu is two")
    add("--threads", type=int, metavar="N", help="prompts at the same time in each process")
    add("--ray", metavar="ADDRESS", help="run on a Ray cluster: its address, auto, or local")
    return root


def _overridden(config: EngineConfig, options: argparse.Namespace) -> EngineConfig:
    prompts, machine = config.prompts, config.run
    if options.prompts:
        prompts = dataclasses.replace(prompts, files=tuple(options.prompts), world=0)
    if options.limit is not None:
        prompts = dataclasses.replace(prompts, limit=options.limit)
    if options.devices:
        machine = dataclasses.replace(machine, devices=tuple(options.devices.split(",")))
    if options.threads is not None:
        machine = dataclasses.replace(machine, threads=options.threads)
    if options.ray:
        machine = dataclasses.replace(machine, ray=options.ray)
    return dataclasses.replace(config, prompts=prompts, run=machine)


def _tell(statistics: Statistics, out: Path) -> None:
    width = max(len(rate.name) for rate in statistics.gates)
    for rate in statistics.gates:
        share = (
            "–" if rate.share is None else f"{100 * rate.share:5.1f} %  [{100 * rate.low:.1f}, {100 * rate.high:.1f}]"
        )
        print(f"{rate.name:<{width}}  {rate.passed:>6} of {rate.came:<6}  {share}")
    print(f"{'kept':<{width}}  {statistics.kept:>6} of {statistics.candidates}")
    made = shards(out) if statistics.kept else []
    for path in (*made, out / DROPPED, out / STATISTICS, out / SHEET):
        print(path)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
