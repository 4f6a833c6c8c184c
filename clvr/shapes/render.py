"""Scenes as pixels: anti-aliased shapes from their distance functions, jittered in place, size, tint, ground."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from .scene import CELLS, COLORS, GRID, SHAPES, SIZES, Scene

RESOLUTION = 64
"""Default side of a picture in pixels; one cell of the grid is a quarter of it."""

RADIUS = {"small": 4.5 / 16, "medium": 5.8 / 16, "large": 7.1 / 16}
"""Half extent of an object as a fraction of a cell's side."""

RGB: dict[str, tuple[int, int, int]] = {
    "red": (222, 45, 42),
    "green": (48, 165, 66),
    "blue": (44, 92, 226),
    "yellow": (243, 204, 40),
    "purple": (155, 62, 196),
    "black": (26, 26, 28),
}
GROUND = (243, 243, 240)

POSITION_JITTER = 0.7 / 16
RADIUS_JITTER = 0.03
TINT_JITTER = 10
GROUND_JITTER = 7


def distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Signed distance to a shape of half extent 1 around the origin, y downwards; negative inside."""
    if shape == "circle":
        return np.hypot(x, y) - 0.96
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.85
    if shape == "triangle":
        edge = (np.abs(x) * 2 - (y + 1.0)) / np.float32(5**0.5)
        return np.maximum(edge, y - 0.92)
    horizontal = np.maximum(np.abs(x) - 1.0, np.abs(y) - 0.33)
    vertical = np.maximum(np.abs(x) - 0.33, np.abs(y) - 1.0)
    return np.minimum(horizontal, vertical)


def render_batch(scenes: Sequence[Scene], seeds: Sequence[int], resolution: int = RESOLUTION) -> np.ndarray:
    """Pixels [N, resolution, resolution, 3] uint8. A scene and a seed fix a picture."""
    cell = resolution // GRID
    shape, color, radius, jitter, ground = _arrays(scenes, seeds)
    axis = (np.arange(cell, dtype=np.float32) + 0.5) / cell - 0.5
    index, place = np.nonzero(shape >= 0)
    kind, r = shape[index, place], radius[index, place][:, None, None]
    x = (axis[None, None, :] - jitter[index, place, 0][:, None, None]) / r
    y = (axis[None, :, None] - jitter[index, place, 1][:, None, None]) / r
    x, y = np.broadcast_arrays(x, y)
    signed = np.empty(x.shape, np.float32)
    for k, name in enumerate(SHAPES):
        mine = kind == k
        signed[mine] = distance(name, x[mine], y[mine])
    coverage = np.clip(0.5 - signed * r * cell, 0, 1)[..., None]
    patches = np.repeat(ground[:, None, None, None, :], len(CELLS), axis=1)
    patches = np.broadcast_to(patches, (len(scenes), len(CELLS), cell, cell, 3)).copy()
    patches[index, place] += coverage * (color[index, place][:, None, None, :] - patches[index, place])
    grid = patches.reshape(len(scenes), GRID, GRID, cell, cell, 3).transpose(0, 1, 3, 2, 4, 5)
    return np.clip(grid.reshape(len(scenes), resolution, resolution, 3) + 0.5, 0, 255).astype(np.uint8)


def render(scene: Scene, seed: int = 0, resolution: int = RESOLUTION) -> Image.Image:
    """One scene as an RGB picture."""
    return Image.fromarray(render_batch([scene], [seed], resolution)[0])


def _arrays(
    scenes: Sequence[Scene], seeds: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    count = (len(scenes), len(CELLS))
    shape = np.full(count, -1, np.int64)
    color = np.zeros((*count, 3), np.float32)
    radius = np.ones(count, np.float32)
    jitter = np.zeros((*count, 2), np.float32)
    ground = np.zeros((len(scenes), 3), np.float32)
    base = np.array([RGB[c] for c in COLORS], np.float32)
    radii = np.array([RADIUS[s] for s in SIZES], np.float32)
    for n, (scene, seed) in enumerate(zip(scenes, seeds, strict=True)):
        noise = np.random.default_rng(seed).uniform(-1, 1, (len(CELLS) + 1, 6)).astype(np.float32)
        ground[n] = np.array(GROUND, np.float32) + noise[-1, :3] * GROUND_JITTER
        for item in scene.items:
            p = item.cell[0] * GRID + item.cell[1]
            shape[n, p] = SHAPES.index(item.shape)
            color[n, p] = base[COLORS.index(item.color)] + noise[p, :3] * TINT_JITTER
            radius[n, p] = radii[SIZES.index(item.size)] * (1 + noise[p, 3] * RADIUS_JITTER)
            jitter[n, p] = noise[p, 4:6] * POSITION_JITTER
    return shape, color, radius, jitter, ground
