"""Whether the packages that the pack builds on are there and new enough. Asked before they are imported, since other
packs may have put older ones in their place."""

from __future__ import annotations

import sys
from importlib import metadata

from .errors import PackageError

OLDEST = {
    "torch": (2, 6),
    "transformers": (5, 18),
    "diffusers": (0, 42),
    "safetensors": (0, 5),
    "accelerate": (1, 10),
    "numpy": (1, 26),
    "pillow": (11,),
    "pydantic": (2, 9),
    "httpx": (0, 27),
    "tqdm": (4, 66),
    "psutil": (5, 9),
}
"""Oldest versions that work, as in pyproject.toml."""


def require(*names: str) -> None:
    """Raises PackageError for the first that lacks."""
    for name in names:
        if lack := lacking(name):
            raise PackageError(
                f"{name} {lack}.",
                f'Install it where this runs: {sys.executable} -m pip install "{name}>={wanted(name)}"',
            )


def lacking(name: str) -> str:
    """Why a package cannot be used, or ''."""
    found = version(name)
    if not found:
        return "is not installed"
    oldest = OLDEST[name]
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[: len(oldest)] if part.isdigit())
    return "" if numbers >= oldest else f"{found} is too old: {wanted(name)} or newer is needed"


def version(name: str) -> str:
    """Of an installed package; '' where it is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def wanted(name: str) -> str:
    return ".".join(map(str, OLDEST[name]))
