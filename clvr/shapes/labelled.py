"""Noisy pictures of the built-in world, right ones and nearly right ones, with exact answers: to calibrate a judge."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFilter

from ..trajectory import Check
from . import sampler
from .checks import checklist
from .edits import apply
from .found import seen
from .render import render
from .scene import Scene, realise
from .verifier import judge_found

SIDE = 256
"""Pixels of a picture's side: what a VLM sees well."""
_CATEGORIES = ("single", "two", "counting", "colors", "position", "attribution", "complex")
_FAULTS = ("add", "remove", "recolor", "resize", "replace", "move")
_NOISE, _BLUR = 20.0, 3.0
"""Largest standard deviation of the noise, of 255, and largest radius of the blur in pixels."""


def labelled(count: int, seed: int = 0) -> Iterator[tuple[Image.Image, tuple[Check, ...], dict[str, bool]]]:
    """`count` pictures, each with a prompt's checks and their true answers. Two of three show the prompt with
    one to three faults."""
    for index in range(count):
        rng = random.Random(f"{seed}/{index}")
        spec = sampler.spec(_CATEGORIES[index % len(_CATEGORIES)], rng)
        scene = realise(spec, rng)
        if index % 3:
            scene = _spoiled(scene, rng)
        checks = checklist(spec)
        verdict = judge_found(seen(scene), checks)
        answers = {r.check: r.outcome == "pass" for r in verdict.results if r.outcome in ("pass", "fail")}
        asked = tuple(check for check in checks if check.id in answers)
        yield _photographed(render(scene, rng.getrandbits(32), SIDE), rng), asked, answers


def _spoiled(scene: Scene, rng: random.Random) -> Scene:
    for _ in range(rng.randint(1, 3)):
        edit = sampler.edit(rng.choice(_FAULTS), scene, rng)
        scene = apply(scene, edit) if edit else scene
    return scene


def _photographed(image: Image.Image, rng: random.Random) -> Image.Image:
    """Blurred and noisy, by a random amount."""
    blurred = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, _BLUR)))
    noise = np.random.default_rng(rng.getrandbits(32)).normal(0, rng.uniform(0, _NOISE), (SIDE, SIDE, 3))
    return Image.fromarray((np.asarray(blurred) + noise).clip(0, 255).astype(np.uint8))
