"""A student that draws in a few steps what its teacher draws in many under guidance."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import Flux2KleinPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from clvr import builtin
from clvr.context import Context
from clvr.dswm.merge import merge
from clvr.dswm.recipe import Recipe, Source
from clvr.errors import FormatError, SettingError
from clvr.flux2.folder import inspect
from clvr.flux2.generator import Flux2Generator
from training import distill, teacher
from training.config import DataConfig
from training.distill import DistillConfig, samples, start
from training.klein import Klein, Latents, TextContext, sample, sigmas
from training.latent_cache import Cache, Encodings
from training.recipe import FOLDER, load, plain
from training.runs import OptimConfig, RunConfig
from training.teacher import Archive, Prompt, Teacher, Trajectories
from training.trackers import read

from . import sft_fixtures, tiny_klein

CPU = torch.device("cpu")
SHORT = DistillConfig(
    epochs=4,
    batch=4,
    micro=2,
    held=2,
    measure_every=4,
    gradient_checkpointing=False,
    teacher=Teacher(trajectories=5, steps=4, guidance=4.0, width=64, height=64, batch=4),
    optim=OptimConfig(lr=1e-3, weight_decay=0.0, ema=0.5),
    run=RunConfig(precision="fp32", checkpoint_every=3, report_seconds=0),
)
LEARNING = dataclasses.replace(
    SHORT,
    epochs=28,
    batch=8,
    micro=8,
    measure_every=100,
    world=DataConfig(text_to_image=1, edits=0, trajectories=0, categories={"single": 1}),
    teacher=dataclasses.replace(SHORT.teacher, trajectories=8, steps=8, batch=8),
    optim=OptimConfig(lr=5e-4, weight_decay=0.0, ema=0.5),
    run=dataclasses.replace(SHORT.run, checkpoint_every=100),
)
"""On the built-in model: a random one is the same with guidance and without."""
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_klein.make(tmp_path_factory.mktemp("klein"))


@pytest.fixture(scope="module")
def folder(model):
    return inspect(model)


@pytest.fixture(scope="module")
def short(tmp_path_factory, model):
    out = tmp_path_factory.mktemp("short")
    start(SHORT, str(model), None, out)
    return out


def archive_of(model, folder, **changes):
    told = dataclasses.replace(SHORT.teacher, **changes)
    klein = Klein.open(model, CPU)
    cache = Cache(folder)
    return klein, Archive(cache, Encodings(klein.folder, CPU, torch.float32, cache), told, 4, seed=3)


def prompts(references=1):
    made = teacher.world_prompts(DataConfig(text_to_image=0.2, edits=0.5, trajectories=0.3), 60, 1, 64)
    return [p for p in made if p.references == references][:3]


@settings(deadline=None, max_examples=25)
@given(steps=st.integers(1, 8), finer=st.integers(1, 9), height=st.integers(1, 9), width=st.integers(1, 9))
def test_the_teachers_levels_hold_those_at_which_the_sampler_evaluates_the_student(folder, steps, finer, height, width):
    told = Teacher(steps=steps * finer, height=16 * height, width=16 * width)
    found = teacher.levels(told, steps)
    assert found[0] == 1
    assert found[-1] == 0
    assert (found.diff() < 0).all()
    torch.testing.assert_close(found[::finer], sigmas(folder, steps, height * width), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 999),
    windows=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    share=st.floats(0, 0.75, width=32),
)
def test_one_step_along_the_target_lands_on_the_teachers_next_state_from_anywhere_inside(seed, windows, share):
    random = torch.Generator().manual_seed(seed)
    unread = TextContext(torch.zeros(1, 1, 1), torch.ones(1, 1))
    ways = Trajectories(torch.randn(len(windows), 5, 4, 128, generator=random), 2, 2, unread, ())
    knots = torch.tensor([1.0, 0.955, 0.875, 0.7, 0.0])
    window = torch.tensor(windows)
    made = samples(ways, knots, window, torch.full((len(windows),), share))
    landed = made.x.tokens + (knots[window + 1] - made.t)[:, None, None] * made.target
    torch.testing.assert_close(landed, ways.tokens[torch.arange(len(windows)), window + 1], rtol=1e-4, atol=1e-4)
    if share == 0:
        torch.testing.assert_close(made.t, knots[window])


def test_a_trajectory_is_the_guided_ode_from_its_noise(model, tmp_path):
    klein, archive = archive_of(model, tmp_path)
    rows = [teacher.Item(n, p, 64 + 8 * 40) for n, p in enumerate(prompts())]
    archive.draw(klein.transformer, rows)
    found = archive.read(rows, CPU)
    context = klein.encoders.encode_text([r.prompt.text for r in rows], rows[0].length)
    empty = klein.encoders.encode_text([""] * len(rows), rows[0].length)
    given_ = [klein.encoders.encode_images([r.prompt.pictures()[0] for r in rows])]
    noise = Latents(found.tokens[:, 0], 4, 4)
    once = sample(klein.transformer, noise, archive.levels, context, given_, 4.0, empty)
    torch.testing.assert_close(found.tokens[:, -1], once.tokens)
    assert found.tokens.shape == (3, 5, 16, 128)
    assert not torch.equal(found.tokens[0, 0], found.tokens[1, 0])


def test_what_is_drawn_is_not_drawn_again_unless_it_depends_on_something_else(model, tmp_path):
    klein, archive = archive_of(model, tmp_path)
    rows = [teacher.Item(n, Prompt(f"a {c} circle"), 64) for n, c in enumerate(("red", "blue", "green"))]
    assert [len(batch) for batch in archive.missing(rows)] == [3]
    archive.draw(klein.transformer, rows[:2])
    assert archive.missing(rows) == [rows[2:]]
    assert len(archive_of(model, tmp_path, guidance=3.0)[1].missing(rows)[0]) == 3
    with pytest.raises(SettingError, match="damaged or gone"):
        archive.read(rows, CPU)


@settings(deadline=None)
@given(count=st.integers(0, 20), processes=st.integers(1, 5))
def test_processes_share_all_batches_and_have_equally_many(count, processes):
    batches = [[teacher.Item(n, Prompt("a"), 64)] for n in range(count)]
    shares = [list(teacher.own(batches, p, processes)) for p in range(processes)]
    assert len({len(share) for share in shares}) == 1
    assert sorted({item.number for share in shares for (item,) in share}) == list(range(count))


def test_a_short_training_brings_the_student_near_to_the_teacher_where_the_base_is_far(tmp_path):
    out = start(LEARNING, str(builtin.PATH), None, tmp_path).parent
    losses = [float(row["loss"]) for row in read(out / "log.csv")]
    assert sum(losses[-8:]) < 0.5 * sum(losses[:8])
    base, student = (Klein.open(path, CPU) for path in (builtin.PATH, out / "model"))
    cache = Cache(out / "teacher")
    archive = Archive(cache, Encodings(base.folder, CPU, torch.float32, cache), LEARNING.teacher, 4, 0)
    rows = teacher.items(distill.prompts(LEARNING, None), 10, base.encoders)[LEARNING.held :]
    found = [archive.read([row], CPU) for row in rows]
    far, near = (
        torch.cat([distill.distance(k.transformer, one, archive.knots) for one in found]).mean()
        for k in (base, student)
    )
    assert near < 0.6 * far


def test_the_folder_draws_in_four_steps_without_guidance_and_merges(short, model, tmp_path):
    found = inspect(short / "model")
    assert sorted(p.name for p in (short / "sheets").iterdir()) == ["base.png", "student.png"]
    assert (short / "curve.png").exists()
    assert found.distilled
    assert (found.sampling.steps, found.sampling.guidance) == (4, 1.0)
    assert found.sampling.text_encoder_out_layers == tiny_klein.OUT_LAYERS
    assert Flux2KleinPipeline.from_pretrained(short / "model").config["is_distilled"] is True
    generator = Flux2Generator.load(short / "model", device="cpu")
    assert generator.nfe(1) == 4
    assert generator.draw(Context("a red circle"), (64, 64), (0,)).images[0].size == (64, 64)
    aligned = tiny_klein.make(tmp_path / "aligned", seed=0)
    merge(Recipe(tmp_path / "merged", model, Source(short / "model"), (Source(aligned),), form="diffusers"))
    merged, student = (
        load_file(next((p / "transformer").glob("*.safetensors"))) for p in (tmp_path / "merged", short / "model")
    )
    assert all(torch.allclose(merged[k].float(), student[k].float(), atol=1e-2) for k in student)


def test_two_processes_that_share_one_model_give_the_losses_of_one(short, model, tmp_path):
    shared = dataclasses.replace(SHORT, run=dataclasses.replace(SHORT.run, shard=True))
    (tmp_path / "recipe.yaml").write_text(json.dumps(plain(shared)))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "training.distill"]
    given = ["--recipe", tmp_path / "recipe.yaml", "--model", model, "--out", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, *launch, *map(str, given)],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    ours, theirs = (read(out / "log.csv") for out in (tmp_path / "out", short))
    for name in ("loss", "distance"):
        told = [float(row[name]) for row in theirs if row[name]]
        assert [float(row[name]) for row in ours if row[name]] == pytest.approx(told, rel=1e-4)
    trained = [load_file(out / "model" / WEIGHTS) for out in (tmp_path / "out", short)]
    assert all(torch.allclose(trained[0][k], trained[1][k], rtol=1e-2, atol=1e-3) for k in trained[1])


@pytest.mark.parametrize("at", [0, 4])
def test_a_killed_run_goes_on_with_exactly_the_uninterrupted_losses(short, model, tmp_path, monkeypatch, at):
    inner = distill.Trainer._step

    def dies(trainer, running, number):
        if number == at:
            raise Killed
        return inner(trainer, running, number)

    with monkeypatch.context() as patch:
        patch.setattr(distill.Trainer, "_step", dies)
        with pytest.raises(Killed):
            start(SHORT, str(model), None, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Archive, "draw", lambda *_: pytest.fail("drawn again"))
        start(SHORT, str(model), None, tmp_path)
    assert (tmp_path / "log.csv").read_text() == (short / "log.csv").read_text()
    ours, theirs = (load_file(out / "model" / WEIGHTS) for out in (tmp_path, short))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_a_dataset_of_trajectories_gives_the_prompts(model, tmp_path):
    data = sft_fixtures.write(tmp_path / "data")
    made = teacher.dataset_prompts(data)
    assert {p.references for p in made} == {0, 1, 2}
    assert all(len(p.pictures()) == p.references for p in made)
    config = dataclasses.replace(SHORT, epochs=1, teacher=dataclasses.replace(SHORT.teacher, steps=4))
    assert inspect(start(config, str(model), data, tmp_path / "out")).distilled


def test_fewer_prompts_than_trajectories_come_again_with_other_noise(model):
    encoders = Klein.open(model, CPU).encoders
    made = teacher.items([Prompt("a"), Prompt("long" * 500), Prompt("b")], 5, encoders)
    assert [(i.number, i.prompt.text) for i in made] == [(0, "a"), (1, "b"), (2, "a"), (3, "b"), (4, "a")]
    with pytest.raises(SettingError, match="No prompt fits into 512 tokens"):
        teacher.items([Prompt("long" * 500)], 5, encoders)


def test_what_cannot_work_is_refused_by_name(model, tmp_path):
    with pytest.raises(SettingError, match="is distilled already"):
        start(SHORT, str(tiny_klein.make(tmp_path / "few", distilled=True)), None, tmp_path / "out")
    odd = dataclasses.replace(SHORT, teacher=dataclasses.replace(SHORT.teacher, steps=6))
    with pytest.raises(SettingError, match="6 steps of the teacher do not divide into 4"):
        start(odd, str(model), None, tmp_path / "out")
    with pytest.raises(SettingError, match="multiples of 16"):
        Teacher(width=100)
    with pytest.raises(SettingError, match="inside 2"):
        DistillConfig(inside=2)


@pytest.mark.parametrize("name", sorted(p.name for p in FOLDER.glob("distill*.yaml")))
def test_every_recipe_loads(name):
    assert load(FOLDER / name, DistillConfig).teacher.steps == 28


def test_a_mistyped_field_is_named(tmp_path):
    (tmp_path / "recipe.yaml").write_text(json.dumps({"teacher": {"step": 3}}))
    with pytest.raises(FormatError, match="teacher"):
        load(tmp_path / "recipe.yaml", DistillConfig)
