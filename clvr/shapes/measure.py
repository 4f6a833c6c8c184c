"""Objects from pixels: ground, colour segmentation, connected components, fits of soft coverage.

Every coloured patch is compared with what `render.distance` would draw at the patch's own centre and scale.
Coverage is compared softly: binary masks confuse small crosses with circles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from ..trajectory import Box
from .render import GROUND, RADIUS, RESOLUTION, RGB, distance
from .scene import COLORS, GRID, SHAPES, SIZES, Cell, Item, Noun, Scene

CELL = RESOLUTION // GRID
WINDOW = 22
"""Side of the patch that is fitted, in pixels: an object's largest extent and room for blur."""
SPECK = 7
"""Patches of fewer pixels are noise."""
MOST = 40
"""So many patches are looked at; a picture with more is noise."""
LEAST_AGREEMENT = 0.74
LEAST_LEAD = 0.025
"""How well a shape must agree (soft intersection over union), and by how much better than the next one."""
RADII = (3.7, 8.0)
"""Half extents in pixels that an object can have; anything else is not one of the world's objects."""
SIZE_EDGES = (5.15, 6.45)
SIZE_MARGIN = 0.12
"""Half extents between small, medium and large, and how near to them a size cannot be told. Pixels."""
FARTHEST_COLOR = 85.0
COLOR_LEAD = 0.7
"""A colour's largest distance in RGB, and relative to the next nearest colour."""

_AREA = {"circle": np.pi * 0.96**2, "square": 4 * 0.85**2, "triangle": 1.92**2 / 2, "cross": 2 * 1.32 - 0.66**2}
_SINK = {"circle": 0.0, "square": 0.0, "triangle": 0.28, "cross": 0.0}
"""Area, and how far the centre of mass lies below the centre, of a shape of half extent 1."""


@dataclass(frozen=True)
class Found:
    """One object that was seen. A part that cannot be told is None. `centre` (x, y) and `box` are fractions
    of the picture, `confidence` is the agreement with the best shape in [0, 1]."""

    shape: str | None
    color: str | None
    size: str | None
    cell: Cell
    centre: tuple[float, float]
    box: Box
    confidence: float

    @property
    def clear(self) -> bool:
        return self.shape is not None and self.color is not None

    @property
    def noun(self) -> Noun:
        """What can be said of it; medium stays unsaid."""
        return Noun(self.shape, self.color, None if self.size == "medium" else self.size)


def measure(image: Image.Image | np.ndarray) -> tuple[Found, ...]:
    """The objects in a picture (RGB, or uint8 [H, W, 3]) in reading order. Never raises for odd content."""
    return measure_batch([image])[0]


def measure_batch(images: Sequence[Image.Image | np.ndarray] | np.ndarray) -> list[tuple[Found, ...]]:
    """`measure` for many pictures; several times faster than one by one."""
    if len(images) == 0:
        return []
    pixels = np.stack([_pixels(i) for i in images])
    ground = _ground(pixels)
    drop = ground[:, None, None, :] - pixels
    labels, patches = _segment(drop, ground)
    found: list[list[Found]] = [[] for _ in images]
    if patches:
        for patch, one in zip(patches, _fit(drop, ground, labels, patches), strict=True):
            found[patch.image].append(one)
    return [tuple(sorted(f, key=lambda o: (o.cell, o.centre))) for f in found]


def to_scene(found: Sequence[Found]) -> Scene | None:
    """The scene that was seen, in reading order; None where an object is unclear or two share a cell."""
    items = [Item(f.shape, f.color, f.size, f.cell) for f in found if f.shape and f.color and f.size]
    if len(items) < len(found) or len({i.cell for i in items}) < len(items):
        return None
    return Scene(tuple(items))


def _pixels(image: Image.Image | np.ndarray) -> np.ndarray:
    """Float32 [64, 64, 3]; a larger picture is averaged down."""
    if isinstance(image, np.ndarray):
        if image.shape[:2] == (RESOLUTION, RESOLUTION):
            return image.astype(np.float32)
        image = Image.fromarray(image)
    image = image.convert("RGB")
    if image.size != (RESOLUTION, RESOLUTION):
        image = image.resize((RESOLUTION, RESOLUTION), Image.Resampling.BOX)
    return np.asarray(image, np.float32)


def _ground(pixels: np.ndarray) -> np.ndarray:
    """Ground colours [N, 3]: the mean of the bright, nearly grey pixels around their median."""
    flat = pixels.reshape(len(pixels), -1, 3)
    bright = (flat.min(2) > 190) & (flat.max(2) - flat.min(2) < 60)
    out = np.tile(np.array(GROUND, np.float32), (len(flat), 1))
    for n, mask in enumerate(bright):
        if mask.sum() >= 64:
            some = flat[n][mask]
            near = np.abs(some - np.median(some, 0)).max(1) < 40
            out[n] = some[near].mean(0)
    return out


@dataclass(frozen=True)
class _Patch:
    image: int
    label: int
    color: int
    rows: np.ndarray
    columns: np.ndarray


def _segment(drop: np.ndarray, ground: np.ndarray) -> tuple[np.ndarray, list[_Patch]]:
    """Patches of one colour, and their labels [N, 64, 64] (0 is ground). `drop` is ground minus pixel."""
    base = np.array([RGB[c] for c in COLORS], np.float32)
    away = ground[:, None, :] - base
    length = np.linalg.norm(away, axis=2)
    along = np.einsum("nijk,nck->nijc", drop, away / length[..., None])
    color = along.argmax(3)
    coverage = along.max(3) / length[np.arange(len(drop))[:, None, None], color]
    kinds = np.where(coverage > 0.5, color + 1, 0).astype(np.int8)
    labels = np.zeros(kinds.shape, np.int32)
    patches: list[_Patch] = []
    for n, picture in enumerate(kinds):
        pieces = [p for rows, columns in _components(picture) for p in _split(rows, columns)]
        pieces = sorted((p for p in pieces if len(p[0]) >= SPECK), key=lambda p: -len(p[0]))[:MOST]
        for k, (rows, columns) in enumerate(pieces, 1):
            labels[n, rows, columns] = k
            patches.append(_Patch(n, k, int(picture[rows[0], columns[0]]) - 1, rows, columns))
    return labels, patches


def _components(kinds: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns of each 4-connected region of one kind other than 0, by union of horizontal runs."""
    height, width = kinds.shape
    edge = np.ones((height, width + 1), bool)
    edge[:, 1:-1] = kinds[:, 1:] != kinds[:, :-1]
    rows, columns = np.nonzero(edge)
    inner = columns[:-1] < width
    kind = kinds[rows[:-1][inner], columns[:-1][inner]]
    keep = kind != 0
    starts, stops = columns[:-1][inner][keep].tolist(), columns[1:][inner][keep].tolist()
    lines, kind = rows[:-1][inner][keep].tolist(), kind[keep].tolist()
    parent = list(range(len(starts)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    above = 0
    for i, line in enumerate(lines):
        while lines[above] < line - 1 or (lines[above] == line - 1 and stops[above] <= starts[i]):
            above += 1
        j = above
        while lines[j] == line - 1 and starts[j] < stops[i]:
            if kind[j] == kind[i]:
                parent[root(j)] = root(i)
            j += 1
    groups: dict[int, list[int]] = {}
    for i in range(len(starts)):
        groups.setdefault(root(i), []).append(i)
    return [_runs(lines, starts, stops, g) for g in groups.values()]


def _runs(
    lines: list[int], starts: list[int], stops: list[int], group: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    rows = np.repeat([lines[i] for i in group], [stops[i] - starts[i] for i in group])
    return rows, np.concatenate([np.arange(starts[i], stops[i]) for i in group])


def _split(rows: np.ndarray, columns: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """A region wider or higher than any object is several that touch: cut it at the grid's lines."""
    if np.ptp(rows) <= CELL and np.ptp(columns) <= CELL:
        return [(rows, columns)]
    cells = rows // CELL * GRID + columns // CELL
    return [(rows[cells == c], columns[cells == c]) for c in np.unique(cells)]


def _fit(
    drop: np.ndarray, ground: np.ndarray, labels: np.ndarray, patches: Sequence[_Patch]
) -> list[Found]:
    rgb = np.stack([_core(drop, ground, p) for p in patches])
    cover, weight, corner = _windows(drop, ground, labels, patches, rgb)
    mass = np.maximum((cover * weight).sum((1, 2)), 1.0)
    axis = np.arange(WINDOW, dtype=np.float32) + 0.5
    centre_x = (cover * weight * axis[None, None, :]).sum((1, 2)) / mass
    centre_y = (cover * weight * axis[None, :, None]).sum((1, 2)) / mass
    scores, radii, ys = [], [], []
    for shape in SHAPES:
        radius = np.sqrt(mass / _AREA[shape])
        y = centre_y - _SINK[shape] * radius
        scores.append(_agreement(shape, cover, weight, centre_x, y, radius))
        radii.append(radius)
        ys.append(y)
    score, radius, y = np.stack(scores, 1), np.stack(radii, 1), np.stack(ys, 1)
    best = score.argmax(1)
    return [
        _found(patch, score[i], float(radius[i, k]), rgb[i], corner[i] + (centre_x[i], y[i, k]))
        for i, (patch, k) in enumerate(zip(patches, best.tolist(), strict=True))
    ]


def _core(drop: np.ndarray, ground: np.ndarray, patch: _Patch) -> np.ndarray:
    """The patch's own colour: the mean of its fullest third."""
    values = drop[patch.image, patch.rows, patch.columns]
    away = ground[patch.image] - np.array(RGB[COLORS[patch.color]], np.float32)
    along = values @ away
    full = np.argpartition(along, -max(1, len(along) // 3))[-max(1, len(along) // 3) :]
    return ground[patch.image] - values[full].mean(0)


def _windows(
    drop: np.ndarray, ground: np.ndarray, labels: np.ndarray, patches: Sequence[_Patch], rgb: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coverage and weight [P, W, W] around each patch, and the windows' corners (x, y). What belongs to or
    touches another patch has no weight."""
    half = WINDOW // 2
    edges = ((0, 0), (half, half), (half, half))
    padded = np.pad(drop, (*edges, (0, 0)))
    owners = np.pad(_grown(labels), edges)
    inside = np.pad(np.ones(labels.shape, np.float32), edges)
    image = np.array([p.image for p in patches])
    label = np.array([p.label for p in patches])
    top = np.array([(p.rows.min() + p.rows.max() + 1) // 2 for p in patches])
    left = np.array([(p.columns.min() + p.columns.max() + 1) // 2 for p in patches])
    span = np.arange(WINDOW)
    index = (image[:, None, None], (top[:, None] + span)[:, :, None], (left[:, None] + span)[:, None, :])
    away = ground[image] - rgb
    cover = np.einsum("pijk,pk->pij", padded[index], away / (away**2).sum(1, keepdims=True))
    owner = owners[index]
    weight = inside[index] * ((owner == 0) | (owner == label[:, None, None]))
    return np.minimum(cover, 1.15), weight, np.stack([left - half, top - half], 1).astype(np.float32)


def _grown(labels: np.ndarray) -> np.ndarray:
    """Labels with a rim of two pixels on the ground, for the soft edge."""
    out = labels
    for _ in range(2):
        padded = np.pad(out, ((0, 0), (1, 1), (1, 1)))
        around = np.maximum.reduce(
            [padded[:, 1:-1, :-2], padded[:, 1:-1, 2:], padded[:, :-2, 1:-1], padded[:, 2:, 1:-1]]
        )
        out = np.where(out == 0, around, out)
    return out


def _agreement(
    shape: str, cover: np.ndarray, weight: np.ndarray, x: np.ndarray, y: np.ndarray, radius: np.ndarray
) -> np.ndarray:
    """Soft intersection over union [P] of what is there and what the shape would be. Lengths in pixels."""
    axis = np.arange(WINDOW, dtype=np.float32) + 0.5
    r = radius[:, None, None]
    dx = (axis[None, None, :] - x[:, None, None]) / r
    dy = (axis[None, :, None] - y[:, None, None]) / r
    ideal = np.clip(0.5 - distance(shape, *np.broadcast_arrays(dx, dy)) * r, 0, 1)
    seen = np.clip(cover, 0, 1)
    both = (np.minimum(seen, ideal) * weight).sum((1, 2))
    return both / np.maximum((np.maximum(seen, ideal) * weight).sum((1, 2)), 1e-6)


def _found(patch: _Patch, scores: np.ndarray, radius: float, rgb: np.ndarray, centre: np.ndarray) -> Found:
    second, first = np.sort(scores)[-2:]
    fits = first >= LEAST_AGREEMENT and first - second >= LEAST_LEAD and RADII[0] <= radius <= RADII[1]
    x, y = (float(v) for v in np.clip(centre, 0, RESOLUTION - 0.01))
    rows, columns = patch.rows, patch.columns
    return Found(
        shape=SHAPES[int(scores.argmax())] if fits else None,
        color=_color_name(rgb),
        size=_size_name(radius) if fits else None,
        cell=(int(y // CELL), int(x // CELL)),
        centre=(x / RESOLUTION, y / RESOLUTION),
        box=(
            float(columns.min()) / RESOLUTION,
            float(rows.min()) / RESOLUTION,
            float(columns.max() + 1) / RESOLUTION,
            float(rows.max() + 1) / RESOLUTION,
        ),
        confidence=float(first),
    )


def _color_name(rgb: np.ndarray) -> str | None:
    away = np.linalg.norm(_palette() - rgb, axis=1)
    first, second = np.sort(away)[:2]
    return COLORS[int(away.argmin())] if first <= FARTHEST_COLOR and first <= COLOR_LEAD * second else None


@lru_cache(maxsize=1)
def _palette() -> np.ndarray:
    return np.array([RGB[c] for c in COLORS], np.float32)


def _size_name(radius: float) -> str | None:
    if any(abs(radius - edge) < SIZE_MARGIN for edge in SIZE_EDGES):
        return None
    return SIZES[sum(radius > edge for edge in SIZE_EDGES)]
