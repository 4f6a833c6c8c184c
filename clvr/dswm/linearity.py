"""How far the network's output is from linear in a merge's increments: proposition 1 of CLVR (section 3.4, A.1.1).

At the same inputs, f(merged) - f(distilled) - f(aligned) + f(base) is zero where the output increments add up;
their cosine tells whether the two tasks move the output in directions of their own (A.1.2). f is the velocity
that diffusers' FLUX.2 predicts; distilled, aligned and merged are the base with the increments times their λ."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.models.transformers.transformer_flux2 import Flux2Transformer2DModel
from torch import Tensor

from ..devices import choose_device, choose_dtype
from ..errors import SettingError, WeightsError
from ..flux2.encodings import KleinPipeline
from ..flux2.folder import inspect
from ..flux2.generator import LONGEST_TEXT, padded_length
from ..flux2.keymap import pieces
from ..flux2.loading import check_architecture
from .checkpoints import Checkpoint
from .plan import Plan, open_plan
from .reading import DTYPES, WeightFile
from .recipe import Recipe, block_of

STEP = 0.05
"""Longest step in sigma of the trajectory on which the inputs lie."""
RUN = 1 << 22
"""Weights that are computed at once."""
INPUTS = ("hidden_states", "encoder_hidden_states", "timestep", "img_ids", "txt_ids")
"""Tensors of a file of inputs: [N, T, 128], [N, L, W], [N] from 0 to 1, [T, 4] or [N, T, 4], [L, 4] or [N, L, 4]."""


@dataclass(frozen=True)
class Row:
    """Euclidean norms of outputs, over all inputs of one sigma; sigma None: of all inputs.

    base: f(base); distilled, aligned, merged: differences to it; residual: f(m) - f(d) - f(a) + f(b).
    relative: residual / merged; cosine: of distilled and aligned; None where nothing moved."""

    sigma: float | None
    inputs: int
    base: float
    distilled: float
    aligned: float
    merged: float
    residual: float
    relative: float | None
    cosine: float | None

    @classmethod
    def of(cls, sigma: float | None, outputs: Sequence[Tensor]) -> Row:
        """outputs: of base, distilled, aligned and merged, [inputs, T, C] each."""
        base, *moved = (output.double().flatten() for output in outputs)
        distilled, aligned, merged = (output - base for output in moved)
        residual, whole = (merged - distilled - aligned).norm().item(), merged.norm().item()
        lengths = distilled.norm().item(), aligned.norm().item()
        return cls(
            sigma=sigma,
            inputs=len(outputs[0]),
            base=base.norm().item(),
            distilled=lengths[0],
            aligned=lengths[1],
            merged=whole,
            residual=residual,
            relative=residual / whole if whole else None,
            cosine=distilled.dot(aligned).item() / math.prod(lengths) if all(lengths) else None,
        )


@dataclass(frozen=True)
class Linearity:
    """rows: by sigma, the highest first. strengths: λ by increment, as text."""

    rows: tuple[Row, ...]
    total: Row
    strengths: dict[str, str]
    device: str
    dtype: str

    def text(self) -> str:
        """What a person reads."""
        model = " + ".join(f"{strength} {name}" for name, strength in self.strengths.items())
        lines = [
            f"Output linearity of base + {model}",
            f"{self.total.inputs} inputs, {self.dtype} on {self.device}",
            "",
            "sigma  inputs  distilled  aligned   merged  cosine  residual",
            *(_line(f"{row.sigma:.3g}", row) for row in self.rows),
            _line("all", self.total),
            "",
            "distilled, aligned, merged: |f(model) - f(base)| / |f(base)|. cosine: of the first two.",
            "residual: |f(merged) - f(distilled) - f(aligned) + f(base)| / |f(merged) - f(base)|; 0 is linear.",
        ]
        if self.dtype != "float32":
            lines.append(f"The rounding of {self.dtype} is part of the residual; float32 measures without it.")
        return "\n".join(lines)

    def json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Sample:
    """One evaluation's inputs, fp32: hidden [1, T, C], text [1, L, W], ids [T, 4] and [L, 4]."""

    sigma: float
    hidden: Tensor
    text: Tensor
    image_ids: Tensor
    text_ids: Tensor


def linearity(
    recipe: Recipe,
    *,
    prompts: Sequence[str] = (),
    inputs: Path | None = None,
    seed: int = 0,
    size: tuple[int, int] | None = None,
    sigmas: Sequence[float] = (1.0, 0.75, 0.5, 0.25),
    device: str = "auto",
    dtype: str = "float32",
) -> Linearity:
    """Measured at a safetensors file of `inputs` (INPUTS), or at `prompts`: noise of `seed`, seed + 1 …, and what
    the base makes of it by Euler steps of at most STEP without guidance, at each of the sigmas.

    The four models are made one after another in the memory of one. size: pixels, the pipeline's own by default.
    Raises SettingError, MissingFileError, WeightsError."""
    place = choose_device(device)
    kind = choose_dtype(dtype, place)
    _check(recipe, prompts, inputs, sigmas)
    plan = open_plan(recipe)
    samples = _read(plan, inputs) if inputs else _starts(plan, prompts, seed, size, place)
    network = _Network(plan, place, kind)
    network.become(())
    if not inputs:
        samples = [sample for start in samples for sample in _trajectory(network, start, sigmas)]
    aligned = [k.name for k in plan.increments if k.name != "distilled"]
    outputs = [[network(sample) for sample in samples]]
    for names in (["distilled"], aligned, ["distilled", *aligned]):
        network.become(names)
        outputs.append([network(sample) for sample in samples])
    rows = [
        Row.of(
            sigma,
            [torch.cat([o for o, s in zip(found, samples, strict=True) if s.sigma == sigma]) for found in outputs],
        )
        for sigma in sorted({sample.sigma for sample in samples}, reverse=True)
    ]
    total = Row.of(None, [torch.cat(found) for found in outputs])
    strengths = {k.name: k.strength.describe() for k in plan.increments}
    return Linearity(tuple(rows), total, strengths, str(place), str(kind).removeprefix("torch."))


def _line(name: str, row: Row) -> str:
    shares = [_share(norm / row.base if row.base else None) for norm in (row.distilled, row.aligned, row.merged)]
    cosine = "-" if row.cosine is None else f"{row.cosine:+.3f}"
    cells = [name.rjust(5), str(row.inputs).rjust(6), shares[0].rjust(9), shares[1].rjust(7), shares[2].rjust(7)]
    return "  ".join([*cells, cosine.rjust(6), _share(row.relative).rjust(8)])


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:#.3g} %".replace(". ", " ")


def _check(recipe: Recipe, prompts: Sequence[str], inputs: Path | None, sigmas: Sequence[float]) -> None:
    if not (recipe.base and recipe.distilled and recipe.align):
        raise SettingError(
            "Linearity compares four models: base, distilled, aligned and merged.",
            "Give --base, --distilled and --align.",
        )
    if bool(prompts) == bool(inputs):
        raise SettingError("Linearity is measured at prompts or at a file of inputs.", "Give one of the two.")
    if not inputs and not (sigmas and all(0 < sigma <= 1 for sigma in sigmas)):
        raise SettingError(f"The noise levels are {list(sigmas)}.", "Give one or more, above 0 and up to 1.")


class _Network:
    """One FLUX.2 in memory that takes the weights of each model in turn."""

    def __init__(self, plan: Plan, device: torch.device, dtype: torch.dtype) -> None:
        """Raises WeightsError where the config describes another model than the weights."""
        self._plan = plan
        try:
            with torch.device("meta"):
                model = cast("Flux2Transformer2DModel", Flux2Transformer2DModel.from_config(plan.config()))
        except (TypeError, ValueError, KeyError, RuntimeError, ZeroDivisionError) as error:
            raise WeightsError(f"The config describes no FLUX.2: {error}.", "Download the folder again.") from error
        for name, tensor in model.state_dict().items():
            held = [plan.shapes.get(piece, ()) for piece in pieces(name, "diffusers") or ()]
            if not held or (sum(shape[0] for shape in held if shape), *held[0][1:]) != tuple(tensor.shape):
                raise WeightsError(
                    f"The config describes {name} of shape {tuple(tensor.shape)}, the weights have {held}.",
                    "The config belongs to another model: download the folder again.",
                )
        self._weights = {
            name: torch.empty(tensor.shape, dtype=dtype, device=device) for name, tensor in model.state_dict().items()
        }
        model.load_state_dict(self._weights, assign=True)
        self._model = model.eval()
        self._device, self._dtype = device, dtype

    def become(self, names: Collection[str]) -> None:
        """The base with these increments times their λ, computed in fp32 and rounded once."""
        for key, weights in self._weights.items():
            above = 0
            for piece in pieces(key, "diffusers") or ():
                for start, stop, rows in self._rows(piece, names):
                    weights[above + start : above + stop].copy_(rows)
                above += self._plan.shapes[piece][0]

    def _rows(self, piece: str, names: Collection[str]) -> Iterator[tuple[int, int, Tensor]]:
        shape, block = self._plan.shapes[piece], block_of(piece)
        factors = [k.strength.of(block) if k.name in names else 0.0 for k in self._plan.increments]
        step = max(1, RUN // math.prod(shape[1:]))
        for start in range(0, shape[0], step):
            stop = min(start + step, shape[0])
            base = self._plan.weights("base", piece, start, stop)
            yield start, stop, base.add_(self._plan.added(piece, start, stop, factors))

    @torch.no_grad()
    def __call__(self, sample: Sample) -> Tensor:
        """The velocity [1, T, C], fp32 on the CPU."""
        tensors = {"hidden_states": sample.hidden, "encoder_hidden_states": sample.text}
        output = self._model(
            **{name: tensor.to(self._device, self._dtype) for name, tensor in tensors.items()},
            timestep=torch.tensor([sample.sigma], device=self._device),
            img_ids=sample.image_ids.to(self._device),
            txt_ids=sample.text_ids.to(self._device),
            guidance=None,
            return_dict=False,
        )[0]
        return output.float().cpu()


def _trajectory(network: _Network, start: Sample, sigmas: Sequence[float]) -> Iterator[Sample]:
    """`start` is noise; the network is the base."""
    now = start
    for level in sorted(set(sigmas), reverse=True):
        steps = math.ceil((now.sigma - level) / STEP - 1e-9)
        for left in range(steps, 0, -1):
            after = now.sigma + (level - now.sigma) / left
            now = replace(now, sigma=after, hidden=now.hidden + (after - now.sigma) * network(now))
        now = replace(now, sigma=level)
        yield now


def _starts(
    plan: Plan, prompts: Sequence[str], seed: int, size: tuple[int, int] | None, device: torch.device
) -> list[Sample]:
    """Each prompt with its noise, as Flux2KleinPipeline encodes and packs them."""
    found = [source.pipeline for source in plan.sources.values() if isinstance(source, Checkpoint) and source.pipeline]
    if not found:
        raise SettingError(
            "Prompts need a text encoder, and none of the models is a pipeline's folder.",
            "Name a folder with model_index.json as base or distilled model, or give --inputs.",
        )
    folder = inspect(found[0])
    check_architecture(folder)
    pipeline = KleinPipeline.from_pretrained(
        str(folder.path),
        transformer=None,
        dtype=choose_dtype("auto", device),
        use_safetensors=True,
        local_files_only=True,
    ).to(device)
    width, height = size or (folder.sampling.width, folder.sampling.height)
    side = pipeline.vae_scale_factor * 2
    if width % side or height % side or min(width, height) < side:
        raise SettingError(f"FLUX.2 cannot draw {width} x {height} pixels.", f"Both sides must be multiples of {side}.")
    limit = min(pipeline.text_encoder.config.max_position_embeddings, LONGEST_TEXT)
    channels = plan.shapes["img_in.weight:0"][1]
    samples = []
    for i, prompt in enumerate(prompts):
        length = padded_length(pipeline.count_tokens(prompt), folder.sampling.max_sequence_length)
        if length > limit:
            raise SettingError(f"The prompt {prompt!r:.60} has more than {limit} tokens.", "Shorten it.")
        text = pipeline.encode_text(prompt, length, folder.sampling.text_encoder_out_layers).float().cpu()
        noise, ids = pipeline.prepare_latents(
            1, channels // 4, height, width, torch.float32, torch.device("cpu"), torch.Generator().manual_seed(seed + i)
        )
        text_ids = pipeline._prepare_text_ids(text)
        samples.append(Sample(1.0, noise, text, ids[0].float(), text_ids[0].float()))
    return samples


def _read(plan: Plan, path: Path) -> list[Sample]:
    """The file's rows. Raises MissingFileError and WeightsError, which names what a tensor should be."""
    file = WeightFile(path)
    entries = file.header.tensors
    if set(entries) != set(INPUTS):
        wrong = [f"lacks {name}" for name in INPUTS if name not in entries]
        wrong += [f"has {name!r:.60}" for name in entries if name not in INPUTS]
        raise WeightsError(f"{path} {', '.join(wrong[:4])}.", f"The inputs are {', '.join(INPUTS)}.")
    count, tokens = (*entries["hidden_states"].shape, 0, 0)[:2]
    length = (*entries["encoder_hidden_states"].shape, 0, 0)[1]
    channels, context = plan.shapes["img_in.weight:0"][1], plan.shapes["txt_in.weight:0"][1]
    wanted = {
        "hidden_states": [(count, tokens, channels)],
        "encoder_hidden_states": [(count, length, context)],
        "timestep": [(count,)],
        "img_ids": [(tokens, 4), (count, tokens, 4)],
        "txt_ids": [(length, 4), (count, length, 4)],
    }
    found = {}
    for name, shapes in wanted.items():
        entry = entries[name]
        if entry.shape not in shapes or not math.prod(entry.shape) or entry.dtype not in DTYPES:
            raise WeightsError(f"{path}: {name} is {entry.dtype} {entry.shape}.", f"It must be {shapes[0]}.")
        found[name] = file.tensor(name).to(torch.float32)
        if not found[name].isfinite().all():
            raise WeightsError(f"{path}: {name} holds NaN or Inf.", "Record the inputs again.")
    if found["timestep"].min() < 0 or found["timestep"].max() > 1:
        raise WeightsError(f"{path}: timestep is not between 0 and 1.", "Write sigma, not sigma times 1000.")
    images, texts = (found[name].expand(count, -1, 4) for name in ("img_ids", "txt_ids"))
    return [
        Sample(
            found["timestep"][i].item(),
            found["hidden_states"][i : i + 1],
            found["encoder_hidden_states"][i : i + 1],
            images[i],
            texts[i],
        )
        for i in range(count)
    ]
