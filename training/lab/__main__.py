"""The paper's ablation in the built-in world, from the base to the merged model and every row of tables 4 and 6.

    make lab                          or python -m training.lab: hours; the same command goes on where it stopped
    python -m training.lab --plan     how long each stage takes on this machine
    python -m training.lab --ship DIR the weights of a whole run, as klein folders and LoRAs
    python -m training.lab --quick    the whole chain at toy settings, in minutes; its numbers mean nothing

Every stage has a folder under --work, named by its recipe's hash: what changes in the recipe is made anew beside the
old, and what does not is kept. docs/results/ablation.md is written after each measured row.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from clvr.devices import choose_device
from clvr.errors import ClvrError, SettingError
from clvr.flux2.loading import silence

from ..recipe import FOLDER, load
from ..runs import duration
from . import page, shipping, speeds
from .chain import Chain
from .config import LabConfig
from .stages import Stage

RECIPE, QUICK = FOLDER / "lab.yaml", FOLDER / "lab_quick.yaml"
MEASURES = ("row-", "clock-", "dswm-", "base-")


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when all stages are done, 2 for what the user can mend, 130 after Ctrl-C."""
    options = _parser().parse_args(arguments)
    recipe = options.recipe or (QUICK if options.quick else RECIPE)
    work = options.work / "quick" if options.quick else options.work
    out = options.out or (work / "results" if options.quick else Path("docs/results"))
    try:
        silence()
        _run(load(recipe, LabConfig), work, out, options)
    except ClvrError as error:
        print(f"training.lab: {error}", flush=True)
        return 2
    except KeyboardInterrupt:
        print("training.lab: interrupted; the same command goes on", flush=True)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m training.lab", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--recipe", type=Path, help="every field: training/lab/config.py (default: training/recipes/lab.yaml)")
    add("--quick", action="store_true", help="toy settings, in WORK/quick")
    add("--plan", action="store_true", help="say how long it takes, and stop")
    add("--page", action="store_true", help="write the page of what is done, and stop")
    add("--ship", type=Path, metavar="DIR", help="put the trained and merged weights into DIR, and stop")
    add("--only", action="append", metavar="STAGE", help="these stages and what they need; may be repeated")
    add("--device", default="auto", help="measures rows: auto, cpu, cuda, …; the trainers take accelerate's")
    add("--work", type=Path, default=Path("runs/lab"), help="where the stages' folders are")
    add("--out", type=Path, help="where ablation.md goes (default: docs/results)")
    return parser


def _run(config: LabConfig, work: Path, out: Path, options: argparse.Namespace) -> None:
    device = torch.device(choose_device(options.device))
    chain = Chain(config, device)
    if options.ship:
        return _tell(list(shipping.ship(chain, work, options.ship)))
    names = _wanted(chain, options.only)
    done = all(chain.stages[name].done(work) for name in names)
    if options.page or (done and not options.plan):
        return _tell(page.write(chain, work, out))
    found = speeds.measure(config.base, device, config.sft.micro)
    chain = Chain(config, device, found)
    stages = [chain.stages[name] for name in names]
    print(_plan(stages, work, device, found), flush=True)
    if options.plan:
        return None
    for stage in stages:
        if stage.done(work):
            continue
        left = sum(other.left(work) for other in stages)
        print(f"\n{stage.name}: {stage.about}; about {duration(stage.left(work))} of {duration(left)}", flush=True)
        stage.run(work)
        print(f"{stage.name}: done in {duration(stage.stamp(work)['seconds'])}", flush=True)
        if stage.name.startswith(MEASURES):
            page.write(chain, work, out)
    return _tell(page.write(chain, work, out))


def _wanted(chain: Chain, names: Iterable[str] | None) -> list[str]:
    """Stages in the chain's order. Raises SettingError for a stage that there is not."""
    if not names:
        return list(chain.stages)
    kept: set[str] = set()
    todo = list(names)
    while todo:
        name = todo.pop()
        if name not in chain.stages:
            raise SettingError(f"There is no stage {name!r}.", f"There are {', '.join(chain.stages)}.")
        kept.add(name)
        todo += [stage.name for stage in chain.stages[name].needs]
    return [name for name in chain.stages if name in kept]


def _plan(stages: Sequence[Stage], work: Path, device: torch.device, found: speeds.Speeds) -> str:
    wide = max(len(stage.name) for stage in stages)
    lines = [
        f"On this machine ({device}): {1000 * found.forward:.3g} ms a sample forward, {1000 * found.learn:.3g} ms with "
        f"its gradient, {1000 * found.single:.3g} ms an evaluation alone."
    ]
    if found.slowed > 1.3:
        lines.append(f"Other work slows it {found.slowed:.1f} times at present; the times are those without it.")
    for stage in stages:
        spent = f"done in {duration(stage.stamp(work)['seconds'])}" if stage.done(work) else duration(stage.left(work))
        lines.append(f"{stage.name:<{wide}}  {spent:>16}  {stage.about}")
    whole, left = sum(stage.seconds for stage in stages), sum(stage.left(work) for stage in stages)
    lines.append(f"{'the whole':<{wide}}  {duration(whole):>16}  {duration(left)} of it left")
    return "\n".join(lines)


def _tell(made: Sequence[Path]) -> None:
    print(*made, sep="\n", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
