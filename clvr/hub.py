"""Model folders by path, or by hub id from the local cache or the hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from .errors import MissingFileError

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
