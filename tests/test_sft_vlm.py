"""Fine-tuning the planner's VLM: what is trained on is what clvr asks, what is learned are its decisions."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import TrainerCallback
from trl.chat_template_utils import get_training_chat_template

from clvr.errors import FormatError, MissingFileError, OutputError, SettingError, WeightsError
from clvr.ports import Album
from clvr.trajectory import Decision
from clvr.vlm.agents import history
from clvr.vlm.local import LocalClient
from clvr.vlm.replies import dump_decision
from training import recipe as recipes
from training import trackers
from training.chat import conversation, side_within
from training.data.records import Record, read
from training.sft_vlm import IGNORED, VLMRecipe, collator, example, forget, learned, main, open_dataset, trainer_of
from training.vlm import last_checkpoint, open_vlm, prepare, publish

from .launch_fixtures import launched
from .lesson_fixtures import model, trajectory, write

TINY = VLMRecipe(steps=4, lr=3e-3, accumulation=1, precision="fp32", image_side=64, workers=0, log_every=1,
                 checkpoint_every=2, checkpointing=False)  # fmt: skip
RUNS = (
    trajectory("fail", "pass"),
    trajectory("fail", "fail", "pass", references=1, rejected=[1]),
    trajectory("fail", "fail"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return model(tmp_path_factory.mktemp("vlm") / "tiny")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("dataset") / "verified", *RUNS)


@pytest.fixture(scope="module")
def records(data: Path) -> list[Record]:
    return list(read(data))


def test_a_finished_run_ends_with_the_decision_to_stop_and_an_unfinished_one_with_its_last_drawing(records):
    talks = [conversation(r.trajectory, _album(r)) for r in records]
    assert [[m.role for m in talk[2:]] for talk in talks] == [
        ["assistant", "user"] * 2 + ["assistant"],
        ["assistant", "user"] * 3 + ["assistant"],
        ["assistant", "user", "assistant"],
    ]
    assert json.loads(talks[0][-1].parts[0])["action"] == "stop"
    assert json.loads(talks[2][-1].parts[0])["instruction"] == "make it red 1"


def test_the_conversation_is_the_controllers_own_before_each_decision(records):
    record = records[1]
    talk = conversation(record.trajectory, _album(record))
    for step in record.trajectory.steps:
        past = dataclasses.replace(record.trajectory, steps=record.trajectory.steps[: step.index])
        asked = history(past, _album(record))
        assert talk[: len(asked)] == asked
        assert talk[len(asked)].parts == (dump_decision(step.decision),)


def _album(record: Record) -> Album:
    labels = [*record.trajectory.goal.labels(), *(s.label for s in record.trajectory.steps)]
    return Album({label: record.image(i) for i, label in enumerate(labels[: len(record.images)])})


def test_each_decision_is_trained_after_exactly_the_tokens_that_the_client_sends(folder, records):
    qwen = LocalClient.load(folder).qwen
    tokenizer = qwen.tokenizer
    batch = collator(open_vlm(folder, "fp32", None)[1]).torch_call([example(records[1], TINY)])
    ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    record = records[1]
    for index in range(len(record.trajectory.steps) + 1):
        past = dataclasses.replace(record.trajectory, steps=record.trajectory.steps[:index])
        sent = qwen.prompt(history(past, _album(record)), 64).ids.tolist()
        assert ids[: len(sent)] == sent
        if index < len(record.trajectory.steps):
            decision = record.trajectory.steps[index].decision
        else:
            decision = Decision("stop", record.trajectory.stop_reason)
        reply = [*tokenizer(dump_decision(decision))["input_ids"], tokenizer.eos_token_id]
        assert ids[len(sent) : len(sent) + len(reply)] == reply
        said = labels[len(sent) : len(sent) + len(reply)]
        assert said == ([IGNORED] * len(reply) if index == 1 else reply)  # step 1 was rolled back


def test_nothing_but_the_assistants_tokens_is_learned(folder, records):
    _, processor = open_vlm(folder, "fp32", None)
    batch = collator(processor).torch_call([example(r, TINY) for r in (records[0], records[2])])
    newline = processor.tokenizer("\n")["input_ids"]
    for ids, labels, record in zip(batch["input_ids"], batch["labels"], (records[0], records[2]), strict=True):
        spoken = [m.parts[0] for m in conversation(record.trajectory, _album(record)) if m.role == "assistant"]
        ends = [processor.tokenizer.eos_token_id, *newline]
        expected = [token for text in spoken for token in (*processor.tokenizer(text)["input_ids"], *ends)]
        kept = labels != IGNORED
        assert ids[kept].tolist() == labels[kept].tolist() == expected
    pad = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert (batch["input_ids"] == pad).any()
    assert not (batch["labels"] == pad).any()


@pytest.mark.parametrize(
    ("number", "rejected", "expected"),
    [
        (0, False, [True, True, True]),
        (1, False, [True, False, True, True]),
        (1, True, [True, True, True, True]),
        (2, False, [True, True]),
    ],
)
def test_decisions_that_were_rolled_back_are_read_and_not_learned_unless_asked_for(records, number, rejected, expected):
    assert learned(records[number], rejected) == expected


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.booleans()), min_size=1, max_size=5))
def test_forgetting_a_turn_leaves_the_others(turns):
    labels, expected = [], []
    for asked, said, wanted in turns:
        labels += [IGNORED] * asked + [7] * said
        expected += [IGNORED] * asked + [7 if wanted else IGNORED] * said
    tensor = torch.tensor(labels)
    forget(tensor, [wanted for _, _, wanted in turns])
    assert tensor.tolist() == expected
    with pytest.raises(FormatError, match="turns of the assistant"):
        forget(torch.tensor(labels), [True] * (len(turns) + 1))


def test_images_are_opened_only_when_their_sample_is_read(data, monkeypatch):
    opened = []
    whole = Record.image
    monkeypatch.setattr(Record, "image", lambda self, i: opened.append((self.id, i)) or whole(self, i))
    dataset = open_dataset(read(data), TINY)
    assert opened == []
    assert len(dataset[1]["images"]) == 4
    assert opened == [("1", 0), ("1", 1), ("1", 2), ("1", 3)]


def test_a_record_whose_conversation_shows_other_images_than_it_names_is_refused_by_file_and_line(tmp_path):
    folder = write(tmp_path / "data", RUNS[0], RUNS[1])
    shard = folder / "shard-00000.jsonl"
    lines = [json.loads(line) for line in shard.read_text().splitlines()]
    lines[1]["images"].pop()
    shard.write_text("\n".join(json.dumps(line) for line in lines))
    dataset = open_dataset(read(folder), TINY)
    assert len(dataset[0]["images"]) == 2
    with pytest.raises(FormatError, match=r"shard-00000\.jsonl line 2: the conversation shows 4 images.* names 3"):
        dataset[1]
    (folder / "images" / "0-IMG_GEN_0.png").unlink()
    with pytest.raises(MissingFileError, match="line 1"):
        dataset[0]


def test_a_dataset_in_which_nothing_is_learned_is_refused(tmp_path):
    folder = write(tmp_path / "data", trajectory("fail", rejected=[0]))
    with pytest.raises(FormatError, match="no decision to learn"):
        open_dataset(read(folder), TINY)
    assert len(open_dataset(read(folder), dataclasses.replace(TINY, learn_rejected=True))) == 1


SIZES = st.lists(st.tuples(st.integers(32, 3000), st.integers(32, 3000)), min_size=1, max_size=8)


@given(SIZES, st.integers(32, 2048), st.integers(1, 20_000_000))
def test_the_pixel_budget_is_kept_by_the_largest_side_that_keeps_it(sizes, side, pixels):
    def area(longest):
        return sum(w * h * min(1.0, longest / max(w, h)) ** 2 for w, h in sizes)

    try:
        found = side_within(sizes, side, pixels)
    except SettingError:
        assert area(32) > pixels
        return
    assert area(found) <= pixels
    assert found == side or area(found + 1) > pixels
    assert side_within(sizes, side, None) == side


def test_a_chat_template_that_is_not_qwens_is_refused(folder):
    _, processor = open_vlm(folder, "fp32", None)
    processor.chat_template = "{{ messages[0].content }}"
    with pytest.raises(WeightsError, match="chat template"):
        collator(processor)
    _, own = open_vlm(folder, "fp32", None)
    own.chat_template = get_training_chat_template(own)
    assert collator(own).chat_template is None


@pytest.fixture(scope="module")
def trained(folder, data, tmp_path_factory):
    """An uninterrupted run, its losses and what it published."""
    place = tmp_path_factory.mktemp("run")
    trainer = trainer_of(TINY, open_dataset(read(data), TINY), folder, place / "run")
    prepare(place / "run", TINY)
    trainer.train()
    publish(trainer, folder, place / "run", "fp32")
    return place, [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_loss_falls(trained):
    _, losses = trained
    assert losses[-1] < 0.9 * losses[0]


def test_the_published_model_is_opened_by_clvrs_client_with_the_trained_weights(trained, folder):
    place, _ = trained
    client = LocalClient.load(place / "run" / "model")
    assert client.qwen.processor.chat_template == LocalClient.load(folder).qwen.processor.chat_template
    newest = load_file(Path(last_checkpoint(place / "run")) / "model.safetensors")
    assert torch.equal(client.qwen.model.state_dict()["model.language_model.norm.weight"],
                       newest["model.language_model.norm.weight"])  # fmt: skip
    assert not list((place / "run" / "model").glob("*.bin"))


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(trained, folder, data, tmp_path):
    place, losses = trained
    dataset = open_dataset(read(data), TINY)
    first = trainer_of(TINY, dataset, folder, tmp_path / "run")
    assert prepare(tmp_path / "run", TINY) is None
    first.add_callback(StopAt(3))
    first.train()
    checkpoint = prepare(tmp_path / "run", TINY)
    assert checkpoint.endswith("checkpoint-2")
    again = trainer_of(TINY, dataset, folder, tmp_path / "run")
    again.train(resume_from_checkpoint=checkpoint)
    rows = [entry["loss"] for entry in again.state.log_history if "loss" in entry]
    assert rows == losses
    whole = load_file(place / "run" / "checkpoint-4" / "model.safetensors")
    parts = load_file(tmp_path / "run" / "checkpoint-4" / "model.safetensors")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    logged = (tmp_path / "run" / "log.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in logged[1:5]] == ["1", "2", "3", "4"]


class StopAt(TrainerCallback):
    """What a kill between two checkpoints leaves."""

    def __init__(self, step):
        self._step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self._step
        control.should_save = False if state.global_step >= self._step else control.should_save


def test_a_half_written_checkpoint_is_passed_over(tmp_path):
    for number, complete in ((2, True), (10, True), (30, False)):
        (tmp_path / f"checkpoint-{number}").mkdir()
        if complete:
            (tmp_path / f"checkpoint-{number}" / "trainer_state.json").write_text("{}")
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_a_run_goes_on_with_its_own_recipe_only_and_never_over_a_result(tmp_path):
    assert prepare(tmp_path / "run", TINY) is None
    assert prepare(tmp_path / "run", TINY) is None
    with pytest.raises(SettingError, match="other settings: lr"):
        prepare(tmp_path / "run", dataclasses.replace(TINY, lr=1.0))
    (tmp_path / "run" / "model").mkdir()
    with pytest.raises(OutputError, match="there already"):
        prepare(tmp_path / "run", TINY)


@pytest.mark.parametrize("name", ["sft_vlm_8b", "sft_vlm_tiny"])
def test_the_recipes_are_read(name):
    assert recipes.load(recipes.FOLDER / f"{name}.yaml", VLMRecipe).image_side in (64, 1024)


@pytest.mark.parametrize(
    ("text", "error", "words"),
    [
        ("rate: 1", FormatError, "unknown fields: rate"),
        ("lora: {ranks: 4}", FormatError, "lora has unknown fields: ranks"),
        ("lr: fast", FormatError, "lr should be a number"),
        ("precision: fp8", FormatError, "one of bf16, fp32"),
        ("lora: {rank: 0}", SettingError, "learns nothing"),
        ("batch: 0", SettingError, "leaves nothing to do"),
    ],
)
def test_what_is_wrong_in_a_recipe_is_named(tmp_path, text, error, words):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(error, match=words):
        recipes.load(tmp_path / "r.yaml", VLMRecipe)


def test_the_command_trains_a_lora_and_publishes_it_merged(folder, data, tmp_path, capsys):
    (tmp_path / "r.yaml").write_text(
        "{steps: 1, lr: 1e-2, warmup: 0, accumulation: 1, precision: fp32, workers: 0, image_side: 64,"
        " lora: {rank: 4, alpha: 8}}"
    )
    paths = {"recipe": tmp_path / "r.yaml", "data": data, "model": folder, "out": tmp_path / "run"}
    command = [str(x) for name, path in paths.items() for x in (f"--{name}", path)]
    assert main(command) == 0
    assert f"transformers:{tmp_path / 'run' / 'model'}" in capsys.readouterr().out
    before, after = (LocalClient.load(f).qwen.model.state_dict() for f in (folder, tmp_path / "run" / "model"))
    changed = {name.split(".")[-2] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert main(command) == 2
    assert "model is there already." in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_lose_what_one_does(folder, tmp_path):
    """With as many trajectories as fill every update: an epoch's last one is filled from its beginning."""
    data = write(tmp_path / "data", *RUNS, RUNS[0])
    fields = {"steps": 2, "lr": 1e-3, "warmup": 0, "precision": "fp32", "workers": 0, "image_side": 64, "log_every": 1}
    recipe = recipes.parse({**fields, "accumulation": 2}, VLMRecipe)
    alone = trainer_of(recipe, open_dataset(read(data), recipe), folder, tmp_path / "alone")
    alone.train()
    (tmp_path / "r.yaml").write_text(json.dumps({**fields, "accumulation": 1}))
    paths = {"recipe": tmp_path / "r.yaml", "data": data, "model": folder, "out": tmp_path / "run"}
    flags = [str(x) for name, path in paths.items() for x in (f"--{name}", path)]
    assert launched(2, "training.sft_vlm", *flags) == [0, 0]
    rows = [row for row in trackers.read(tmp_path / "run" / "log.csv") if row["loss"]]
    expected = [entry for entry in alone.state.log_history if "loss" in entry]
    assert [float(row["num_tokens"]) for row in rows] == [entry["num_tokens"] for entry in expected]
    assert [float(row["loss"]) for row in rows] == pytest.approx([entry["loss"] for entry in expected], rel=1e-5)
    assert LocalClient.load(tmp_path / "run" / "model").name == "model"
