"""A Qwen3-VL folder in transformers' layout: finding it, and what it lacks. Loads no tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import hub
from ..errors import WeightsError

KIND = "qwen3_vl"
EXAMPLE = "Qwen/Qwen3-VL-4B-Instruct"
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
_WEIGHTS = "model.safetensors"
_TOKENIZERS = ("tokenizer.json", "vocab.json")


@dataclass(frozen=True)
class VLMFolder:
    """A folder in which every file is there. `weights`: the safetensors files."""

    path: Path
    config: dict[str, Any]
    weights: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        return sum(file.stat().st_size for file in self.weights)


def find(name: str | Path, download: Callable[..., str] | None = None) -> VLMFolder:
    """The folder of a path or of a hub id, inspected. A hub id is looked up in the local cache first, and
    downloaded only when that is not complete. Raises MissingFileError and WeightsError."""
    return hub.find(name, HUB_FILES, inspect, download)


def inspect(path: Path) -> VLMFolder:
    """Raises MissingFileError for what is not there, by exact name; WeightsError for what is damaged, refused,
    or no Qwen3-VL."""
    hub.refuse_file(path, "the one with config.json", EXAMPLE)
    config = hub.read_json(path / "config.json")
    if config.get("model_type") != KIND:
        raise WeightsError(
            f"{path} holds a {config.get('model_type')!r:.60}, not a Qwen3-VL ({KIND}).",
            f"Name a Qwen3-VL folder, as {EXAMPLE} is.",
        )
    weights = hub.weight_files(path, _WEIGHTS)
    missing = [file for file in weights if not file.is_file()]
    if not any((path / name).is_file() for name in _TOKENIZERS):
        missing.append(path / _TOKENIZERS[0])
    if not any((path / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        missing.append(path / "preprocessor_config.json")
    if not _has_template(path):
        missing.append(path / "chat_template.jinja")
    if missing:
        raise hub.lacking(path, missing)
    return VLMFolder(path, config, tuple(weights))


def _has_template(path: Path) -> bool:
    if any((path / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    settings = path / "tokenizer_config.json"
    return settings.is_file() and "chat_template" in hub.read_json(settings)
