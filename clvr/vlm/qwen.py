"""Qwen3-VL over transformers: conversations as tokens, positions and image features, read from where a kept
prefix ends.

The model's own `generate` re-reads the whole history every round, images included; here the language model is
called with explicit embeddings, positions (M-RoPE) and DeepStack features of the unread tokens alone."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL.Image import Image
from transformers import DynamicCache, Qwen3VLForConditionalGeneration, Qwen3VLProcessor

from ..errors import VLMError
from .chat import Message, joined
from .prefix import Prefix
from .wire import plain, shrunk

CHUNK = 512
"""Tokens that are read at once: the attention of a long history in one piece would need gigabytes."""
_IMAGES_KEPT = 16
_THINK, _THOUGHT = "<think>", "</think>"


@dataclass(frozen=True)
class Features:
    """An image as the language model sees it: [n, width], and for its first layers (DeepStack) as many."""

    embeds: torch.Tensor
    deep: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Placed:
    """An image of the conversation, at the tokens from `start` to `stop`."""

    start: int
    stop: int
    number: int
    image: Image


@dataclass(frozen=True)
class Prompt:
    """A conversation up to where the model answers. `tokens` as in `Prefix`; ids [L], positions [3, L].
    `thinks`: the template has opened a thinking block."""

    kind: str
    tokens: list[int]
    ids: torch.Tensor
    positions: torch.Tensor
    images: tuple[Placed, ...]
    thinks: bool

    @property
    def next_position(self) -> int:
        return int(self.positions.max()) + 1


@dataclass
class Work:
    """What was computed so far. prefilled: prompt tokens that the model read, of `prompt` that were asked."""

    prompt: int = 0
    prefilled: int = 0
    generated: int = 0
    images: int = 0


@dataclass
class _Sight:
    """Images that were seen: a number and a grid (t, h, w in patches) by digest, the newest ones' features."""

    known: dict[bytes, tuple[int, tuple[int, int, int]]] = field(default_factory=dict)
    features: OrderedDict[int, Features] = field(default_factory=OrderedDict)


def content(message: Message) -> str | list[dict[str, str]]:
    """A turn as chat templates take it."""
    parts = [plain(p) if isinstance(p, str) else None for p in joined(message)]
    if None not in parts:
        return "".join(p for p in parts if p is not None)
    return [{"type": "image"} if p is None else {"type": "text", "text": p} for p in parts]


class QwenVL:
    """The weights with their processor. Not for two threads at once."""

    def __init__(self, model: Qwen3VLForConditionalGeneration, processor: Qwen3VLProcessor, name: str) -> None:
        self.model = model.eval()
        self.processor = processor
        self.tokenizer = processor.tokenizer
        self._images: Any = processor.image_processor
        self._config: Any = model.config
        self._inner: Any = model.model
        self.name = name
        self.work = Work()
        self._sight = _Sight()

    @property
    def stops(self) -> tuple[int, ...]:
        """Tokens that end a turn."""
        settings: Any = self.model.generation_config
        ends = settings.eos_token_id
        listed = ends if isinstance(ends, (list, tuple)) else [ends]
        return tuple(dict.fromkeys(t for t in (*listed, self.tokenizer.eos_token_id) if t is not None))

    @property
    def longest(self) -> int:
        """Tokens of a conversation that the model was made for."""
        return self._config.text_config.max_position_embeddings

    @property
    def vocabulary(self) -> int:
        return self._config.text_config.vocab_size

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token."""
        text = self._config.text_config
        return 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * self.model.dtype.itemsize

    def forget(self) -> None:
        """Drop the features of the images seen. Prefixes that were made with them must go too."""
        self._sight = _Sight()

    @contextmanager
    def watched(self, look: Callable[[], None]) -> Iterator[None]:
        """`look` is called before every layer; what it raises ends the call in the middle of a forward pass."""
        with watched([*self._inner.language_model.layers, *self._inner.visual.blocks], look):
            yield

    # Reading

    def prompt(self, messages: Sequence[Message], side: int) -> Prompt:
        """Images with at most `side` pixels a side. Raises VLMError where the template has no room for each."""
        images = [shrunk(p, side) for m in messages for p in m.parts if not isinstance(p, str)]
        turns = [{"role": m.role, "content": content(m)} for m in messages]
        text = str(self.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False))
        pad = self._config.image_token_id
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if ids.count(pad) != len(images):
            raise VLMError(
                f"The conversation holds {len(images)} images, and the chat template of {self.name} makes room "
                f"for {ids.count(pad)}.",
                "Download the model's chat template and tokenizer again: they do not fit together.",
            )
        seen = [self._seen(image) for image in images]
        spread, tokens, placed = [], [], []
        for token in ids:
            if token != pad:
                spread.append(token)
                tokens.append(token)
                continue
            number, grid = seen[len(placed)]
            count = grid[0] * grid[1] * grid[2] // self._merge**2
            placed.append(Placed(len(spread), len(spread) + count, number, images[len(placed)]))
            spread += [pad] * count
            tokens += [number] * count
        row = torch.tensor(spread)
        positions = self._positions(row, [grid for _, grid in seen])
        kind = "\n".join(str(p) for p in messages[0].parts) if messages else ""
        return Prompt(kind, tokens, row, positions, tuple(placed), text.rstrip().endswith(_THINK))

    @property
    def _merge(self) -> int:
        return self._config.vision_config.spatial_merge_size

    def _positions(self, ids: torch.Tensor, grids: Sequence[tuple[int, int, int]]) -> torch.Tensor:
        kinds = (ids == self._config.image_token_id).int()
        positions, _ = self._inner.get_rope_index(
            ids.unsqueeze(0), kinds.unsqueeze(0), torch.tensor(grids) if grids else None
        )
        return positions[:, 0]

    # Seeing

    def _seen(self, image: Image) -> tuple[int, tuple[int, int, int]]:
        """The image's number, below zero, and its grid."""
        digest = hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).digest()
        if digest not in self._sight.known:
            number = -1 - len(self._sight.known)
            grid, features = self._encode(image)
            self._remember(number, features)
            self._sight.known[digest] = number, grid
        return self._sight.known[digest]

    def _features(self, placed: Placed) -> Features:
        if placed.number not in self._sight.features:
            self._remember(placed.number, self._encode(placed.image)[1])
        self._sight.features.move_to_end(placed.number)
        return self._sight.features[placed.number]

    def _remember(self, number: int, features: Features) -> None:
        """In CPU memory, where they do not stand in the way of drawing."""
        cpu = Features(features.embeds.cpu(), tuple(deep.cpu() for deep in features.deep))
        self._sight.features[number] = cpu
        while len(self._sight.features) > _IMAGES_KEPT:
            self._sight.features.popitem(last=False)

    def _encode(self, image: Image) -> tuple[tuple[int, int, int], Features]:
        made = self._images(images=[image], return_tensors="pt")
        grid = made["image_grid_thw"].to(self._device)
        seen = self._inner.get_image_features(made["pixel_values"].to(self._device), grid, return_dict=True)
        self.work.images += 1
        t, h, w = (int(n) for n in grid[0])
        return (t, h, w), Features(seen.pooler_output[0], tuple(deep[0] for deep in seen.deepstack_features))

    # Computing

    @property
    def _device(self) -> torch.device:
        return self.model.lm_head.weight.device

    def blank(self) -> Prefix:
        return Prefix(DynamicCache(config=self._config.text_config))

    def read(self, prompt: Prompt, prefix: Prefix) -> torch.Tensor:
        """Read what the prefix lacks of the prompt. Returns the logits [V] of what follows, fp32."""
        start = len(prefix.tokens)
        self.work.prompt += len(prompt.tokens)
        self.work.prefilled += len(prompt.tokens) - start
        hidden = torch.empty(0)
        for first in range(start, len(prompt.tokens), CHUNK):
            last = min(first + CHUNK, len(prompt.tokens))
            hidden = self._read_chunk(prompt, prefix, first, last)
        return self.model.lm_head(hidden[0, -1]).float()

    def _read_chunk(self, prompt: Prompt, prefix: Prefix, first: int, last: int) -> torch.Tensor:
        embeds = self.model.get_input_embeddings()(prompt.ids[first:last].unsqueeze(0).to(self._device))
        mask = torch.zeros(1, last - first, dtype=torch.bool, device=self._device)
        deep: list[tuple[torch.Tensor, ...]] = []
        for placed in prompt.images:
            a, b = max(placed.start, first), min(placed.stop, last)
            if a < b:
                features, part = self._features(placed), slice(a - placed.start, b - placed.start)
                embeds[0, a - first : b - first] = features.embeds[part].to(embeds)
                mask[0, a - first : b - first] = True
                deep.append(tuple(level[part].to(embeds) for level in features.deep))
        visual = {
            "visual_pos_masks": mask,
            "deepstack_visual_embeds": [torch.cat(level) for level in zip(*deep, strict=True)],
        }
        hidden = self._forward(embeds, prompt.positions[:, first:last], prefix, visual if deep else {})
        prefix.tokens += prompt.tokens[first:last]
        return hidden

    def step(self, token: int, position: int, prefix: Prefix) -> torch.Tensor:
        """Read one generated token. Returns the logits [V] of the next one, fp32."""
        embeds = self.model.get_input_embeddings()(torch.tensor([[token]], device=self._device))
        hidden = self._forward(embeds, torch.full((3, 1), position), prefix, {})
        prefix.tokens.append(token)
        self.work.generated += 1
        return self.model.lm_head(hidden[0, -1]).float()

    def _forward(
        self, embeds: torch.Tensor, positions: torch.Tensor, prefix: Prefix, visual: dict[str, Any]
    ) -> torch.Tensor:
        out = self._inner.language_model(
            inputs_embeds=embeds,
            position_ids=positions.unsqueeze(1).to(embeds.device),
            past_key_values=prefix.cache,
            use_cache=True,
            **visual,
        )
        return out.last_hidden_state

    # Writing

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token; a character of several tokens comes with its last one."""
        texts: list[str] = []
        start = shown = 0
        for end in range(1, len(ids) + 1):
            before, now = self._text(ids[start:shown]), self._text(ids[start:end])
            if now.endswith("\N{REPLACEMENT CHARACTER}") and end < len(ids):
                texts.append("")
                continue
            texts.append(now[len(before) :])
            start, shown = shown, end
        return texts

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    @property
    def thought(self) -> int | None:
        """The token that ends a thinking block, where the model has one."""
        return self.tokenizer.get_vocab().get(_THOUGHT)


@contextmanager
def watched(layers: Sequence[torch.nn.Module], look: Callable[[], None]) -> Iterator[None]:
    """`look` is called before each of the layers computes."""
    hooks = [layer.register_forward_pre_hook(lambda *_: look()) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
