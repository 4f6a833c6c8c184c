"""Text embeddings and latents, encoded once and kept on disk by what they are made from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from clvr.files import write_atomic
from clvr.flux2.folder import Folder
from clvr.flux2.limits import REFERENCE_PIXELS, scaled
from clvr.images import load_image

from .buckets import Picture
from .klein import Encoders, Latents, TextContext


class Cache:
    """FOLDER/ab/abcd….safetensors: tensors by a hash of everything that they depend on. Several processes may
    share it: a file is whole or not there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """None for what is not there; a damaged file counts as not there and will be written anew."""
        try:
            with safe_open(self.path(key), "pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (FileNotFoundError, SafetensorError):
            return None

    def put(self, key: str, tensors: Mapping[str, torch.Tensor]) -> None:
        write_atomic(self.path(key), save({name: t.cpu().contiguous() for name, t in tensors.items()}))


class Encodings:
    """What the frozen encoders make of texts and pictures; with a cache each only once, and ever after without
    the encoders. `encoded` counts what the encoders were asked for."""

    def __init__(self, folder: Folder, device: torch.device, dtype: torch.dtype, cache: Cache | None) -> None:
        self.folder, self.device, self.dtype, self.cache = folder, device, dtype, cache
        self.encoded = 0
        self._encoders: Encoders | None = None

    @property
    def encoders(self) -> Encoders:
        """Loaded when they are needed."""
        if self._encoders is None:
            self._encoders = Encoders.open(self.folder, self.device, self.dtype)
        return self._encoders

    def close(self) -> None:
        """Free the encoders' memory."""
        self._encoders = None
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def text(self, text: str, length: int) -> TextContext:
        """[1, length, D] as the generator encodes it, on the cache's or the encoders' device."""
        layers = self.folder.sampling.text_encoder_out_layers
        found = self._get(("text_encoder", layers, length, text), lambda: self._encode_text(text, length))
        return TextContext(found["states"], found["mask"])

    def picture(self, picture: Picture) -> Latents:
        """[1, N, 128]."""
        found = self._get(("vae", REFERENCE_PIXELS, picture.digest), lambda: self._encode_picture(picture))
        return Latents(found["tokens"], picture.height, picture.width)

    def _encode_text(self, text: str, length: int) -> dict[str, torch.Tensor]:
        context = self.encoders.encode_text([text], length)
        return {"states": context.states, "mask": context.mask}

    def _encode_picture(self, picture: Picture) -> dict[str, torch.Tensor]:
        return {"tokens": self.encoders.encode_images([scaled(load_image(picture.path))]).tokens}

    def _get(self, what: tuple[object, ...], encode: Callable[[], dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """`what` begins with the part of the model that encodes it."""
        if self.cache is None:
            self.encoded += 1
            return encode()
        key = digest_of(self._weights[str(what[0])], str(self.dtype), *what)
        found = self.cache.get(key)
        if found is None:
            self.encoded += 1
            found = encode()
            self.cache.put(key, found)
        return found

    @cached_property
    def _weights(self) -> dict[str, str]:
        """Hashes over everything that encodings depend on besides what is encoded."""
        path = self.folder.path
        text = [*_files(path / "text_encoder"), *_files(path / "tokenizer")]
        return {"text_encoder": _digest_of_files(text), "vae": _digest_of_files(_files(path / "vae"))}


def digest_of(*parts: object) -> str:
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def digest_of_file(path: Path) -> str:
    """SHA-256 of its bytes, as a dataset's provenance gives it."""
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**22):
            hashed.update(block)
    return hashed.hexdigest()


def _digest_of_files(paths: Sequence[Path]) -> str:
    return digest_of(*((path.name, digest_of_file(path)) for path in paths))


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix in (".json", ".safetensors", ".txt", ".jinja"))
