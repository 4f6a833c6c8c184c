"""clvr bench: a benchmark's prompts through the loop, scored by a judge of its own."""

from __future__ import annotations

import argparse
import dataclasses
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import SettingError
from .common import FAILED, OK, say
from .opening import add_drawing, add_models, choice_of, open_generator
from .runs import BUDGET

if TYPE_CHECKING:
    from ..bench.judging import Judge
    from ..bench.results import Folder, Plan, Result
    from ..bench.running import Drawer
    from ..bench.scores import Estimate, Summary
    from ..bench.suite import Suite
    from ..loop import Ports, Settings
    from ..models import Choice
    from ..ports import Generator
    from ..vlm.chat import ChatClient

DESCRIPTION = """Run a benchmark's prompts through the loop, lay the images out as its official scorer expects them, and
score them with a judge. Call it again with the same options to go on where it was."""
_OWN_JUDGE = (
    "clvr: THE JUDGE IS THE LOOP'S OWN VERIFIER ({}): it scores what it has itself accepted, and that flatters. "
    "Name another with --judge."
)
SUITES = "builtin, geneval, geneval++, imaginebench, ocr (shipped); wise, wise-verified, prism (give --prompts)"


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    command = commands.add_parser("bench", help="run and score a benchmark", description=DESCRIPTION)
    add = command.add_argument
    add("suite", metavar="SUITE", help=SUITES)
    add(
        "--out",
        type=Path,
        required=True,
        metavar="DIR",
        help="where everything goes: images, runs, verdicts, page",
    )
    add("--prompts", type=Path, metavar="PATH", help="the prompts' file or folder (benchmarks/prompts in a checkout)")
    add("--limit", type=int, metavar="N", help="so many prompts, spread over the suite's tasks")
    add("--images", type=Path, metavar="DIR", help="only score the images there, laid out as the suite has them")
    how = command.add_mutually_exclusive_group()
    how.add_argument("--policy", default="clvr", metavar="NAME", help="how the loop is run: clvr, director, strokes, "
        "auto; clvr generate --help tells what each does (clvr)")  # fmt: skip
    how.add_argument("--one-shot", action="store_true", help="the prompt itself, one image, no VLM in the loop")
    how.add_argument("--best-of", type=int, metavar="N", help="N images of the prompt, the loop's verifier picks one")
    add("--budget", default="", metavar="LIMITS", help=f"for each prompt: {BUDGET}")
    add("--seed", type=int, default=0, help="each prompt's seed follows from it and from the prompt's id (0)")
    add("--parallel", type=int, default=1, metavar="N", help="prompts at a time, for a VLM server with N slots; "
        "drawings still come one after the other, and a run's seconds include the wait")  # fmt: skip
    add_models(command)
    add("--judge", default="", metavar="URL", help="who scores: a server, transformers:…, or builtin; should not be "
        "the loop's own VLM, which is taken when none is given")  # fmt: skip
    add("--judge-model", default="", metavar="NAME", help="the judge's model on its server")
    add_drawing(command)
    command.set_defaults(command=_bench)


def _bench(options: argparse.Namespace) -> int:
    from ..bench.registry import open_suite
    from ..bench.results import Folder
    from ..bench.running import Bench
    from ..bench.suite import spread

    _check_counts(options)
    suite = open_suite(options.suite, options.prompts)
    items = spread(suite.items, suite.tag, options.limit)
    parts = _Parts(options, suite)
    with Folder(options.out, parts.plan()) as folder:
        drawer = None if options.images else parts.drawer()
        images = options.images or folder.images
        teller = _Teller(len(items))
        bench = Bench(suite, folder, parts.judge, drawer, images, parts.asked, teller.tell)
        results = bench.run(items, parts.workers)
        return _finish(options, suite, folder, results, images)


def _check_counts(options: argparse.Namespace) -> None:
    for name in ("limit", "parallel", "best_of"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise SettingError(f"--{name.replace('_', '-')} {value} leaves nothing to do.", "Give a number from 1.")
    if options.images and not options.images.is_dir():
        raise SettingError(f"There is no folder {options.images}.", "Name the folder of the images to score.")


class _Parts:
    """From the options to the parts of the benchmark; says aloud what a score rests on."""

    def __init__(self, options: argparse.Namespace, suite: Suite) -> None:
        from ..models import TRANSFORMERS

        self.options = options
        self.suite = suite
        self._asks = not (options.one_shot or options.images)
        self.choice = choice_of(options).resolved() if self._asks else choice_of(options)
        self.judging = self._judge_choice()
        here = self.judging.vlm.startswith(TRANSFORMERS) or (self._asks and self.choice.vlm.startswith(TRANSFORMERS))
        self.workers = 1 if here else options.parallel
        if self.workers < options.parallel:
            say("clvr: a VLM in this process takes one call at a time: --parallel is 1")
        self._clients: dict[tuple[str, str], ChatClient] = {}

    def plan(self) -> Plan:
        from ..bench.results import Plan

        options, settings = self.options, self.settings()
        if options.images:
            return Plan(self.suite.name, self.suite.digest, "images", options={"images": str(options.images)})
        size = "x".join(map(str, options.size)) if options.size else ""
        mode = _mode(options)
        named = dict(self.choice.options())
        if options.one_shot:
            named = {name: value for name, value in named.items() if not name.startswith("vlm")}
        return Plan(self.suite.name, self.suite.digest, mode, options.seed, settings.budget.describe(), size, named)

    def settings(self) -> Settings:
        from ..budget import Budget
        from ..loop import Settings
        from ..policies import find_policy

        options, budget = self.options, Budget.parse(self.options.budget)
        if options.one_shot or options.best_of:
            budget = dataclasses.replace(budget, steps=1, candidates=options.best_of or 1)
            return Settings(budget, "one-shot", options.size)
        return Settings(budget, find_policy(options.policy).name, options.size)

    def drawer(self) -> Drawer:
        from ..bench.running import Drawer, Shared

        generator = Shared(lambda: open_generator(self.choice))
        return Drawer(lambda: self._ports(generator), self.settings(), self.options.seed, self.choice.options())

    @property
    def asked(self) -> str:
        """Who judges, by which prompts."""
        from ..vlm import templates

        rubrics = {templates.identity(r.prompt): None for item in self.suite.items for r in item.rubrics}
        prompts = rubrics or (templates.identity("judge"),)
        return " ".join((self.judging.vlm, self.judging.vlm_model, *prompts))

    def judge(self) -> Judge:
        """One for each worker."""
        from ..bench.judging import CheckJudge, RatingJudge
        from ..models import load_judges
        from ..vlm.rating import VLMRater

        if self.suite.rated:
            return RatingJudge(VLMRater(self._client(self.judging)), self.suite)
        return CheckJudge(load_judges(self.judging, self._known_client(self.judging))[1])

    def _ports(self, generator: Generator) -> Ports:
        from ..bench.direct import Direct, Nobody
        from ..loop import Ports
        from ..models import load_judges

        if self.options.one_shot:
            return Ports(Direct(), generator, Nobody())
        controller, verifier = load_judges(self.choice, self._known_client(self.choice))
        return Ports(controller, generator, verifier)

    def _judge_choice(self) -> Choice:
        """Raises SettingError where nobody is named who could judge the suite."""
        from ..models import BUILTIN

        options, own = self.options, self.suite.name == "builtin"
        named = options.judge or (BUILTIN if own else "")
        vlm = named or self.choice.vlm or os.environ.get("CLVR_VLM_URL", "")
        model = options.judge_model or ("" if named else self.choice.vlm_model or os.environ.get("CLVR_VLM_MODEL", ""))
        if not own and vlm in ("", BUILTIN):
            raise SettingError(
                f"{self.suite.title} needs a VLM that judges; the built-in verifier measures coloured shapes only.",
                "Name one with --judge, for example --judge http://127.0.0.1:8000.",
            )
        judging = dataclasses.replace(self.choice, vlm=vlm, vlm_model=model)
        if self._asks and (vlm, model) == (self.choice.vlm, self.choice.vlm_model):
            say(_OWN_JUDGE.format(vlm))
        return judging

    def _known_client(self, choice: Choice) -> ChatClient | None:
        from ..models import BUILTIN

        return None if choice.vlm == BUILTIN else self._client(choice)

    def _client(self, choice: Choice) -> ChatClient:
        """Weights are loaded once; a server gets a client from each worker, since one takes one call at a time."""
        from ..models import TRANSFORMERS, load_client

        if not choice.vlm.startswith(TRANSFORMERS):
            return load_client(choice)
        key = (choice.vlm, choice.dtype)
        if key not in self._clients:
            self._clients[key] = load_client(choice)
        return self._clients[key]


def _mode(options: argparse.Namespace) -> str:
    if options.best_of:
        return f"best-of-{options.best_of}"
    return "one-shot" if options.one_shot else options.policy


class _Teller:
    """A line for each result, as it comes."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._items: set[str] = set()
        self._one = threading.Lock()

    def tell(self, result: Result) -> None:
        with self._one:
            self._items.add(result.item)
            width = len(str(self._total))
            place = f"[{len(self._items):{width}}/{self._total}]"
            say(f"{place} {result.id}: {_outcome(result)}")


def _outcome(result: Result) -> str:
    if not result.image:
        return f"no image: {result.error}"
    error = f" ({result.error})" if result.error else ""
    if result.checks:
        passed = sum(v.outcome == "pass" for v in result.verdicts)
        unjudged = sum(v.outcome == "unjudged" for v in result.verdicts)
        more = f", {unjudged} not judged" if unjudged else ""
        return f"{passed} of {len(result.checks)} checks hold{more}{error}"
    given = [f"{name} {value:g}" for name, value in result.values.items() if value is not None]
    return (", ".join(given) or "not judged") + error


def _finish(options: argparse.Namespace, suite: Suite, folder: Folder, results: Sequence[Result], images: Path) -> int:
    from ..bench.page import render
    from ..bench.results import PAGE, RESULTS, SUMMARY
    from ..bench.scores import summarise
    from ..trajectory import encode

    summary = summarise(suite, results)
    told = {"suite": suite.name, "plan": encode(folder.plan), "judges": judges(results), **encode(summary)}
    folder.finish(results, told, render(suite, folder.plan, summary, results, images, folder.path))
    for line in table(summary):
        print(line)
    for name in (RESULTS, SUMMARY, PAGE):
        print(folder.path / name)
    print(f"{images}  (official scorer: {suite.official})" if suite.official else images)
    return _code(options, results)


def judges(results: Sequence[Result]) -> list[str]:
    return list(dict.fromkeys(r.judge for r in results if r.judge))


def table(summary: Summary) -> list[str]:
    """The scores as aligned lines, then what they leave out."""
    width = max(len(e.name) for e in summary.scores)
    lines = [f"{e.name:<{width}}  {_value(e)}" for e in summary.scores]
    lines += [
        f"{'':<{width}}  without {', '.join(e.lacking)}: no image was judged" for e in summary.scores if e.lacking
    ]
    left = f"{summary.judged} of {summary.images} images judged"
    return [*lines, f"{left}, {summary.missing} without an image" if summary.missing else left]


def _value(estimate: Estimate) -> str:
    if estimate.value is None:
        return "     –"
    value = f"{estimate.value:6.3f}"
    if estimate.low is None or estimate.high is None:
        return f"{value}  (n {estimate.n})"
    return f"{value}  [{estimate.low:.3f}, {estimate.high:.3f}]  ({estimate.interval}, n {estimate.n})"


def _code(options: argparse.Namespace, results: Sequence[Result]) -> int:
    undone = [r for r in results if not r.image or (r.run and r.run.unfinished)]
    if undone and not options.images:
        say(f"clvr: {len(undone)} prompts have no image or an unfinished run; the same command tries them again")
        return FAILED
    return OK
