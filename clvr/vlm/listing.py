"""The checklist from a VLM: asked for once, made tidy, and asked once more about what rules cannot take apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..checklist import tidy
from ..errors import VLMError
from ..ports import Checklist
from ..trajectory import Check, Usage
from . import replies, templates
from .asking import ask, usable
from .chat import ChatClient, Message

if TYPE_CHECKING:
    from PIL.Image import Image


def make_checklist(client: ChatClient, goal: Sequence[str | Image]) -> Checklist:
    """`goal` is the request as a message shows it. Raises VLMError; one that splitting alone meets is a note."""
    messages = [
        Message("system", (templates.text("checklist"),)),
        Message("user", (*goal, "Write the checklist.")),
    ]
    asked = ask(client, messages, replies.checklist_schema(), lambda reply: replies.parse_checklist(reply.text))
    made = tidy(usable(asked, "checklist"))
    if not made.compound:
        return Checklist(made.checks, asked.usage, asked.raw, made.notes)
    talk = [*messages, Message("assistant", (replies.dump_checklist(made.checks),))]
    parts, usage, raw = _parts(client, talk, made.compound)
    done = tidy(made.checks, parts)
    left = (
        f"'{check.question}' asks several things at once, and is judged as one"
        for check in made.compound
        if check.id not in parts
    )
    notes = (*made.notes, *done.notes, *left)
    return Checklist(done.checks, asked.usage + usage, "\n".join(filter(None, (asked.raw, raw))), notes)


def _parts(
    client: ChatClient, talk: Sequence[Message], compound: Sequence[Check]
) -> tuple[Mapping[str, tuple[Check, ...]], Usage, str]:
    """What these checks ask, one thing each, by id; nothing where the VLM fails at it. What that cost, and the
    raw reply."""
    question = Message("user", (templates.split([f"- {check.id}: {check.question}" for check in compound]),))
    ids = [check.id for check in compound]
    try:
        asked = ask(client, [*talk, question], replies.split_schema(ids), lambda r: replies.parse_split(r.text, ids))
    except VLMError:
        return {}, Usage(calls=1), ""
    return asked.value or {}, asked.usage, asked.raw
