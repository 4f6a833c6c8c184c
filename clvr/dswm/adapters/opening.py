"""Opening an adapter: every key is placed, every shape checked, nothing but the alphas read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ...errors import MissingFileError, WeightsError
from ...flux2 import headers
from ...hub import pickles
from ..reading import WeightFile
from . import config, matrices
from .config import Scaling
from .matrices import Dense, Hadamard, Kronecker, Matrix, Product
from .names import Names, Target, is_part

CONFIG, WEIGHTS, DIFFUSERS_WEIGHTS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "pytorch_lora_weights.safetensors",
)
FLOATS = ("F16", "BF16", "F32", "F64")
_LOHA = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
_LOKR = {f"lokr_w{i}{end}" for i in "12" for end in ("", "_a", "_b")}
_SHOWN = 4
_FITTING = "Use a LoRA that was trained for this model: klein 4B is 3072 wide, klein 9B 4096."


class Update(Protocol):
    """What is added to one piece of the model."""

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop) of the piece's ΔW in fp32 and in new memory, scale included. Thread-safe."""
        ...


@dataclass(frozen=True)
class Adapter:
    """An opened adapter. format: who writes such files, for the report. updates: by piece of the model."""

    path: Path
    format: str
    files: tuple[WeightFile, ...]
    updates: Mapping[str, tuple[Update, ...]]


def is_adapter(path: Path) -> bool:
    """Whether a file or folder is an adapter rather than a checkpoint, by its names alone.

    Raises MissingFileError and WeightsError for a file that cannot be read."""
    if path.is_dir():
        return any((path / name).exists() for name in (CONFIG, WEIGHTS, DIFFUSERS_WEIGHTS))
    return any(is_part(key) for key in headers.read(path).tensors)


def open_adapter(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Adapter:
    """shapes: of every piece of the model. Raises MissingFileError, and WeightsError for a key without a place,
    a form that cannot be merged, a factor that is missing, quantised or of the wrong shape."""
    file, scaling = _locate(path)
    modules = _modules(file, Names(shapes))
    updates: dict[str, tuple[Update, ...]] = {}
    owners: dict[str, _Module] = {}
    faults: list[str] = []
    for module in modules:
        matrix, scale = _matrix(module, scaling)
        if matrix.shape != module.target.shape:
            faults.append(f"{module.name} makes {matrix.shape} where the model has {module.target.shape}")
            continue
        height = module.target.shape[0] // len(module.target.pieces)
        for i, piece in enumerate(module.target.pieces):
            if piece in owners:
                raise WeightsError(
                    f"{file.path} changes {piece} twice: as {owners[piece].name} and as {module.name}.",
                    "Remove one of the two from the file.",
                )
            owners[piece] = module
            updates[piece] = (matrices.Part(matrix, i * height, scale),)
    if faults:
        more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        raise WeightsError(f"{file.path} does not fit this model: {'; '.join(faults[:_SHOWN])}{more}.", _FITTING)
    return Adapter(path, _format(modules), (file,), updates)


@dataclass
class _Module:
    """What a file holds for one target: its tensors by their part."""

    file: WeightFile
    target: Target
    name: str
    naming: str
    keys: dict[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        family = next((part for part in self.keys if part != "alpha"), "").partition("_")[0]
        return {"lokr": "LoKr", "hada": "LoHa", "diff": "difference"}.get(family, "LoRA")

    def dense(self, part: str) -> Dense:
        return Dense(self.file, self.keys[part])

    def product(self, left: str, right: str) -> Product:
        """Raises WeightsError where the two do not multiply."""
        found = Product(self.dense(left), self.dense(right))
        one, two = found.left.shape, found.right.shape
        if len(one) != 2 or len(two) != 2 or one[1] != two[0] or not two[0]:
            raise WeightsError(
                f"{self.file.path}: {self.keys[left]} {one} and {self.keys[right]} {two} do not multiply: "
                "their ranks differ, or they are no matrices.",
                config.DAMAGED,
            )
        if found.rank > max(one[0], two[1]):
            raise WeightsError(
                f"{self.file.path}: {self.name} has rank {found.rank}, more than its {one[0]} x {two[1]} weights.",
                config.DAMAGED,
            )
        return found

    def alpha(self) -> float | None:
        """Raises WeightsError for what is no finite number."""
        key = self.keys.get("alpha")
        if key is None:
            return None
        entry = self.file.header.tensors[key]
        if math.prod(entry.shape) != 1 or entry.dtype not in (*FLOATS, "I32", "I64"):
            raise WeightsError(
                f"{self.file.path}: {key} is {entry.dtype} {list(entry.shape)}, no single number.", config.DAMAGED
            )
        value = float(self.file.tensor(key).item())
        if not math.isfinite(value):
            raise WeightsError(f"{self.file.path}: {key} is {value}, no finite number.", config.DAMAGED)
        return value


def _locate(path: Path) -> tuple[WeightFile, Scaling | None]:
    """The file of weights and the config beside it or in its header."""
    if path.is_dir():
        file = next((path / name for name in (WEIGHTS, DIFFUSERS_WEIGHTS) if (path / name).is_file()), None)
        if file is None:
            _refuse_folder(path)
            raise MissingFileError(f"{path} lacks {WEIGHTS}.", "Name the folder that PEFT's save_pretrained wrote.")
    else:
        file = path
    opened = WeightFile(file)
    beside = file.parent / CONFIG
    if file.name == WEIGHTS and beside.is_file():
        return opened, config.from_folder(beside)
    if path.is_dir() and file.name == WEIGHTS:
        raise MissingFileError(f"{path} lacks {CONFIG}, which holds the LoRA's alpha.", "Copy it beside the weights.")
    return opened, config.from_header(file, opened.header.metadata)


def _refuse_folder(path: Path) -> None:
    if unsafe := pickles(path):
        raise WeightsError(
            f"{path} has {', '.join(unsafe[:_SHOWN])}, a pickle: it can run any program when it is opened.",
            "Pickles are never loaded: save the LoRA as safetensors.",
        )


def _modules(file: WeightFile, names: Names) -> list[_Module]:
    """The file's tensors by what they change. Raises WeightsError unless all of them are used, each once."""
    found: dict[Target, _Module] = {}
    unknown: list[str] = []
    for key, entry in file.header.tensors.items():
        part = names.part(key)
        if part is None:
            unknown.append(key)
            continue
        module = found.setdefault(part.target, _Module(file, part.target, part.module, part.naming))
        if part.name in module.keys:
            raise WeightsError(
                f"{file.path} holds the same twice: {module.keys[part.name]!r:.160} and {key!r:.160}.",
                "Remove one of the two from the file.",
            )
        if part.name != "alpha" and entry.dtype not in FLOATS:
            raise WeightsError(
                f"{file.path}: {key} is {entry.dtype}: quantised or whole numbers.",
                "Use the LoRA in bf16, fp16 or fp32.",
            )
        module.keys[part.name] = key
    if unknown:
        raise names.explain(file.path, unknown)
    if not found:
        raise WeightsError(f"{file.path} holds no tensor.", config.DAMAGED)
    return list(found.values())


def _matrix(module: _Module, scaling: Scaling | None) -> tuple[Matrix, float]:
    """What a module's tensors make, before and without its scale."""
    given = set(module.keys) - {"alpha"}
    alpha = module.alpha()
    if given == {"down", "up"}:
        product = module.product("up", "down")
        return product, _scale(module, product.rank, alpha, scaling)
    if given == {"diff"} and alpha is None:
        return module.dense("diff"), 1.0
    if given == _LOHA:
        one, two = module.product("hada_w1_a", "hada_w1_b"), module.product("hada_w2_a", "hada_w2_b")
        if one.shape != two.shape:
            raise WeightsError(
                f"{module.file.path}: the two halves of {module.name} have the shapes {one.shape} and {two.shape}.",
                config.DAMAGED,
            )
        return Hadamard(one, two), 1.0 if alpha is None else alpha / one.rank
    if module.kind == "LoKr":
        return _lokr(module, given, alpha)
    raise _incomplete(module, given)


def _lokr(module: _Module, given: set[str], alpha: float | None) -> tuple[Matrix, float]:
    """The scale is alpha over the rank of the second factor, else of the first; 1 where neither has one."""
    factors: list[Dense | Product] = []
    rank = None
    for name in ("lokr_w1", "lokr_w2"):
        here = given & {name, f"{name}_a", f"{name}_b"}
        if here == {name}:
            factors.append(module.dense(name))
        elif here == {f"{name}_a", f"{name}_b"}:
            factors.append(product := module.product(f"{name}_a", f"{name}_b"))
            rank = product.rank
        else:
            raise _incomplete(module, given)
    one, two = factors
    if len(one.shape) != 2 or len(two.shape) != 2 or not given <= _LOKR:
        raise _incomplete(module, given)
    return Kronecker(one, two), 1.0 if alpha is None or rank is None else alpha / rank


def _incomplete(module: _Module, given: set[str]) -> WeightsError:
    keys = ", ".join(sorted(module.keys.values()))
    if given == {"diff"}:
        return WeightsError(f"{module.file.path} has an alpha beside a dense difference: {keys}.", "Remove the alpha.")
    if given in ({"down"}, {"up"}):
        lacking = "up (B)" if given == {"down"} else "down (A)"
        return WeightsError(
            f"{module.file.path} has one half of {module.name} only: {keys}, and no {lacking}.", config.DAMAGED
        )
    return WeightsError(f"{module.file.path} has no complete update of {module.name}: {keys}.", config.DAMAGED)


def _scale(module: _Module, rank: int, alpha: float | None, scaling: Scaling | None) -> float:
    if alpha is not None:
        return alpha / rank
    return scaling.of(module.name, rank) if scaling else 1.0


def _format(modules: list[_Module]) -> str:
    """'peft', 'kohya LoKr', 'comfyui + diffusers' …"""
    namings = " + ".join(sorted({module.naming for module in modules}))
    kinds = sorted({module.kind for module in modules})
    return namings if kinds == ["LoRA"] else f"{namings} {' + '.join(kinds)}"
