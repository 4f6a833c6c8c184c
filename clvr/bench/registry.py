"""The suites by name, and where their prompts are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..errors import MissingFileError, SettingError
from .geneval import geneval, genevalpp
from .imagine import imaginebench
from .ocr import ocr
from .prism import prism
from .shapes import builtin
from .suite import Suite
from .wise import wise, wise_verified

SHIPPED: dict[str, tuple[str, Callable[[Path], Suite]]] = {
    "geneval": ("geneval.jsonl", geneval),
    "geneval++": ("genevalpp.jsonl", genevalpp),
    "imaginebench": ("imaginebench.jsonl", imaginebench),
    "ocr": ("ocr-prompts.txt", ocr),
}
BROUGHT: dict[str, Callable[[Path], Suite]] = {"wise": wise, "wise-verified": wise_verified, "prism": prism}
NAMES = ("builtin", *SHIPPED, *BROUGHT)
FOLDER = Path(__file__).parents[2] / "benchmarks" / "prompts"
"""In a checkout; an installed package has the code alone."""


def open_suite(name: str, prompts: Path | None = None) -> Suite:
    """Raises SettingError for an unknown suite, MissingFileError where its prompts are not, FormatError."""
    if name == "builtin":
        return builtin()
    if name in SHIPPED:
        file, read = SHIPPED[name]
        return read(_shipped(file, prompts))
    if name not in BROUGHT:
        raise SettingError(f"There is no suite '{name}'.", f"Known are {', '.join(NAMES)}.")
    if prompts is None:
        raise MissingFileError(
            f"The prompts of {name} are not shipped.",
            "Name their file or folder with --prompts; benchmarks/prompts/README.md tells where to get them.",
        )
    return BROUGHT[name](prompts)


def _shipped(file: str, prompts: Path | None) -> Path:
    place = FOLDER if prompts is None else prompts
    path = place / file if place.is_dir() else place
    if not path.is_file():
        raise MissingFileError(
            f"There is no {path}.",
            f"{file} is in the folder benchmarks/prompts of the pack's repository; name it with --prompts.",
        )
    return path
