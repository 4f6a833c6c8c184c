"""Weights of a transformer, whole or spread over processes by FSDP2 (torch's `fully_shard`).

A sharded model is made without memory and every process reads only its rows, so that no one ever holds the
whole of it in fp32."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from safetensors import safe_open
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from clvr.flux2.folder import WEIGHTS, Folder
from clvr.hub import read_json, weight_files


@dataclass(frozen=True)
class Mesh:
    """The processes that share a model, and the format in which they compute."""

    devices: DeviceMesh
    precision: torch.dtype

    @classmethod
    def over(cls, device: torch.device, processes: int, precision: torch.dtype) -> Mesh:
        return cls(init_device_mesh(device.type, (processes,)), precision)

    def shard(self, transformer: Flux2Transformer2DModel) -> None:
        """Block by block: weights are gathered in `precision` while a block computes, gradients summed in fp32.

        Inputs are left as they are, for rounding rotary embeddings to bf16 would blur positions."""
        policy = MixedPrecisionPolicy(self.precision, torch.float32, cast_forward_inputs=False)
        for block in [*transformer.transformer_blocks, *transformer.single_transformer_blocks]:
            fully_shard(block, mesh=self.devices, mp_policy=policy)
        fully_shard(transformer, mesh=self.devices, mp_policy=policy)


def load_transformer(
    folder: Folder, device: torch.device, dtype: torch.dtype, mesh: Mesh | None = None
) -> Flux2Transformer2DModel:
    """The folder's transformer in `dtype`, spread over `mesh` where one is given."""
    config = read_json(folder.path / "transformer" / "config.json")
    with torch.device("meta"):
        made: Any = Flux2Transformer2DModel.from_config(config)
    nn.Module.to(made, dtype)  # not its own `to`, which warns of parts that must stay fp32: klein has none
    if mesh is not None:
        mesh.shard(made)
    made.to_empty(device=device)
    parameters = dict(made.named_parameters())
    with torch.no_grad():
        for file in weight_files(folder.path / "transformer", WEIGHTS["transformer"]):
            with safe_open(file, "pt") as opened:
                for name in opened.keys():  # noqa: SIM118
                    rows = opened.get_slice(name)
                    place = own_rows(parameters[name])
                    local(parameters[name]).copy_(rows[place.start : place.stop])
    return made


def released(transformer: nn.Module) -> None:
    """After forwards without a gradient FSDP2 keeps the root's weights gathered: give them back."""
    if isinstance(transformer, FSDPModule):
        transformer.reshard()


def local(tensor: torch.Tensor) -> torch.Tensor:
    """The part of a tensor that this process holds: all of it where it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def own_rows(tensor: torch.Tensor) -> range:
    """The rows (dim 0) that this process holds. FSDP2 cuts as torch.chunk does: the last parts may be empty."""
    whole = tensor.shape[0]
    if not isinstance(tensor, DTensor):
        return range(whole)
    part = -(-whole // tensor.device_mesh.size())
    start = min(whole, tensor.device_mesh.get_local_rank() * part)
    return range(start, min(whole, start + part))


def gathered(named: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole tensors, one at a time. All processes must walk through it together."""
    for name, tensor in named:
        yield name, tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def wrapped(module: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel."""
    return module.module if isinstance(module, nn.parallel.DistributedDataParallel) else module
