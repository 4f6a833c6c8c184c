"""A client for a text encoder that is a whole Qwen3-VL and can write, as ComfyUI's CLIP.

It shows no logits, so that answers come without probabilities and no schema can be enforced; it keeps nothing
from one call to the next."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from PIL.Image import Image

from ..errors import DeviceMemoryError, VLMError, VLMSetupError
from ..trajectory import Usage
from . import wire
from .chat import Message, Reply, joined
from .qwen import watched

_PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
_END, _TEXT_END = "<|im_end|>", "<|endoftext|>"
_THOUGHT = "</think>"
_LOOK = 0.1  # seconds between two looks at an interrupt


class WritingEncoder(Protocol):
    """What is needed of ComfyUI's CLIP (0.29). Tokens: rows of (id or an embedded image, weight)."""

    def tokenize(self, text: str, *, images: Sequence[torch.Tensor]) -> Mapping[str, Any]: ...

    def generate(self, tokens: Mapping[str, Any], *, do_sample: bool, max_length: int) -> Sequence[int]: ...

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str: ...


@dataclass(frozen=True)
class EncoderSettings:
    """image_side: pixels of the longer side of an image."""

    max_tokens: int = 2048
    image_side: int = 1024


class EncoderClient:
    """Answers conversations with the likeliest tokens. `layers`: modules before which `waiting` is called, about
    ten times a second; what it raises passes through."""

    def __init__(
        self,
        encoder: WritingEncoder,
        name: str = "Qwen3-VL@ComfyUI",
        settings: EncoderSettings | None = None,
        waiting: Callable[[], None] | None = None,
        layers: Sequence[torch.nn.Module] = (),
    ) -> None:
        self.settings = settings or EncoderSettings()
        self.name = name
        self._encoder = encoder
        self._waiting = waiting
        self._layers = layers
        self._looked = 0.0

    def chat(
        self, messages: Sequence[Message], schema: Mapping[str, Any] | None = None, logprobs: bool = False
    ) -> Reply:
        """Raises VLMSetupError for an encoder that reads no images, ReplyError, DeviceMemoryError."""
        text, images = rendered(messages)
        pixels = [_pixels(wire.shrunk(image, self.settings.image_side)) for image in images]
        tokens = self._encoder.tokenize(text, images=pixels)
        length = _checked_length(tokens, len(images), self.name)
        ids = list(self._generate(tokens))
        raw = self._encoder.decode(ids, skip_special_tokens=False)
        truncated = len(ids) >= self.settings.max_tokens and not raw.rstrip().endswith((_END, _TEXT_END))
        return self._reply(self._encoder.decode(ids), Usage(1, length, len(ids)), truncated)

    def _generate(self, tokens: Mapping[str, Any]) -> Sequence[int]:
        try:
            with ExitStack() as stack:
                if self._waiting is not None:
                    stack.enter_context(watched(self._layers, self._look))
                return self._encoder.generate(tokens, do_sample=False, max_length=self.settings.max_tokens)
        except torch.OutOfMemoryError as error:
            raise DeviceMemoryError(
                f"The device has too little memory for {self.name} and this conversation.",
                "Use the smaller Qwen3-VL (4B), smaller images, or lower max_tokens.",
            ) from error

    def _reply(self, text: str, usage: Usage, truncated: bool) -> Reply:
        thoughts, closed, answer = text.rpartition(_THOUGHT)
        if not closed and answer.lstrip().startswith("<think>"):
            thoughts, answer = answer, ""
        if not answer.strip():
            raise wire.empty(truncated, thoughts, "", self.settings.max_tokens)
        return Reply(wire.clean(answer), usage, truncated)

    def _look(self) -> None:
        now = time.monotonic()
        if self._waiting is not None and now - self._looked >= _LOOK:
            self._looked = now
            self._waiting()


def rendered(messages: Sequence[Message]) -> tuple[str, list[Image]]:
    """A conversation in Qwen's own chat format up to where the model answers, and its images in order. Marks
    of the format in a text are made harmless."""
    images: list[Image] = []
    turns: list[str] = []
    for message in messages:
        parts: list[str] = []
        for part in joined(message):
            if isinstance(part, str):
                parts.append(wire.plain(part))
            else:
                parts.append(_PICTURE)
                images.append(part)
        turns.append(f"<|im_start|>{message.role}\n{''.join(parts)}{_END}\n")
    return f"{''.join(turns)}<|im_start|>assistant\n", images


def _pixels(image: Image) -> torch.Tensor:
    """[1, H, W, 3] in 0…1."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).unsqueeze(0)


def _checked_length(tokens: Mapping[str, Any], images: int, name: str) -> int:
    """Tokens of the prompt, each image as one. ComfyUI drops surplus images without a word."""
    entries = [entry[0] for rows in tokens.values() for row in rows for entry in row]
    embedded = sum(isinstance(entry, dict) for entry in entries)
    if embedded != images:
        raise VLMSetupError(
            f"The conversation holds {images} images, and {name} took {embedded}.",
            "Load a Qwen3-VL as CLIP, with any type but flux2 (which drops its eyes).",
        )
    if not entries:
        raise VLMError(f"{name} made no tokens of the conversation.", "Is its tokenizer complete?")
    return len(entries)
