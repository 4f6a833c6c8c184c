"""Proxy prompts (eq. 2): what a step's picture should show, distilled from its context by an offline teacher.

    python -m training.proxies --data DATASET --url http://localhost:8000

A teacher is a `clvr.ports.Teacher`, asked with the context c_t whose `images` are the whole history. `VLMTeacher`
asks any chat client, `WorldTeacher` knows the built-in world exactly, `LastWords` distils nothing: it is the paper's
"simple RL", which is scored by the newest reasoning and the newest image alone. What a teacher said is kept on disk
under the hash of what it was asked.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

from pydantic import Field

from clvr.context import Context
from clvr.errors import (
    ClvrError,
    FormatError,
    GrammarError,
    MissingFileError,
    ReplyError,
    SettingError,
    VLMConnectionError,
    VLMSetupError,
)
from clvr.files import write_atomic
from clvr.hub import read_json
from clvr.images import to_rgb
from clvr.ports import Proxy
from clvr.shapes.edits import Edit, apply
from clvr.shapes.found import to_scene
from clvr.shapes.language import parse, parse_edit
from clvr.shapes.measure import measure
from clvr.shapes.phrases import prompt_words
from clvr.shapes.scene import Group, Scene, Spec
from clvr.vlm.asking import ask, usable
from clvr.vlm.chat import ChatClient, Message, Reply
from clvr.vlm.replies import ReplyModel, array_schema, object_schema, read

from . import templates

PROMPT = "proxy.v1"


class Teacher(Protocol):
    """A `clvr.ports.Teacher` that has a name: the cache tells one teacher's answers from another's by it."""

    @property
    def name(self) -> str: ...

    def proxy(self, context: Context) -> Proxy: ...


class ProxyReply(ReplyModel):
    t2i: Annotated[str, Field(min_length=1)]
    i2i: str = ""
    ref_indices: list[int] = Field(default_factory=list)


def check(reply: ProxyReply, images: int) -> ProxyReply:
    """The reply as it came. Raises ReplyError where its indices are not those of `images` pictures, come twice, or
    stand without an edit instruction (or the other way round)."""
    wrong = [i for i in reply.ref_indices if not 0 <= i < images]
    if wrong:
        held = f"0 to {images - 1}" if images else "none: there is no picture yet"
        raise ReplyError(f"ref_indices names {', '.join(map(str, wrong))}.", f"Possible are {held}.")
    if len(set(reply.ref_indices)) < len(reply.ref_indices):
        raise ReplyError("ref_indices names a picture twice.", "Name each once.")
    if bool(reply.i2i) != bool(reply.ref_indices):
        raise ReplyError(
            "i2i and ref_indices do not fit: one of them is empty.",
            "Give both for a step that changes a picture, and neither for one that draws a new one.",
        )
    return reply


class VLMTeacher:
    """Asks a VLM, and once more where the reply cannot be used."""

    def __init__(self, client: ChatClient) -> None:
        self._client = client

    @property
    def name(self) -> str:
        return f"{PROMPT} {self._client.name}"

    def proxy(self, context: Context) -> Proxy:
        """Raises ReplyError where both replies are unusable, else what the client raises."""
        labels = [label for label, _ in context.images]

        def parsed(reply: Reply) -> ProxyReply:
            return check(read(reply.text, ProxyReply), len(labels))

        asked = ask(self._client, _messages(context), _schema(len(labels)), parsed)
        said = usable(asked, "proxy prompt")
        return Proxy(said.t2i, said.i2i, tuple(labels[i] for i in said.ref_indices), asked.usage)


def _messages(context: Context) -> list[Message]:
    *earlier, newest = context.turns or (None,)
    parts: list[Any] = [f"The user's goal: {context.goal}"]
    for index, (label, image) in enumerate(context.images):
        said = next((turn.text for turn in earlier if turn is not None and turn.label == label), "")
        parts += [f"Step: {said}".rstrip(), f"Image {index}:", image]
    parts.append(f"The step to be judged: {newest.text if newest else context.goal}")
    return [Message("system", (templates.text(PROMPT),)), Message("user", tuple(parts))]


def _schema(images: int) -> dict[str, Any]:
    index = {"type": "integer", "minimum": 0, "maximum": max(images - 1, 0)}
    return object_schema(
        t2i={"type": "string"}, i2i={"type": "string"}, ref_indices=array_schema(index, maxItems=images)
    )


class WorldTeacher:
    """The exact proxy in the built-in world: the newest picture is measured, the edit carried out on what was seen."""

    name = "built-in world"

    def proxy(self, context: Context) -> Proxy:
        """Raises GrammarError where the instruction or the picture is not of the built-in world."""
        words = instruction(newest(context))
        edit = _edit(words) if context.images else None
        if edit is None:
            return Proxy(prompt_words(parse(words)))
        label, image = context.images[-1]
        scene = to_scene(measure(image))
        if scene is None:
            raise GrammarError(
                f"{label} shows something that is no object of the built-in world.", "Leave this trajectory out."
            )
        return Proxy(describe(apply(scene, edit)), words, (label,))


class LastWords:
    """The newest reasoning as both prompts, the newest image as the only reference: "simple RL" (table 6)."""

    name = "last words"

    def proxy(self, context: Context) -> Proxy:
        words = newest(context)
        if not context.images:
            return Proxy(words)
        return Proxy(words, words, (context.images[-1][0],))


def newest(context: Context) -> str:
    """r_t; the goal where nothing was said beyond it."""
    return (context.turns[-1].text if context.turns else "") or context.goal


def instruction(words: str) -> str:
    """The order at the end of a step's reasoning: its last sentence."""
    return words.rstrip(". ").rpartition(". ")[2]


def describe(scene: Scene) -> str:
    """Everything in a scene with its place, as a prompt of the built-in world. Raises GrammarError for nothing."""
    if not scene.items:
        raise GrammarError("An empty picture cannot be described.", "Leave this step out.")
    return prompt_words(Spec(tuple(Group(item.noun, 1, item.cell) for item in scene.items)))


def _edit(words: str) -> Edit | None:
    """The edit that the words ask for; None where they ask for a new picture."""
    return None if words.lower().startswith("draw ") else parse_edit(words)


class Cache:
    """One JSON file a question, in a folder of one teacher. Two processes may write the same one: both write the same
    words."""

    def __init__(self, folder: Path, teacher: str) -> None:
        """Raises SettingError where the folder holds another teacher's answers."""
        self.folder = folder
        path = folder / "teacher.json"
        if not path.is_file():
            write_atomic(path, json.dumps({"name": teacher}).encode())
        elif (before := read_json(path).get("name")) != teacher:
            raise SettingError(f"{folder} holds the proxies of {before}, not of {teacher}.", "Name another folder.")

    def path(self, context: Context) -> Path:
        """The file of a question, by the SHA-256 of its text and its pictures' pixels."""
        told = hashlib.sha256(json.dumps([context.goal, context.text]).encode())
        for label, image in context.images:
            pixels = to_rgb(image)
            told.update(f"\0{label} {pixels.width}x{pixels.height}\0".encode())
            told.update(pixels.tobytes())
        key = told.hexdigest()
        return self.folder / key[:2] / f"{key}.json"

    def get(self, context: Context) -> Proxy | None:
        """Raises FormatError for a damaged file, or one whose indices do not fit the context."""
        path = self.path(context)
        if not path.is_file():
            return None
        try:
            reply = check(ProxyReply.model_validate_json(path.read_text("utf-8")), len(context.images))
        except ValueError as error:  # pydantic's and ReplyError are both ValueErrors
            raise FormatError(
                f"{path} holds no proxy prompt: {error}", "Delete it, and it will be made again."
            ) from None
        return Proxy(reply.t2i, reply.i2i, tuple(context.images[i][0] for i in reply.ref_indices))

    def put(self, context: Context, proxy: Proxy) -> None:
        labels = [label for label, _ in context.images]
        reply = {"t2i": proxy.t2i, "i2i": proxy.i2i, "ref_indices": [labels.index(r) for r in proxy.references]}
        write_atomic(self.path(context), json.dumps(reply, ensure_ascii=False, indent=1).encode())


class Offline:
    """What a teacher said before the training: it asks no one."""

    def __init__(self, folder: Path) -> None:
        """Raises MissingFileError where nothing was extracted."""
        if not (folder / "teacher.json").is_file():
            raise MissingFileError(f"{folder} holds no proxy prompts.", _EXTRACT)
        self.name = str(read_json(folder / "teacher.json").get("name"))
        self._cache = Cache(folder, self.name)

    def proxy(self, context: Context) -> Proxy:
        """Raises MissingFileError for a context that the teacher was not asked about, or had no answer to."""
        kept = self._cache.get(context)
        if kept is None:
            raise MissingFileError(f"There is no proxy prompt for a step of '{context.goal:.60}'.", _EXTRACT)
        return kept


_EXTRACT = "Extract them with: python -m training.proxies --data DATASET --url SERVER"


@dataclass(frozen=True)
class Extracted:
    """`failed` counts by class of error; `first` is one such error in words."""

    made: int
    kept: int
    failed: Counter[str]
    first: str = ""


def extract(contexts: Iterable[Context], teacher: Teacher, cache: Cache) -> Extracted:
    """Ask for every context that the cache does not hold. Raises VLMSetupError and VLMConnectionError; other
    failures leave that context out."""
    made = kept = 0
    failed: Counter[str] = Counter()
    first = ""
    for context in contexts:
        if cache.get(context) is not None:
            kept += 1
            continue
        try:
            cache.put(context, teacher.proxy(context))
            made += 1
        except (VLMSetupError, VLMConnectionError):
            raise
        except ClvrError as error:
            failed[type(error).__name__] += 1
            first = first or str(error)
    return Extracted(made, kept, failed, first)
