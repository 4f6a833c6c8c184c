"""ComfyUI's image tensors [B, H, W, C] in [0, 1] and the engine's 8-bit RGB pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


SHOWN = 512
"""Pixels of the longer side up to which small pictures are enlarged to look at."""


def enlarged(image: Image) -> Image:
    """By the largest whole factor that keeps within SHOWN, with hard pixels; a larger picture as it is."""
    factor = SHOWN // max(image.size)
    return image.resize((image.width * factor, image.height * factor), 0) if factor > 1 else image


def to_tensor(images: Sequence[Image]) -> Tensor:
    """[B, H, W, 3] in [0, 1]. Pictures of another size than the first are scaled to it."""
    import numpy as np
    import torch

    size = images[0].size
    fitting = [image if image.size == size else image.resize(size) for image in images]
    stacked = np.stack([np.asarray(image.convert("RGB")) for image in fitting])
    return torch.from_numpy(stacked.astype(np.float32) / 255)


def to_pictures(images: Tensor | None) -> list[Image]:
    """One RGB picture for each image of the batch; transparency is laid on white."""
    import numpy as np
    from PIL import Image

    if images is None:
        return []
    pixels = images.detach().float().cpu().clamp(0, 1)
    if pixels.shape[-1] == 4:
        pixels = pixels[..., :3] * pixels[..., 3:] + (1 - pixels[..., 3:])
    return [Image.fromarray(p) for p in (pixels[..., :3] * 255).round().numpy().astype(np.uint8)]
