"""A student that draws in a few steps what its teacher draws in many under guidance."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from diffusers import Flux2KleinPipeline
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from clvr.context import Context
from clvr.dswm.merge import merge
from clvr.dswm.recipe import Recipe, Source
from clvr.errors import FormatError, SettingError
from clvr.flux2.folder import inspect
from clvr.flux2.generator import Flux2Generator
from training import distill, teacher
from training.config import DataConfig
from training.distill import DistillConfig, samples, start
from training.klein import Klein, Latents, sample, sigmas
from training.latent_cache import Cache, Encodings
from training.recipe import FOLDER, load
from training.runs import OptimConfig, RunConfig
from training.teacher import Archive, Prompt, Teacher, Trajectories
from training.trackers import read

from . import sft_fixtures, tiny_klein

CPU = torch.device("cpu")
CONFIG = DistillConfig(
    epochs=24,
    batch=8,
    micro=8,
    inside=0.25,
    held=2,
    measure_every=6,
    gradient_checkpointing=False,
    teacher=Teacher(trajectories=8, steps=8, guidance=4.0, width=64, height=64, batch=8),
    optim=OptimConfig(lr=2e-3, weight_decay=0.0, ema=0.5),
    run=RunConfig(precision="fp32", checkpoint_every=5, report_seconds=0),
)
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


class Killed(Exception):
    pass


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_klein.make(tmp_path_factory.mktemp("klein"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model):
    out = tmp_path_factory.mktemp("whole")
    start(CONFIG, str(model), None, out)
    return out


def archive_of(model, folder, steps=4, **changes):
    told = dataclasses.replace(CONFIG.teacher, **changes)
    klein = Klein.open(model, CPU)
    cache = Cache(folder)
    return klein, Archive(cache, Encodings(klein.folder, CPU, torch.float32, cache), told, steps, seed=3)


def prompts(references=1):
    made = teacher.world_prompts(DataConfig(text_to_image=0.2, edits=0.5, trajectories=0.3), 60, 1, 64)
    return [p for p in made if p.references == references][:3]


@given(steps=st.integers(1, 8), finer=st.integers(1, 9), height=st.integers(1, 9), width=st.integers(1, 9))
def test_the_teachers_levels_hold_those_at_which_the_sampler_evaluates_the_student(model, steps, finer, height, width):
    told = Teacher(steps=steps * finer, height=16 * height, width=16 * width)
    found = teacher.levels(told, steps)
    assert found[0] == 1
    assert found[-1] == 0
    assert (found.diff() < 0).all()
    torch.testing.assert_close(found[::finer], sigmas(inspect(model), steps, height * width), rtol=1e-5, atol=1e-6)


@given(
    seed=st.integers(0, 999),
    windows=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    share=st.floats(0, 0.99, width=32),
)
def test_one_step_along_the_target_lands_on_the_teachers_next_state_from_anywhere_inside(seed, windows, share):
    random = torch.Generator().manual_seed(seed)
    ways = Trajectories(torch.randn(len(windows), 5, 4, 128, generator=random), 2, 2, None, ())
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


@given(count=st.integers(0, 20), processes=st.integers(1, 5))
def test_processes_share_all_batches_and_have_equally_many(count, processes):
    batches = [[n] for n in range(count)]
    shares = [list(teacher.own(batches, p, processes)) for p in range(processes)]
    assert len({len(share) for share in shares}) == 1
    assert sorted({n for share in shares for (n,) in share}) == list(range(count))


def test_the_student_learns_to_land_where_its_teacher_lands(whole):
    log = read(whole / "log.csv")
    measured = [float(row["distance"]) for row in log if row["distance"]]
    losses = [float(row["loss"]) for row in log]
    assert sum(losses[-4:]) < 0.5 * sum(losses[:4])
    assert measured[-1] < 0.8 * measured[0]


def test_on_its_prompts_the_student_is_nearer_to_the_teacher_than_the_base_at_as_many_steps(whole, model):
    klein, archive = archive_of(model, whole / "teacher")
    archive = Archive(archive.cache, archive.encodings, CONFIG.teacher, CONFIG.steps, CONFIG.run.seed)
    rows = teacher.items(distill.prompts(CONFIG, None), 10, klein.encoders)[CONFIG.held :]
    student = Klein.open(whole / "model", CPU)
    near = {}
    for name, transformer in (("base", klein.transformer), ("student", student.transformer)):
        found = [distill.distance(transformer, archive.read([row], CPU), archive.knots) for row in rows]
        near[name] = float(torch.cat(found).mean())
    assert near["student"] < 0.5 * near["base"]


def test_the_folder_draws_in_four_steps_without_guidance_and_merges(whole, model, tmp_path):
    found = inspect(whole / "model")
    assert found.distilled
    assert (found.sampling.steps, found.sampling.guidance) == (4, 1.0)
    assert found.sampling.text_encoder_out_layers == tiny_klein.OUT_LAYERS
    assert Flux2KleinPipeline.from_pretrained(whole / "model").config["is_distilled"] is True
    generator = Flux2Generator.load(whole / "model", device="cpu")
    assert generator.nfe(1) == 4
    assert generator.draw(Context("a red circle"), (64, 64), (0,)).images[0].size == (64, 64)
    aligned = tiny_klein.make(tmp_path / "aligned", seed=0)
    merge(Recipe(tmp_path / "merged", model, Source(whole / "model"), (Source(aligned),), form="diffusers"))
    merged, student = (
        load_file(next((p / "transformer").glob("*.safetensors"))) for p in (tmp_path / "merged", whole / "model")
    )
    assert all(torch.allclose(merged[k].float(), student[k].float(), atol=1e-2) for k in student)


@pytest.mark.parametrize("at", [0, 5, 8])
def test_a_killed_run_goes_on_with_exactly_the_uninterrupted_losses(model, tmp_path, monkeypatch, at):
    config = dataclasses.replace(CONFIG, epochs=6)
    start(config, str(model), None, tmp_path / "whole")
    inner = distill.Trainer._step

    def dies(trainer, running, number):
        if number == at:
            raise Killed
        return inner(trainer, running, number)

    with monkeypatch.context() as patch:
        patch.setattr(distill.Trainer, "_step", dies)
        with pytest.raises(Killed):
            start(config, str(model), None, tmp_path / "part")
    with monkeypatch.context() as patch:
        patch.setattr(Archive, "draw", lambda *_: pytest.fail("drawn again"))
        start(config, str(model), None, tmp_path / "part")
    assert (tmp_path / "part" / "log.csv").read_text() == (tmp_path / "whole" / "log.csv").read_text()
    ours, theirs = (load_file(tmp_path / name / "model" / WEIGHTS) for name in ("part", "whole"))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_a_dataset_of_trajectories_gives_the_prompts(model, tmp_path):
    data = sft_fixtures.write(tmp_path / "data")
    made = teacher.dataset_prompts(data)
    assert {p.references for p in made} == {0, 1, 2}
    assert all(len(p.pictures()) == p.references for p in made)
    config = dataclasses.replace(CONFIG, epochs=1, teacher=dataclasses.replace(CONFIG.teacher, steps=4))
    assert inspect(start(config, str(model), data, tmp_path / "out")).distilled


def test_fewer_prompts_than_trajectories_come_again_with_other_noise(model):
    encoders = Klein.open(model, CPU).encoders
    made = teacher.items([Prompt("a"), Prompt("long" * 500), Prompt("b")], 5, encoders)
    assert [(i.number, i.prompt.text) for i in made] == [(0, "a"), (1, "b"), (2, "a"), (3, "b"), (4, "a")]
    with pytest.raises(SettingError, match="No prompt fits into 512 tokens"):
        teacher.items([Prompt("long" * 500)], 5, encoders)


def test_what_cannot_work_is_refused_by_name(model, tmp_path):
    with pytest.raises(SettingError, match="is distilled already"):
        start(CONFIG, str(tiny_klein.make(tmp_path / "few", distilled=True)), None, tmp_path / "out")
    odd = dataclasses.replace(CONFIG, teacher=dataclasses.replace(CONFIG.teacher, steps=6))
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
