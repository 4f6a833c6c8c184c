"""Spectral capacity of a checkpoint: the entropy effective rank of its core layers (appendix A.7; Roy & Vetterli,
"The effective rank", 2007).

    erank(W) = exp(H(p)), p = sigma^2 / sum sigma^2 (energy, the paper's) or sigma / sum sigma (Roy & Vetterli's)
    I_eff    = median over the core layers

Weights are read one layer at a time. Singular values come from the Gram matrix of the shorter side in float64, so
that at most the layer itself, a piece of it and two such matrices are in memory: `peak_bytes`."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from ..devices import choose_device
from ..dswm.checkpoints import FP8, OTHER_MODELS, PLAIN, Stored, open_weights
from ..dswm.reading import WeightFile
from ..errors import SettingError, WeightsError
from ..flux2 import headers
from ..flux2.keymap import BFL_PREFIXES, Layout, key_of, pieces

Entropy = Literal["energy", "sigma"]
CORE = r"(?:block|layer)s?\.\d+\."
"""Names of what lies in the backbone's repeated blocks."""
_BESIDE = re.compile(r"norm|modulation|(?:^|[._])mod(?:[._]|$)|adaln|embed|lora", re.IGNORECASE)
_CHUNK = 1 << 22
"""Elements that are converted to float64 at once: 32 MiB."""


def effective_rank(sigma: Tensor, entropy: Entropy = "energy") -> float:
    """exp(H(p)) of singular values, from 1 to their number; 0 where all are zero. Raises SettingError."""
    if entropy not in get_args(Entropy):
        raise SettingError(f"There is no entropy {entropy!r}.", f"Use {' or '.join(get_args(Entropy))}.")
    largest = sigma.max() if sigma.numel() else torch.zeros(())
    if not largest > 0:
        return 0.0
    share = (sigma.double() / largest.double()) ** (2 if entropy == "energy" else 1)
    share = share / share.sum()
    return math.exp(float(-torch.special.xlogy(share, share).sum()))


def singular_values(weight: Tensor, device: torch.device | None = None) -> Tensor:
    """Of a matrix, descending, float64 on the CPU: roots of the eigenvalues of the Gram matrix of its shorter side.

    Values below about sqrt(n eps) of the largest (1e-6 for n = 4096) drown in rounding and come out as zero; they
    are too small to matter to either entropy. Raises WeightsError for NaN or Inf."""
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.T
    rows, columns = tall.shape
    scale = _largest(weight)
    gram = torch.zeros(columns, columns, dtype=torch.float64, device=device)
    step = max(1, _CHUNK // columns)
    for start in range(0, rows, step):
        part = tall[start : start + step].to(device).double().div_(scale)
        gram.addmm_(part.T, part)
    found = torch.linalg.eigvalsh(gram).cpu().flip(0)
    noise = columns * torch.finfo(torch.float64).eps * found[0]
    return torch.where(found > noise, found, 0.0).sqrt() * scale


def _largest(weight: Tensor) -> float:
    """Its largest absolute element, 1 for a zero matrix: squares of what is divided by it neither over- nor
    underflow."""
    largest = [float(rows.float().abs().max()) for rows in weight.split(max(1, _CHUNK // weight.shape[1]))]
    if not all(map(math.isfinite, largest)):
        raise WeightsError("The matrix holds NaN or Inf.", headers.DAMAGED)
    return max(largest) or 1.0


@dataclass(frozen=True)
class Layer:
    """A matrix of the backbone: rows [start, start + shape[0]) of a stored tensor."""

    name: str
    file: WeightFile
    tensor: str
    start: int
    shape: tuple[int, int]

    @property
    def kind(self) -> str:
        """The name without its block's number."""
        return re.sub(r"\.\d+\.", ".#.", self.name, count=1)

    @property
    def peak_bytes(self) -> int:
        """What measuring it takes: the stored rows, the piece in float64 with its copy, the Gram matrix twice."""
        stored = math.prod(self.shape) * headers.BITS[self.file.header.tensors[self.tensor].dtype] // 8
        return stored + 8 * (2 * min(_CHUNK, math.prod(self.shape)) + 2 * min(self.shape) ** 2)


@dataclass(frozen=True)
class LayerRank:
    layer: Layer
    energy: float
    sigma: float

    def rank(self, entropy: Entropy) -> float:
        return self.energy if entropy == "energy" else self.sigma


def core_layers(path: Path, pattern: str = CORE) -> list[Layer]:
    """The matrices of the backbone's blocks, in the files' order: attention and feed-forward weights whose name
    matches `pattern`; no norms, embeddings or modulation. FLUX.2's fused q, k, v are three layers, so that both
    layouts of one model have the same.

    Raises MissingFileError, WeightsError for pickles, quantised files and files without such layers, SettingError for
    a pattern that is none."""
    stored = open_weights(path)
    try:
        wanted = re.compile(pattern)
    except re.error as error:
        raise SettingError(f"{pattern!r} is no regular expression: {error}.", "Leave it out for the default.") from None
    layers = [layer for name in stored.weights if _is_core(name, wanted) for layer in _layers(stored, name)]
    if not layers:
        raise WeightsError(
            f"{path} has no core layers: no matrix's name matches {pattern!r}.",
            "Name a diffusion transformer, or give the pattern of its blocks with --layers.",
        )
    _check_dtypes(path, layers)
    return layers


def _is_core(name: str, wanted: re.Pattern[str]) -> bool:
    bare = _bare(name)
    foreign = bare.startswith(OTHER_MODELS)
    return bare.endswith(".weight") and not foreign and bool(wanted.search(bare)) and not _BESIDE.search(bare)


def _bare(name: str) -> str:
    return name.removeprefix(next(prefix for prefix in BFL_PREFIXES if name.startswith(prefix)))


def _layers(stored: Stored, name: str) -> Iterator[Layer]:
    file, entry = stored.weights[name]
    if len(entry.shape) != 2 or min(entry.shape) < 2:
        return
    held = _pieces(name)
    rows = entry.shape[0] // len(held)
    for i, piece in enumerate(held):
        yield Layer(piece, file, name, i * rows, (rows, entry.shape[1]))


def _pieces(name: str) -> Sequence[str]:
    """The matrices that a stored one holds, FLUX.2's by their names in diffusers."""
    forms: tuple[Layout, ...] = ("bfl", "diffusers")
    held = next((found for form in forms if (found := pieces(name, form))), None)
    return (_bare(name),) if held is None else [key_of(piece, "diffusers") for piece in held]


def _check_dtypes(path: Path, layers: Sequence[Layer]) -> None:
    for layer in layers:
        dtype = layer.file.header.tensors[layer.tensor].dtype
        if dtype not in (*PLAIN, *FP8):
            raise WeightsError(f"{path} is quantised: {layer.tensor} is {dtype.lower()}.", "Take the bf16 files.")


def measure(layer: Layer, device: torch.device | None = None) -> LayerRank:
    """Both effective ranks of a layer; an fp8 layer's scale changes neither. Raises WeightsError."""
    weight = layer.file.tensor(layer.tensor, layer.start, layer.start + layer.shape[0])
    try:
        sigma = singular_values(weight, device)
    except WeightsError as error:
        raise WeightsError(f"{layer.file.path}: {layer.tensor}: {error.thing}", error.remedy) from None
    return LayerRank(layer, effective_rank(sigma, "energy"), effective_rank(sigma, "sigma"))


def solver(name: str) -> torch.device:
    """The device of that name, the CPU where it computes no float64. Raises SettingError."""
    device = choose_device(name)
    return torch.device("cpu") if device.type == "mps" else device


def capacity(ranks: Sequence[LayerRank], entropy: Entropy = "energy") -> float:
    """I_eff."""
    return statistics.median(one.rank(entropy) for one in ranks)
