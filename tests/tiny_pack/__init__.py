"""A ComfyUI pack that loads a small klein folder's text encoder and VAE, whose sizes ComfyUI's own loaders have
fixed, as ComfyUI's own CLIP and VAE."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import parts


class TinyKleinLoader:
    RETURN_TYPES = ("CLIP", "VAE")
    FUNCTION = "load"
    CATEGORY = "CLVR/tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"folder": ("STRING", {})}}

    def load(self, folder: str) -> tuple[Any, Any]:
        return parts.clip(Path(folder)), parts.vae(Path(folder))


NODE_CLASS_MAPPINGS = {"TinyKleinLoader": TinyKleinLoader}
