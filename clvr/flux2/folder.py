"""A FLUX.2 [klein] folder in diffusers' layout: finding it, and what it lacks. Loads no tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from .. import hub
from ..errors import FormatError, SettingError, WeightsError
from ..trajectory import decode
from . import headers

PIPELINE = "Flux2KleinPipeline"
EXAMPLE = "black-forest-labs/FLUX.2-klein-4B"
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

    def chosen(self, steps: int | None, guidance: float | None) -> Sampling:
        """With the user's own steps and guidance. Raises SettingError."""
        steps = self.steps if steps is None else steps
        guidance = self.guidance if guidance is None else float(guidance)
        if steps < 1 or not 0 <= guidance < math.inf:
            raise SettingError(
                f"{steps} steps at guidance {guidance:g} draw nothing.",
                "Use at least one step, and a guidance from 0.",
            )
        return replace(self, steps=steps, guidance=guidance)

    def evaluations(self, distilled: bool) -> int:
        """Of the model, an image: two a step under guidance, which a distilled model ignores."""
        return self.steps * (2 if self.guidance > 1 and not distilled else 1)

    def named(self, model: str | Path) -> str:
        return f"{model} ({self.steps} steps, guidance {self.guidance:g})"


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
    hub.refuse_file(path, "in diffusers' layout, the one with model_index.json", EXAMPLE)
    index = hub.read_json(path / "model_index.json")
    if index.get("_class_name") != PIPELINE:
        raise WeightsError(
            f"{path} holds a {index.get('_class_name')!r:.60}, not a {PIPELINE}.",
            f"Name a FLUX.2 [klein] folder in diffusers' layout, as {EXAMPLE} has.",
        )
    for part, (library, *classes) in CLASSES.items():
        named = index.get(part)
        if not isinstance(named, list) or named not in [[library, c] for c in classes]:
            raise WeightsError(
                f"{path / 'model_index.json'} names {named!r:.100} as {part}.",
                f"FLUX.2 [klein] has {library}'s {classes[0]} there.",
            )
    files = {part: hub.weight_files(path / part, name) for part, name in WEIGHTS.items()}
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
        sampling = decode(Sampling, {**asdict(base), **hub.read_json(file)})
    except FormatError as error:
        raise WeightsError(f"{file}: {error.thing}", error.remedy) from error
    numbers = [v for k, v in asdict(sampling).items() if k != "text_encoder_out_layers"]
    if min(numbers) <= 0 or not sampling.text_encoder_out_layers:
        raise WeightsError(f"{file} holds values that are not positive.", "The file may be damaged.")
    return sampling


def _check_presence(path: Path, weights: dict[str, list[Path]]) -> None:
    wanted = [path / part / name for part, name in CONFIGS.items()]
    if not (path / "tokenizer" / "vocab.json").exists():
        wanted.append(path / "tokenizer" / "tokenizer.json")
    wanted += [file for files in weights.values() for file in files]
    missing = [file for file in wanted if not file.is_file()]
    if missing:
        raise hub.lacking(path, missing)


def _tensors(files: list[Path]) -> dict[str, headers.Entry]:
    tensors: dict[str, headers.Entry] = {}
    for file in files:
        entries = headers.read(file).tensors
        twice = next((name for name in entries if name in tensors), None)
        if twice is not None:
            raise WeightsError(f"{file} repeats {twice!r:.80} of another shard.", headers.DAMAGED)
        tensors |= entries
    return tensors
