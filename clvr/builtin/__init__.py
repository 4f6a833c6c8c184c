"""The built-in models: FLUX.2 [klein]'s classes at tiny size, trained on the built-in world. See README.md here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..errors import MissingFileError

NAME = "builtin"
PATH = Path(__file__).parent
"""The base, a folder as Flux2KleinPipeline.from_pretrained takes it."""
VARIANTS: Mapping[str, str] = {
    "base": "28 steps with guidance",
    "sft": "the base after SFT on verified trajectories",
    "distilled": "the base in 4 steps without guidance",
    "merged": "base + distilled + SFT + PPRL (DSWM), 4 steps without guidance",
}
DEFAULT = "distilled"
"""The variant that 'builtin' alone means."""


def named(model: str) -> bool:
    """Whether it is 'builtin' or 'builtin:VARIANT'."""
    return model.partition(":")[0] == NAME


def folder(model: str) -> Path:
    """Where 'builtin' or 'builtin:VARIANT' lies; anything else is a path already. Raises MissingFileError."""
    if not named(model):
        return Path(model)
    variant = model.partition(":")[2] or DEFAULT
    if variant not in VARIANTS:
        known = ", ".join(f"{NAME}:{name}" for name in VARIANTS)
        raise MissingFileError(f"There is no built-in model {model!r}.", f"Take one of {known}.")
    return PATH if variant == "base" else PATH / variant


def located(model: str) -> str | Path:
    """A built-in model's folder; any other name, which may be a hub's, stays. Raises MissingFileError."""
    return folder(model) if named(model) else model
