"""Whole transformers on disk, FLUX.2's in either layout: where each piece of the weights lies.

A BFL or ComfyUI single file, a diffusers folder (single file or shards), or the transformer of a pipeline's
folder. Nothing is read but headers and, of fp8 files, the scales."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import MissingFileError, WeightsError
from ..flux2 import headers
from ..flux2.folder import WEIGHTS
from ..flux2.keymap import BFL_PREFIXES, RULES, Layout, check_rows, key_of, layout, pieces, refuse_unknown
from ..hub import PICKLES, pickles, read_json, weight_files
from .reading import WeightFile

PLAIN = ("BF16", "F16", "F32", "F64")
FP8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
SCALES = (".weight_scale", ".scale_weight")
DROPPED = (".input_scale", ".scale_input")
FOREIGN = {
    ".weight_scale_2": "nvfp4",
    ".absmax": "bitsandbytes",
    ".SCB": "bitsandbytes int8",
    ".qweight": "GPTQ or AWQ",
    ".svd_up": "SVDQuant",
    "._data": "quanto",
}
"""Parts of a quantised layer that tell its format."""
OTHER_MODELS = ("first_stage_model.", "vae.", "cond_stage_model.", "text_encoders.")
"""Prefixes in an all-in-one checkpoint."""
UNQUANTISED = "Take the bf16 files: quantised weights have lost what an increment is made of."
_SHOWN = 6


@dataclass(frozen=True)
class Run:
    """Where a piece lies: `shape` elements of a safetensors dtype from byte `offset` on, times `scale`."""

    file: WeightFile
    offset: int
    dtype: str
    shape: tuple[int, ...]
    scale: float = 1.0

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def itemsize(self) -> int:
        """Bytes."""
        return headers.BITS[self.dtype] // 8


@dataclass(frozen=True)
class Checkpoint:
    """`form`: the layout of its keys; `format`: what a person calls it. `config`: the folder's config.json.
    `pipeline`: the folder with model_index.json whose transformer this is."""

    path: Path
    form: Layout
    format: str
    files: tuple[WeightFile, ...]
    runs: Mapping[str, Run]
    config: Mapping[str, Any] | None = None
    pipeline: Path | None = None

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {piece: run.shape for piece, run in self.runs.items()}


@dataclass(frozen=True)
class Stored:
    """The weights of any transformer as they are stored: `weights` by the file's own names, `scales` of fp8 layers
    by the weight's name. `part` is the file, or the folder with the config."""

    part: Path
    files: tuple[WeightFile, ...]
    weights: Mapping[str, tuple[WeightFile, headers.Entry]]
    scales: Mapping[str, float]
    config: Mapping[str, Any] | None = None
    pipeline: Path | None = None


def open_weights(path: Path) -> Stored:
    """A file, a diffusers folder with its shards, or the transformer of a pipeline's folder; of any architecture.

    Raises MissingFileError and WeightsError."""
    part, pipeline = _part(path)
    config = read_json(part / "config.json") if part.is_dir() and (part / "config.json").exists() else None
    _refuse_quantised_config(part, config)
    files = tuple(WeightFile(file) for file in _files(part))
    tensors = _tensors(part, files)
    with _naming(path):
        weights, scales = _separate(path, files, tensors)
    return Stored(part, files, weights, scales, config, pipeline)


def open_checkpoint(path: Path, allow_fp8: bool = False, role: str = "") -> Checkpoint:
    """Every tensor of the files has its place, or is named in an error; every piece of the model is there.

    allow_fp8: read fp8 weights that have no scale, and accept fp8 for role "base".
    Raises MissingFileError and WeightsError."""
    stored = open_weights(path)
    with _naming(path):
        form = layout(stored.weights)
        runs = _runs(path, form, stored.weights, stored.scales, allow_fp8, role)
        _check_complete(path, runs)
    kind = {"bfl": "BFL file", "diffusers": "diffusers folder" if stored.part.is_dir() else "diffusers file"}[form]
    dtypes = sorted({run.dtype.lower() for run in runs.values()})
    shards = f", {len(stored.files)} shards" if len(stored.files) > 1 else ""
    scaled = ", scaled" if stored.scales else ""
    said = f"{kind}, {'+'.join(dtypes)}{scaled}{shards}"
    return Checkpoint(path, form, said, stored.files, runs, stored.config, stored.pipeline)


def same_model(one: Mapping[str, tuple[int, ...]], other: Checkpoint, names: tuple[str, str]) -> None:
    """Raises WeightsError where two checkpoints are not of one architecture, saying how they differ."""
    shapes = other.shapes
    if describe(one) != describe(shapes):
        raise WeightsError(
            f"The {names[1]} model {other.path} is {describe(shapes)}; the {names[0]} model is {describe(one)}.",
            "Increments can only be added between models of one architecture: take all of them from 4B, or from 9B.",
        )
    differing = [piece for piece in {**one, **shapes} if one.get(piece) != shapes.get(piece)]
    if differing:
        shown = ", ".join(
            f"{key_of(p, other.form)} {shapes.get(p, 'missing')} instead of {one.get(p, 'none')}" for p in differing[:3]
        )
        raise WeightsError(
            f"{other.path} differs from the {names[0]} model in {len(differing)} pieces: {shown}.",
            "The files belong to different models.",
        )


def describe(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """A model's size in words."""
    depth = [depth_of(shapes, kind) for kind in ("double", "single")]
    hidden = shapes.get("img_in.weight:0", (0,))[0]
    total = sum(math.prod(shape) for shape in shapes.values()) / 1e9
    return f"FLUX.2 of width {hidden} with {depth[0]} + {depth[1]} blocks ({total:.2f} B weights)"


def depth_of(pieces: Iterable[str], kind: str) -> int:
    """How many `double` or `single` blocks there are, counted to the last one."""
    return 1 + max((int(piece.split(".")[1]) for piece in pieces if piece.startswith(f"{kind}_blocks.")), default=-1)


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors about tensors name the file too."""
    try:
        yield
    except WeightsError as error:
        if str(path) in error.thing:
            raise
        raise WeightsError(f"{path}: {error.thing}", error.remedy) from None


def _part(path: Path) -> tuple[Path, Path | None]:
    """The transformer's own folder or file, and the pipeline's folder around it."""
    if path.is_dir() and (path / "model_index.json").exists():
        return path / "transformer", path
    if path.is_dir() and path.name == "transformer" and (path.parent / "model_index.json").exists():
        return path, path.parent
    return path, None


def refuse_kind(path: Path) -> None:
    """Raises MissingFileError for nothing, WeightsError for a pickle or a GGUF, whatever its name."""
    if not path.exists():
        raise MissingFileError(f"There is no {path}.", "Check the path.")
    if path.is_dir():
        return
    if path.suffix.lower() in PICKLES:
        raise WeightsError(f"{path} is a pickle, which can run any program.", "Use the model's safetensors file.")
    with open(path, "rb") as file:
        if file.read(4) == b"GGUF":
            raise WeightsError(f"{path} is quantised in the format GGUF.", UNQUANTISED)


def _files(part: Path) -> list[Path]:
    refuse_kind(part)
    if not part.is_dir():
        return [part]
    files = weight_files(part, WEIGHTS["transformer"])
    if (unsafe := pickles(part)) and not all(file.exists() for file in files):
        raise WeightsError(f"{part} has only {unsafe[0]}, a pickle.", "Pickles are never loaded: use safetensors.")
    return files


def _refuse_quantised_config(part: Path, config: Mapping[str, Any] | None) -> None:
    settings = (config or {}).get("quantization_config")
    if settings:
        method = settings.get("quant_method", "unknown") if isinstance(settings, dict) else "unknown"
        raise WeightsError(f"{part} is quantised in the format {method!r:.40}.", UNQUANTISED)


def _tensors(part: Path, files: Iterable[WeightFile]) -> dict[str, tuple[WeightFile, headers.Entry]]:
    found: dict[str, tuple[WeightFile, headers.Entry]] = {}
    for file in files:
        for name, entry in file.header.tensors.items():
            if name in found:
                raise WeightsError(f"{file.path} repeats {name!r:.80} of another shard.", headers.DAMAGED)
            found[name] = file, entry
    index = part / f"{WEIGHTS['transformer']}.index.json"
    if part.is_dir() and index.exists() and not (part / WEIGHTS["transformer"]).exists():
        named = read_json(index)["weight_map"]
        wrong = [n for n in {**named, **found} if n not in found or named.get(n) != found[n][0].path.name]
        if wrong:
            raise WeightsError(f"{index} does not agree with the shards about {wrong[0]!r:.80}.", headers.DAMAGED)
    return found


def _separate(
    path: Path, files: Iterable[WeightFile], tensors: Mapping[str, tuple[WeightFile, headers.Entry]]
) -> tuple[dict[str, tuple[WeightFile, headers.Entry]], dict[str, float]]:
    """The weights, and the scale of each fp8 layer. Raises WeightsError naming a refused format and its layer."""
    formats = _declared_formats(path, files)
    weights, scales = {}, {}
    for name, (file, entry) in tensors.items():
        layer = next((name.removesuffix(end) for end in (*SCALES, *DROPPED, ".comfy_quant") if name.endswith(end)), "")
        foreign = next((kind for end, kind in FOREIGN.items() if name.endswith(end) or f"{end}." in name), None)
        if foreign:
            raise _refused(path, foreign, name)
        if name.endswith(".comfy_quant"):
            formats[layer] = _format_of(path, layer, file.tensor(name).flatten().tolist(), entry)
        elif name.endswith(SCALES):
            scales[f"{layer}.weight"] = _scale(path, file, name, entry)
        elif not layer and _without_prefix(name) != "scaled_fp8":
            weights[name] = file, entry
    for layer, kind in formats.items():
        if kind not in FP8.values():
            raise _refused(path, kind, layer)
    orphans = [name for name in scales if name not in weights]
    refuse_unknown([f"{name}_scale" for name in orphans])
    return weights, scales


def _declared_formats(path: Path, files: Iterable[WeightFile]) -> dict[str, str]:
    """What ComfyUI wrote into the headers about quantised layers."""
    formats: dict[str, str] = {}
    for file in files:
        text = file.header.metadata.get("_quantization_metadata")
        if text is None:
            continue
        try:
            layers = json.loads(text)["layers"]
            formats |= {str(name): str(layer["format"]) for name, layer in layers.items()}
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise WeightsError(f"{path} describes its quantised layers in no known way.", UNQUANTISED) from None
    return formats


def _format_of(path: Path, layer: str, codes: list[int], entry: headers.Entry) -> str:
    try:
        return str(json.loads(bytes(codes) if entry.dtype == "U8" else b"")["format"])
    except (ValueError, KeyError, TypeError, RecursionError):
        raise WeightsError(f"{path}: {layer} is quantised in an unknown format.", UNQUANTISED) from None


def _scale(path: Path, file: WeightFile, name: str, entry: headers.Entry) -> float:
    if entry.dtype == "F8_E8M0":
        raise _refused(path, "mxfp8", name)
    if math.prod(entry.shape) != 1 or entry.dtype not in PLAIN:
        raise _refused(path, f"fp8 with a scale of shape {entry.shape}", name)
    value = float(file.tensor(name))
    if not math.isfinite(value) or value <= 0:
        raise WeightsError(f"{path}: the scale {name} is {value}.", headers.DAMAGED)
    return value


def _refused(path: Path, kind: str, layer: str) -> WeightsError:
    return WeightsError(f"{path} is quantised in the format {kind} (layer {layer}).", UNQUANTISED)


def _without_prefix(name: str) -> str:
    return name.removeprefix(next(p for p in BFL_PREFIXES if name.startswith(p)))


def _runs(
    path: Path,
    form: Layout,
    weights: Mapping[str, tuple[WeightFile, headers.Entry]],
    scales: Mapping[str, float],
    allow_fp8: bool,
    role: str,
) -> dict[str, Run]:
    runs: dict[str, Run] = {}
    unknown: list[str] = []
    for name, (file, entry) in weights.items():
        held = pieces(name, form)
        if held is None or held[0] in runs:
            unknown.append(name)
            continue
        _check_dtype(path, name, entry, name in scales, allow_fp8, role)
        check_rows(name, entry.shape, len(held))
        shape = (entry.shape[0] // len(held), *entry.shape[1:]) if len(held) > 1 else entry.shape
        step = (entry.end - entry.start) // len(held)
        for i, piece in enumerate(held):
            runs[piece] = Run(file, entry.start + i * step, entry.dtype, shape, scales.get(name, 1.0))
    _refuse(path, unknown)
    return runs


def _refuse(path: Path, unknown: list[str]) -> None:
    others = [
        name for name in unknown if name.startswith(("first_stage_model.", "cond_stage_model.", "text_encoders."))
    ]
    if others:
        raise WeightsError(
            f"{path} is an all-in-one checkpoint: {others[0]} and {len(others) - 1} more belong to no transformer.",
            "Save its diffusion model alone (ComfyUI's ModelSave node), and merge that file.",
        )
    refuse_unknown(unknown)


def _check_dtype(path: Path, name: str, entry: headers.Entry, scaled: bool, allow_fp8: bool, role: str) -> None:
    if entry.dtype in PLAIN and not scaled:
        return
    if entry.dtype not in FP8:
        raise _refused(path, {"I8": "int8", "U8": "4-bit", "F4": "fp4"}.get(entry.dtype, entry.dtype.lower()), name)
    if allow_fp8:
        return
    if role == "base":
        raise WeightsError(
            f"The base {path} is fp8 ({name}): its rounding would enter every increment.",
            "Take the bf16 base. --allow-fp8 merges from it all the same.",
        )
    if not scaled:
        raise WeightsError(
            f"{path} holds fp8 without scales ({name}), which has lost most of a fine-tune.",
            "Take the bf16 file. --allow-fp8 merges from it all the same.",
        )


def _check_complete(path: Path, runs: Mapping[str, Run]) -> None:
    depth = {kind: depth_of(runs, kind) for kind in ("double", "single")}
    missing = []
    for rule in (r for r in RULES if not r.bfl.startswith("guidance_in")):
        blocks = depth[rule.bfl[:6]] if "#" in rule.bfl else 1
        held = 2 if rule.swapped else len(rule.diffusers)
        wanted = [f"{rule.bfl.replace('#', str(n))}:{i}" for n in range(blocks) for i in range(held)]
        missing += [piece for piece in wanted if piece not in runs]
    if not runs or missing:
        shown = ", ".join(dict.fromkeys(key_of(piece, "diffusers") for piece in missing[:_SHOWN]))
        raise WeightsError(
            f"{path} lacks {len(missing)} pieces of a FLUX.2 transformer: {shown}.", "Download it again."
        )
