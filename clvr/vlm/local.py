"""A client for Qwen3-VL in this process, over transformers.

Where the weights are. Inside a call they are on the device; between calls they stay there (offload `none`) or
go to CPU memory (`model`), so that the picture model has the device to itself. `auto` moves them away where
they take more than half of the device's memory. What was computed for the conversation so far waits beside
them, `release` drops it. ComfyUI brings a `Residence` of its own, in which its memory management decides."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from ..devices import choose_device, choose_dtype
from ..errors import DeviceMemoryError, MissingFileError, SettingError, VLMError, WeightsError
from ..trajectory import Usage
from . import wire
from .chat import Message, Reply, TokenLogprob
from .constrain import Grammar, Matcher
from .folder import VLMFolder, find
from .prefix import Prefix, Prefixes
from .qwen import Prompt, QwenVL

OFFLOADS = ("auto", "none", "model")
_LOOK = 0.1  # seconds between two looks at an interrupt
_TOP = 10  # likeliest tokens whose log-probabilities a reply tells
_CPU = torch.device("cpu")
_NO_MEMORY = ("out of memory", "can't allocate memory")


@dataclass(frozen=True)
class LocalSettings:
    """temperature 0 takes the likeliest token; above, `seed` decides. image_side: pixels of the longer side of
    an image. keep_prefix: whether a round re-reads the rounds before it. prefix_bytes: memory that what was
    read may take between two calls; Qwen3-VL 8B needs 147 kB a token in bf16, 4B the same."""

    max_tokens: int = 4096
    temperature: float = 0.0
    seed: int = 0
    image_side: int = 1024
    keep_prefix: bool = True
    prefix_bytes: int = 4 << 30


class Residence(Protocol):
    """A context in which the weights are on `device`. `rest`: where the kept prefixes are outside of it."""

    device: torch.device
    rest: torch.device

    def __enter__(self) -> object: ...

    def __exit__(self, *error: object) -> None: ...

    def make_room(self, size: int) -> None:
        """Bytes that the conversation will take on the device, beside the weights. Called inside of it."""
        ...


class Resident:
    """Weights that stay on their device, or leave it after every call."""

    def __init__(self, model: torch.nn.Module, device: torch.device, leaves: bool) -> None:
        self.device = device
        self.rest = _CPU if leaves else device
        self._model = model

    def __enter__(self) -> None:
        self._model.to(self.device)

    def __exit__(self, *error: object) -> None:
        self._model.to(self.rest)
        if self.rest != self.device and self.device.type == "cuda":
            torch.cuda.empty_cache()

    def make_room(self, size: int) -> None:
        """What else is on the device is not known here."""


class LocalClient:
    """Answers conversations with a Qwen3-VL in this process. `waiting` is called about ten times a second
    during a call; what it raises passes through, and the next call begins where this one had got to."""

    def __init__(
        self,
        qwen: QwenVL,
        residence: Residence | None = None,
        settings: LocalSettings | None = None,
        waiting: Callable[[], None] | None = None,
    ) -> None:
        self.settings = settings or LocalSettings()
        self.qwen = qwen
        self._residence = residence or Resident(qwen.model, qwen.model.device, False)
        self._waiting = waiting
        self._looked = 0.0
        self._prefixes = Prefixes(self.settings.prefix_bytes)
        self._grammar: Grammar | None = None
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls,
        model: str | Path,
        *,
        device: str = "auto",
        dtype: str = "auto",
        offload: str = "auto",
        settings: LocalSettings | None = None,
        waiting: Callable[[], None] | None = None,
    ) -> LocalClient:
        """From a folder or a hub id. Raises MissingFileError, WeightsError, SettingError, DeviceMemoryError."""
        if offload not in OFFLOADS:
            raise SettingError(f"There is no offload {offload!r}.", f"Use {', '.join(OFFLOADS)}.")
        place = choose_device(device)
        qwen = load(model, choose_dtype(dtype, place))
        return cls(qwen, Resident(qwen.model, place, _leaves(qwen, place, offload)), settings, waiting)

    @property
    def name(self) -> str:
        return self.qwen.name

    def release(self) -> None:
        """Drop what is kept between calls: the run is over."""
        with self._lock:
            self._forget()

    def _forget(self) -> None:
        self._prefixes.clear()
        self.qwen.forget()

    def chat(
        self, messages: Sequence[Message], schema: Mapping[str, Any] | None = None, logprobs: bool = False
    ) -> Reply:
        """Raises VLMError, ReplyError, DeviceMemoryError, and what `waiting` raises."""
        with self._lock:
            try:
                return self._chat(messages, schema, logprobs)
            except RuntimeError as error:
                if not _is_memory(error):
                    raise
            self._forget()  # it may have been what was kept
            try:
                return self._chat(messages, schema, logprobs)
            except RuntimeError as error:
                if not _is_memory(error):
                    raise
                raise DeviceMemoryError(
                    f"{self._residence.device} has too little memory for {self.name} and this conversation.",
                    "Use a smaller model or smaller images, or set the device to cpu.",
                ) from error

    def _chat(self, messages: Sequence[Message], schema: Mapping[str, Any] | None, logprobs: bool) -> Reply:
        with torch.inference_mode(), self._residence, self.qwen.watched(self._look):
            prompt = self.qwen.prompt(messages, self.settings.image_side)
            self._check_length(prompt)
            self._residence.make_room(self.qwen.token_bytes * (len(prompt.tokens) + self.settings.max_tokens))
            prefix = self._prefixes.take(prompt.kind, prompt.tokens) or self.qwen.blank()
            prefix.move(self._residence.device)
            try:
                return _Answer(self.qwen, self.settings, prompt, self._matcher(schema), logprobs).write(prefix)
            finally:
                self._put_away(prompt, prefix)

    def _put_away(self, prompt: Prompt, prefix: Prefix) -> None:
        if self.settings.keep_prefix:
            prefix.move(self._residence.rest)
            self._prefixes.keep(prompt.kind, prefix)

    def _check_length(self, prompt: Prompt) -> None:
        need = len(prompt.tokens) + self.settings.max_tokens
        if need > self.qwen.longest:
            raise VLMError(
                f"The conversation has {len(prompt.tokens)} tokens and may get {self.settings.max_tokens} as an "
                f"answer; {self.name} reads {self.qwen.longest}.",
                "Lower max_tokens or the size of the images, or take fewer rounds.",
            )

    def _matcher(self, schema: Mapping[str, Any] | None) -> Matcher | None:
        if schema is None:
            return None
        if self._grammar is None:
            self._grammar = Grammar(self.qwen.tokenizer, self.qwen.vocabulary, self.qwen.stops)
        return self._grammar.matcher(schema)

    def _look(self) -> None:
        now = time.monotonic()
        if self._waiting is not None and now - self._looked >= _LOOK:
            self._looked = now
            self._waiting()


class _Answer:
    """One answer under way."""

    def __init__(
        self, qwen: QwenVL, settings: LocalSettings, prompt: Prompt, matcher: Matcher | None, logprobs: bool
    ) -> None:
        self._qwen = qwen
        self._settings = settings
        self._prompt = prompt
        self._matcher = matcher
        self._tops: list[dict[str, float]] | None = [] if logprobs else None
        self._ids: list[int] = []
        self._thinking = prompt.thinks and qwen.thought is not None
        self._random = torch.Generator().manual_seed(settings.seed) if settings.temperature > 0 else None

    def write(self, prefix: Prefix) -> Reply:
        """Raises ReplyError where nothing but thinking came."""
        truncated = self._generate(prefix)
        at = self._answer_start()
        pieces = self._qwen.pieces(self._ids[at:])
        text = "".join(pieces)
        if not text.strip():
            thoughts = "".join(self._qwen.pieces(self._ids[:at]))
            raise wire.empty(truncated, thoughts, "", self._settings.max_tokens)
        tops = None if self._tops is None else self._tops[at:]
        marked = None if tops is None else tuple(TokenLogprob(*pair) for pair in zip(pieces, tops, strict=True))
        usage = Usage(1, len(self._prompt.tokens), len(self._ids))
        return Reply(text, usage, truncated, marked)

    def _generate(self, prefix: Prefix) -> bool:
        """Whether the answer was cut at its limit."""
        logits = self._qwen.read(self._prompt, prefix)
        position, stops = self._prompt.next_position, self._qwen.stops
        while (token := self._pick(logits)) not in stops:
            self._ids.append(token)
            if self._is_complete():
                return False
            if len(self._ids) >= self._settings.max_tokens:
                return True
            logits = self._qwen.step(token, position, prefix)
            position += 1
        return False

    def _pick(self, logits: torch.Tensor) -> int:
        if self._matcher is not None and not self._thinking:
            logits = self._matcher.mask(logits)
        if self._random is None:
            token = int(logits.argmax())
        else:
            chances = (logits / self._settings.temperature).softmax(-1).cpu()
            token = int(torch.multinomial(chances, 1, generator=self._random))
        if token not in self._qwen.stops and self._tops is not None:
            self._tops.append(self._top(logits))
        return token

    def _top(self, logits: torch.Tensor) -> dict[str, float]:
        best = logits.log_softmax(-1).topk(min(_TOP, len(logits)))
        told: dict[str, float] = {}
        for value, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            if value > float("-inf"):
                told.setdefault("".join(self._qwen.pieces([token])), value)
        return told

    def _is_complete(self) -> bool:
        """Take note of the last token; a finished JSON value needs no end of the turn."""
        token = self._ids[-1]
        if self._thinking:
            self._thinking = token != self._qwen.thought
            return False
        if self._matcher is None:
            return False
        self._matcher.take(token)
        return self._matcher.is_done

    def _answer_start(self) -> int:
        """Where the answer begins behind the thinking block, which may never have ended."""
        if self._qwen.thought in self._ids:
            return len(self._ids) - self._ids[::-1].index(self._qwen.thought)
        return len(self._ids) if self._thinking else 0


def load(model: str | Path, dtype: torch.dtype) -> QwenVL:
    """Into CPU memory. Raises MissingFileError, WeightsError, DeviceMemoryError."""
    folder = find(model)
    _check_memory(folder, dtype)
    try:
        processor = AutoProcessor.from_pretrained(folder.path, local_files_only=True, trust_remote_code=False)
        loaded: Any = Qwen3VLForConditionalGeneration.from_pretrained(
            folder.path,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
        weights, report = loaded
    except (SafetensorError, EOFError) as error:
        raise WeightsError(f"The weights in {folder.path} are damaged: {error}.", "Download them again.") from error
    except (OSError, ValueError, KeyError, TypeError, ImportError, RuntimeError) as error:
        raise MissingFileError(
            f"{folder.path} cannot be opened as a Qwen3-VL: {str(error).strip().splitlines()[0]:.300}",
            "Download the folder again, its processor's files (preprocessor_config.json, tokenizer.json) too.",
        ) from error
    _check_fit(folder, report)
    if not isinstance(processor, Qwen3VLProcessor):
        found = type(processor).__name__
        raise WeightsError(f"{folder.path} has a {found}, no Qwen3VLProcessor.", "Download the folder again.")
    return QwenVL(weights, processor, model_name(model))


def model_name(model: str | Path) -> str:
    """How a VLM of a folder or hub id is called."""
    path = Path(model).expanduser()
    return path.resolve().name if path.exists() else str(model)


def _check_fit(folder: VLMFolder, report: Mapping[str, Any]) -> None:
    """transformers draws missing weights at random and only warns."""
    faults = [f"{name} is missing" for name in sorted(report["missing_keys"])]
    faults += [f"{name[0]} has another shape" for name in report["mismatched_keys"]]
    if faults:
        more = f" and {len(faults) - 4} more" if len(faults) > 4 else ""
        raise WeightsError(
            f"The weights in {folder.path} do not fit its config.json: {'; '.join(faults[:4])}{more}.",
            "The files belong to different models: download the folder again.",
        )


def _check_memory(folder: VLMFolder, dtype: torch.dtype) -> None:
    import psutil

    stored = 4 if folder.config.get("dtype", folder.config.get("torch_dtype")) == "float32" else 2
    need = folder.bytes * dtype.itemsize // stored
    free = psutil.virtual_memory().available
    if need > free:
        raise DeviceMemoryError(
            f"{folder.path} takes {need / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free.",
            "Close other programs, use a smaller model, bfloat16, or a VLM server on another machine.",
        )


def _leaves(qwen: QwenVL, device: torch.device, offload: str) -> bool:
    if offload != "auto" or device.type != "cuda":
        return offload == "model" and device.type != "cpu"
    size = sum(p.numel() * p.element_size() for p in qwen.model.parameters())
    return size > torch.cuda.get_device_properties(device).total_memory / 2


def _is_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in _NO_MEMORY)
