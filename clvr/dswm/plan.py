"""A recipe with all its files opened and checked: what is added to what, piece by piece. Writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ..errors import OutputError, SettingError
from .adapters import Adapter, is_adapter, open_adapter
from .arithmetic import superpose
from .checkpoints import Checkpoint, Run, depth_of, open_checkpoint, refuse_kind, same_model
from .reading import DTYPES, WeightFile, bytes_of
from .recipe import Recipe, Source, Strength, block_of

WIDTHS = {"in_channels": 128, "out_channels": None, "patch_size": 1, "timestep_guidance_channels": 256}
ROPE = {"axes_dims_rope": [32, 32, 32, 32], "rope_theta": 2000, "eps": 1e-6}


@dataclass(frozen=True)
class Increment:
    """Δ_k: the difference of a whole checkpoint to the base, or an adapter's updates."""

    name: str
    strength: Strength
    source: Checkpoint | Adapter

    @property
    def path(self) -> Path:
        return self.source.path

    @property
    def format(self) -> str:
        return self.source.format

    @property
    def files(self) -> tuple[WeightFile, ...]:
        return self.source.files


@dataclass(frozen=True)
class Plan:
    """θ = start + Σ λ_k Δ_k over `increments`; those in `implied` are in `start` already and are only measured.

    anchor: the checkpoint that `start` is read from; the base, or the distilled model where only LoRAs are added
    to it (θ = θ_distilled + ΔW, and no base is needed)."""

    recipe: Recipe
    anchor: Checkpoint
    base: Checkpoint | None
    increments: tuple[Increment, ...]
    implied: frozenset[str]

    @property
    def reference(self) -> Literal["base", "distilled"]:
        """What the increments are compared with."""
        return "base" if self.base else "distilled"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return self.anchor.shapes

    @property
    def sources(self) -> dict[str, Checkpoint | Adapter]:
        """Every input by its name."""
        found: dict[str, Checkpoint | Adapter] = {"base": self.base} if self.base else {}
        if not self.base:
            found["distilled"] = self.anchor
        return found | {increment.name: increment.source for increment in self.increments}

    @property
    def pipeline(self) -> Path | None:
        """The pipeline's folder that the anchor, or else the distilled model, comes from."""
        distilled = self.sources.get("distilled")
        named = distilled if isinstance(distilled, Checkpoint) else self.anchor
        return named.pipeline

    def strengths(self, piece: str, *, implied: bool = False) -> list[float]:
        """λ of each increment in a piece; 0 for those that `start` holds already, unless `implied`."""
        block = block_of(piece)
        return [k.strength.of(block) if implied or k.name not in self.implied else 0.0 for k in self.increments]

    def weights(self, name: str, piece: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows of a checkpoint's piece, fp32."""
        source = self.sources[name]
        if not isinstance(source, Checkpoint):
            raise SettingError(f"The {name} model is a LoRA, which has no weights of its own.", "Name a checkpoint.")
        return read_rows(source.runs[piece], start, stop)

    def delta(self, increment: Increment, piece: str, start: int, stop: int) -> Tensor:
        """Rows of an increment before its λ, fp32."""
        if isinstance(increment.source, Checkpoint):
            if self.base is None:
                raise SettingError("Without the base no difference to it is known.", "Give --base.")
            return read_rows(increment.source.runs[piece], start, stop) - read_rows(self.base.runs[piece], start, stop)
        shape = self.shapes[piece]
        total = torch.zeros((stop - start, *shape[1:]))
        for update in increment.source.updates.get(piece, ()):
            total += update.rows(start, stop)
        return total

    def merged(self, piece: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows of θ before its rounding, fp32."""
        last = self.shapes[piece][0] if stop is None else stop
        total = read_rows(self.anchor.runs[piece], start, last)
        added = {i: k for i, k in enumerate(self.increments) if k.name not in self.implied}
        deltas = {i: self.delta(k, piece, start, last) for i, k in added.items()}
        return superpose(total, deltas, self.strengths(piece), torch.empty_like(total))

    def added(self, piece: str, start: int, stop: int, factors: Sequence[float]) -> Tensor:
        """Rows of Σ f_k Δ_k, with one factor for each increment in place of its λ, fp32."""
        total = torch.zeros((stop - start, *self.shapes[piece][1:]))
        for increment, factor in zip(self.increments, factors, strict=True):
            if factor:
                total.add_(self.delta(increment, piece, start, stop), alpha=factor)
        return total

    def config(self) -> dict[str, Any]:
        """The config of the transformer as diffusers' Flux2Transformer2DModel reads it."""
        known = self.anchor.config or next((c.config for c in self._checkpoints() if c.config), None)
        if known is None:
            return infer_config(self.shapes)
        return {name: value for name, value in known.items() if name != "_name_or_path"}

    def _checkpoints(self) -> list[Checkpoint]:
        return [source for source in self.sources.values() if isinstance(source, Checkpoint)]


def open_plan(recipe: Recipe) -> Plan:
    """Raises SettingError for a recipe that cannot be carried out, MissingFileError and WeightsError for its
    files."""
    if not recipe.base and not recipe.distilled:
        raise SettingError("Nothing to merge into.", "Give --base, or --distilled and LoRAs, or both.")
    base = open_checkpoint(recipe.base, recipe.allow_fp8, "base") if recipe.base else None
    named: list[tuple[str, Source]] = [("distilled", recipe.distilled)] if recipe.distilled else []
    named += [(f"align {i}", source) for i, source in enumerate(recipe.align, 1)]
    shapes = base.shapes if base else None
    increments = []
    for name, source in named:
        opened = _open(name, source.path, shapes, recipe.allow_fp8)
        shapes = shapes or opened.shapes  # type: ignore[union-attr]
        increments.append(Increment(name, source.strength, opened))
    plan = _arrange(recipe, base, tuple(increments))
    _check_selectors(plan)
    return plan


def infer_config(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """From the shapes alone. Raises SettingError where they are none of FLUX.2's."""
    hidden, channels = shapes["img_in.weight:0"]
    head = shapes["single_blocks.0.norm.query_norm.scale:0"][0]
    if hidden % head or head != sum(ROPE["axes_dims_rope"]):  # type: ignore[arg-type]
        raise SettingError(f"A width of {hidden} with heads of {head} is no FLUX.2.", "Write a BFL file instead.")
    return {
        "_class_name": "Flux2Transformer2DModel",
        **WIDTHS,
        **ROPE,
        "in_channels": channels,
        "attention_head_dim": head,
        "num_attention_heads": hidden // head,
        "num_layers": depth_of(shapes, "double"),
        "num_single_layers": depth_of(shapes, "single"),
        "joint_attention_dim": shapes["txt_in.weight:0"][1],
        "mlp_ratio": shapes["double_blocks.0.img_mlp.2.weight:0"][1] / hidden,
        "timestep_guidance_channels": shapes["time_in.in_layer.weight:0"][1],
        "guidance_embeds": "guidance_in.in_layer.weight:0" in shapes,
    }


def read_rows(run: Run, start: int = 0, stop: int | None = None) -> Tensor:
    """Rows of a piece, fp32, in new memory."""
    rows = run.shape[0] if run.shape else 1
    last = rows if stop is None else stop
    row = run.elements // rows * run.itemsize
    raw = torch.empty((last - start) * row, dtype=torch.uint8)
    run.file.read(run.offset + start * row, bytes_of(raw))
    values = raw.view(DTYPES[run.dtype]).to(torch.float32)
    if run.scale != 1.0:
        values *= run.scale
    return values.view(last - start, *run.shape[1:])


def _open(name: str, path: Path, shapes: Mapping[str, tuple[int, ...]] | None, allow_fp8: bool) -> Checkpoint | Adapter:
    refuse_kind(path)
    if is_adapter(path):
        if shapes is None:
            raise SettingError(f"{path} is a LoRA: the base that it changes is not named.", "Give --base.")
        return open_adapter(path, shapes)
    checkpoint = open_checkpoint(path, allow_fp8, name)
    if shapes is not None:
        same_model(shapes, checkpoint, ("first", name))
    return checkpoint


def _arrange(recipe: Recipe, base: Checkpoint | None, increments: tuple[Increment, ...]) -> Plan:
    distilled = next((k for k in increments if k.name == "distilled" and isinstance(k.source, Checkpoint)), None)
    whole = distilled is not None and distilled.strength.value == 1 and distilled.strength.constant
    dense = [k.path for k in increments if k.name != "distilled" and isinstance(k.source, Checkpoint)]
    if distilled and whole and not dense:
        kept = increments if base else tuple(k for k in increments if k.name != "distilled")
        assert isinstance(distilled.source, Checkpoint)
        return Plan(recipe, distilled.source, base, kept, frozenset({"distilled"}))
    if base is None:
        reason = f"{dense[0]} is a whole model" if dense else "the distilled model is not added whole"
        raise SettingError(
            f"The base is missing: {reason}, and its increment is the difference to the base.", "Give --base."
        )
    return Plan(recipe, base, base, increments, frozenset())


def _check_selectors(plan: Plan) -> None:
    """A group of blocks that the model has not is a mistake."""
    blocks = {block_of(piece) for piece in plan.shapes}
    for increment in plan.increments:
        for selector in increment.strength.blocks:
            if not increment.strength.touches(selector, blocks):
                raise SettingError(
                    f"λ of {increment.name} names the blocks {selector!r}, which this model has not.",
                    f"It has {', '.join(sorted(blocks, key=order))}.",
                )


def order(block: str) -> tuple[int, int]:
    """Where a block stands in the network."""
    name, _, number = block.partition(".")
    return ("input", "modulation", "double", "single", "final").index(name), int(number or 0)


def refuse_own_input(plan: Plan) -> None:
    """Raises OutputError where the output is one of the inputs."""
    out = plan.recipe.out.absolute()
    targets = [out, *out.glob("*.safetensors"), *out.glob("transformer/*.safetensors")]
    inodes = {(found.st_dev, found.st_ino) for found in (target.stat() for target in targets if target.exists())}
    for name, source in plan.sources.items():
        folder = source.path.stat()
        if (folder.st_dev, folder.st_ino) in inodes or any(file.inode in inodes for file in source.files):
            raise OutputError(f"The output {plan.recipe.out} is an input ({name}).", "Name another output.")
