"""SFT of a tiny true klein: one process or two, killed or not, the losses are the same, and they fall."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import Flux2KleinPipeline
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from clvr.context import Context
from clvr.dswm.merge import merge
from clvr.dswm.recipe import Recipe, Source
from clvr.errors import ClvrError, FormatError, MissingFileError, SettingError
from clvr.flux2.folder import inspect
from clvr.flux2.generator import Flux2Generator
from training.buckets import Item, Picture, Plan
from training.data.records import read
from training.klein import Encoders
from training.latent_cache import Cache, Encodings
from training.policy import Lora
from training.recipe import FOLDER, load, plain
from training.runs import OptimConfig, RunConfig
from training.sft_dit import Feed, SFTConfig, items, start
from training.trackers import read as read_log

from . import sft_fixtures, tiny_klein

ROOT = Path(__file__).parent.parent
CONFIG = SFTConfig(
    steps=6,
    batch=8,
    micro=2,
    gradient_checkpointing=False,
    held=2,
    measure_every=3,
    optim=OptimConfig(lr=1e-3, ema=0.9, warmup=0.2, decay="cosine"),
    run=RunConfig(precision="fp32", checkpoint_every=2, keep=9, report_seconds=0),
)
WEIGHTS = "model/transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_klein.make(tmp_path_factory.mktemp("klein"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return sft_fixtures.write(tmp_path_factory.mktemp("data"), trajectories=6)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, model, data):
    out = tmp_path_factory.mktemp("whole")
    start(CONFIG, str(model), data, out)
    return out


def recipe(path, config):
    path.write_text(yaml.safe_dump(json.loads(json.dumps(plain(config)))))
    return path


def command(folder, model, data):
    """One process, by the command line."""
    options = {"recipe": recipe(folder / "recipe.yaml", CONFIG), "data": data, "model": model, "out": folder / "out"}
    return [
        sys.executable,
        "-m",
        "training.sft_dit",
        *(word for k, v in options.items() for word in (f"--{k}", str(v))),
    ]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory, model, data):
    """The folders of two runs by two processes: with a copy of the model each, and with shares of one."""
    folder = tmp_path_factory.mktemp("two")
    shared = dataclasses.replace(CONFIG, run=dataclasses.replace(CONFIG.run, shard=True))
    pairs = []
    for name, config in (("copied", CONFIG), ("shared", shared)):
        pairs += [recipe(folder / f"{name}.yaml", config), folder / name]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "tests.sft_worker"]
    done = subprocess.run(
        [sys.executable, *launch, *map(str, (model, data, *pairs))],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("on 2 processes") == 2
    return folder


def column(out, name="loss"):
    return [float(row[name]) for row in read_log(out / "log.csv")]


def assert_equal_runs(out, whole):
    assert column(out) == pytest.approx(column(whole), rel=1e-5)
    assert [row["held"] != "" for row in read_log(out / "log.csv")] == [True, False, True, False, False, True]
    held = [[float(row["held"]) for row in read_log(folder / "log.csv") if row["held"]] for folder in (out, whole)]
    assert held[0] == pytest.approx(held[1], rel=1e-4)
    assert column(out, "gradient") == pytest.approx(column(whole, "gradient"), rel=1e-3)
    ours, theirs = (load_file(folder / WEIGHTS) for folder in (out, whole))
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-3, atol=1e-4)


def test_what_is_kept_from_training_is_measured_with_the_averaged_weights_and_drawn(whole, model, data):
    found = [row["held"] for row in read_log(whole / "log.csv")]
    assert [bool(value) for value in found] == [True, False, True, False, False, True]
    before = float(found[0])
    assert float(found[-1]) < before
    assert Image.open(whole / "curve.png").width > 500
    shown = Image.open(whole / "sheet.png")
    assert shown.width > 5 * 128  # the five samples of the last two trajectories


def test_more_cannot_be_kept_than_there_is(model, data, tmp_path):
    with pytest.raises(SettingError, match=r"held is 6, and .* has 6 trajectories"):
        start(dataclasses.replace(CONFIG, held=6), str(model), data, tmp_path)


def test_a_lora_over_shared_weights_is_refused():
    with pytest.raises(SettingError, match="A LoRA is not trained over weights that processes share"):
        SFTConfig(lora=Lora(2, 4), run=RunConfig(shard=True))


def test_two_processes_give_the_losses_and_weights_of_one(whole, two_processes):
    assert_equal_runs(two_processes / "copied", whole)
    assert len(list(two_processes.glob("copied/checkpoints/step-00000002/weights-*"))) == 1
    assert len(list(two_processes.glob("copied/checkpoints/step-00000002/random-*"))) == 2


def test_two_processes_that_share_one_model_give_the_same_and_one_goes_on_from_them(
    whole, two_processes, model, data, tmp_path
):
    assert_equal_runs(two_processes / "shared", whole)
    assert len(list(two_processes.glob("shared/checkpoints/step-00000002/weights-*"))) == 2
    shutil.copytree(two_processes / "shared", tmp_path / "alone")
    for step in (4, 6):
        shutil.rmtree(tmp_path / "alone" / "checkpoints" / f"step-{step:08d}")
    start(CONFIG, str(model), data, tmp_path / "alone")
    assert_equal_runs(tmp_path / "alone", whole)


def test_a_killed_run_goes_on_with_exactly_the_uninterrupted_losses(whole, model, data, tmp_path):
    process = subprocess.Popen(command(tmp_path, model, data), cwd=ROOT, stdout=subprocess.DEVNULL)
    before = time.monotonic()
    while not (tmp_path / "out" / "checkpoints" / "step-00000002").exists():
        assert process.poll() is None
        assert time.monotonic() - before < 600
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    start(CONFIG, str(model), data, tmp_path / "out")
    assert (tmp_path / "out" / "log.csv").read_text() == (whole / "log.csv").read_text()
    ours, theirs = (load_file(out / WEIGHTS) for out in (tmp_path / "out", whole))
    assert all(torch.equal(ours[k], theirs[k]) for k in theirs)


def test_the_trained_folder_is_what_everything_else_loads(whole, model, tmp_path):
    trained = load_file(whole / WEIGHTS)
    before = load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")
    assert trained.keys() == before.keys()
    assert any(not torch.equal(trained[k], before[k]) for k in before)
    pipeline = Flux2KleinPipeline.from_pretrained(whole / "model")
    state = pipeline.transformer.state_dict()
    assert all(torch.equal(state[k], trained[k]) for k in trained)
    drawing = Flux2Generator.load(whole / "model").draw(Context("a red circle"), (64, 64), [1])
    assert drawing.images[0].size == (64, 64)
    assert not list((whole / "model").rglob("*.bin")) + list((whole / "model").rglob("*.pt"))
    assert str(model) not in (whole / "model" / "transformer" / "config.json").read_text()


def test_clvr_merge_takes_the_trained_folder_as_an_alignment(whole, model, tmp_path):
    distilled = tiny_klein.make(tmp_path / "distilled", 1, distilled=True)
    sources = Source(distilled), (Source(whole / "model"),)
    merge(Recipe(tmp_path / "merged", model, *sources, form="diffusers", dtype="fp32", warn_shift=9.0))
    merged, base, few, trained = (
        load_file(folder / "transformer" / Path(WEIGHTS).name)
        for folder in (tmp_path / "merged", model, distilled, whole / "model")
    )
    for name, tensor in merged.items():
        torch.testing.assert_close(tensor, few[name] + trained[name] - base[name], rtol=1e-5, atol=1e-6)


def test_the_average_is_published_and_differs_from_the_last_weights(whole):
    folder = whole / "checkpoints" / "step-00000006"
    average, last = (load_file(next(folder.glob(f"{part}-*"))) for part in ("ema", "weights"))
    published = load_file(whole / WEIGHTS)
    assert all(torch.equal(published[k], average[f"transformer.{k}"]) for k in published)
    assert any(not torch.equal(published[k], last[k]) for k in published)


def test_a_lora_trains_alone_and_is_written_both_ways(model, data, tmp_path):
    config = dataclasses.replace(CONFIG, steps=2, lora=Lora(2, 4), optim=OptimConfig(lr=1e-2))
    start(config, str(model), data, tmp_path)
    kept = load_file(next((tmp_path / "checkpoints" / "step-00000002").glob("weights-*")))
    assert kept
    assert all(".lora_" in name for name in kept)
    pipeline = Flux2KleinPipeline.from_pretrained(model)
    pipeline.load_lora_weights(tmp_path / "lora")
    pipeline.fuse_lora()
    fused = {k.replace(".base_layer", ""): v for k, v in pipeline.transformer.state_dict().items() if ".lora_" not in k}
    written = load_file(tmp_path / WEIGHTS)
    assert written.keys() == fused.keys()
    assert all(torch.allclose(written[k], fused[k], atol=1e-6) for k in written)
    before = load_file(model / "transformer" / "diffusion_pytorch_model.safetensors")
    assert any(not torch.equal(before[k], written[k]) for k in before)


@pytest.mark.parametrize("change", [{"gradient_checkpointing": True}, {"cache": False}, {"micro": 1}])
def test_what_saves_memory_or_time_changes_no_loss(whole, model, data, tmp_path, change):
    config = dataclasses.replace(CONFIG, steps=2, optim=dataclasses.replace(CONFIG.optim, warmup=0.0), **change)
    plain_ = dataclasses.replace(CONFIG, steps=2, optim=config.optim)
    losses = []
    for name, chosen in (("with", config), ("without", plain_)):
        start(chosen, str(model), data, tmp_path / name)
        losses.append(column(tmp_path / name))
    if "micro" not in change:
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert all(value > 0 for value in losses[0])


def test_loss_falls_on_a_tiny_set(model, data, tmp_path):
    config = dataclasses.replace(
        CONFIG, steps=60, batch=8, micro=8, caption_dropout=0.0, optim=OptimConfig(lr=3e-3, ema=0.9)
    )
    start(config, str(model), data, tmp_path)
    losses = column(tmp_path)
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_encodings_are_made_once_and_equal_the_encoders(model, data, tmp_path):
    folder, cpu = inspect(model), torch.device("cpu")
    encoders = Encoders.open(folder, cpu, torch.float32)
    made, _ = items(read(data), encoders)
    feeds = []
    for _ in range(2):
        encodings = Encodings(folder, cpu, torch.float32, Cache(tmp_path / "cache"))
        feed = Feed(CONFIG, Plan(made, 4, 2, 0), encodings, cpu, 28)
        feed.fill(0, 1)
        feeds.append(encodings)
    texts = {(i.text, i.length) for i in made} | {("", i.length) for i in made}
    pictures = {p.digest for i in made for p in (i.target, *i.references)}
    assert [f.encoded for f in feeds] == [len(texts) + len(pictures), 0]
    item = next(i for i in made if i.references)
    torch.testing.assert_close(
        feeds[1].text(item.text, item.length).states, encoders.encode_text([item.text], item.length).states
    )
    assert feeds[1].encoded == 0
    path = next((tmp_path / "cache").rglob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:20])
    Feed(CONFIG, Plan(made, 4, 2, 0), feeds[1], cpu, 28).fill(0, 1)
    assert feeds[1].encoded == 1


def test_a_trajectory_of_n_pictures_is_n_samples(model, data):
    encoders = Encoders.open(inspect(model), torch.device("cpu"), torch.float32)
    made, left_out = items(read(data), encoders)
    assert left_out == 0
    assert sorted(len(i.references) for i in made) == [0] * 6 + [1] * 4 + [2] * 2
    assert next(i for i in made if i.references).text.count("<IMG_GEN_0>") == 1
    tight = Encoders.open(inspect(model), torch.device("cpu"), torch.float32)
    tight.text_encoder.config.max_position_embeddings = 64
    _, left_out = items(read(data), tight)
    assert left_out > 0


def test_captions_are_dropped_by_share_and_times_follow_the_setting(model, data, tmp_path):
    folder, cpu = inspect(model), torch.device("cpu")
    encodings = Encodings(folder, cpu, torch.float32, Cache(tmp_path))
    made, _ = items(read(data), encodings.encoders)
    means = {}
    for name in ("uniform", "shifted"):
        config = dataclasses.replace(CONFIG, timesteps=name, caption_dropout=0.3, batch=1, micro=1)
        feed = Feed(config, Plan(made, 1, 1, 0), encodings, cpu, 28)
        rows = [feed.batch(feed.plan.step(n)[0]) for n in range(150)]
        empty = [torch.equal(r.context.states, encodings.text("", r.context.states.shape[1]).states) for r in rows]
        assert 0.18 < sum(empty) / len(rows) < 0.42
        means[name] = sum(float(r.t) for r in rows) / len(rows)
    assert 0.4 < means["uniform"] < 0.6 < means["shifted"]


SIDES = st.integers(1, 2)
PICTURES = st.builds(Picture, st.just(Path("p")), st.just("d"), SIDES, SIDES)
REFERENCES = st.tuples() | st.tuples(PICTURES)
ITEMS = st.lists(st.builds(Item, st.just("t"), st.sampled_from([8, 16]), PICTURES, REFERENCES), min_size=1, max_size=20)


@given(ITEMS, st.integers(1, 4), st.integers(1, 3), st.integers(0, 5))
def test_every_epoch_sees_every_sample_once_in_batches_of_one_shape(chosen, micro, forwards, seed):
    plan = Plan(chosen, micro * forwards, micro, seed)
    stream = [m for n in range(plan.steps(2)) for m in plan.step(n)]
    for epoch in range(2):
        seen = [p.item for m in stream for p in m if p.epoch == epoch]
        assert sorted(seen) == list(range(len(chosen)))
    assert all(len({chosen[p.item].shape for p in m}) == 1 and len(m) <= micro for m in stream)


@given(ITEMS, st.integers(1, 3), st.integers(1, 3), st.integers(0, 7))
def test_processes_share_a_step_without_gap_or_overlap(chosen, micro, processes, number):
    plan = Plan(chosen, micro * processes * 2, micro, 0)
    shares = [plan.share(number, process, processes) for process in range(processes)]
    together = [m for share, _ in shares for m in share]
    assert sorted(together, key=repr) == sorted(plan.step(number), key=repr)
    assert {total for _, total in shares} == {sum(map(len, together))}


def test_what_cannot_be_shared_or_trained_is_said(model, data, tmp_path):
    one = [Item("t", 8, Picture(Path("p"), "d", 1, 1))]
    with pytest.raises(SettingError, match="3 processes cannot share 4"):
        Plan(one, 4, 1, 0).share(0, 0, 3)
    with pytest.raises(SettingError, match="not made of micro-batches"):
        Plan(one, 3, 2, 0)
    with pytest.raises(SettingError, match="no sample"):
        Plan([], 2, 2, 0)
    with pytest.raises(MissingFileError, match="holds no dataset"):
        start(CONFIG, str(model), tmp_path, tmp_path / "out")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "shard-00000.jsonl").write_text("{}\n")
    with pytest.raises(FormatError, match="line 1"):
        start(CONFIG, str(model), tmp_path / "bad", tmp_path / "out2")
    shutil.copytree(data, tmp_path / "data")
    picture = next((tmp_path / "data" / "images").iterdir())
    picture.write_bytes(b"no png")
    with pytest.raises(ClvrError, match=r"line \d+: .*cannot be read"):
        start(CONFIG, str(model), tmp_path / "data", tmp_path / "out3")


@pytest.mark.parametrize("path", sorted(FOLDER.glob("sft_dit*.yaml")), ids=lambda p: p.stem)
def test_shipped_recipes_load(path):
    load(path, SFTConfig)
