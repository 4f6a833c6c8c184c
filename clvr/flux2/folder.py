"""A FLUX.2 [klein] folder in diffusers' layout: finding it, and what it lacks. Loads no tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .. import hub
from ..errors import FormatError, MissingFileError, WeightsError
from ..trajectory import decode
from . import headers

PIPELINE = "Flux2KleinPipeline"
CLASSES = {
    "transformer": ("diffusers", "Flux2Transformer2DModel"),
    "vae": ("diffusers", "AutoencoderKLFlux2"),
    "text_encoder": ("transformers", "Qwen3ForCausalLM"),
    "tokenizer": ("transformers", "Qwen2Tokenizer", "Qwen2TokenizerFast"),
    "scheduler": ("diffusers", "FlowMatchEulerDiscreteScheduler"),
}
"""Library and accepted classes of each part. Nothing else is ever instantiated from a folder."""
WEIGHTS = {
    "transformer": "diffusion_pytorch_model.safetensors",
    "vae": "diffusion_pytorch_model.safetensors",
    "text_encoder": "model.safetensors",
}
CONFIGS = dict.fromkeys(WEIGHTS, "config.json") | {"scheduler": "scheduler_config.json"}
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
HUB_FILES = ["model_index.json", "clvr.json", "*/*.json", "*/*.safetensors", "*/*.txt", "*/*.jinja"]


@dataclass(frozen=True)
class Sampling:
    """How a model is sampled; a folder's `clvr.json` overrides klein's own values.

    height, width: pixels. max_sequence_length: tokens to which a shorter prompt is padded.
    text_encoder_out_layers: hidden states that are stacked to the DiT's context."""

    height: int = 1024
    width: int = 1024
    steps: int = 28
    guidance: float = 4.0
    max_sequence_length: int = 512
    text_encoder_out_layers: tuple[int, ...] = (9, 18, 27)


@dataclass(frozen=True)
class Folder:
    """A klein folder in which every file is there and whole. `headers` by part, all its shards together."""

    path: Path
    distilled: bool
    sampling: Sampling
    headers: dict[str, dict[str, headers.Entry]]


def find(name: str | Path, download: Callable[..., str] | None = None) -> Folder:
    """The folder of a path or of a hub id, inspected. A hub id is looked up in the local cache first, and
    downloaded only when that is not complete. Raises MissingFileError and WeightsError."""
    return hub.find(name, HUB_FILES, inspect, download)


def inspect(path: Path) -> Folder:
    """Raises MissingFileError for what is not there, by exact name; WeightsError for what is damaged,
    refused, or no FLUX.2 [klein]."""
    _refuse_files(path)
    index = read_json(path / "model_index.json")
    if index.get("_class_name") != PIPELINE:
        raise WeightsError(
            f"{path} holds a {index.get('_class_name')!r:.60}, not a {PIPELINE}.",
            "Name a FLUX.2 [klein] folder in diffusers' layout, as black-forest-labs/FLUX.2-klein-4B has.",
        )
    for part, (library, *classes) in CLASSES.items():
        named = index.get(part)
        if not isinstance(named, list) or named not in [[library, c] for c in classes]:
            raise WeightsError(
                f"{path / 'model_index.json'} names {named!r:.100} as {part}.",
                f"FLUX.2 [klein] has {library}'s {classes[0]} there.",
            )
    files = {part: weight_files(path / part, name) for part, name in WEIGHTS.items()}
    _check_presence(path, files)
    distilled = index.get("is_distilled") is True
    found = {part: _tensors(paths) for part, paths in files.items()}
    return Folder(path, distilled, read_sampling(path, distilled), found)


def read_sampling(path: Path, distilled: bool) -> Sampling:
    base = Sampling(steps=4, guidance=1.0) if distilled else Sampling()
    file = path / "clvr.json"
    if not file.exists():
        return base
    try:
        sampling = decode(Sampling, {**asdict(base), **read_json(file)})
    except FormatError as error:
        raise WeightsError(f"{file}: {error.thing}", error.remedy) from error
    numbers = [v for k, v in asdict(sampling).items() if k != "text_encoder_out_layers"]
    if min(numbers) <= 0 or not sampling.text_encoder_out_layers:
        raise WeightsError(f"{file} holds values that are not positive.", "The file may be damaged.")
    return sampling


def read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(
            f"There is no file {path}.", "Name a complete FLUX.2 [klein] folder in diffusers' layout."
        ) from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON: {error}.", headers.DAMAGED) from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path} holds no JSON object.", headers.DAMAGED)
    return data


def weight_files(part: Path, name: str) -> list[Path]:
    """The safetensors files of one part: the single file, or the shards that its index names."""
    index = part / f"{name}.index.json"
    if (part / name).exists() or not index.exists():
        return [part / name]
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
        raise WeightsError(f"{index} has no map of weights.", headers.DAMAGED)
    for shard in shards.values():
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise WeightsError(f"{index} names {shard!r:.80}, which is no file of its folder.", headers.DAMAGED)
    return [part / shard for shard in sorted(set(shards.values()))]


def _refuse_files(path: Path) -> None:
    """What is not a folder, with the remedy that fits."""
    if path.is_dir():
        return
    if path.suffix.lower() in PICKLES:
        raise WeightsError(
            f"{path} is a pickle, which can run any program when it is opened.",
            "Pickles are never loaded: use the model's safetensors files.",
        )
    if path.exists():
        raise WeightsError(
            f"{path} is a single file.",
            "Name the model's folder in diffusers' layout, the one with model_index.json.",
        )
    raise MissingFileError(f"There is no folder {path}.", "Check the path, or name a hub id such as owner/model.")


def _check_presence(path: Path, weights: dict[str, list[Path]]) -> None:
    wanted = [path / part / name for part, name in CONFIGS.items()]
    if not (path / "tokenizer" / "vocab.json").exists():
        wanted.append(path / "tokenizer" / "tokenizer.json")
    wanted += [file for files in weights.values() for file in files]
    missing = [file for file in wanted if not file.is_file()]
    if not missing:
        return
    names = ", ".join(str(file.relative_to(path)) for file in missing)
    pickles = sorted({p.name for file in missing for p in _pickles(file.parent)})
    if pickles:
        raise WeightsError(
            f"{path} lacks {names} and has {', '.join(pickles)}, a pickle: it can run any program.",
            "Pickles are never loaded: get the model's safetensors files.",
        )
    raise MissingFileError(f"{path} lacks {names}.", "Download the missing files again.")


def _pickles(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.suffix.lower() in PICKLES] if folder.is_dir() else []


def _tensors(files: list[Path]) -> dict[str, headers.Entry]:
    tensors: dict[str, headers.Entry] = {}
    for file in files:
        entries = headers.read(file).tensors
        twice = next((name for name in entries if name in tensors), None)
        if twice is not None:
            raise WeightsError(f"{file} repeats {twice!r:.80} of another shard.", headers.DAMAGED)
        tensors |= entries
    return tensors
