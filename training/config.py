"""The typed configuration of `make train-builtin`; recipes/*.yaml fill it."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class VAEConfig:
    """AutoencoderKLFlux2. `noise` is the largest latent noise, in units of a channel's standard deviation,
    that the decoder learns to read through: it spreads what a token knows over all of its channels."""

    channels: tuple[int, ...] = (8, 16, 32, 64)
    groups: int = 4
    steps: int = 1200
    batch: int = 32
    lr: float = 3e-3
    noise: float = 0.6
    probe: float = 0.05
    seed: int = 1


@dataclass(frozen=True)
class TextConfig:
    """Qwen3ForCausalLM; the DiT reads the hidden states after `out_layers`, stacked. `probe` weighs a linear
    head that reads from the last token what the text is about (data.facts); it is thrown away."""

    vocabulary: int = 448
    hidden: int = 128
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2
    mlp: int = 256
    positions: int = 1024
    out_layers: tuple[int, ...] = (1, 2, 3)
    probe: float = 0.05


@dataclass(frozen=True)
class DiTConfig:
    """Flux2Transformer2DModel with heads of 128, so that ComfyUI's UNETLoader recognises the BFL twin."""

    heads: int = 1
    double: int = 2
    single: int = 5


@dataclass(frozen=True)
class DataConfig:
    """Shares of the three kinds of samples, and of the categories within text-to-image."""

    text_to_image: float = 0.45
    edits: float = 0.30
    trajectories: float = 0.25
    categories: dict[str, float] = field(
        default_factory=lambda: {
            "single": 0.04,
            "colors": 0.16,
            "two": 0.12,
            "counting": 0.22,
            "position": 0.16,
            "attribution": 0.18,
            "complex": 0.12,
        }
    )
    shard: int = 12288
    passes: int = 4
    caption_dropout: float = 0.1
    length: int = 24
    longest: int = 240
    seed: int = 7


@dataclass(frozen=True)
class OptimConfig:
    """Muon on the blocks' matrices, AdamW on the rest; linear warm-up, constant, linear decay over the last
    share `decay`. `shift` bends uniform times towards noise as the sampler's schedule does."""

    samples: int = 2_000_000
    batch: int = 64
    muon_lr: float = 0.02
    adam_lr: float = 1e-3
    text_lr: float = 1e-3
    warmup: int = 200
    decay: float = 0.3
    ema: float = 0.996
    shift: float = 4.0
    clip: float = 1.0
    compile: bool = False


@dataclass(frozen=True)
class BuiltinConfig:
    vae: VAEConfig = VAEConfig()
    text: TextConfig = TextConfig()
    dit: DiTConfig = DiTConfig()
    data: DataConfig = DataConfig()
    optim: OptimConfig = OptimConfig()
    threads: int = 2
    checkpoint_minutes: float = 5.0
    resolution: int = 64
