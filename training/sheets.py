"""What a run looks like from outside: its loss curves, and pictures that the averaged weights draw."""

from __future__ import annotations

import json
import random
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from clvr.shapes.edits import KINDS, apply, say
from clvr.shapes.render import render
from clvr.shapes.sampler import CATEGORIES, edit_sample, prompt
from clvr.shapes.scene import realise

from .sampling import Sampler, noise

_SCALE = 2
_CAPTION = 34
_COLUMNS = 4


def curves(folder: Path) -> None:
    """Draw `curves.png` from `log.jsonl`: training loss, and the loss on the held-back tenth by kind."""
    from matplotlib.figure import Figure

    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for name, style in (("loss", "-"), ("val_text", "o-"), ("val_edit", "s-")):
        points = [(line["samples"] / 1000, line[name]) for line in lines if line.get(name)]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=name, alpha=0.4 if name == "loss" else 1, ms=3)
    axes.set(xlabel="thousand samples", ylabel="velocity error", yscale="log")
    axes.grid(alpha=0.3, which="both")
    axes.legend(frameon=False)
    figure.savefig(folder / "curves.png", dpi=110)


def sheet(sampler: Sampler, path: Path, steps: int = 12, guidance: float = 4.0) -> None:
    """One held-back prompt or edit of every category: what was given, drawn, and (for edits) right."""
    rng = random.Random(11)
    tiles: list[tuple[str, list[Image.Image]]] = []
    for category in CATEGORIES * 2:
        text, spec = prompt(category, rng, held=True)
        tiles.append((text, [_draw(sampler, text, [], len(tiles), steps, guidance), render(realise(spec, rng))]))
    for kind in KINDS * 2:
        scene, change = edit_sample(kind, rng, held=True)
        before = render(scene, 1)
        drawn = _draw(sampler, say(change), [before], len(tiles), steps, guidance)
        tiles.append((say(change), [before, drawn, render(apply(scene, change), 1)]))
    _compose(tiles).save(path)


def _draw(
    sampler: Sampler, text: str, references: list[Image.Image], seed: int, steps: int, guidance: float
) -> Image.Image:
    x = sampler.latents([text], sampler.encode([references]), noise([seed], 16), steps, guidance)
    return sampler.images(x)[0]


def _compose(tiles: list[tuple[str, list[Image.Image]]]) -> Image.Image:
    side = tiles[0][1][0].width * _SCALE
    width, height = side * 3 + 12, side + _CAPTION
    rows = -(-len(tiles) // _COLUMNS)
    page = Image.new("RGB", (width * _COLUMNS, height * rows), "white")
    pen, font = ImageDraw.Draw(page), ImageFont.load_default(11)
    for n, (text, images) in enumerate(tiles):
        x, y = n % _COLUMNS * width, n // _COLUMNS * height
        words = text if len(text) < 62 else text[:60] + "…"
        pen.text((x + 2, y + 4), words, fill="black", font=font)
        for k, image in enumerate(images):
            page.paste(image.resize((side, side), Image.Resampling.NEAREST), (x + k * (side + 2), y + _CAPTION - 12))
    return page
