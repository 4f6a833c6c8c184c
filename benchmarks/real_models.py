"""FLUX.2 [klein] and Qwen3-VL at their true sizes with random weights, and tiny ones of the same classes.

Nothing is downloaded. The sizes are those of the models' own config.json files on the hub: black-forest-labs/
FLUX.2-klein-4B and -9B (transformer, vae, text_encoder), Qwen/Qwen3-4B and -8B, Qwen/Qwen3-VL-4B-Instruct and
-8B-Instruct. The tokenizer learns its words from the pack's own prompts: about as many tokens a sentence as the
true one has, though far fewer are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl_flux2 import AutoencoderKLFlux2
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Qwen2TokenizerFast,  # pyright: ignore[reportAttributeAccessIssue]
    Qwen2VLImageProcessor,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from clvr.flux2.encodings import KleinPipeline, synchronise
from clvr.flux2.folder import Sampling
from clvr.vlm import Message
from clvr.vlm.prefix import Prefix
from clvr.vlm.qwen import Prompt
from tests.tiny_vlm import Told

PROMPTS = Path(__file__).resolve().parents[1] / "clvr" / "vlm" / "prompts"
WORDS = 3000
"""Tokens of the tokenizer; the models' own vocabularies are as large as ever."""
VOCABULARY = 151_936
MARKS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>",
         "<|video_pad|>")  # fmt: skip
TEMPLATE = """{%- for m in messages %}<|im_start|>{{ m.role }}
{% if m.content is string %}{{ m.content }}{% else %}{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}
{%- else %}<|vision_start|><|image_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is defined and enable_thinking is false %}<think>

</think>

{% endif %}{% endif %}"""


@dataclass(frozen=True)
class KleinSize:
    """Configurations of a klein's parts; `layers` as in Sampling; `resolution`: pixels a side."""

    transformer: Mapping[str, Any]
    vae: Mapping[str, Any]
    text: Mapping[str, Any]
    layers: tuple[int, ...] = (9, 18, 27)
    resolution: int = 1024


@dataclass(frozen=True)
class VLMSize:
    text: Mapping[str, Any]
    vision: Mapping[str, Any]


def _transformer(heads: int, double: int, single: int, context: int) -> dict[str, Any]:
    return {
        "in_channels": 128,
        "num_layers": double,
        "num_single_layers": single,
        "attention_head_dim": 128,
        "num_attention_heads": heads,
        "joint_attention_dim": context,
        "mlp_ratio": 3.0,
        "guidance_embeds": False,
    }


def _qwen(width: int, inner: int, tied: bool) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "max_position_embeddings": 40_960,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "tie_word_embeddings": tied,
    }


def _seeing(width: int, inner: int, tied: bool) -> dict[str, Any]:
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20], "mrope_interleaved": True}
    return {**_qwen(width, inner, tied), "max_position_embeddings": 262_144, "rope_parameters": rope}


def _vision(width: int, inner: int, depth: int, out: int, deep: Sequence[int]) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "depth": depth,
        "num_heads": 16,
        "out_hidden_size": out,
        "num_position_embeddings": 2304,
        "deepstack_visual_indexes": list(deep),
    }


_NARROW = {"num_hidden_layers": 4, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
KLEINS = {
    "4B": KleinSize(_transformer(24, 5, 20, 7680), {}, _qwen(2560, 9728, True)),
    "9B": KleinSize(_transformer(32, 8, 24, 12288), {}, _qwen(4096, 12288, False)),
    "tiny": KleinSize(
        _transformer(1, 1, 2, 96),
        {"block_out_channels": (8, 16, 32, 64), "layers_per_block": 1, "norm_num_groups": 4},
        {**_qwen(32, 64, True), **_NARROW, "vocab_size": WORDS},
        (1, 2, 3),
        256,
    ),
}
VLMS = {
    "4B": VLMSize(_seeing(2560, 9728, True), _vision(1024, 4096, 24, 2560, (5, 11, 17))),
    "8B": VLMSize(_seeing(4096, 12288, False), _vision(1152, 4304, 27, 4096, (8, 16, 24))),
    "tiny": VLMSize(
        {
            **_seeing(32, 64, True),
            **_NARROW,
            "vocab_size": WORDS,
            "rope_parameters": {"rope_type": "default", "mrope_section": [4, 2, 2], "mrope_interleaved": True},
        },
        {**_vision(32, 64, 2, 32, (0, 1)), "num_heads": 2, "num_position_embeddings": 64},
    ),
}


@contextmanager
def made_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Modules that are built inside have their weights there, in this format, from the first moment."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


def transformer(size: KleinSize) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(**size.transformer)


def vae(size: KleinSize) -> AutoencoderKLFlux2:
    return AutoencoderKLFlux2(**size.vae)


def text_encoder(size: KleinSize, dtype: torch.dtype) -> Qwen3ForCausalLM:
    return AutoModelForCausalLM.from_config(Qwen3Config(**size.text), dtype=dtype)


def vlm(size: VLMSize, words: Qwen2TokenizerFast | None, dtype: torch.dtype) -> Qwen3VLForConditionalGeneration:
    """With the marks' ids of `words`, or Qwen's own."""
    names = {"image_token_id": 5, "video_token_id": 6, "vision_start_token_id": 3, "vision_end_token_id": 4}
    ids = {} if words is None else {k: words.convert_tokens_to_ids(MARKS[i]) for k, i in names.items()}
    config = Qwen3VLConfig(
        text_config=dict(size.text),
        vision_config=dict(size.vision),
        tie_word_embeddings=size.text["tie_word_embeddings"],
        **ids,
    )
    return AutoModelForImageTextToText.from_config(config, dtype=dtype)


def parts(klein: KleinSize, seeing: VLMSize, dtype: torch.dtype) -> dict[str, torch.nn.Module]:
    """Every part on the meta device: shapes without memory."""
    with made_on(torch.device("meta"), dtype):
        return {
            "DiT": transformer(klein),
            "text encoder": text_encoder(klein, dtype),
            "VAE": vae(klein),
            "VLM": vlm(seeing, None, dtype),
        }


def parameters(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def tokenizer(texts: Sequence[str]) -> Qwen2TokenizerFast:
    """For klein and for Qwen3-VL; it knows the words of the texts and of the pack's prompts."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = Qwen2TokenizerFast(
        vocab={token: i for i, token in enumerate([*MARKS, *letters])},
        merges=[],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=TEMPLATE,
    )
    known = [*texts, *(file.read_text("utf-8") for file in sorted(PROMPTS.glob("*.md")))]
    words = plain.train_new_from_iterator(known, WORDS - 100, new_special_tokens=list(MARKS), show_progress=False)
    words.add_special_tokens({"additional_special_tokens": list(MARKS[1:])})
    return words


@dataclass(frozen=True)
class Place:
    """Where models compute, and where they are when they do not."""

    device: torch.device
    rest: torch.device
    dtype: torch.dtype

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds. On a CPU those of the process itself: what else the machine does is not counted."""
        return process_time if self.device.type == "cpu" else perf_counter

    def make(self, build: Callable[[], Any]) -> Any:  # noqa: ANN401
        """A module with random weights, at rest."""
        with torch.random.fork_rng(devices=[]), made_on(self.device, self.dtype):
            torch.manual_seed(0)
            return build().eval().requires_grad_(False).to(self.rest)


def pipelines(size: KleinSize, words: Qwen2TokenizerFast, place: Place) -> tuple[KleinPipeline, KleinPipeline]:
    """The base and the distilled model, which share their weights."""
    modules = {
        "transformer": place.make(lambda: transformer(size)),
        "vae": place.make(lambda: vae(size)),
        "text_encoder": place.make(lambda: text_encoder(size, place.dtype)),
        "tokenizer": words,
    }
    made = []
    for distilled in (False, True):
        scheduler = FlowMatchEulerDiscreteScheduler(
            shift=3.0,
            use_dynamic_shifting=True,
            time_shift_type="exponential",
            base_shift=0.5,
            max_shift=1.15,
        )
        pipeline = KleinPipeline(scheduler, **modules, is_distilled=distilled)
        pipeline.set_progress_bar_config(disable=True)
        made.append(pipeline)
    if place.rest != place.device:
        for pipeline in made:
            pipeline.enable_model_cpu_offload(device=place.device)
    return made[0], made[1]


def sampling(size: KleinSize, resolution: int, distilled: bool) -> Sampling:
    base = Sampling(resolution, resolution, text_encoder_out_layers=size.layers)
    return Sampling(resolution, resolution, 4, 1.0, base.max_sequence_length, size.layers) if distilled else base


class Scripted(Told):
    """Computes everything, and then says what it was told. `seconds`: seeing (tokens and image features), reading
    (prefill) and writing (decode)."""

    def __init__(self, size: VLMSize, words: Qwen2TokenizerFast, place: Place) -> None:
        images = Qwen2VLImageProcessor(patch_size=16, merge_size=2, min_pixels=64 * 64, max_pixels=2048 * 2048)
        processor = Qwen3VLProcessor(images, words, Qwen3VLVideoProcessor(patch_size=16), chat_template=TEMPLATE)
        model = place.make(lambda: vlm(size, words, place.dtype))
        model.generation_config.eos_token_id = words.eos_token_id
        super().__init__(model, processor, "Qwen3-VL with random weights")
        self.seconds: dict[str, float] = dict.fromkeys(("see", "read", "write"), 0.0)
        self.place = place

    def prompt(self, messages: Sequence[Message], side: int) -> Prompt:
        with self._timed("see"):
            return super().prompt(messages, side)

    def read(self, prompt: Prompt, prefix: Prefix) -> torch.Tensor:
        with self._timed("read"):
            return super().read(prompt, prefix)

    def step(self, token: int, position: int, prefix: Prefix) -> torch.Tensor:
        with self._timed("write"):
            return super().step(token, position, prefix)

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = self.place.clock()
        yield
        synchronise(self.place.device)
        self.seconds[what] += self.place.clock() - began
