"""PPRL on a tiny true klein: the three policies, whole runs, resume, processes, failures, and the monitors."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import random
import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image, ImageFilter
from safetensors.torch import load_file

from clvr.dswm.adapters import open_adapter
from clvr.errors import MissingFileError, SettingError, VLMTimeoutError
from clvr.shapes.render import render
from clvr.shapes.sampler import canvas
from training import monitors, nft, pprl, rollouts, trackers
from training.klein import Klein, Latents
from training.learner import NFT, Learner
from training.policy import Lora, Policy
from training.pprl import PPRLConfig, Reward
from training.proxy import Cache, LastWords, Offline, WorldTeacher
from training.recipe import load, plain
from training.rollouts import Drawing, Group, judged
from training.runs import OptimConfig, RunConfig
from training.tasks import World, mixed

from . import tiny_klein
from .adapters_fixtures import delta, piece_shapes

ROOT = Path(__file__).parent.parent
DRAWING = Drawing(64, 64, steps=3, guidance=1.5, batch=3)
CONFIG = PPRLConfig(
    epochs=2,
    groups=2,
    group=4,
    updates=1,
    teacher="world",
    sheet_every=1,
    fixed=2,
    run=RunConfig(precision="fp32", checkpoint_every=1),
    optim=OptimConfig(lr=1e-2, ema=0.5),
    lora=Lora(2, 4),
    nft=NFT(times=2, kl_coef=0.1),
    reward=Reward(workers=1),
    drawing=DRAWING,
)


MODEL = ROOT / "clvr" / "builtin"
"""For whole runs: what a random klein draws earns nothing."""


@pytest.fixture(scope="module")
def klein(tmp_path_factory):
    return tiny_klein.make(tmp_path_factory.mktemp("klein"), positions=2048)


@pytest.fixture
def policy(klein):
    return Policy(Klein.open(klein, torch.device("cpu")), Lora(2, 4))


def task(edit=True):
    return World().draw("i2i 1" if edit else "t2i", random.Random(1))


def probe(policy, which, edit=True):
    """The velocity of one of the three at a fixed place."""
    given = rollouts.condition(policy.klein.encoders, task(edit), DRAWING).rows(2)
    noisy = Latents(torch.randn(2, 16, 128, generator=torch.Generator().manual_seed(0)), 4, 4)
    with policy.acting(which), torch.no_grad():
        return policy.velocity(noisy, torch.tensor([0.3, 0.8]), given, 2.0)


def moved(policy, by=0.1):
    with torch.no_grad():
        for parameter in policy.trained.values():
            parameter += by


def group(policy, rewards=(1.0, 0.0, 0.5, 0.2), edit=True):
    chosen = task(edit)
    given = rollouts.condition(policy.klein.encoders, chosen, DRAWING)
    start = rollouts.noise(len(rewards), DRAWING, torch.Generator().manual_seed(1))
    latents = rollouts.draw(policy, given, start, policy.klein.sigmas(3, 16), DRAWING)
    return Group(0, chosen, WorldTeacher().proxy(chosen.context), given, latents, []), judged(rewards)


def learner(policy, autocast=contextlib.nullcontext, **settings):
    config = NFT(times=2, **settings)
    return Learner(policy, config, policy.klein.sigmas(3, 16), 2.0, 3, 0, autocast)


# the three policies


def test_before_anything_is_learned_the_three_policies_are_one(policy):
    new, old, reference = (probe(policy, which) for which in ("new", "old", "reference"))
    assert torch.equal(new, old)
    torch.testing.assert_close(new, reference)


def test_what_is_learned_moves_the_new_policy_alone_until_the_old_one_follows(policy):
    before = probe(policy, "old")
    moved(policy)
    assert not torch.allclose(probe(policy, "new"), before)
    assert torch.equal(probe(policy, "old"), before)
    torch.testing.assert_close(probe(policy, "reference"), before)
    policy.follow(0.0)
    assert torch.equal(probe(policy, "old"), probe(policy, "new"))
    torch.testing.assert_close(probe(policy, "reference"), before)


def test_only_the_new_policy_has_gradients_whoever_acted_last(policy):
    for which in ("old", "reference", "new"):
        with policy.acting(which):
            pass
        wanted = {n for n, p in policy.klein.transformer.named_parameters() if p.requires_grad}
        assert wanted == set(policy.trained)


def test_guidance_in_one_forward_is_guidance_in_two(policy):
    moved(policy)
    given = rollouts.condition(policy.klein.encoders, task(), DRAWING).rows(2)
    noisy, t = Latents(torch.randn(2, 16, 128), 4, 4), torch.tensor([0.3, 0.8])
    with torch.no_grad():
        both = policy.velocity(noisy, t, given, 3.0)
        positive = policy.velocity(noisy, t, given, 1.0)
        negative = policy.velocity(noisy, t, dataclasses.replace(given, context=given.negative), 1.0)
    torch.testing.assert_close(both, negative + 3 * (positive - negative), rtol=1e-4, atol=1e-4)


def test_loras_of_weights_in_bf16_are_learned_in_fp32(klein):
    policy = Policy(Klein.open(klein, torch.device("cpu"), torch.bfloat16), Lora(2, 4))
    autocast = functools.partial(torch.autocast, "cpu", torch.bfloat16)
    with autocast():
        drawn = group(policy)
    learned = learner(policy, autocast).learn(0, *drawn, 0.25)
    assert torch.isfinite(learned.policy)
    assert {p.dtype for p in (*policy.trained.values(), *policy.old.values())} == {torch.float32}
    assert {p.grad.dtype for p in policy.trained.values()} == {torch.float32}


def test_at_the_start_the_distance_to_the_sft_is_nothing(policy):
    learned = learner(policy).learn(0, *group(policy), 0.25)
    assert learned.kl < 1e-10
    assert learned.policy > 0


def test_a_group_of_equal_rewards_moves_nothing_at_the_start(policy):
    learner(policy, kl_coef=0.0).learn(0, *group(policy, (0.5,) * 4), 0.25)
    assert max(float(p.grad.abs().max()) for p in policy.trained.values()) < 1e-7


def test_the_old_policy_does_not_move_while_the_new_one_learns(policy):
    before = {n: p.clone() for n, p in policy.old.items()}
    optimizer = torch.optim.SGD(policy.trained.values(), 0.1)
    learner(policy).learn(0, *group(policy), 0.25)
    optimizer.step()
    assert all(torch.equal(p, before[n]) for n, p in policy.old.items())
    assert any(not torch.equal(p, q) for p, q in zip(policy.trained.values(), policy.old.values(), strict=True))


def test_activations_computed_twice_give_the_same_gradients(policy):
    moved(policy)
    drawn = group(policy)
    learner(policy).learn(0, *drawn, 0.25)
    kept = {name: p.grad.clone() for name, p in policy.trained.items()}
    for parameter in policy.trained.values():
        parameter.grad = None
    policy.klein.transformer.enable_gradient_checkpointing()
    learner(policy).learn(0, *drawn, 0.25)
    for name, parameter in policy.trained.items():
        torch.testing.assert_close(parameter.grad, kept[name])


@pytest.mark.parametrize("levels", ["sampler", "uniform"])
def test_every_picture_is_trained_at_levels_of_its_own(policy, levels):
    times = learner(policy, levels=levels)._times(50, torch.Generator().manual_seed(0))
    assert times.shape == (50, 2)
    assert ((times > 0) & (times <= 1)).all()
    assert all(len(set(row.tolist())) == 2 for row in times)


def test_the_lora_is_merged_as_it_acts(policy, tmp_path):
    moved(policy)
    policy.save(tmp_path)
    adapter = open_adapter(tmp_path, piece_shapes(tiny_klein.transformer().state_dict()))
    layers = dict(policy.klein.transformer.named_modules())
    for target in policy.targets:
        wanted = layers[target].get_delta_weight("default")
        torch.testing.assert_close(delta(adapter, f"{target}.weight", "diffusers"), wanted, rtol=1e-5, atol=1e-6)


# groups


def test_a_picture_without_a_reward_weighs_nothing_and_is_no_zero():
    verdict = judged([0.2, None, 0.8, 0.5])
    assert verdict.weights.tolist() == [1, 0, 1, 1]
    torch.testing.assert_close(verdict.advantages[[0, 2, 3]], nft.advantages(torch.tensor([0.2, 0.8, 0.5])))


@pytest.mark.parametrize("rewards", [(None, None), (None, 0.7)])
def test_a_group_with_fewer_than_two_rewards_is_left_out(rewards):
    assert not judged(rewards).weights.any()


# runs


def run(out, config=CONFIG):
    return pprl.start(config, str(MODEL), None, out)


def log(out):
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in trackers.read(out / "log.csv")]


def state(out, step=2):
    folder = out / "checkpoints" / f"step-{step:08d}"
    return {p.name: load_file(p) for p in sorted(folder.glob("*.safetensors"))}


def same(first, second, **tolerance):
    assert first.keys() == second.keys()
    for name, tensors in first.items():
        for key, value in tensors.items():
            torch.testing.assert_close(value, second[name][key], msg=f"{name} {key}", **tolerance)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    run(out)
    return out


def test_a_run_leaves_a_lora_its_log_a_curve_and_sheets(whole):
    assert (whole / "lora" / "pytorch_lora_weights.safetensors").is_file()
    rows = log(whole)
    assert len(rows) == 2
    assert all(0.1 < float(row["reward"]) < 1 and float(row["spread"]) > 0 for row in rows)
    assert {"fixed", "reward", "spread", "kl", "grid", "latents", "shift", "dropped"} <= set(rows[0])
    assert Image.open(whole / "curve.png").width > 500
    assert sorted(p.name for p in (whole / "sheets").iterdir()) == ["epoch-00001.png", "epoch-00002.png"]


def test_what_is_published_is_the_average_of_the_policies(whole):
    kept = state(whole)
    average, last = kept["ema-00000-000.safetensors"], kept["lora-00000-000.safetensors"]
    published = load_file(whole / "lora" / "pytorch_lora_weights.safetensors")
    for name, value in published.items():
        live = name.removeprefix("transformer.").replace(".weight", ".default.weight")
        assert torch.equal(value, average[f"policy.{live}"])
    assert any(not torch.equal(value, average[f"policy.{name}"]) for name, value in last.items() if ".default." in name)


def test_a_killed_run_goes_on_as_if_it_had_not_been(whole, tmp_path):
    class Killed(Exception):
        pass

    def epoch(self, number):
        if number == 1:
            raise Killed
        kept(self, number)

    kept, pprl.Trainer.epoch = pprl.Trainer.epoch, epoch
    try:
        with pytest.raises(Killed):
            run(tmp_path)
    finally:
        pprl.Trainer.epoch = kept
    run(tmp_path)
    assert log(tmp_path) == log(whole)
    same(state(tmp_path), state(whole), rtol=0, atol=0)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The folders of two runs by two processes: with a copy of the model each, and with shares of one."""
    folder = tmp_path_factory.mktemp("two")
    for name, shard in (("copied", False), ("shared", True)):
        told = plain(dataclasses.replace(CONFIG, run=dataclasses.replace(CONFIG.run, shard=shard)))
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(json.loads(json.dumps(told))))
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "tests.pprl_worker"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, *launch, str(MODEL), str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return folder


@pytest.mark.parametrize("name", ["copied", "shared"])
def test_two_processes_give_the_losses_and_the_lora_of_one(whole, two_processes, name):
    """`shared`: the weights under the LoRA lie half with each process (FSDP2)."""
    out = two_processes / name
    assert len(list(out.glob("checkpoints/step-00000002/random-*"))) == 2
    for one, two in zip(log(whole), log(out), strict=True):
        for quantity in ("reward", "fixed", "policy_loss", "kl", "gradient", "shift"):
            assert float(two[quantity]) == pytest.approx(float(one[quantity]), rel=1e-3, abs=1e-6), quantity
    part = "lora-00000-000.safetensors"
    same({part: state(out)[part]}, {part: state(whole)[part]}, rtol=1e-2, atol=1e-3)


class Judge:
    """R_T2I that fails for every second picture."""

    name = "judge"

    def __init__(self, fails=lambda n: n % 2):
        self.fails, self.calls, self.lock = fails, 0, threading.Lock()

    def score(self, image, prompt):
        with self.lock:
            self.calls += 1
            number = self.calls
        if self.fails(number):
            raise VLMTimeoutError("It did not answer in time.")
        return float(np.asarray(image, np.float32).mean() / 255)


def judging(monkeypatch, judge):
    class Edit:
        name = "edit"

        def score(self, image, source, prompt):
            return 0.5

    monkeypatch.setattr(Reward, "build", lambda self: pprl.rewards.ProxyReward(judge, Edit()))


def test_failed_rewards_are_dropped_and_counted_and_the_rest_is_learned_from(tmp_path, monkeypatch):
    judging(monkeypatch, Judge())
    run(tmp_path, dataclasses.replace(CONFIG, epochs=1, reward=Reward(workers=1, tries=1)))
    (row,) = log(tmp_path)
    assert float(row["dropped"]) == 4
    assert float(row["gradient"]) > 0
    assert 0 < float(row["reward"]) < 1


def test_without_any_reward_nothing_is_learned_and_it_is_said(tmp_path, monkeypatch, capsys):
    judging(monkeypatch, Judge(lambda _: True))
    run(tmp_path, dataclasses.replace(CONFIG, epochs=1, reward=Reward(workers=1, tries=1)))
    (row,) = log(tmp_path)
    assert float(row["dropped"]) == 8
    assert "reward" not in row
    assert float(row["shift"]) == 0
    assert "No reward could be had" in capsys.readouterr().out


def test_pictures_are_scored_while_the_next_are_drawn(tmp_path, monkeypatch):
    """The first group's scores wait until the second group is drawn: without overlap they would wait in vain."""
    drawn, count = threading.Event(), 0
    real = rollouts.draw

    def draw(*args):
        nonlocal count
        made, count = real(*args), count + 1
        if count == 2:
            drawn.set()
        return made

    class Waiting(Judge):
        def score(self, image, prompt):
            assert drawn.wait(60)
            return 0.5

    monkeypatch.setattr(rollouts, "draw", draw)
    judging(monkeypatch, Waiting())
    run(tmp_path, dataclasses.replace(CONFIG, epochs=1))
    assert drawn.is_set()


def test_simple_rl_is_one_switch():
    assert isinstance(dataclasses.replace(CONFIG, simple=True).named_teacher(None), LastWords)
    assert isinstance(CONFIG.named_teacher(None), WorldTeacher)


def test_proxies_that_were_not_extracted_are_asked_for_by_name(tmp_path):
    config = dataclasses.replace(CONFIG, teacher="dataset")
    with pytest.raises(SettingError, match="needs --data"):
        config.named_teacher(None)
    with pytest.raises(MissingFileError, match=r"python -m training\.proxies"):
        config.named_teacher(tmp_path)
    known, unknown = islice(mixed(World(), random.Random(0)), 2)
    Cache(tmp_path, "some VLM").put(known.context, WorldTeacher().proxy(known.context))
    assert Offline(tmp_path).proxy(known.context) == WorldTeacher().proxy(known.context)
    with pytest.raises(MissingFileError, match="no proxy prompt for a step of"):
        Offline(tmp_path).proxy(unknown.context)


@pytest.mark.parametrize("path", sorted((ROOT / "training" / "recipes").glob("pprl*.yaml")), ids=lambda p: p.stem)
def test_the_shipped_recipes_are_whole(path):
    assert load(path, PPRLConfig).groups


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"group": 1}, "at least two pictures"),
        ({"groups": 3, "updates": 2}, "multiple of updates"),
        ({"drawing": Drawing(60, 64)}, "multiples of 16"),
    ],
)
def test_settings_that_cannot_work_are_refused(change, problem):
    with pytest.raises(SettingError, match=problem):
        dataclasses.replace(CONFIG, **change)


def test_a_reward_server_must_be_named():
    with pytest.raises(SettingError, match=r"reward\.url and reward\.edit_url"):
        Reward("unified", url="http://localhost:1")


# monitors


def photographs(count=6, side=128, pattern=0.0, period=16):
    """Smooth random pictures with a grid of `pattern` grey levels laid over them."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        noise = Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))
        pixels = np.asarray(noise.filter(ImageFilter.GaussianBlur(3)), np.float32)
        lines = (np.arange(side) % period == 0).astype(np.float32)
        grid = np.maximum(lines[:, None], lines[None, :])[..., None]
        pixels = pixels + pattern * grid + rng.normal(0, 2, pixels.shape)
        made.append(Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
    return made


FIRST = {"grid": 1.1, "latents": 1.0, "shift": 0.0}


def test_a_grid_of_the_tokens_period_is_seen_and_told_of():
    clean, gridded = monitors.grid(photographs()), monitors.grid(photographs(pattern=12))
    assert clean < 2
    assert gridded > 5 * clean
    (told,) = monitors.warnings({**FIRST, "grid": gridded}, {**FIRST, "grid": clean}, monitors.Limits())
    assert "A grid of 16 pixels appears" in told


def test_lines_of_another_period_are_no_token_grid():
    assert monitors.grid(photographs(pattern=12, period=20)) < 2


def test_objects_that_stand_on_the_grid_are_compared_with_themselves():
    first = monitors.grid([render(canvas(random.Random(n), 3, 5)) for n in range(8)])
    assert not monitors.warnings({**FIRST, "grid": 1.2 * first}, {**FIRST, "grid": first}, monitors.Limits())


@pytest.mark.parametrize("factor", [0.6, 1.5])
def test_latents_that_swell_or_shrink_are_told_of(factor):
    tokens = torch.randn(4, 16, 128, generator=torch.Generator().manual_seed(0))
    assert monitors.rms(tokens) == pytest.approx(1, abs=0.05)
    now = {**FIRST, "latents": monitors.rms(tokens * factor)}
    (told,) = monitors.warnings(now, {**FIRST, "latents": monitors.rms(tokens)}, monitors.Limits())
    assert "latents' size has changed by a factor of" in told


def test_a_lora_that_outgrows_small_changes_is_told_of(policy):
    moved(policy, 0.3)
    (told,) = monitors.warnings({**FIRST, "shift": policy.shift()}, FIRST, monitors.Limits())
    assert "The LoRA changes the weights by" in told


def test_a_run_as_it_began_warns_of_nothing():
    assert monitors.warnings(FIRST, FIRST, monitors.Limits()) == []
