"""What is merged into what: the recipe of one merge, from flags or from a YAML file."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import SettingError

Number = Literal["bf16", "fp16", "fp32"]
Form = Literal["bfl", "diffusers", "lora"]
GROUPS = ("input", "modulation", "double", "single", "final")
_SELECTOR = re.compile(r"(input|modulation|final|double|single)(?:\.(\d{1,4})(?:-(\d{1,4}))?)?")


@dataclass(frozen=True)
class Strength:
    """λ of one increment: one number, and others for groups of blocks.

    A group is `input` (embedders), `modulation`, `final`, `double`, `single`, `double.3` or `single.0-9`; the
    narrowest that holds a block counts, the later of two equally narrow ones."""

    value: float = 1.0
    blocks: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for number in (self.value, *self.blocks.values()):
            if not isinstance(number, (int, float)) or not math.isfinite(number):
                raise SettingError(f"λ is {number!r}, no finite number.", "Give a number; 1 adds the increment whole.")
        for selector in self.blocks:
            _width(selector)

    @classmethod
    def parse(cls, text: str) -> Strength:
        """'0.8', or '0.8,double=0.5,single.0-9=0.2'. Raises SettingError."""
        value, blocks = 1.0, {}
        for i, part in enumerate(text.split(",")):
            name, equals, number = part.rpartition("=")
            try:
                if equals:
                    blocks[name.strip()] = float(number)
                elif i == 0:
                    value = float(number)
                else:
                    raise ValueError
            except ValueError:
                raise SettingError(
                    f"{part!r:.80} is no strength.", "Write a number, or one and group=number: 0.8,double=0.5"
                ) from None
        return cls(value, blocks)

    def of(self, block: str) -> float:
        """λ in a block such as 'double.3', 'input' or 'final'."""
        fitting = [(_width(s), -i, number) for i, (s, number) in enumerate(self.blocks.items()) if _holds(s, block)]
        return min(fitting)[2] if fitting else self.value

    @staticmethod
    def touches(selector: str, blocks: Iterable[str]) -> bool:
        """Whether any of the blocks is in the group."""
        return any(_holds(selector, block) for block in blocks)

    @property
    def constant(self) -> bool:
        """Whether λ is the same in all blocks."""
        return all(number == self.value for number in self.blocks.values())

    def describe(self) -> str:
        """The text that `parse` reads."""
        return ",".join([f"{self.value:g}", *(f"{name}={number:g}" for name, number in self.blocks.items())])


@dataclass(frozen=True)
class Source:
    """A checkpoint or a LoRA, and how much of its increment is added."""

    path: Path
    strength: Strength = Strength()

    @classmethod
    def parse(cls, text: str) -> Source:
        """PATH or PATH:λ. Raises SettingError."""
        path, colon, strength = text.rpartition(":")
        if colon and path and (re.match(r"[-+.\d]|\w+(\.[\d-]+)?=", strength) and "/" not in strength):
            return cls(Path(path), Strength.parse(strength))
        return cls(Path(text))


@dataclass(frozen=True)
class Recipe:
    """One merge.

    base: not needed where all increments are LoRAs and the distilled model is added whole; it is then read for
    the report alone. distilled: none merges the aligned increments into the base itself.
    rank: of the LoRA that `form="lora"` writes, `relative_to` the base or the distilled model.
    allow_fp8: dequantise a base, and read fp8 without scales as it is. allow_nonfinite: write NaN and Inf too.
    diagnose: gather the report while merging. conflicts: count sign conflicts too (half as slow again).
    sha256: record the inputs' SHA-256 rather than a fingerprint of them.
    warn_shift: relative shift (eq. 7) above which the report warns.
    sample: one weight in this many is looked at for what survives the rounding."""

    out: Path
    base: Path | None = None
    distilled: Source | None = None
    align: tuple[Source, ...] = ()
    dtype: Number = "bf16"
    form: Form = "bfl"
    rank: int = 64
    relative_to: Literal["base", "distilled"] = "base"
    overwrite: bool = False
    allow_fp8: bool = False
    allow_nonfinite: bool = False
    diagnose: bool = True
    conflicts: bool = False
    warn_shift: float = 0.03
    sample: int = 256
    sha256: bool = False
    threads: int | None = None


def block_of(key: str) -> str:
    """The block that a BFL key or piece belongs to, as `Strength` and the report name it: 'double.3',
    'single.0', 'modulation', 'final' or 'input'."""
    block = re.match(r"(double|single)_blocks\.(\d+)\.", key)
    if block:
        return f"{block[1]}.{int(block[2])}"
    if "modulation" in key and not key.startswith("final_layer"):
        return "modulation"
    return "final" if key.startswith("final_layer") else "input"


def _bounds(selector: str) -> tuple[str, int, int]:
    match = _SELECTOR.fullmatch(selector)
    numbered = match is not None and match[2] is not None
    if match is None or (numbered and match[1] not in ("double", "single")):
        raise SettingError(
            f"There is no group of blocks {selector!r:.80}.",
            f"Use {', '.join(GROUPS)}, double.3 or single.0-9.",
        )
    if not numbered:
        return match[1], 0, 9999
    first = int(match[2])
    last = first if match[3] is None else int(match[3])
    if last < first:
        raise SettingError(f"The group {selector!r} ends before it begins.", f"Write {match[1]}.{last}-{first}.")
    return match[1], first, last


def _width(selector: str) -> int:
    _, first, last = _bounds(selector)
    return last - first


def _holds(selector: str, block: str) -> bool:
    group, first, last = _bounds(selector)
    name, _, number = block.partition(".")
    return name == group and (not number or first <= int(number) <= last)
