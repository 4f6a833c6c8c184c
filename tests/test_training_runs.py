"""A run goes on where it was killed, is a function of its recipe, and says what is wrong."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from clvr.errors import DivergedError, RunLockedError, SettingError, WeightsError
from training import checkpoints
from training.checkpoints import OptimizerState, Weights
from training.optim import Average
from training.recipe import plain
from training.runs import OptimConfig, Run, RunConfig, differences, duration, generator
from training.trackers import read

CONFIG = RunConfig(checkpoint_every=3)
OPTIM = OptimConfig(lr=0.1, warmup=0.2, decay="cosine", ema=0.9)


class Killed(Exception):
    pass


def train(folder, kill_at=None, total=8, config=CONFIG, optim=OPTIM, spoil=None):
    """A linear map towards random targets, with dropout from the global random state."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.2))
    with Run(config, folder, {"run": plain(config), "optim": plain(optim)}) as run:
        optimizer, average = optim.build(list(model.parameters())), Average({"model": model}, optim.ema)
        for name, part in (("model", Weights(model)), ("adamw", OptimizerState(optimizer)), ("ema", average)):
            run.keep(name, part)
        for step in run.steps(total):
            if step == kill_at:
                raise Killed
            x = torch.randn(5, 4, generator=generator(config.seed, step))
            loss = (model(x) - x[:, :3]).square().mean() * (float("nan") if step == spoil else 1)
            run.backward(loss, model)
            norm = run.update(optimizer, optim)
            average.update()
            run.notes["seen"] = run.notes.get("seen", 0) + 5
            run.log({"loss": run.sum(loss), "norm": norm, "lr": optimizer.param_groups[0]["lr"]})
    return {k: v.clone() for k, v in average.tensors().items()}, read(folder / "log.csv"), run.notes


@pytest.mark.parametrize("kill_at", [1, 3, 5, 7])
def test_a_killed_run_goes_on_exactly(tmp_path, kill_at):
    whole = train(tmp_path / "whole")
    with pytest.raises(Killed):
        train(tmp_path / "part", kill_at)
    again = train(tmp_path / "part")
    assert again[1] == whole[1]
    assert [int(row["step"]) for row in whole[1]] == list(range(8))
    assert again[0].keys() == whole[0].keys()
    assert all(torch.equal(again[0][k], whole[0][k]) for k in whole[0])
    assert again[2] == whole[2] == {"seen": 40}


def test_old_checkpoints_go_and_half_written_ones_are_not_taken(tmp_path):
    train(tmp_path)
    kept = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000008"]
    (tmp_path / "checkpoints" / ".step-00000009.partial").mkdir()
    assert checkpoints.latest(tmp_path / "checkpoints").facts["step"] == 8
    assert not list(tmp_path.rglob("*.pt")) + list(tmp_path.rglob("*.bin")) + list(tmp_path.rglob("*.pkl"))


def test_a_run_writes_csv_and_tensorboard_and_says_how_long_it_takes(tmp_path, capsys):
    train(tmp_path, config=RunConfig(checkpoint_every=3, report_seconds=0))
    said = capsys.readouterr().out
    assert "step 1/8  loss" in said
    assert "left 0 s" in said
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert list(read(tmp_path / "log.csv")[0]) == ["step", "loss", "norm", "lr"]


def test_another_recipe_does_not_go_on_in_the_same_folder(tmp_path):
    train(tmp_path, total=2)
    with pytest.raises(SettingError, match=r"optim\.lr 0\.1 -> 0\.2"):
        train(tmp_path, total=2, optim=OptimConfig(lr=0.2, warmup=0.2, decay="cosine", ema=0.9))
    train(tmp_path, total=2, config=RunConfig(checkpoint_every=1))


def test_two_runs_do_not_write_into_one_folder(tmp_path):
    with Run(RunConfig(), tmp_path, {}), pytest.raises(RunLockedError):
        Run(RunConfig(), tmp_path, {})


def test_a_run_that_diverges_stops_and_keeps_its_checkpoint(tmp_path):
    with pytest.raises(DivergedError, match="step 5"):
        train(tmp_path, spoil=4)
    assert checkpoints.latest(tmp_path / "checkpoints").facts["step"] == 3


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train(tmp_path)
    found = checkpoints.latest(tmp_path / "checkpoints")
    for module, says in ((nn.Linear(4, 3), "lacks weight"), (nn.Sequential(nn.Linear(5, 3)), r"0\.weight as \(3, 4\)")):
        with found.open("model") as saved, pytest.raises(WeightsError, match=says):
            Weights(module).restore(saved)
    with pytest.raises(WeightsError, match="holds no vae"), found.open("vae"):
        pass
    (found.path / "model-00000-000.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(WeightsError, match="damaged"), found.open("model"):
        pass
    (found.path / "state.json").write_text("{")
    with pytest.raises(WeightsError, match=r"state\.json"):
        checkpoints.latest(tmp_path / "checkpoints")


def test_one_process_cannot_shard(tmp_path):
    with Run(RunConfig(shard=True), tmp_path, {}) as run, pytest.raises(SettingError, match="accelerate launch"):
        run.mesh()


@settings(max_examples=40, deadline=None)
@given(rows=st.integers(0, 9), writers=st.integers(1, 5), readers=st.integers(1, 5), reader=st.integers(0, 4))
def test_rows_that_some_processes_wrote_are_read_by_others(rows, writers, readers, reader, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rows")
    whole = torch.arange(rows * 2.0).view(rows, 2)
    size = max(1, -(-rows // writers))
    for n in range(writers):
        save_file({"w": whole[n * size : (n + 1) * size].clone()}, folder / f"{n}.safetensors")
    share = -(-rows // readers)
    start = min(rows, min(reader, readers - 1) * share)
    place = range(start, min(rows, start + share))
    opened = [safe_open(folder / f"{n}.safetensors", "pt") for n in range(writers)]
    got = checkpoints._rows([file.get_slice("w") for file in opened], place)
    assert torch.equal(got, whole[place.start : place.stop])


@given(st.floats(0, 0.9), st.integers(1, 500), st.sampled_from(["constant", "linear", "cosine"]))
def test_rates_rise_then_fall_and_are_never_zero(warmup, total, decay):
    config = OptimConfig(lr=1.0, warmup=warmup, decay=decay)
    rates = [config.rate(step, total) for step in range(total)]
    top = rates.index(max(rates))
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"warmup": 1.0}, {"ema": 1.0}, {"clip": -1.0}])
def test_settings_that_cannot_work_are_refused(wrong):
    with pytest.raises(SettingError, match="cannot work"):
        OptimConfig(**wrong)
    with pytest.raises(SettingError, match="checkpoint_every"):
        RunConfig(checkpoint_every=0)


def test_random_numbers_depend_on_their_key_alone():
    draws = {json.dumps(key): torch.rand(3, generator=generator(*key)).tolist() for key in ([0, 1], [0, 2], [1, 1])}
    assert len({tuple(v) for v in draws.values()}) == 3
    assert torch.rand(3, generator=generator(0, 1)).tolist() == draws["[0, 1]"]


def test_differences_and_durations_are_told():
    assert differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}) == ["a.b 1 -> 3"]
    assert [duration(s) for s in (40, 700, 3900)] == ["40 s", "12 min", "1 h 05 min"]
