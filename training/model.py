"""The built-in model: FLUX.2 [klein]'s own classes at tiny size, in a folder for Flux2KleinPipeline."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

from clvr.errors import WeightsError

from .config import BuiltinConfig, DiTConfig, TextConfig, VAEConfig

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
IMAGES = tuple(f"<IMG_{kind}_{n}>" for kind in ("GEN", "REF") for n in range(10))

CHAT_TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}{%- endif %}"
)
"""Qwen3's chat template, for messages of plain text."""

_WORDS = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def make_tokenizer(config: TextConfig, corpus: Iterable[str]) -> Qwen2Tokenizer:
    """Byte-level BPE with Qwen's pre-tokeniser and specials, trained on the world's language. `<IMG_GEN_n>`
    is one token: the references are counted, not spelled."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORDS, behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocabulary - len(SPECIAL) - len(IMAGES),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(corpus, trainer)
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    core.add_tokens([AddedToken(t, special=False, normalized=False) for t in IMAGES])
    return Qwen2Tokenizer(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        unk_token=None,  # pyright: ignore[reportArgumentType] # byte-level: nothing is unknown
        chat_template=CHAT_TEMPLATE,
        model_max_length=config.positions,
        padding_side="right",
    )


def make_text_encoder(config: TextConfig, vocabulary: int) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=config.hidden,
            intermediate_size=config.mlp,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.hidden // config.heads,
            max_position_embeddings=config.positions,
            tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    )


def make_vae(config: VAEConfig, resolution: int) -> AutoencoderKLFlux2:
    return AutoencoderKLFlux2(
        block_out_channels=config.channels,
        layers_per_block=1,
        norm_num_groups=config.groups,
        latent_channels=32,
        sample_size=resolution,
    )


def make_transformer(config: DiTConfig, context: int) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=128,
        num_layers=config.double,
        num_single_layers=config.single,
        attention_head_dim=128,
        num_attention_heads=config.heads,
        joint_attention_dim=context,
        mlp_ratio=3.0,
        guidance_embeds=False,
    )


def make_scheduler() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(
        shift=3.0, use_dynamic_shifting=True, time_shift_type="exponential", base_shift=0.5, max_shift=1.15
    )


def save_folder(
    folder: Path,
    config: BuiltinConfig,
    *,
    vae: AutoencoderKLFlux2,
    text_encoder: Qwen3ForCausalLM,
    tokenizer: Qwen2Tokenizer,
    transformer: Flux2Transformer2DModel,
    distilled: bool = False,
    dtype: torch.dtype = torch.bfloat16,
) -> None:
    """Write the pipeline in `dtype` as safetensors, and `clvr.json` with its sampling defaults."""
    parts = {"vae": vae, "text_encoder": text_encoder, "transformer": transformer}
    copies = {name: copy.deepcopy(module).to(dtype) for name, module in parts.items()}
    pipeline = Flux2KleinPipeline(scheduler=make_scheduler(), tokenizer=tokenizer, is_distilled=distilled, **copies)
    pipeline.save_pretrained(folder, safe_serialization=True)
    for path in folder.glob("*/config.json"):
        kept = json.loads(path.read_text())
        kept.pop("_name_or_path", None)  # a path of the machine that trained it
        path.write_text(json.dumps(kept, indent=2) + "\n")
    defaults = {
        "height": config.resolution,
        "width": config.resolution,
        "steps": 4 if distilled else 28,
        "guidance": 1.0 if distilled else 4.0,
        "max_sequence_length": config.data.length,
        "text_encoder_out_layers": list(config.text.out_layers),
    }
    (folder / "clvr.json").write_text(json.dumps(defaults, indent=2) + "\n")


def embed(
    text_encoder: Qwen3ForCausalLM, ids: torch.Tensor, mask: torch.Tensor, layers: tuple[int, ...]
) -> torch.Tensor:
    """[B, L] token ids as the DiT's context [B, L, len(layers) * hidden], as Flux2KleinPipeline stacks it."""
    states = text_encoder.model(
        input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False
    ).hidden_states
    return torch.cat([states[k] for k in layers], dim=-1)


def tokenize_all(tokenizer: Qwen2Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of each prompt in the chat template, without padding. The template is rendered once."""
    mark = "\0"
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    before, _, after = str(rendered).partition(mark)
    return tokenizer([before + text + after for text in texts])["input_ids"] if texts else []


def tokenize(tokenizer: Qwen2Tokenizer, text: str) -> list[int]:
    return tokenize_all(tokenizer, [text])[0]


def patchify(latents: torch.Tensor) -> torch.Tensor:
    """[B, 32, H, W] -> tokens [B, H/2 * W/2, 128], channel order as Flux2KleinPipeline's."""
    b, c, h, w = latents.shape
    tiles = latents.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return tiles.reshape(b, h // 2 * w // 2, c * 4)


def unpatchify(tokens: torch.Tensor, side: int) -> torch.Tensor:
    """Tokens [B, side * side, 128] -> latents [B, 32, 2 * side, 2 * side]."""
    b, _, c = tokens.shape
    tiles = tokens.view(b, side, side, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return tiles.reshape(b, c // 4, side * 2, side * 2)


def statistics(vae: AutoencoderKLFlux2) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation [128] of the tokens, from the VAE's batch norm."""
    mean, variance = vae.bn.running_mean, vae.bn.running_var
    if mean is None or variance is None:
        raise WeightsError("The VAE has no batch-norm statistics.", "Train it with training.vae.")
    return mean, torch.sqrt(variance + vae.bn.eps)


def normalise(vae: AutoencoderKLFlux2, tokens: torch.Tensor) -> torch.Tensor:
    """Tokens [..., 128] by the VAE's batch-norm statistics."""
    mean, deviation = statistics(vae)
    return (tokens - mean) / deviation


def denormalise(vae: AutoencoderKLFlux2, tokens: torch.Tensor) -> torch.Tensor:
    mean, deviation = statistics(vae)
    return tokens * deviation + mean
