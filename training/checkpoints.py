"""A run's whole state on disk, as safetensors and one JSON file, in a folder that is there whole or not at all.

Processes that share a sharded model write their rows each into files of their own; a reader puts the rows
together, so that a run can go on with another number of processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.distributed.tensor import DTensor

from clvr.errors import WeightsError
from clvr.files import cannot_write, sync_folder, write_atomic

from .sharding import local, own_rows

FILE_BYTES = 4 * 2**30
"""Of one file at most, unless a single tensor is larger: what is written passes through the host's memory."""
_NAME = re.compile(r"step-(\d{8})")


class Part(Protocol):
    """Something whose tensors a checkpoint keeps. Equal names are equal tensors on every process, or rows of one."""

    def tensors(self) -> Mapping[str, torch.Tensor]: ...

    def restore(self, saved: Saved) -> None:
        """Take the values of `saved`, which holds the names that `tensors` gave."""
        ...


class Weights:
    """The parameters of a module that `select` chooses: by default those that are trained."""

    def __init__(self, module: nn.Module, select: Callable[[str, nn.Parameter], bool] | None = None) -> None:
        chosen = select or (lambda _, parameter: parameter.requires_grad)
        self.parameters = {k: p for k, p in module.named_parameters() if chosen(k, p)}

    def tensors(self) -> Mapping[str, torch.Tensor]:
        return self.parameters

    @torch.no_grad()
    def restore(self, saved: Saved) -> None:
        for name, parameter in self.parameters.items():
            local(parameter).copy_(saved.rows(name, parameter))


class OptimizerState:
    """An optimizer's state by parameter number and key, as in its state_dict."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.parameters = [p for group in optimizer.param_groups for p in group["params"]]

    def tensors(self) -> Mapping[str, torch.Tensor]:
        state = self.optimizer.state_dict()["state"]
        return {f"{n}.{k}": torch.as_tensor(v) for n, entry in state.items() for k, v in entry.items()}

    def restore(self, saved: Saved) -> None:
        state: dict[int, dict[str, torch.Tensor]] = {}
        for name in saved.names():
            number, key = name.split(".")
            state.setdefault(int(number), {})[key] = self._value(saved, name, self.parameters[int(number)])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": state})

    def _value(self, saved: Saved, name: str, parameter: torch.Tensor) -> torch.Tensor:
        if saved.shape(name) != parameter.shape:
            return saved.whole(name)
        rows = saved.rows(name, parameter)
        if not isinstance(parameter, DTensor):
            return rows
        return DTensor.from_local(
            rows.to(local(parameter)),
            parameter.device_mesh,
            parameter.placements,
            shape=parameter.shape,
            stride=parameter.stride(),
        )


class Checkpoint:
    """One step's folder, opened for reading. Raises WeightsError where a file is damaged."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.facts: dict[str, Any] = json.loads((path / "state.json").read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise WeightsError(f"{path} has no readable state.json: {error}.", "Delete this checkpoint.") from error

    @contextlib.contextmanager
    def open(self, part: str) -> Iterator[Saved]:
        """Raises WeightsError where the checkpoint lacks the part, or a file is damaged."""
        files = sorted(self.path.glob(f"{part}-*.safetensors"))
        if not files:
            raise WeightsError(f"{self.path} holds no {part}.", "It is another trainer's: name another folder.")
        with contextlib.ExitStack() as stack:
            try:
                opened = [stack.enter_context(safe_open(file, "pt")) for file in files]
            except SafetensorError as error:
                raise WeightsError(f"{self.path / part} is damaged: {error}.", "Delete this checkpoint.") from error
            yield Saved(self.path / part, opened, set(self.facts["sharded"]))


class Saved:
    """The tensors of one part, over all files that processes wrote of it."""

    def __init__(self, path: Path, files: list[Any], sharded: set[str]) -> None:
        self._path, self._sharded = path, sharded
        self._files: dict[str, list[Any]] = {}
        for file in files:
            for name in file.keys():  # noqa: SIM118
                self._files.setdefault(name, []).append(file)

    def names(self) -> Iterable[str]:
        return self._files

    def shape(self, name: str) -> torch.Size:
        shapes = [file.get_slice(name).get_shape() for file in self._pieces(name)]
        rest = tuple(shapes[0][1:])
        return torch.Size((sum(s[0] for s in shapes), *rest)) if shapes[0] else torch.Size()

    def whole(self, name: str) -> torch.Tensor:
        pieces = [file.get_tensor(name) for file in self._pieces(name)]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def rows(self, name: str, like: torch.Tensor) -> torch.Tensor:
        """The part of a tensor that this process holds of `like`."""
        if self.shape(name) != like.shape:
            raise WeightsError(
                f"{self._path} holds {name} as {tuple(self.shape(name))}, not {tuple(like.shape)}.",
                "It is another model's run: name another folder.",
            )
        if not isinstance(like, DTensor):
            return self.whole(name)
        return _rows([file.get_slice(name) for file in self._pieces(name)], own_rows(like))

    def _pieces(self, name: str) -> list[Any]:
        if name not in self._files:
            raise WeightsError(f"{self._path} lacks {name}.", "It is another model's run: name another folder.")
        files = self._files[name]
        return files if f"{self._path.name}/{name}" in self._sharded else files[:1]


def _rows(pieces: Sequence[Any], place: range) -> torch.Tensor:
    """Rows of a tensor that lies in consecutive slices."""
    wanted, start = [], 0
    for piece in pieces:
        count = piece.get_shape()[0]
        low, high = (min(max(0, edge - start), count) for edge in (place.start, place.stop))
        wanted.append(piece[low:high])
        start += count
    return torch.cat(wanted)


def latest(folder: Path) -> Checkpoint | None:
    """The newest complete checkpoint in `folder`."""
    found = sorted(_complete(folder))
    return Checkpoint(found[-1]) if found else None


def write_parts(partial: Path, parts: Mapping[str, Part], process: int) -> None:
    """What this process holds of every part, as PART-PROCESS-NUMBER.safetensors; a process other than the
    first writes only what is sharded. Raises RunFolderError."""
    try:
        partial.mkdir(parents=True, exist_ok=True)
        for name, part in parts.items():
            mine = {k: t for k, t in part.tensors().items() if process == 0 or isinstance(t, DTensor)}
            for number, chunk in enumerate(_chunks(mine)):
                path = partial / f"{name}-{process:05d}-{number:03d}.safetensors"
                save_file({k: local(t).detach().contiguous() for k, t in chunk.items()}, path)
                _sync(path)
    except (OSError, SafetensorError) as error:
        raise cannot_write(partial, error if isinstance(error, OSError) else OSError(str(error))) from error


def write_random_state(partial: Path, process: int) -> None:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    save_file(states, partial / f"random-{process:05d}.safetensors")


def read_random_state(checkpoint: Checkpoint, process: int) -> None:
    """Go on with this process's random numbers; a process that was not there before keeps its seed."""
    path = checkpoint.path / f"random-{process:05d}.safetensors"
    if path.is_file():
        with safe_open(path, "pt") as file:
            torch.set_rng_state(file.get_tensor("cpu"))
            if torch.cuda.is_available() and "cuda" in file.keys():  # noqa: SIM118
                torch.cuda.set_rng_state(file.get_tensor("cuda"))


def complete(partial: Path, path: Path, parts: Mapping[str, Part], facts: Mapping[str, Any], keep: int) -> None:
    """Give a folder that all processes have written its name, and drop all but the newest `keep`."""
    sharded = [f"{n}/{k}" for n, part in parts.items() for k, t in part.tensors().items() if isinstance(t, DTensor)]
    write_atomic(partial / "state.json", json.dumps({**facts, "sharded": sharded}, indent=1).encode())
    os.replace(partial, path)
    sync_folder(path.parent)
    for old in sorted(_complete(path.parent))[:-keep]:
        shutil.rmtree(old)


def path_of(folder: Path, step: int) -> Path:
    return folder / f"step-{step:08d}"


def _complete(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if _NAME.fullmatch(p.name)] if folder.is_dir() else []


def _chunks(tensors: Mapping[str, torch.Tensor]) -> Iterator[dict[str, torch.Tensor]]:
    chunk: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        more = local(tensor).nbytes
        if chunk and size + more > FILE_BYTES:
            yield chunk
            chunk, size = {}, 0
        chunk[name] = tensor
        size += more
    if chunk:
        yield chunk


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
