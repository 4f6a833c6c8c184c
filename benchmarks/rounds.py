"""Seconds and tokens of planning a round against its number, for the three ways to a VLM, at tiny size.

    python -m benchmarks.rounds --out docs/results/rounds.md
    python -m benchmarks.rounds --quick

Round t's conversation holds the goal and rounds 1…t−1, each with its decision, its image and its verdict. The
decisions are given, so that every client reads the same; each answers 16 tokens. The model is a Qwen3-VL of two
layers with random weights, whose tokens are bytes: the figures show how the cost grows, not what a real one costs.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import torch
from PIL import Image

from clvr.errors import ReplyError
from clvr.ports import Album
from clvr.trajectory import Candidate, Check, CheckVerdict, Decision, Goal, Step, Trajectory, Verdict, generated
from clvr.vlm import Message
from clvr.vlm.agents import history
from clvr.vlm.chat import ChatClient
from scripts.comfy import ComfyError
from tests.tiny_vlm import make
from tests.vlm_subjects import ClipSubject, LocalSubject, ServerSubject

ANSWER = 16  # tokens
CHECK = Check("cup", "Is there a red cup on the table?")


@dataclass(frozen=True)
class Round:
    seconds: float
    read: int


@dataclass(frozen=True)
class Column:
    name: str
    rounds: tuple[Round, ...]
    tokens: str = "tokens read"


def conversations(count: int) -> list[list[Message]]:
    """What the planner is asked in rounds 1 to `count`."""
    trajectory = Trajectory(Goal("a red cup on a table", checks=(CHECK,)))
    images: dict[str, Image.Image] = {}
    asked: list[list[Message]] = []
    for n in range(count):
        asked.append(history(trajectory, Album(images)))
        decision = Decision("edit" if n else "generate", f"The cup is missing, attempt {n}.", "Put a cup on the table")
        verdict = Verdict((CheckVerdict("cup", "fail"),))
        trajectory = trajectory.append(Step(n, decision, (Candidate(n, None, verdict),), 0, True))
        images[generated(n)] = Image.new("RGB", (64, 64), (25 * n, 90, 200))
    return asked


def measure(name: str, client: ChatClient, asked: Sequence[list[Message]], read: Callable[[], int]) -> Column:
    """`read`: prompt tokens that were computed so far."""
    rounds = []
    _answer(client, [Message("user", ("Are you there?",))])
    for messages in asked:
        before, started = read(), perf_counter()
        _answer(client, messages)
        rounds.append(Round(perf_counter() - started, read() - before))
    return Column(name, tuple(rounds))


def _answer(client: ChatClient, messages: list[Message]) -> None:
    with contextlib.suppress(ReplyError):  # random weights may have nothing to say
        client.chat(messages)


def columns(folder: Path, asked: Sequence[list[Message]]) -> list[Column]:
    """The CLIP keeps nothing, and reads what transformers reads without a kept prefix; a server does not tell what it
    computes of what it is sent."""
    local = LocalSubject(folder)
    made = []
    for name, keep in (("transformers, prefix kept", True), ("transformers, nothing kept", False)):
        client = local.client(max_tokens=ANSWER, keep_prefix=keep)
        made.append(measure(name, client, asked, lambda: local.qwen.work.prefilled))
        client.release()
    whole = [r.read for r in made[1].rounds]
    others = (
        ("server (transformers serve)", ServerSubject, "tokens sent"),
        ("CLIP (ComfyUI)", ClipSubject, "tokens read"),
    )
    for name, kind, tokens in others:
        try:
            subject = kind(folder)
        except ComfyError as error:
            print(f"left out: {name}: {error}")
            continue
        column = measure(name, subject.client(max_tokens=ANSWER), asked, lambda: 0)
        rounds = tuple(Round(r.seconds, n) for r, n in zip(column.rounds, whole, strict=True))
        made.append(Column(name, rounds, tokens))
        subject.close()
    return made


def table(made: Sequence[Column]) -> str:
    count = len(made[0].rounds)
    lines = ["| | " + " | ".join(f"round {n}" for n in range(1, count + 1)) + " | last / first |"]
    lines.append("| --- |" + " ---: |" * (count + 1))
    for column in made:
        tokens = [r.read for r in column.rounds]
        seconds = [r.seconds for r in column.rounds]
        lines.append(
            f"| {column.name}: {column.tokens} | {' | '.join(map(str, tokens))} | {tokens[-1] / tokens[0]:.2f} |"
        )
        spent = " | ".join(f"{s:.3f}" for s in seconds)
        lines.append(f"| {column.name}: seconds | {spent} | {seconds[-1] / seconds[0]:.2f} |")
    return "\n".join(lines)


def machine() -> str:
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{platform.machine()}, {device}, {torch.get_num_threads()} thread(s) of torch {torch.__version__}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--quick", action="store_true", help="three rounds")
    parser.add_argument("--out", type=Path, help="write the table into this file too")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        folder = make(Path(scratch))
        text = table(columns(folder, conversations(3 if options.quick else options.rounds)))
    print(machine())
    print(text)
    if options.out:
        options.out.write_text(_page(text), encoding="utf-8")


def _page(text: str) -> str:
    about = (__doc__ or "").split("\n\n")
    return (
        f"# A round's planning against its number\n\n{about[0]}\n{about[2].strip()}\n\n"
        f"Machine: {machine()}. Remake: `python -m benchmarks.rounds --out docs/results/rounds.md`.\n\n{text}\n\n"
        "ComfyUI's CLIP keeps nothing between two calls; a server does not tell what it keeps.\n"
    )


if __name__ == "__main__":
    main()
