"""A tiny klein without weights, so that what merges into it is ΔW itself; adapters for it in every naming."""

from __future__ import annotations

import math

import torch
from safetensors.torch import save_file

from clvr.dswm.adapters import Adapter, open_adapter
from clvr.flux2.keymap import key_of, pieces

from . import tiny_klein

DOUBLE, SINGLE = 2, 2


def empty_model():
    """All weights are 0."""
    model = tiny_klein.transformer(DOUBLE, SINGLE)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


def piece_shapes(state_dict):
    """Of a diffusers state dict."""
    found = {}
    for key, tensor in state_dict.items():
        names = pieces(key, "diffusers")
        found |= dict.fromkeys(names, (len(tensor) // len(names), *tensor.shape[1:]))
    return found


with torch.device("meta"):
    SHAPES = piece_shapes(tiny_klein.transformer(DOUBLE, SINGLE).state_dict())


def modules(layout, dimensions=2):
    """Module name -> shape, of one layout."""
    found = {}
    for key in dict.fromkeys(key_of(piece, layout) for piece in SHAPES):
        names = pieces(key, layout)
        shape = (sum(SHAPES[name][0] for name in names), *SHAPES[names[0]][1:])
        if len(shape) == dimensions:
            found[key.rpartition(".")[0]] = shape
    return found


def write(path, tensors, metadata=None):
    save_file({key: tensor.clone().contiguous() for key, tensor in tensors.items()}, path, metadata)
    return path


def opened(path, tensors, metadata=None) -> Adapter:
    return open_adapter(write(path, tensors, metadata), SHAPES)


def delta(adapter, key, layout):
    """ΔW of a whole tensor; zeros for a piece that the adapter leaves alone."""
    return torch.cat([piece_delta(adapter, name) for name in pieces(key, layout)])


def piece_delta(adapter, name):
    found = torch.zeros(SHAPES[name])
    for update in adapter.updates.get(name, ()):
        found += update.rows(0, len(found))
    return found


def lora(shape, rank, seed=0):
    """up [m, r], down [r, n]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape[0], rank, generator=generator), torch.randn(rank, shape[1], generator=generator)


def lokr(shape, seed=0, factor=8, ranks=(None, None)):
    """The four or fewer factors of shape's Kronecker form, by LyCORIS' names."""
    generator = torch.Generator().manual_seed(seed)
    one = (factor, math.gcd(factor, shape[1]))
    two = (shape[0] // one[0], shape[1] // one[1])
    found = {}
    for name, (rows, columns), rank in zip(("lokr_w1", "lokr_w2"), (one, two), ranks, strict=True):
        if rank is None:
            found[name] = torch.randn(rows, columns, generator=generator)
        else:
            found[f"{name}_a"] = torch.randn(rows, rank, generator=generator)
            found[f"{name}_b"] = torch.randn(rank, columns, generator=generator)
    return found


def loha(shape, rank, seed=0):
    one, two = lora(shape, rank, seed), lora(shape, rank, seed + 1)
    return dict(zip(("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), (*one, *two), strict=True))
