"""Tiny real Qwen3-VLs: one with random weights, and one that learns a few conversations by heart in seconds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2VLImageProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from clvr.vlm import Message
from clvr.vlm.prefix import Prefix
from clvr.vlm.qwen import Prompt, QwenVL
from clvr.vlm.wire import Pictures, message_body

MARKS = [
    "<pad>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]
TEMPLATE = """{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{% if 'text' in p %}{{ p.text }}
{%- else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


THOUGHTS = ["<think>", "</think>"]


def make(folder: Path, template: str = TEMPLATE, seed: int = 0, texts: Sequence[str] = (), **text: Any) -> Path:
    """Save a model with random weights that reads and writes bytes, and what occurs often in `texts` as one token.
    `text`: fields of its text config."""
    torch.manual_seed(seed)
    processor = _assembled(_bytes_tokenizer(texts), template)
    model = _model(processor, **text)
    with torch.no_grad():
        for parameter in model.parameters():  # far from uniform, so that the likeliest token is clear
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _bytes_tokenizer(texts: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*MARKS, *letters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    if texts:
        learns = trainers.BpeTrainer(
            vocab_size=1024, special_tokens=MARKS, initial_alphabet=letters, show_progress=False
        )
        tokenizer.train_from_iterator(texts, learns)
    tokenizer.decoder = decoders.ByteLevel()
    fast = _marked(tokenizer)
    fast.add_tokens([AddedToken(mark, special=False, normalized=False) for mark in THOUGHTS])
    return fast


def _marked(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<pad>",
        additional_special_tokens=MARKS[1:],
    )


def _assembled(tokenizer: PreTrainedTokenizerFast, template: str = TEMPLATE) -> Qwen3VLProcessor:
    images = Qwen2VLImageProcessor(patch_size=16, merge_size=2, min_pixels=32 * 32, max_pixels=64 * 64)
    return Qwen3VLProcessor(images, tokenizer, Qwen3VLVideoProcessor(patch_size=16), chat_template=template)


class Told(QwenVL):
    """Computes everything, and then says what it was told, token by token."""

    _script: Sequence[int] = ()
    _at = 0

    def say(self, text: str) -> None:
        """What the next answers are, until told otherwise."""
        self._script = [*self.tokenizer(text, add_special_tokens=False)["input_ids"], self.tokenizer.eos_token_id]

    def read(self, prompt: Prompt, prefix: Prefix) -> torch.Tensor:
        self._at = 0
        return self._told(super().read(prompt, prefix))

    def step(self, token: int, position: int, prefix: Prefix) -> torch.Tensor:
        return self._told(super().step(token, position, prefix))

    def _told(self, logits: torch.Tensor) -> torch.Tensor:
        """The next token of the script is the likeliest by far. Raises RuntimeError where the answer went on
        after it, because its grammar refused a token."""
        if self._at == len(self._script):
            raise RuntimeError("the VLM's grammar does not take the scripted answer")
        logits[self._script[self._at]] += 1e6
        self._at += 1
        return logits


@dataclass(frozen=True)
class Lesson:
    messages: Sequence[Message]
    reply: str


def teach(folder: Path, lessons: Sequence[Lesson], steps: int = 200) -> float:
    """Save a model that gives each lesson's reply; returns the worst lesson's last loss."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # at this size a second thread only waits
    processor = _processor(lessons)
    model = _model(processor).train()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    batches = [_batch(processor, lesson) for lesson in lessons]
    worst = float("inf")
    for _ in range(steps):
        losses = [_losses(model, batch, count) for batch, count in batches]
        worst = max(loss.max().item() for loss in losses)
        if worst < 0.4:  # each token is then the likeliest by far
            break
        sum(loss.mean() for loss in losses).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return worst


def _batch(processor: Qwen3VLProcessor, lesson: Lesson) -> tuple[dict[str, Any], int]:
    """The conversation with its reply, and how many tokens of it are learned: the reply and the turn's end."""
    images = [p for m in lesson.messages for p in m.parts if isinstance(p, Image.Image)]
    text = processor.apply_chat_template([_plain(m) for m in lesson.messages], add_generation_prompt=True)
    batch = processor(text=[f"{text}{lesson.reply}<|im_end|>"], images=images or None, return_tensors="pt")
    return dict(batch), 1 + len(processor.tokenizer(lesson.reply, add_special_tokens=False)["input_ids"])


def _losses(model: Qwen3VLForConditionalGeneration, batch: dict[str, Any], count: int) -> torch.Tensor:
    logits = model(**batch, logits_to_keep=count + 1).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, batch["input_ids"][0, -count:], reduction="none")


def _plain(message: Message) -> dict[str, Any]:
    """The message as it arrives at the server's chat template."""
    body = message_body(message, Pictures(64))
    if isinstance(body["content"], list):
        body["content"] = [p if p["type"] == "text" else {"type": "image"} for p in body["content"]]
    return body


def _processor(lessons: Sequence[Lesson]) -> Qwen3VLProcessor:
    """Words are tokens, and so is what a reply has around its yes or no and its thinking."""
    split = pre_tokenizers.Whitespace().pre_tokenize_str
    texts = [p for lesson in lessons for m in lesson.messages for p in m.parts if isinstance(p, str)]
    words = [word for text in [*texts, "system user assistant"] for word, _ in split(text)]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*MARKS, "<unk>", *words]))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.Fuse()
    fast = _marked(tokenizer)
    pieces = dict.fromkeys(piece for lesson in lessons for piece in _PIECES.split(lesson.reply) if piece)
    fast.add_tokens([AddedToken(p, single_word=p.isalpha(), special=False, normalized=False) for p in pieces])
    return _assembled(fast)


_PIECES = re.compile(r'(?<=")(yes|no)(?=")|(</?think>)')


def _model(processor: Qwen3VLProcessor, **other: Any) -> Qwen3VLForConditionalGeneration:
    ids = {mark: processor.tokenizer.convert_tokens_to_ids(mark) for mark in MARKS}
    small = {"hidden_size": 32, "intermediate_size": 64}
    text = {
        **small,
        "vocab_size": len(processor.tokenizer),
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "rope_scaling": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
        **other,
    }
    vision = {
        **small,
        "depth": 2,
        "num_heads": 2,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": [0, 1],
    }
    config = Qwen3VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    model = Qwen3VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = ids["<|im_end|>"]
    model.generation_config.pad_token_id = ids["<pad>"]
    return model
