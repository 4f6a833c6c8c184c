"""Samples for the DiT: text-to-image, single edits, and rounds of simulated closed-loop trajectories.

A shard is a function of (config, index): it can be made again after a crash, so no data set is stored.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers import AutoencoderKLFlux2
from transformers import Qwen2Tokenizer

from clvr.context import Context, Turn, narrate
from clvr.errors import GrammarError
from clvr.flux2.generator import padded_length
from clvr.shapes import reasoning
from clvr.shapes.edits import KINDS, Edit, apply, say
from clvr.shapes.render import render_batch
from clvr.shapes.sampler import edit, edit_sample, held_back, prompt
from clvr.shapes.scene import CELLS, COLORS, SHAPES, Group, Item, Noun, Scene, realise
from clvr.trajectory import Decision, generated

from .config import BuiltinConfig, DataConfig
from .model import normalise, tokenize_all
from .vae import mean_latents, to_tensor

Picture = tuple[Scene, int]
"""A scene and the seed of its jitter."""


@dataclass(frozen=True)
class Sample:
    """`text` is what the text encoder reads; `references` come in the order of Decision.references."""

    text: str
    target: Picture
    references: tuple[Picture, ...] = ()
    kind: str = ""


def text_to_image(category: str, rng: random.Random, held: bool = False) -> Sample:
    text, spec = prompt(category, rng, held)
    return Sample(text, (realise(spec, rng), rng.getrandbits(31)), kind=category)


def single_edit(rng: random.Random, kind: str | None = None, held: bool = False) -> Sample:
    kind = kind or rng.choices(KINDS, (0.28, 0.18, 0.16, 0.14, 0.16, 0.08))[0]
    scene, change = edit_sample(kind, rng, held)
    seed = rng.getrandbits(31)
    return Sample(say(change), (apply(scene, change), seed), ((scene, seed),), kind)


@dataclass(frozen=True)
class Round:
    """One step of a simulated run: what was decided, the scene that came of it, and which earlier rounds' pictures
    it was given, the canvas first."""

    decision: Decision
    scene: Scene
    references: tuple[int, ...] = ()


def rounds(rng: random.Random, held: bool = False) -> tuple[str, list[Round], int]:
    """One run towards a goal: its prompt, its rounds (a first drawing, additions, slips and their corrections), and
    the seed of its pictures' jitter."""
    text, spec = prompt(rng.choices(("complex", "attribution", "position", "counting"), (5, 1, 1, 1))[0], rng, held)
    goal = realise(spec, rng)
    seed = rng.getrandbits(31)
    wanted = rng.sample(goal.items, len(goal.items))
    first = wanted[: rng.choice((1, 1, 2, 2, 3))]
    scene = Scene(tuple(first))
    groups = [Group(i.noun, 1, i.cell) for i in first]
    made = [Round(Decision("generate", reasoning.empty(), reasoning.draw(groups)), scene)]
    plan = wanted[len(first) :]
    while (plan or _wrong(scene, goal)) and len(made) < 8:
        change = _next(scene, goal, plan, rng)
        scene = apply(scene, change)
        if rng.random() < 0.12:
            scene = _slip(scene, rng)
        last = len(made) - 1
        extras = rng.sample(range(last), min(last, rng.randint(1, 3))) if rng.random() < 0.15 else []
        made.append(Round(Decision("edit", reasoning.because(change), say(change)), scene, (last, *extras)))
    return text, made, seed


def trajectory(rng: random.Random, held: bool = False) -> list[Sample]:
    """The rounds of one run as samples, those with a held-back instruction left out."""
    return list(_as_samples(*rounds(rng, held)))


def _as_samples(goal: str, made: Sequence[Round], seed: int) -> Iterator[Sample]:
    turns: list[Turn] = []
    for index, one in enumerate(made):
        newest = Turn(index, narrate(one.decision))
        context = Context(goal, (*turns, newest))
        if not held_back(one.decision.instruction):
            kind = "first" if index == 0 else "round"
            references = tuple((made[n].scene, seed) for n in one.references)
            yield Sample(context.text, (one.scene, seed), references, kind)
        turns.append(Turn(index, newest.text, generated(index)))


def _wrong(scene: Scene, goal: Scene) -> list[Item]:
    return [i for i in scene.items if i not in goal.items]


def _next(scene: Scene, goal: Scene, plan: list[Item], rng: random.Random) -> Edit:
    """Mend what is wrong (three times in four first), else add the next object of the plan."""
    wrong = _wrong(scene, goal)
    if wrong and (not plan or rng.random() < 0.75):
        return _mend(scene, goal, wrong[0])
    item = plan.pop(0)
    if scene.at(item.cell):
        return _mend(scene, goal, scene.at(item.cell))  # type: ignore[arg-type]
    return Edit("add", new=item.noun, to=item.cell)


def _mend(scene: Scene, goal: Scene, item: Item) -> Edit:
    meant = goal.at(item.cell)
    if meant is None:
        return Edit("remove", item.noun, item.cell)
    if (meant.shape, meant.size) == (item.shape, item.size):
        return Edit("recolor", item.noun, item.cell, Noun(color=meant.color))
    if (meant.shape, meant.color) == (item.shape, item.color) and meant.size != "medium":
        return Edit("resize", item.noun, item.cell, Noun(size=meant.size))
    return Edit("replace", item.noun, item.cell, meant.noun)


def _slip(scene: Scene, rng: random.Random) -> Scene:
    """A drawing that went wrong: one object recoloured, replaced, or one too many."""
    kind = rng.choice(("recolor", "replace", "add", "resize"))
    change = edit(kind, scene, rng, placed=1.0)
    return apply(scene, change) if change else scene


def samples(config: DataConfig, rng: random.Random, count: int, held: bool = False) -> list[Sample]:
    """At least `count` samples in the configured shares."""
    out: list[Sample] = []
    weights = (config.text_to_image, config.edits, config.trajectories / 4)
    categories, shares = list(config.categories), list(config.categories.values())
    while len(out) < count:
        kind = rng.choices(("text", "edit", "trajectory"), weights)[0]
        try:
            if kind == "text":
                out.append(text_to_image(rng.choices(categories, shares)[0], rng, held))
            elif kind == "edit":
                out.append(single_edit(rng, held=held))
            else:
                out += trajectory(rng, held)
        except GrammarError:
            continue
    return out


_KINDS = len(SHAPES) * len(COLORS)
_MOST = 9
FACTS = 2 * _KINDS + len(CELLS) + _MOST


def facts(sample: Sample) -> np.ndarray:
    """What a sample's text is about, as FACTS values in {0, 1}: which kinds (shape and colour) appear in the
    target and were not in the first reference, which vanish, in which cells, and how many objects appear."""
    before = set(sample.references[0][0].items) if sample.references else set()
    after = set(sample.target[0].items)
    out = np.zeros(FACTS, np.float32)
    for item in after - before:
        out[SHAPES.index(item.shape) * len(COLORS) + COLORS.index(item.color)] = 1
        out[2 * _KINDS + CELLS.index(item.cell)] = 1
    for item in before - after:
        out[_KINDS + SHAPES.index(item.shape) * len(COLORS) + COLORS.index(item.color)] = 1
    out[2 * _KINDS + len(CELLS) + min(len(after - before), _MOST - 1)] = 1
    return out


@dataclass(frozen=True)
class Batch:
    """ids, mask [B, L]; target tokens [B, 16, 128]; reference tokens [B, R * 16, 128], R the same for all;
    facts [B, FACTS] in {0, 1}."""

    ids: torch.Tensor
    mask: torch.Tensor
    target: torch.Tensor
    references: torch.Tensor
    facts: torch.Tensor

    @property
    def size(self) -> int:
        return len(self.ids)


class Encoder:
    """Pictures as normalised latent tokens, each unique picture encoded once."""

    def __init__(self, vae: AutoencoderKLFlux2, resolution: int) -> None:
        self.vae = vae
        self.resolution = resolution

    @torch.no_grad()
    def __call__(self, pictures: Sequence[Picture]) -> torch.Tensor:
        chunks = []
        for start in range(0, len(pictures), 128):
            part = pictures[start : start + 128]
            pixels = render_batch([p[0] for p in part], [p[1] for p in part], self.resolution)
            chunks.append(normalise(self.vae, mean_latents(self.vae, to_tensor(torch.from_numpy(pixels)))))
        return torch.cat(chunks)


def batches(
    made: Sequence[Sample],
    encoder: Encoder,
    tokenizer: Qwen2Tokenizer,
    config: BuiltinConfig,
    rng: random.Random,
    passes: int,
) -> Iterator[Batch]:
    """Shuffled batches of equal text length and reference count; long texts come in half batches."""
    pictures = list(dict.fromkeys(p for s in made for p in (s.target, *s.references)))
    where = {p: n for n, p in enumerate(pictures)}
    latents = encoder(pictures)
    tokens = _tokens(made, tokenizer, config)
    buckets: dict[tuple[int, int], list[int]] = {}
    for n, (s, ids) in enumerate(zip(made, tokens, strict=True)):
        if ids is not None:
            buckets.setdefault((len(s.references), len(ids)), []).append(n)
    order: list[list[int]] = []
    for _ in range(passes):
        for (_, length), members in buckets.items():
            size = config.optim.batch if length <= 64 else config.optim.batch // 2
            rng.shuffle(members)
            order += [members[k : k + size] for k in range(0, len(members) - size // 4, size)]
    rng.shuffle(order)
    pad = torch.tensor(tokenizer.pad_token_id)
    for chosen in order:
        ids = torch.from_numpy(np.stack([i for i in (tokens[n] for n in chosen) if i is not None]))
        mask = torch.ne(ids, pad).long()
        target = latents[[where[made[n].target] for n in chosen]]
        references = [
            latents[[where[made[n].references[k]] for n in chosen]] for k in range(len(made[chosen[0]].references))
        ]
        told = torch.from_numpy(np.stack([facts(made[n]) for n in chosen]))
        yield Batch(ids, mask, target, torch.cat(references, 1) if references else target[:, :0], told)


def _tokens(made: Sequence[Sample], tokenizer: Qwen2Tokenizer, config: BuiltinConfig) -> list[np.ndarray | None]:
    """Ids padded as the generator pads: to the base length, then to a multiple of 8; None where too long."""
    texts = list(dict.fromkeys(s.text for s in made))
    known: dict[str, np.ndarray | None] = {}
    for text, ids in zip(texts, tokenize_all(tokenizer, texts), strict=True):
        length = padded_length(len(ids), config.data.length)
        padding = [tokenizer.pad_token_id] * (length - len(ids))
        known[text] = np.array(ids + padding, dtype=np.int64) if length <= config.data.longest else None
    return [known[s.text] for s in made]


def corpus(seed: int = 3, count: int = 6000) -> list[str]:
    """Texts of the world's language and the template's words, for the tokenizer."""
    rng = random.Random(seed)
    texts = [s.text for s in samples(DataConfig(), rng, count)]
    return texts + ["user", "assistant", "\n\n"] * count


def held_out(config: BuiltinConfig, count: int, seed: int = 99) -> list[Sample]:
    """Samples of the held-back tenth, for the validation loss."""
    return samples(config.data, random.Random(seed), count, held=True)[:count]
