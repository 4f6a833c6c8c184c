"""Weights in ComfyUI's model folders: naming those that are there, and where a new file may go."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import folder_paths

from ..clvr.errors import MissingFileError, OutputError

MODELS, LORAS = ("diffusion_models", "diffusers"), ("loras",)
NONE = "none"
SUFFIX = ".safetensors"
_PART = re.compile(r"\w[\w .+()-]*")
Stamp = tuple[str, int, int, int]


def names(kind: str) -> list[str]:
    """What a combo of files offers; 'none' first."""
    return [NONE, *folder_paths.get_filename_list(kind)]


def chosen(kinds: Sequence[str], file: str, folder: str, role: str) -> Path | None:
    """The file of a combo, or the path inside the folders of `kinds` that is written instead; None for neither.

    Raises MissingFileError."""
    if folder.strip():
        return _inside(kinds, folder.strip(), role)
    if file == NONE:
        return None
    found = folder_paths.get_full_path(kinds[0], file)
    if found is None:
        raise MissingFileError(f"There is no {file} in models/{kinds[0]} ({role}).", "Choose another file.")
    return Path(found)


def _inside(kinds: Sequence[str], name: str, role: str) -> Path:
    parts = _parts(name)
    for root in (Path(root) for kind in kinds for root in folder_paths.get_folder_paths(kind)):
        if parts and root.joinpath(*parts).exists():
            return root.joinpath(*parts)
    places = " or ".join(f"models/{kind}" for kind in kinds)
    raise MissingFileError(f"'{name}' is nothing inside {places} ({role}).", f"Give a path inside {places}.")


def target(name: str) -> Path:
    """The file in models/diffusion_models that is to be written: 'clvr/merged' is clvr/merged.safetensors there.

    Raises OutputError for a name that leads out of that folder, by a link too."""
    root = Path(folder_paths.models_dir, "diffusion_models").resolve()
    parts = _parts(name)
    if not parts:
        raise OutputError(f"'{name}' is no name for a file in models/diffusion_models.", "Give one like clvr/merged.")
    wanted = root.joinpath(*parts)
    out = wanted if wanted.suffix == SUFFIX else wanted.with_name(wanted.name + SUFFIX)
    if out.resolve() != out:
        raise OutputError(f"'{name}' leads out of models/diffusion_models.", "Give a name that holds no link.")
    return out


def _parts(name: str) -> list[str]:
    """A relative path's parts, whatever system it was written for; none for a path that could lead elsewhere."""
    parts = re.split(r"[/\\]", name)
    return parts if all(_PART.fullmatch(part) and part == part.rstrip(" .") for part in parts) else []


def listed(out: Path) -> str:
    """A file of `target` as the loaders' combos name it. They see it from now on."""
    folder_paths.filename_list_cache.pop("diffusion_models", None)
    return os.path.relpath(out, Path(folder_paths.models_dir, "diffusion_models").resolve())


def stamps(paths: Iterable[Path | None]) -> list[Stamp]:
    """What changes when the files, or those in a folder, change."""
    found: list[Stamp] = []
    for path in paths:
        if path is not None:
            files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
            found += [stamp(file) for file in files]
    return found


def stamp(file: Path) -> Stamp:
    seen = file.stat()
    return str(file), seen.st_size, seen.st_mtime_ns, seen.st_ino
