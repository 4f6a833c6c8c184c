"""Planning conversations as TRL takes them.

The words, their order and the places of the images are those of clvr's own controller (`clvr.vlm.agents.history`),
turn by turn as its clients render them (`clvr.vlm.qwen.content`): a model is trained on what it will be asked.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence
from typing import Any

from PIL.Image import Image

from clvr.context import closing_decision
from clvr.errors import SettingError
from clvr.ports import Album
from clvr.trajectory import Decision, Trajectory
from clvr.vlm.agents import history
from clvr.vlm.chat import Message
from clvr.vlm.qwen import content
from clvr.vlm.replies import dump_decision
from clvr.vlm.wire import shrunk

Turn = dict[str, Any]
"""{"role", "content": a list of {"type": "text", "text"} and {"type": "image"}}."""
_LEAST = 32
"""Pixels of the side of one image token of Qwen3-VL (patches of 16, merged 2 by 2)."""


def asked(trajectory: Trajectory) -> tuple[Trajectory, Decision]:
    """What the controller had before its last decision, and that decision: to stop where that was right, else the
    one that led to the last drawing, whose outcome no one decided on."""
    closing = closing_decision(trajectory)
    if closing is not None:
        return trajectory, closing
    *before, last = trajectory.steps
    return dataclasses.replace(trajectory, steps=tuple(before)), last.decision


def conversation(trajectory: Trajectory, images: Album) -> list[Message]:
    """A finished run as the controller's conversation, its last decision included. Needs at least one step."""
    past, last = asked(trajectory)
    return [*history(past, images, last.brief), Message("assistant", (dump_decision(last),))]


def turn(message: Message) -> Turn:
    """A turn without its images: a block of type image stands where each belongs."""
    blocks = content(message)
    return {"role": message.role, "content": [_text(blocks)] if isinstance(blocks, str) else blocks}


def shown(message: Message, side: int) -> list[dict[str, Any]]:
    """The content of a turn with its images in their blocks, at most `side` pixels a side."""
    images = iter(pictures([message]))
    return [{**b, "image": shrunk(next(images), side)} if b["type"] == "image" else b for b in turn(message)["content"]]


def pictures(messages: Sequence[Message]) -> list[Image]:
    return [part for message in messages for part in message.parts if not isinstance(part, str)]


def side_within(sizes: Sequence[tuple[int, int]], side: int, pixels: int | None) -> int:
    """The largest side, up to `side`, at which images of these sizes have at most `pixels` pixels together; images
    are only made smaller. Raises SettingError where that would leave nothing to see."""

    def area(longest: int) -> float:
        return sum(w * h * min(1.0, longest / max(w, h)) ** 2 for w, h in sizes)

    if pixels is None or area(side) <= pixels:
        return side
    fits = bisect.bisect_right(range(side), pixels, key=area) - 1
    if fits < _LEAST:
        raise SettingError(
            f"{len(sizes)} images do not fit into {pixels} pixels.", f"Allow at least {len(sizes) * _LEAST**2}."
        )
    return fits


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}
