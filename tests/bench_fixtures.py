"""A benchmark over the world without weights. Run as a script it is the child process of the kill test."""

from __future__ import annotations

import sys
from pathlib import Path

from clvr.bench.judging import CheckJudge
from clvr.bench.results import Folder, Plan
from clvr.bench.running import Bench, Drawer, Shared
from clvr.bench.scores import summarise
from clvr.bench.suite import Item, Suite
from clvr.budget import Budget
from clvr.loop import Ports, Settings
from clvr.trajectory import encode

try:
    from .engine_fixtures import CHECKS, SIZE, FakeController, FakeGenerator, FakeVerifier
except ImportError:  # as a script
    from engine_fixtures import CHECKS, SIZE, FakeController, FakeGenerator, FakeVerifier

ITEMS = tuple(
    Item(f"grey-{i}", f"grey number {i}", {"task": "odd" if i % 2 else "even"}, f"grey-{i}.png", CHECKS)
    for i in range(4)
)
SUITE = Suite("greys", "Greys", ITEMS, "task")


def drawer(generator, controller=FakeController):
    return Drawer(
        lambda: Ports(controller(), generator, FakeVerifier()),
        Settings(Budget(steps=2, candidates=2, patience=9), size=SIZE),
        seed=3,
        options={"model": "fake"},
    )


def run(path, generator=None, suite=SUITE, workers=1, tell=lambda _: None, judge=None, controller=FakeController):
    """A whole benchmark in `path`, with its files at the end."""
    shared = Shared(lambda: generator or FakeGenerator())
    with Folder(Path(path), Plan(suite.name, suite.digest, "clvr")) as folder:
        judge = judge or (lambda: CheckJudge(FakeVerifier()))
        bench = Bench(suite, folder, judge, drawer(shared, controller), folder.images, "a judge", tell)
        results = bench.run(suite.items, workers)
        folder.finish(results, encode(summarise(suite, results)), "<p>")
    return results


def main(path):
    """The kill test's child: a line for each drawing step."""

    class Telling(FakeGenerator):
        def draw(self, context, size, seeds, on_step=None):
            print("drawing", flush=True)
            return super().draw(context, size, seeds, on_step)

    print("ready", flush=True)
    run(path, Telling(pause=0.002), workers=2, tell=lambda _: print("told", flush=True))


if __name__ == "__main__":
    main(sys.argv[1])
