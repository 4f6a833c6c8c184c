"""Rewards of PPRL: R_T2I and R_I2I in [0, 1], put together by eq. 3, scored in threads while the next is drawn.

A reward that cannot be had (a server that fails, a reply without a score) is tried again, then the picture is
dropped and counted. It never becomes a zero, which would teach the policy to fear whatever the judge stumbled over.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Protocol

from PIL import Image
from pydantic import Field

from clvr.errors import ClvrError, FormatError, GrammarError, ReplyError, VLMError, VLMSetupError
from clvr.ports import Proxy
from clvr.shapes.checks import checklist, expectations
from clvr.shapes.found import Found, to_scene
from clvr.shapes.language import parse, parse_edit
from clvr.shapes.measure import measure
from clvr.shapes.verifier import judge_found
from clvr.trajectory import Check
from clvr.vlm.asking import ask
from clvr.vlm.chat import ChatClient, Message, Reply
from clvr.vlm.replies import ReplyModel, read

from . import templates
from .proxy import instruction

Connect = Callable[[], ChatClient]
"""Makes a client. Each scoring thread gets its own: a client serves one call at a time."""


class GeneralReward(Protocol):
    """R_T2I: how well a picture shows a description."""

    @property
    def name(self) -> str: ...

    def score(self, image: Image.Image, prompt: str) -> float:
        """In [0, 1]. Raises a ClvrError where it cannot be told."""
        ...


class EditReward(Protocol):
    """R_I2I: how well a picture carries out an instruction on another one."""

    @property
    def name(self) -> str: ...

    def score(self, image: Image.Image, source: Image.Image, prompt: str) -> float:
        """In [0, 1]. Raises a ClvrError where it cannot be told."""
        ...


@dataclass(frozen=True)
class ProxyReward:
    """Eq. 3: R_T2I(a, p_T2I) where a picture is drawn anew, else (1 - edit_share) · R_T2I + edit_share · R_I2I(a,
    C_img[I_ref], p_I2I). Edit rewards see one source: the last of the references, as `proxy.v1` orders them."""

    general: GeneralReward
    edit: EditReward
    edit_share: float = 0.5

    def score(self, image: Image.Image, proxy: Proxy, history: Mapping[str, Image.Image]) -> float:
        """`history`: the images of the context by label. Raises what the rewards raise, and FormatError for a
        reference that is not in the history."""
        shown = self.general.score(image, proxy.t2i)
        if not proxy.references:
            return shown
        source = proxy.references[-1]
        if source not in history:
            raise FormatError(f"The proxy refers to {source}, which the history lacks.", "Extract the proxies again.")
        done = self.edit.score(image, history[source], proxy.i2i)
        return (1 - self.edit_share) * shown + self.edit_share * done


class Scorer:
    """Scores pictures in threads. A failure is tried again; after `tries` it is None, and counted by its class."""

    def __init__(self, reward: ProxyReward, workers: int = 8, tries: int = 3) -> None:
        self.failures: Counter[str] = Counter()
        self._reward, self._tries = reward, tries
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="reward")

    def submit(self, image: Image.Image, proxy: Proxy, history: Mapping[str, Image.Image]) -> Future[float | None]:
        """The future raises VLMSetupError where no call can ever succeed."""
        return self._pool.submit(self._score, image, proxy, history)

    def _score(self, image: Image.Image, proxy: Proxy, history: Mapping[str, Image.Image]) -> float | None:
        problem = ""
        for _ in range(self._tries):
            try:
                return self._reward.score(image, proxy, history)
            except VLMSetupError:
                raise
            except VLMError as error:
                problem = type(error).__name__
            except ClvrError as error:  # the same every time
                problem = type(error).__name__
                break
        with self._lock:
            self.failures[problem] += 1
        return None

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class MeasuredScene:
    """R_T2I in the built-in world: the share of a prompt's checks that hold, by measurement. A check that cannot be
    told does not hold: a picture gains nothing by being unclear.

    What is no prompt but an edit's instruction (simple RL's) is checked for what it names alone."""

    name = "measured scene"

    def score(self, image: Image.Image, prompt: str) -> float:
        """Raises GrammarError for a text that is not of the built-in world."""
        words = instruction(prompt)
        try:
            checks = checklist(parse(words))
        except GrammarError:
            checks = expectations(parse_edit(words))
        return _share(measure(image), checks)


class MeasuredEdit:
    """R_I2I in the built-in world: the share of what an edit of the source should have changed, and kept."""

    name = "measured edit"

    def score(self, image: Image.Image, source: Image.Image, prompt: str) -> float:
        """Raises GrammarError for an instruction that cannot be carried out on the source."""
        before = measure(source)
        scene = to_scene(before)
        if scene is None:
            raise GrammarError("The source shows no clear scene of the built-in world.", "Leave this step out.")
        return _share(measure(image), expectations(parse_edit(instruction(prompt)), scene), before)


def _share(found: tuple[Found, ...], checks: tuple[Check, ...], before: tuple[Found, ...] | None = None) -> float:
    verdict = judge_found(found, checks, before)
    return sum(verdict.outcome(c.id) == "pass" for c in checks) / len(checks)


class UnifiedReward:
    """R_T2I by UnifiedReward (https://github.com/CodeGoat24/UnifiedReward) or any VLM, behind a chat client.

    `prompt` is a file of prompts/: `reward_general.v1` asks for one final score, `reward_general_acs.v1` for
    alignment, coherence and style, which are averaged."""

    def __init__(self, connect: Connect, prompt: str = "reward_general.v1") -> None:
        self._clients = _PerThread(connect)
        self._prompt = prompt

    @property
    def name(self) -> str:
        return f"{self._prompt} {self._clients.get().name}"

    def score(self, image: Image.Image, prompt: str) -> float:
        """Raises ReplyError, and what the client raises."""
        text = templates.filled(self._prompt, prompt=prompt)
        return _asked(self._clients.get(), (image, text), general_score)


class UnifiedRewardEdit:
    """R_I2I by UnifiedReward-Edit, or any VLM: success and restraint, each 0 to 25, averaged."""

    def __init__(self, connect: Connect, prompt: str = "reward_edit.v1") -> None:
        self._clients = _PerThread(connect)
        self._prompt = prompt

    @property
    def name(self) -> str:
        return f"{self._prompt} {self._clients.get().name}"

    def score(self, image: Image.Image, source: Image.Image, prompt: str) -> float:
        """Raises ReplyError, and what the client raises."""
        text = templates.filled(self._prompt, instruction=prompt)
        return _asked(self._clients.get(), (source, image, text), edit_score)


class _PerThread:
    def __init__(self, connect: Connect) -> None:
        self._connect = connect
        self._held = threading.local()

    def get(self) -> ChatClient:
        held: dict[str, ChatClient] = self._held.__dict__
        if "client" not in held:
            held["client"] = self._connect()
        return held["client"]


def _asked(client: ChatClient, parts: tuple[str | Image.Image, ...], parsed: Callable[[str], float]) -> float:
    """One question, once more with the error where the reply cannot be read. Raises ReplyError after that."""
    asked = ask(client, [Message("user", parts)], None, lambda reply: parsed(_complete(reply)))
    if asked.value is None:
        raise ReplyError(f"{client.name} gave no score: {asked.error}", "Does the server run a reward model?")
    return asked.value


def _complete(reply: Reply) -> str:
    if reply.truncated:
        raise ReplyError("The reply was cut at the token limit.", "Be brief.")
    return reply.text


_NUMBER = r"(-?\d+(?:\.\d+)?)(?![\d.,]*\d)(?!\s*-\s*\d)"
_BETWEEN = r"(?:\s*\(1\s*-\s*5\))?[\s*_:=\[]*"
_FINAL = re.compile(rf"final\s+score{_BETWEEN}{_NUMBER}(?:[\s*\]]*(?:/|out of)\s*5)?", re.IGNORECASE)
_ASPECTS = tuple(
    re.compile(rf"{aspect}(?:\s+score)?{_BETWEEN}{_NUMBER}", re.IGNORECASE)
    for aspect in ("alignment", "coherence", "style")
)


def general_score(text: str) -> float:
    """1 to 5 as [0, 1]: the last "Final Score", else the mean of alignment, coherence and style. Raises ReplyError
    where neither is there, or a score is out of range."""
    finals = _FINAL.findall(text)
    if finals:
        return _one_to_five(finals[-1])
    aspects = [pattern.findall(text) for pattern in _ASPECTS]
    if not all(aspects):
        raise ReplyError("The reply has no final score.", "End with the line: Final Score: 3.5")
    return sum(_one_to_five(found[-1]) for found in aspects) / len(aspects)


def _one_to_five(number: str) -> float:
    value = float(number)
    if not 1 <= value <= 5:
        raise ReplyError(f"The score {number} is not from 1 to 5.", "Give a score from 1 to 5.")
    return (value - 1) / 4


class EditReply(ReplyModel):
    score: Annotated[list[Annotated[float, Field(ge=0, le=25)]], Field(min_length=2, max_length=2)]


def edit_score(text: str) -> float:
    """[success, restraint], each 0 to 25, as their mean in [0, 1]. Raises ReplyError."""
    return sum(read(text, EditReply).score) / 50
