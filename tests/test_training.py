"""Training of the built-in model on tiny settings: data, schedule, exact resume, and sampling as the pipeline does."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from diffusers import Flux2KleinPipeline
from PIL import Image

from clvr.shapes.edits import KINDS, say
from clvr.shapes.language import parse, parse_edit
from clvr.shapes.phrases import PREFIX
from clvr.shapes.render import render
from clvr.shapes.sampler import CATEGORIES, edit_sample, held_back, prompt
from training.builtin import begin, prepare, publish
from training.config import BuiltinConfig, DataConfig, OptimConfig, TextConfig, VAEConfig
from training.dit import Trainer
from training.folder import open_sampler
from training.model import patchify, unpatchify
from training.optim import orthogonalise, schedule
from training.sampling import noise
from training.world import samples, trajectory

TINY = BuiltinConfig(
    vae=VAEConfig(steps=3, batch=4),
    text=TextConfig(hidden=32, layers=3, heads=2, kv_heads=1, mlp=64),
    data=DataConfig(shard=96, passes=1),
    optim=OptimConfig(samples=64, batch=8, warmup=2),
    threads=1,
    checkpoint_minutes=100,
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    prepare(TINY, folder)
    return folder


def trainer(run: Path, folder: Path, count: int) -> Trainer:
    folder.mkdir(exist_ok=True)
    config = dataclasses.replace(TINY, optim=dataclasses.replace(TINY.optim, samples=count))
    return Trainer(config, *prepare(config, run), folder)


def test_resumed_training_equals_uninterrupted_training_bit_for_bit(run: Path, tmp_path: Path) -> None:
    whole = trainer(run, tmp_path / "whole", 64)
    whole.run()
    part = trainer(run, tmp_path / "part", 64)
    part.run(stop=0.0)
    assert 0 < part.at.samples < 64
    again = trainer(run, tmp_path / "part", 64)
    assert again.resume()
    again.run()
    expected, got = whole.state(), again.state()
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[k], got[k]) for k in expected)


def test_batched_sampling_equals_the_pipeline(run: Path, tmp_path: Path) -> None:
    made = trainer(run, tmp_path / "run", 64)
    torch.nn.init.normal_(made.transformer.proj_out.weight, std=0.2)
    made.average.shadow["transformer.proj_out.weight"].copy_(made.transformer.proj_out.weight)
    publish(made, tmp_path / "model")
    configs = list((tmp_path / "model").glob("*/config.json"))
    assert len(configs) == 3
    assert not any("_name_or_path" in path.read_text() for path in configs)
    sampler = open_sampler(tmp_path / "model")
    pipeline = Flux2KleinPipeline.from_pretrained(tmp_path / "model").to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    reference = render(edit_sample("add", random.Random(0))[0], 3)
    for before in ([], [reference]):
        x = sampler.latents(["add a red circle"], sampler.encode([before]), noise([5], 16), 3, 4.0)
        drawn = pipeline(
            prompt="add a red circle",
            image=before or None,
            height=64,
            width=64,
            num_inference_steps=3,
            guidance_scale=4.0,
            generator=torch.Generator().manual_seed(5),
            max_sequence_length=sampler.padded(["add a red circle"]),
            text_encoder_out_layers=sampler.layers,
        ).images[0]
        assert_close(sampler.images(x)[0], drawn)


def test_a_new_run_can_start_from_a_published_model(run: Path, tmp_path: Path) -> None:
    made = trainer(run, tmp_path / "first", 64)
    made.step(next(made.shard(0)))
    publish(made, tmp_path / "model")
    vae, tokenizer = prepare(TINY, tmp_path / "second", tmp_path / "model")
    again = Trainer(TINY, vae, tokenizer, tmp_path / "second")
    begin(again, tmp_path / "model")
    for name, weight in made.average.shadow.items():
        assert torch.equal(again.average.shadow[name], weight.bfloat16().float())


def assert_close(a: Image.Image, b: Image.Image) -> None:
    left, right = (torch.tensor(list(i.tobytes()), dtype=torch.int) for i in (a, b))
    assert (left - right).abs().max() <= 1


def test_no_sample_comes_from_the_held_back_tenth() -> None:
    made = samples(DataConfig(), random.Random(4), 600)
    plain = [s.text for s in made if s.kind not in ("first", "round")]
    assert len(plain) > 300
    assert not any(held_back(text) for text in plain)
    goals = {s.text.split("\n")[0] for s in made if s.kind in ("first", "round")}
    assert not any(held_back(goal) for goal in goals)


def test_rounds_carry_the_trajectory_and_up_to_four_earlier_pictures() -> None:
    rng = random.Random(1)
    rounds = [s for _ in range(60) for s in trajectory(rng)]
    assert {len(s.references) for s in rounds} >= {0, 1, 2, 3, 4}
    assert any("<IMG_GEN_2>" in s.text for s in rounds)
    assert all(len(s.references) >= 1 for s in rounds if s.kind == "round")


@pytest.mark.parametrize("category", CATEGORIES)
def test_prompts_of_every_category_are_read_back_and_some_are_held_back(category: str) -> None:
    rng = random.Random(2)
    for held in (True, False):
        text, spec = prompt(category, rng, held)
        assert held_back(text) == held
        assert parse(text).total == spec.total
        assert held_back(text) == held_back(text.removeprefix(PREFIX))


@pytest.mark.parametrize("kind", KINDS)
def test_edits_of_every_kind_are_read_back_and_some_are_held_back(kind: str) -> None:
    rng = random.Random(3)
    for held in (True, False):
        _, change = edit_sample(kind, rng, held)
        assert held_back(say(change)) == held
        assert say(parse_edit(say(change))) == say(change)


def test_patches_are_the_pipelines() -> None:
    latents = torch.randn(2, 32, 8, 8)
    theirs = Flux2KleinPipeline._pack_latents(Flux2KleinPipeline._patchify_latents(latents))
    assert torch.equal(patchify(latents), theirs)
    assert torch.equal(unpatchify(theirs, 4), latents)


def test_learning_rate_warms_up_holds_and_decays() -> None:
    factors = [schedule(n, 1000, 100, 0.3) for n in (0, 50, 200, 700, 850, 1000)]
    assert factors[0] < factors[1] < 1
    assert factors[2:] == pytest.approx([1, 1, 0.5, 0])


def test_orthogonalised_matrices_have_singular_values_near_one() -> None:
    for shape in ((3, 8, 24), (3, 24, 8)):
        values = torch.linalg.svdvals(orthogonalise(torch.randn(shape, generator=torch.manual_seed(0))))
        assert values.min() > 0.3
        assert values.max() < 1.5
