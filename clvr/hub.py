"""Model folders: by path, or by hub id from the local cache or the hub; and what is common to reading them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from .errors import MissingFileError, WeightsError

PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".pickle")
AGAIN = "The file is damaged: download the folder again."
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
T = TypeVar("T")


def find(
    name: str | Path, files: Sequence[str], inspect: Callable[[Path], T], download: Callable[..., str] | None = None
) -> T:
    """What `inspect` makes of the folder of a path or of a hub id, of which only `files` (patterns) are fetched.

    A hub id is looked up in the local cache first, and downloaded only when that is not complete. Raises
    MissingFileError, and what `inspect` raises."""
    path = Path(name).expanduser()
    if path.exists() or path.parent.is_dir() or not HUB_ID.fullmatch(str(name)):
        return inspect(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    fetch = download or snapshot_download
    try:
        return inspect(Path(fetch(str(name), allow_patterns=list(files), local_files_only=True)))
    except (LocalEntryNotFoundError, MissingFileError):
        pass
    try:
        return inspect(Path(fetch(str(name), allow_patterns=list(files))))
    except (LocalEntryNotFoundError, HfHubHTTPError, ConnectionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise MissingFileError(
            f"There is no folder {name}, and the model hub does not give a model of this name: {reason}",
            "Check the name; log in with `hf auth login` for a gated model; or name a downloaded folder.",
        ) from error


def refuse_file(path: Path, layout: str, example: str) -> None:
    """Raises WeightsError or MissingFileError for what is not a folder. `layout`: the folder that is wanted;
    `example`: a hub id."""
    if path.is_dir():
        return
    if path.suffix.lower() in PICKLES:
        raise WeightsError(
            f"{path} is a pickle, which can run any program when it is opened.",
            "Pickles are never loaded: use the model's safetensors files.",
        )
    if path.exists():
        raise WeightsError(f"{path} is a single file.", f"Name the model's folder, {layout}.")
    raise MissingFileError(f"There is no folder {path}.", f"Check the path, or name a hub id such as {example}.")


def read_json(path: Path) -> dict[str, Any]:
    """Raises MissingFileError; WeightsError for what is no JSON object."""
    try:
        data = json.loads(path.read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise MissingFileError(f"There is no file {path}.", "Name a complete model folder.") from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON: {error}.", AGAIN) from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path} holds no JSON object.", AGAIN)
    return data


def weight_files(part: Path, name: str) -> list[Path]:
    """The safetensors files of a model: the single file, or the shards that its index names. They need not be
    there. Raises WeightsError for a damaged index."""
    index = part / f"{name}.index.json"
    if (part / name).exists() or not index.exists():
        return [part / name]
    shards = read_json(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(s, str) for s in shards.values()):
        raise WeightsError(f"{index} has no map of weights.", AGAIN)
    for shard in shards.values():
        if Path(shard).name != shard or "\\" in shard or not shard.endswith(".safetensors"):
            raise WeightsError(f"{index} names {shard!r:.80}, which is no file of its folder.", AGAIN)
    return [part / shard for shard in sorted(set(shards.values()))]


def pickles(folder: Path) -> list[str]:
    """Names of the pickles that lie there."""
    return sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICKLES) if folder.is_dir() else []


def lacking(path: Path, missing: Sequence[Path]) -> MissingFileError | WeightsError:
    """What to say of a folder without these files: where weights are there as pickles only, that."""
    names = ", ".join(str(file.relative_to(path)) for file in missing)
    unsafe = sorted({name for file in missing if file.suffix == ".safetensors" for name in pickles(file.parent)})
    if unsafe:
        return WeightsError(
            f"{path} lacks {names} and has {', '.join(unsafe[:4])}, a pickle: it can run any program.",
            "Pickles are never loaded: get the model's safetensors files.",
        )
    return MissingFileError(f"{path} lacks {names}.", "Download the missing files again.")
