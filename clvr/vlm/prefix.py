"""What a VLM has computed for the beginning of a conversation, kept for the next round.

A planning conversation only grows: round t repeats rounds 1…t−1 and adds a turn. What is kept is cut to the
tokens that both have in common, so that a changed history is read anew from where it changed."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import DynamicCache


@dataclass
class Prefix:
    """Keys and values of the tokens read so far. `tokens` names them: a text token by its id, an image's
    tokens by a number below zero that stands for its pixels."""

    cache: DynamicCache
    tokens: list[int] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(t.numel() * t.element_size() for layer in self._filled() for t in (layer.keys, layer.values))

    def cut(self, length: int) -> None:
        """Forget what follows `length` tokens, also where an interrupted call left some layers further on."""
        del self.tokens[length:]
        for layer in self._filled():
            if (surplus := layer.get_seq_length() - length) > 0:
                layer.crop(-surplus)

    def move(self, device: torch.device) -> None:
        for layer in self._filled():
            layer.keys, layer.values = layer.keys.to(device), layer.values.to(device)

    def _filled(self) -> list[Any]:
        layers: list[Any] = self.cache.layers
        return [layer for layer in layers if layer.is_initialized]


class Prefixes:
    """One prefix for each kind of conversation (its system text), at most `bytes` together, the newest ones."""

    def __init__(self, limit: int) -> None:
        self._limit = limit  # bytes
        self._kept: OrderedDict[str, Prefix] = OrderedDict()

    def take(self, kind: str, tokens: Sequence[int]) -> Prefix | None:
        """The prefix of a conversation of this kind, cut to what `tokens` begin with. Their last one always
        remains to be read, since what follows it is asked for. Give it back by `keep`."""
        prefix = self._kept.pop(kind, None)
        if prefix is not None:
            prefix.cut(min(common(prefix.tokens, tokens), len(tokens) - 1))
        return prefix

    def keep(self, kind: str, prefix: Prefix) -> None:
        self._kept[kind] = prefix
        while self._kept and self.bytes > self._limit:
            self._kept.popitem(last=False)

    @property
    def bytes(self) -> int:
        return sum(prefix.bytes for prefix in self._kept.values())

    def move(self, device: torch.device) -> None:
        for prefix in self._kept.values():
            prefix.move(device)

    def clear(self) -> None:
        self._kept.clear()


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
