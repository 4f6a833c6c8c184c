"""A random FLUX.2 [klein] of the real classes at the smallest size that ComfyUI's own loader recognises."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinPipeline,
    Flux2Transformer2DModel,
)
from tokenizers import pre_tokenizers
from transformers import Qwen2TokenizerFast, Qwen3Config, Qwen3ForCausalLM

HIDDEN, LAYERS, OUT_LAYERS = 32, 4, (1, 2, 3)
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>")
TEMPLATE = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}"
    "{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}"
    "{%- endif %}{%- endif %}"
)


def tokenizer(positions: int) -> Qwen2TokenizerFast:
    """One token a byte: 'ab' is two tokens, the template around it about thirty."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIALS, *alphabet])}
    made = Qwen2TokenizerFast(
        vocab=vocabulary,
        merges=[],
        unk_token=None,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=positions,
        padding_side="right",
        chat_template=TEMPLATE,
    )
    made.add_special_tokens({"additional_special_tokens": list(SPECIALS[1:])})
    return made


def transformer(double: int = 1, single: int = 1, heads: int = 1, context: int = 3 * HIDDEN) -> Flux2Transformer2DModel:
    return Flux2Transformer2DModel(
        in_channels=128,
        num_layers=double,
        num_single_layers=single,
        attention_head_dim=128,
        num_attention_heads=heads,
        joint_attention_dim=context,
        mlp_ratio=3.0,
        guidance_embeds=False,
    )


def vae() -> AutoencoderKLFlux2:
    made = AutoencoderKLFlux2(
        block_out_channels=(8, 16, 32, 64),
        layers_per_block=1,
        norm_num_groups=4,
        latent_channels=32,
        sample_size=64,
    )
    made.bn.running_mean.normal_(std=0.1)
    made.bn.running_var.uniform_(0.5, 1.5)
    return made


def text_encoder(vocabulary: int, positions: int) -> Qwen3ForCausalLM:
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=HIDDEN,
            intermediate_size=64,
            num_hidden_layers=LAYERS,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=positions,
            tie_word_embeddings=True,
        )
    )


def pipeline(seed: int = 0, distilled: bool = False, positions: int = 512) -> Flux2KleinPipeline:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        words = tokenizer(positions)
        return Flux2KleinPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler(
                shift=3.0,
                use_dynamic_shifting=True,
                time_shift_type="exponential",
                base_shift=0.5,
                max_shift=1.15,
            ),
            vae=vae().eval(),
            text_encoder=text_encoder(len(words), positions).eval(),
            tokenizer=words,
            transformer=transformer().eval(),
            is_distilled=distilled,
        )


def make(folder: Path, seed: int = 0, distilled: bool = False, positions: int = 512, length: int = 64) -> Path:
    """Write the model and its `clvr.json` (64x64, 2 steps, padded length `length`); returns the folder."""
    pipeline(seed, distilled, positions).save_pretrained(folder, safe_serialization=True)
    defaults = {
        "height": 64,
        "width": 64,
        "steps": 2,
        "guidance": 1.0 if distilled else 4.0,
        "max_sequence_length": length,
        "text_encoder_out_layers": list(OUT_LAYERS),
    }
    (Path(folder) / "clvr.json").write_text(json.dumps(defaults))
    return Path(folder)
