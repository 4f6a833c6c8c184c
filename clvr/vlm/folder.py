"""A Qwen3-VL folder in transformers' layout: finding it, and what it lacks. Loads no tensor."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .. import hub
from ..errors import MissingFileError, WeightsError

KIND = "qwen3_vl"
EXAMPLE = "Qwen/Qwen3-VL-4B-Instruct"
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.jinja"]
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
_WEIGHTS = "model.safetensors"
_TOKENIZERS = ("tokenizer.json", "vocab.json")
_AGAIN = "Download the folder again."


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
    _refuse_files(path)
    config = _read_json(path / "config.json")
    if config.get("model_type") != KIND:
        raise WeightsError(
            f"{path} holds a {config.get('model_type')!r:.60}, not a Qwen3-VL ({KIND}).",
            f"Name a Qwen3-VL folder, as {EXAMPLE} is.",
        )
    weights = _weights(path)
    missing = [file.name for file in weights if not file.is_file()]
    if not any((path / name).is_file() for name in _TOKENIZERS):
        missing.append(_TOKENIZERS[0])
    if not any((path / name).is_file() for name in ("preprocessor_config.json", "processor_config.json")):
        missing.append("preprocessor_config.json")
    if not _has_template(path):
        missing.append("chat_template.jinja")
    if missing:
        raise _lacking(path, missing)
    return VLMFolder(path, config, tuple(weights))


def _has_template(path: Path) -> bool:
    if any((path / name).is_file() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    settings = path / "tokenizer_config.json"
    return settings.is_file() and "chat_template" in _read_json(settings)


def _lacking(path: Path, missing: list[str]) -> MissingFileError | WeightsError:
    names = ", ".join(missing)
    pickles = sorted(file.name for file in path.iterdir() if file.suffix.lower() in PICKLES)
    if pickles and any(name.endswith(".safetensors") for name in missing):
        return WeightsError(
            f"{path} lacks {names} and has {', '.join(pickles[:4])}, a pickle: it can run any program.",
            "Pickles are never loaded: get the model's safetensors files.",
        )
    return MissingFileError(f"{path} lacks {names}.", "Download the missing files again.")


def _weights(path: Path) -> list[Path]:
    """The single file, or the shards that its index names."""
    index = path / f"{_WEIGHTS}.index.json"
    if (path / _WEIGHTS).exists() or not index.exists():
        return [path / _WEIGHTS]
    shards = _read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
        raise WeightsError(f"{index} has no map of weights.", _AGAIN)
    for shard in shards.values():
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise WeightsError(f"{index} names {shard!r:.80}, which is no file of its folder.", _AGAIN)
    return [path / shard for shard in sorted(set(shards.values()))]


def _refuse_files(path: Path) -> None:
    if path.is_dir():
        return
    if path.suffix.lower() in PICKLES:
        raise WeightsError(
            f"{path} is a pickle, which can run any program when it is opened.",
            "Pickles are never loaded: use the model's safetensors files.",
        )
    if path.exists():
        raise WeightsError(f"{path} is a single file.", "Name the model's folder, the one with config.json.")
    raise MissingFileError(f"There is no folder {path}.", f"Check the path, or name a hub id such as {EXAMPLE}.")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise MissingFileError(f"There is no file {path}.", f"Name a Qwen3-VL folder, as {EXAMPLE} is.") from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON: {error}.", _AGAIN) from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path} holds no JSON object.", _AGAIN)
    return data
