"""Objects from pixels: ground, colour segmentation, connected components, fits of soft coverage.

Every coloured patch is compared with what `render.distance` would draw at the patch's own centre and scale.
Coverage is compared softly: binary masks confuse small crosses with circles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image

from .found import Found
from .render import GROUND, RESOLUTION, RGB, distance
from .scene import COLORS, GRID, SHAPES, SIZES, Noun

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

SHARP = 0.88
"""Below this agreement a patch is compared with blurred shapes too."""

_AREA = {
    "circle": np.pi * 0.96**2,
    "square": 4 * 0.85**2,
    "triangle": 1.92**2 / 2,
    "cross": 2 * 1.32 - 0.66**2,
}
_SINK = {"circle": 0.0, "square": 0.0, "triangle": 0.28, "cross": 0.0}
"""Area, and how far the centre of mass lies below the centre, of a shape of half extent 1."""


def measure(image: Image.Image | np.ndarray) -> tuple[Found, ...]:
    """The objects in a picture (RGB, or uint8 [H, W, 3]) in reading order. Never raises for odd content. What was
    measured lately is remembered: planner and judges look at the same pictures."""
    return _remembered(_pixels(image).tobytes())


@lru_cache(maxsize=512)
def _remembered(pixels: bytes) -> tuple[Found, ...]:
    return measure_batch([np.frombuffer(pixels, np.uint8).reshape(RESOLUTION, RESOLUTION, 3)])[0]


def measure_batch(images: Sequence[Image.Image | np.ndarray] | np.ndarray) -> list[tuple[Found, ...]]:
    """`measure` for many pictures; several times faster than one by one."""
    if len(images) == 0:
        return []
    pixels = np.stack([_pixels(i) for i in images]).astype(np.float32)
    ground = _ground(pixels)
    drop = ground[:, None, None, :] - pixels
    labels, patches = _segment(drop, ground)
    found: list[list[Found]] = [[] for _ in images]
    if patches:
        for patch, one in zip(patches, _fit(drop, ground, labels, patches), strict=True):
            found[patch.image].append(one)
    return [tuple(sorted(f, key=lambda o: (o.cell, o.centre))) for f in found]


def _pixels(image: Image.Image | np.ndarray) -> np.ndarray:
    """Uint8 [64, 64, 3]; a larger picture is averaged down."""
    if isinstance(image, np.ndarray):
        if image.shape[:2] == (RESOLUTION, RESOLUTION):
            return image
        image = Image.fromarray(image)
    image = image.convert("RGB")
    if image.size != (RESOLUTION, RESOLUTION):
        image = image.resize((RESOLUTION, RESOLUTION), Image.Resampling.BOX)
    return np.asarray(image)


def _ground(pixels: np.ndarray) -> np.ndarray:
    """Ground colours [N, 3]: the mean of the bright, nearly grey pixels around their median."""
    flat = pixels.reshape(len(pixels), -1, 3)
    r, g, b = flat[..., 0], flat[..., 1], flat[..., 2]
    low, high = np.minimum(np.minimum(r, g), b), np.maximum(np.maximum(r, g), b)
    bright = (low > 190) & (high - low < 60)
    out = np.tile(np.array(GROUND, np.float32), (len(flat), 1))
    for n, mask in enumerate(bright):
        if mask.sum() >= 64:
            some = flat[n][mask]
            near = (np.abs(some - np.median(some, 0)) < 40).all(1)
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


def _runs(lines: list[int], starts: list[int], stops: list[int], group: list[int]) -> tuple[np.ndarray, np.ndarray]:
    rows = np.repeat([lines[i] for i in group], [stops[i] - starts[i] for i in group])
    return rows, np.concatenate([np.arange(starts[i], stops[i]) for i in group])


def _split(rows: np.ndarray, columns: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
    """A region wider or higher than any object is several that touch: cut it at the grid's lines."""
    if np.ptp(rows) <= CELL and np.ptp(columns) <= CELL:
        return [(rows, columns)]
    cells = rows // CELL * GRID + columns // CELL
    return [(rows[cells == c], columns[cells == c]) for c in np.unique(cells)]


def _fit(drop: np.ndarray, ground: np.ndarray, labels: np.ndarray, patches: Sequence[_Patch]) -> list[Found]:
    rgb = np.stack([_core(drop, ground, p) for p in patches])
    cover, weight, corner = _windows(drop, ground, labels, patches, rgb)
    score, radius, x, y = _compare(cover, weight, blurred=False)
    soft = score.max(1) < SHARP
    if soft.any():
        again = _compare(cover[soft], weight[soft], blurred=True)
        better = again[0].max(1) > score[soft].max(1)
        rows = np.flatnonzero(soft)[better]
        for old, new in zip((score, radius, x, y), again, strict=True):
            old[rows] = new[better]
    best = score.argmax(1)
    return [
        _found(patch, score[i], float(radius[i, k]), rgb[i], corner[i] + (x[i, k], y[i, k]))
        for i, (patch, k) in enumerate(zip(patches, best.tolist(), strict=True))
    ]


def _compare(
    cover: np.ndarray, weight: np.ndarray, blurred: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Each patch against each shape at the patch's centre and area: agreement, radius, x, y, each [P, 4] in
    pixels of the window. In a blurred patch even the fullest pixels are mixed with ground, so there the
    coverage is scaled to fit."""
    mass = np.maximum((cover * weight).sum((1, 2)), 1.0)
    axis = np.arange(WINDOW, dtype=np.float32) + 0.5
    x = (cover * weight * axis[None, None, :]).sum((1, 2)) / mass
    middle = (cover * weight * axis[None, :, None]).sum((1, 2)) / mass
    columns = []
    for shape in SHAPES:
        scale = np.ones_like(mass)
        for _ in range(2 if blurred else 1):
            radius = np.sqrt(mass / scale / _AREA[shape])
            y = middle - _SINK[shape] * radius
            ideal = _ideal(shape, x, y, radius, blurred)
            if blurred:
                product = (ideal * cover * weight).sum((1, 2))
                scale = np.clip(product / (ideal**2 * weight).sum((1, 2)).clip(1), 0.9, 1.35)
        seen = np.clip(cover / scale[:, None, None], 0, 1)
        both = (np.minimum(seen, ideal) * weight).sum((1, 2))
        either = (np.maximum(seen, ideal) * weight).sum((1, 2)).clip(1)
        columns.append((both / either, radius, x, y))
    score, radii, xs, ys = (np.stack(part, 1) for part in zip(*columns, strict=True))
    return score, radii, xs, ys


def _ideal(shape: str, x: np.ndarray, y: np.ndarray, radius: np.ndarray, blurred: bool) -> np.ndarray:
    """Coverage [P, W, W] as the renderer draws it, or as it is after a blur of one pixel."""
    axis = np.arange(WINDOW, dtype=np.float32) + 0.5
    r = radius[:, None, None]
    dx = (axis[None, None, :] - x[:, None, None]) / r
    dy = (axis[None, :, None] - y[:, None, None]) / r
    ideal = np.clip(0.5 - distance(shape, *np.broadcast_arrays(dx, dy)) * r, 0, 1)
    if not blurred:
        return ideal
    return _blur() @ ideal @ _blur()


@lru_cache(maxsize=1)
def _blur() -> np.ndarray:
    """Gaussian blur with a standard deviation of one pixel, as a matrix [W, W]."""
    offset = np.arange(WINDOW)[:, None] - np.arange(WINDOW)
    return (np.exp(-(offset**2) / 2.0) / np.sqrt(2 * np.pi)).astype(np.float32)


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
    """Coverage and weight [P, W, W] around each patch, and the windows' corners (x, y). Weight have the
    patch and its rim."""
    half = WINDOW // 2
    edges = ((0, 0), (half, half), (half, half))
    padded = np.pad(drop, (*edges, (0, 0)))
    owners = np.pad(_grown(labels), edges)
    image = np.array([p.image for p in patches])
    label = np.array([p.label for p in patches])
    top = np.array([(p.rows.min() + p.rows.max() + 1) // 2 for p in patches])
    left = np.array([(p.columns.min() + p.columns.max() + 1) // 2 for p in patches])
    span = np.arange(WINDOW)
    index = (image[:, None, None], (top[:, None] + span)[:, :, None], (left[:, None] + span)[:, None, :])
    away = ground[image] - rgb
    cover = np.einsum("pijk,pk->pij", padded[index], away / (away**2).sum(1, keepdims=True))
    weight = (owners[index] == label[:, None, None]).astype(np.float32)
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
        likely=Noun(SHAPES[int(scores.argmax())], COLORS[patch.color]),
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
