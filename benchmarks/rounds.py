"""Seconds and tokens of planning a round against its number, for the three ways to a VLM, at tiny size.

    python -m benchmarks.rounds --out docs/results/rounds.md
    python -m benchmarks.rounds --quick

Round t's conversation holds the goal and rounds 1…t−1, each with its decision, its image and its verdict. The
decisions are given, so that every client reads the same: in this process the model is made to say them, token by
token under their grammar; the others answer something of at most that length. Seconds hold the writing, and are the
least of three runs. The model is a Qwen3-VL of two layers with random weights, whose tokens are bytes: the figures
show how the cost grows, not what a real one costs.
"""

from __future__ import annotations

import argparse
import contextlib
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from PIL import Image

from clvr.errors import ReplyError
from clvr.ports import Album
from clvr.trajectory import Candidate, Check, CheckVerdict, Decision, Goal, Step, Trajectory, Verdict, generated
from clvr.vlm import Message, replies
from clvr.vlm.agents import history
from clvr.vlm.chat import ChatClient
from clvr.vlm.local import LocalClient, LocalSettings, load
from scripts.comfy import ComfyError
from tests.tiny_vlm import Told, make
from tests.vlm_subjects import ClipSubject, ServerSubject

REPEATS = 3
CHECK = Check("cup", "Is there a red cup on the table?")


@dataclass(frozen=True)
class Asked:
    """What the planner is asked in a round, the form of its answer, and the answer that the next round shows."""

    messages: list[Message]
    schema: Mapping[str, Any]
    answer: str


@dataclass(frozen=True)
class Round:
    seconds: float
    read: int


@dataclass(frozen=True)
class Column:
    name: str
    rounds: tuple[Round, ...]
    tokens: str = "tokens read"


def conversations(count: int) -> list[Asked]:
    """Rounds 1 to `count`."""
    trajectory = Trajectory(Goal("a red cup on a table", checks=(CHECK,)))
    images: dict[str, Image.Image] = {}
    asked: list[Asked] = []
    for n in range(count):
        decision = Decision("edit" if n else "generate", f"The cup is missing, attempt {n}.", "Put a cup on the table")
        schema = replies.decision_schema(tuple(images), bool(n))
        asked.append(Asked(history(trajectory, Album(images)), schema, replies.dump_decision(decision)))
        verdict = Verdict((CheckVerdict("cup", "fail"),))
        trajectory = trajectory.append(Step(n, decision, (Candidate(n, None, verdict),), 0, True))
        images[generated(n)] = Image.new("RGB", (64, 64), (25 * n, 90, 200))
    return asked


def measure(
    client: ChatClient,
    asked: Sequence[Asked],
    read: Callable[[], int] = lambda: 0,
    say: Callable[[str], None] = lambda text: None,
    forget: Callable[[], None] = lambda: None,
) -> tuple[Round, ...]:
    """`read`: prompt tokens that were computed so far; `say`: makes the client's next answer this one; `forget`:
    ends what may be a run for the client."""
    runs = []
    for _ in range(REPEATS):
        say("Yes.")
        _answer(client, Asked([Message("user", ("Are you there?",))], {}, ""))
        rounds = []
        for one in asked:
            say(one.answer)
            before, started = read(), perf_counter()
            _answer(client, one)
            rounds.append(Round(perf_counter() - started, read() - before))
        forget()
        runs.append(rounds)
    return tuple(min(same, key=lambda r: r.seconds) for same in zip(*runs, strict=True))


def _answer(client: ChatClient, asked: Asked) -> None:
    with contextlib.suppress(ReplyError):  # random weights may have nothing to say
        client.chat(asked.messages, asked.schema or None)


def columns(folder: Path, asked: Sequence[Asked]) -> list[Column]:
    """The CLIP keeps nothing, and reads what transformers reads without a kept prefix; a server does not tell what it
    computes of what it is sent."""
    opened = load(folder, torch.float32)
    qwen = Told(opened.model, opened.processor, opened.name)
    longest = max(len(one.answer.encode()) for one in asked)  # tokens
    made = []
    for name, keep in (("transformers, prefix kept", True), ("transformers, nothing kept", False)):
        client = LocalClient(qwen, None, LocalSettings(longest, keep_prefix=keep))
        rounds = measure(client, asked, lambda: qwen.work.prefilled, qwen.say, client.release)
        made.append(Column(name, rounds))
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
        measured = measure(subject.client(max_tokens=longest), asked)
        rounds = tuple(Round(r.seconds, n) for r, n in zip(measured, whole, strict=True))
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
