"""The matrices that adapters are made of, row by row from their files: dense, B·A, Hadamard, Kronecker.

One call holds its result, a second one of its size where two are multiplied or converted, and at most SLAB
elements of each factor of a product: a small multiple of the rows asked for, whatever the adapter's size.
Nothing is kept between calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from ..reading import WeightFile

SLAB = 1 << 19
"""Elements of a factor that are in memory at a time: 2 MB in fp32."""


class Matrix(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...

    def rows(self, start: int, stop: int) -> Tensor:
        """Rows [start, stop), fp32, in new memory."""
        ...


@dataclass(frozen=True)
class Dense:
    """A tensor of a file."""

    file: WeightFile
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.file.header.tensors[self.name].shape

    def rows(self, start: int, stop: int) -> Tensor:
        return self.file.tensor(self.name, start, stop).to(torch.float32)


@dataclass(frozen=True)
class Product:
    """left [m, r] · right [r, n]."""

    left: Dense
    right: Dense

    @property
    def shape(self) -> tuple[int, ...]:
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        return self.right.shape[0]

    def rows(self, start: int, stop: int) -> Tensor:
        width = self.shape[1]
        found = torch.empty(stop - start, width)
        height, depth = max(1, SLAB // self.rank), max(1, SLAB // width)
        for top in range(start, stop, height):
            end = min(top + height, stop)
            left, block = self.left.rows(top, end), found[top - start : end - start]
            for first in range(0, self.rank, depth):
                last = min(first + depth, self.rank)
                block.addmm_(left[:, first:last], self.right.rows(first, last), beta=float(first > 0))
        return found


@dataclass(frozen=True)
class Hadamard:
    """one ∘ two, of the same shape (LoHa)."""

    one: Product
    two: Product

    @property
    def shape(self) -> tuple[int, ...]:
        return self.one.shape

    def rows(self, start: int, stop: int) -> Tensor:
        return self.one.rows(start, stop).mul_(self.two.rows(start, stop))


@dataclass(frozen=True)
class Kronecker:
    """one [a, b] ⊗ two [c, d] = [ac, bd] (LoKr)."""

    one: Dense | Product
    two: Dense | Product

    @property
    def shape(self) -> tuple[int, ...]:
        return self.one.shape[0] * self.two.shape[0], self.one.shape[1] * self.two.shape[1]

    def rows(self, start: int, stop: int) -> Tensor:
        height = self.two.shape[0]
        found = torch.empty(stop - start, self.shape[1])
        first = start // height
        ones = self.one.rows(first, -(-stop // height))
        whole = self.two.rows(0, height) if stop - start >= height else None
        for i, one in enumerate(ones, first):
            low, high = max(start, i * height), min(stop, (i + 1) * height)
            span = low - i * height, high - i * height
            two = self.two.rows(*span) if whole is None else whole[slice(*span)]
            cells = found[low - start : high - start].view(high - low, *self.one.shape[1:], *self.two.shape[1:])
            torch.mul(one[None, :, None], two[:, None, :], out=cells)
        return found


@dataclass(frozen=True)
class Part:
    """scale times the rows of a matrix from `first` on: what an adapter adds to one piece."""

    matrix: Matrix
    first: int
    scale: float

    def rows(self, start: int, stop: int) -> Tensor:
        return self.matrix.rows(self.first + start, self.first + stop).mul_(self.scale)
