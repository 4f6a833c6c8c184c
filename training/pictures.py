"""What RL looks like: an epoch's rollouts as a contact sheet, and the rewards as a curve."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from clvr.chart import Axis
from clvr.pen import INK, PAPER, SOFT, WARN

from . import figures
from .rollouts import Group

_SIDE, _GAP, _MARGIN = 128, 8, 24  # pixels
_COLUMNS = 8
_LABEL = 18
_WIDTH = 2 * _MARGIN + (_COLUMNS + 2) * (_SIDE + _GAP)
_GROUPS = 8


def sheet(groups: Sequence[Group], most: int = _GROUPS) -> Image.Image:
    """A block a task: its proxy, the reference that it edits, and the group's pictures with their rewards, the best
    one first."""
    blocks = [_block(group) for group in groups[:most]]
    page = Image.new("RGB", (_WIDTH, sum(b.height for b in blocks) + _MARGIN), PAPER)
    top = _MARGIN // 2
    for block in blocks:
        page.paste(block, (0, top))
        top += block.height
    return page


def _block(group: Group) -> Image.Image:
    font = ImageFont.load_default(14)
    proxy = group.proxy
    words = [f"{group.task.kind}   shows: {proxy.t2i}", *([f"edit: {proxy.i2i}"] if proxy.i2i else [])]
    lines = [line for text in words for line in textwrap.wrap(text, 170)[:2]]
    settled = [(s.result(), image) for s, image in zip(group.scores, group.images, strict=True)]
    settled.sort(key=lambda pair: -1.0 if pair[0] is None else pair[0], reverse=True)
    rows = -(-len(settled) // _COLUMNS)
    head = 18 * len(lines) + 10
    block = Image.new("RGB", (_WIDTH, head + rows * (_SIDE + _LABEL + _GAP) + _GAP), PAPER)
    pen = ImageDraw.Draw(block)
    for n, line in enumerate(lines):
        pen.text((_MARGIN, 4 + 18 * n), line, INK, font)
    if proxy.references:
        _tile(block, pen, group.task.history[proxy.references[-1]], _MARGIN, head, "reference", SOFT)
    for n, (reward, image) in enumerate(settled):
        x = _MARGIN + (2 + n % _COLUMNS) * (_SIDE + _GAP) - _SIDE // 2
        label = "no reward" if reward is None else f"{reward:.2f}"
        color = WARN if reward is None else INK
        _tile(block, pen, image, x, head + n // _COLUMNS * (_SIDE + _LABEL + _GAP), label, color)
    return block


def _tile(
    block: Image.Image, pen: ImageDraw.ImageDraw, image: Image.Image, x: int, y: int, label: str, ink: str
) -> None:
    filter_ = Image.Resampling.NEAREST if image.width < _SIDE else Image.Resampling.LANCZOS
    block.paste(image.resize((_SIDE, _SIDE), filter_), (x, y))
    pen.text((x, y + _SIDE + 2), label, ink, ImageFont.load_default(13))


def curve(log: Path, title: str) -> Image.Image:
    """Rewards by epoch, and what the monitors measured."""
    epoch = Axis("epoch")
    reward = {"reward": "all", "reward_t2i": "new pictures", "reward_i2i": "edits", "fixed": "fixed tasks"}
    return figures.curves(
        log,
        title,
        ("Mean reward of the rollouts", epoch, Axis("reward"), reward),
        ("Distance to the SFT's velocity", epoch, Axis("KL"), {"kl": "KL"}),
        ("Change of the weights", epoch, Axis("relative shift"), {"shift": "shift"}),
    )
