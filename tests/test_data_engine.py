"""The data engine as a whole: what it leaves on disk, how it goes on, and how its workers may die."""

from __future__ import annotations

import dataclasses
import json

import pytest
from PIL import Image

from clvr.context import from_sharegpt
from clvr.errors import FormatError, GrammarError, ImageError, MissingFileError, RunLockedError, SettingError
from clvr.shapes.controller import ShapesController
from clvr.trajectory import generated
from training.data.candidates import Prompt
from training.data.config import PromptConfig, RuleConfig, RunConfig
from training.data.crews import DEATHS, Job
from training.data.engine import plan, run
from training.data.folder import CRASHED, Folder
from training.data.records import read, shards
from training.data.work import Making

from .data_fixtures import (
    CONFIG,
    DeadlyWorker,
    DyingWorker,
    FailingWorker,
    Painter,
    PaintingWorker,
    crew,
    on,
)


def quiet(line):
    pass


def made(text, painter=None, config=CONFIG, **players):
    return Making(config, crew(painter, **players), Prompt(text, "a test"), True).made()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp("dataset")
    run(CONFIG, out, quiet, PaintingWorker)
    return out


def tree(folder):
    """Every file of a dataset with its content; seconds differ from run to run."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*.png"))} | {
        "records": [_timeless(json.loads(line)) for shard in shards(folder) for line in shard.read_text().splitlines()]
    }


def _timeless(value):
    if isinstance(value, dict):
        return {k: _timeless(v) for k, v in value.items() if k != "seconds"}
    return [_timeless(v) for v in value] if isinstance(value, list) else value


def test_a_dataset_is_sharded_and_reads_back_in_the_prompts_order(dataset):
    records = list(read(dataset))
    assert [r.goal for r in records] == [p.text for p in plan(CONFIG).prompts]
    assert [len(shard.read_text().splitlines()) for shard in shards(dataset)] == [3, 3, 2]


def test_a_record_is_a_sample_for_each_picture_and_a_conversation_with_all_of_them(dataset):
    for record in read(dataset):
        assert [s.target for s in record.steps] == list(range(len(record.images)))
        assert record.steps[0].references == ()
        assert record.steps[0].context.startswith(record.goal)
        for number, step in enumerate(record.steps[1:], 1):
            assert step.references == (number - 1,)
            assert f"<{generated(number - 1)}>" in step.context
            assert step.context.endswith(step.instruction)
            assert step.checks
        marks = sum(turn.value.count("<image>") for turn in record.conversations)
        assert marks == len(record.images)
        assert record.conversations[-1].role == "gpt"
        assert '"stop"' in record.conversations[-1].value


def test_a_record_opens_its_pictures_when_asked_and_tells_where_they_are_from(dataset):
    record = next(read(dataset))
    assert record.image(0).size == (64, 64)
    assert len(record.provenance.digests) == len(record.images)
    assert record.provenance.prompt.startswith("built-in world")
    assert [vote.word for vote in record.provenance.votes] == ["trajectory", "trajectory"]
    assert set(record.provenance.fields) >= {"goal", "checks", "conversations", "images", "steps.context"}
    line = shards(dataset)[0].read_text().splitlines()[0]
    assert from_sharegpt(json.loads(line))[0] == record.trajectory


def test_statistics_and_a_sheet_tell_what_passed_each_gate(dataset):
    told = json.loads((dataset / "statistics.json").read_text())
    assert (told["candidates"], told["kept"], told["unfinished"]) == (8, 8, 0)
    assert [gate["passed"] for gate in told["gates"]] == [8] * 5
    page = (dataset / "sheet.html").read_text()
    assert "8 of 8 candidates kept" in page
    assert page.count("<article") == 8
    assert "http" not in page.replace("http-equiv", "")


def test_the_same_call_does_nothing_twice_and_gives_the_same(dataset, tmp_path):
    lines = []
    before = tree(dataset)
    run(CONFIG, dataset, lines.append, FailingWorker)
    assert "8 are done already" in lines
    assert tree(dataset) == before
    run(CONFIG, tmp_path, quiet, PaintingWorker)
    assert tree(tmp_path) == before


def test_a_run_that_broke_off_leaves_a_dataset_of_what_was_done_and_goes_on(dataset, tmp_path):
    class Breaking(PaintingWorker):
        left = 3

        def make(self, prompt, shown):
            Breaking.left -= 1
            if Breaking.left < 0:
                raise KeyboardInterrupt
            return super().make(prompt, shown)

    with pytest.raises(KeyboardInterrupt):
        run(CONFIG, tmp_path, quiet, Breaking)
    assert len(list(read(tmp_path))) == 3
    assert json.loads((tmp_path / "statistics.json").read_text())["unfinished"] == 5
    run(CONFIG, tmp_path, quiet, PaintingWorker)
    assert tree(tmp_path) == tree(dataset)


def test_more_prompts_can_be_asked_for_later_but_not_other_rules(tmp_path):
    few = dataclasses.replace(CONFIG, prompts=PromptConfig(world=2))
    run(few, tmp_path, quiet, PaintingWorker)
    more = dataclasses.replace(CONFIG, prompts=PromptConfig(world=4))
    assert run(more, tmp_path, quiet, PaintingWorker).kept == 4
    other = dataclasses.replace(CONFIG, rules=RuleConfig(rounds=3))
    with pytest.raises(FormatError, match="begun with another rules"):
        run(other, tmp_path, quiet, PaintingWorker)
    with Folder(tmp_path, CONFIG), pytest.raises(RunLockedError, match="Another process"):
        run(CONFIG, tmp_path, quiet, PaintingWorker)


def test_two_processes_and_threads_give_what_one_gives(dataset, tmp_path):
    run(on(CONFIG, "cpu", "cpu", threads=2), tmp_path, quiet, PaintingWorker)
    assert tree(tmp_path) == tree(dataset)


def test_a_process_that_is_killed_is_replaced_and_nothing_is_lost_or_doubled(dataset, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    kept = []
    run(on(CONFIG, str(marks), str(marks)), tmp_path / "out", kept.append, DyingWorker)
    assert (marks / "killed").exists()
    assert len(list(marks.glob("*.pid"))) == 3
    assert tree(tmp_path / "out") == tree(dataset)
    assert sum(line.startswith("[") for line in kept) == 8


def test_a_prompt_that_kills_every_worker_is_given_up_and_tried_again_by_the_next_start(tmp_path):
    config = dataclasses.replace(CONFIG, prompts=PromptConfig(world=1))
    (deadly,) = plan(config).prompts
    assert run(on(config, "cpu", "cpu"), tmp_path, quiet, DeadlyWorker).kept == 0
    with Folder(tmp_path, config) as folder:
        outcome = folder.outcome(deadly)
        assert outcome.gate == CRASHED
        assert outcome.reason == f"{DEATHS + 1} workers died over it"
    assert run(config, tmp_path, quiet, PaintingWorker).kept == 1


@pytest.mark.parametrize("devices", [("cpu",), ("cpu", "cpu")])
def test_what_goes_wrong_with_every_prompt_is_raised_in_its_own_words(tmp_path, devices):
    with pytest.raises(GrammarError, match=r"The second prompt is none. Write another."):
        run(on(CONFIG, *devices), tmp_path, quiet, FailingWorker)


def test_a_ray_cluster_with_a_killed_worker_loses_nothing_and_doubles_nothing(dataset, tmp_path):
    marks = tmp_path / "marks"
    marks.mkdir()
    kept = []
    run(on(CONFIG, str(marks), str(marks), ray="local"), tmp_path / "out", kept.append, DyingWorker)
    assert (marks / "killed").exists()
    assert len(list(marks.glob("*.pid"))) >= 2
    assert tree(tmp_path / "out") == tree(dataset)
    assert sum(line.startswith("[") for line in kept) == 8


def test_a_ray_cluster_without_room_for_a_worker_is_told():
    from training.data.ray_run import RayCrew

    config = dataclasses.replace(CONFIG, run=RunConfig(devices=("cpu",), ray="local", gpus=1.0))
    crew = RayCrew(PaintingWorker, config, patience=1.0)
    try:
        crew.send(0, Job(plan(CONFIG).prompts[0], False))
        with pytest.raises(SettingError, match=r"started no worker within 1 s\. Each needs one CPU and run\.gpus = 1"):
            crew.wait()
    finally:
        crew.close()


def test_the_built_in_model_draws_for_several_prompts_in_shared_batches(tmp_path):
    cast = dataclasses.replace(CONFIG.cast, steps=1, batch=2)
    config = dataclasses.replace(CONFIG, prompts=PromptConfig(world=2), cast=cast, rules=RuleConfig(attempts=1))
    statistics = run(config, tmp_path, quiet)
    assert statistics.unfinished == 0
    assert statistics.spent.nfe == 2 * statistics.pictures >= 4


def test_a_prompt_gets_a_fresh_start_after_a_failed_drawing():
    outcome = made("a red circle above a blue square", Painter(slips=(1,))).outcome
    assert not outcome.gate
    assert [one.gate for one in outcome.tries] == ["passive", ""]
    assert outcome.tries[0].seed != outcome.tries[1].seed


def test_a_fresh_start_may_say_things_in_other_words():
    players = crew(Painter(slips=(1,)), ShapesController(where="none"))
    players = dataclasses.replace(players, others=(ShapesController(where="place"),))
    outcome = Making(CONFIG, players, Prompt("a red circle and a blue square", "a test"), True).made().outcome
    first, second = ([e.text for e in one.log if e.tool == "IMAGE_EDIT"] for one in outcome.tries)
    assert first == ["add a blue square"]
    assert second[0].startswith("add a blue square in row")


def test_a_prompt_whose_attempts_all_fail_ends_at_the_last_ones_gate_with_its_picture():
    result = made("a red circle above a blue square", Painter(slips=(1, 2)))
    assert (result.outcome.gate, len(result.outcome.tries)) == ("passive", 2)
    assert list(result.files) == list(result.outcome.images)
    assert not result.line


def test_a_trajectory_that_is_no_better_than_one_shot_is_left_out():
    outcome = made("a red circle above a blue square", Painter(gifted=True)).outcome
    assert outcome.gate == "baseline"
    assert outcome.reason == "scores of measuring verifier: tie; objects measured: tie"
    assert outcome.baseline


def test_a_prompt_without_a_checklist_ends_there():
    outcome = made("a lion").outcome
    assert outcome.gate == "checklist"
    assert outcome.tries == ()


def test_damage_to_a_dataset_is_named_with_file_and_line(dataset, tmp_path):
    line = shards(dataset)[0].read_text().splitlines()[0]
    record = json.loads(line)
    damaged = {
        "no JSON": line[:-5],
        "lacks steps": json.dumps({k: v for k, v in record.items() if k != "steps"}),
        "no record of format 1": json.dumps({**record, "format": 2}),
        "leads out of the dataset": json.dumps({**record, "images": ["../x.png"] * len(record["images"])}),
        "differs from its trajectory": line.replace("Nothing is drawn yet", "Nothing was drawn", 1),
        "names image 9": line.replace('"target": 0', '"target": 9', 1),
        "unknown fields: colour": line.replace('"target": 0', '"target": 0, "colour": 1', 1),
    }
    for number, (problem, text) in enumerate(damaged.items(), 2):
        (tmp_path / "shard-00000.jsonl").write_text(line + "\n" * (number - 1) + text + "\n")
        with pytest.raises(FormatError, match=f"shard-00000.jsonl line {number}: .*{problem}"):
            list(read(tmp_path))


def test_a_picture_that_lacks_or_is_none_is_named_with_its_record(dataset, tmp_path):
    (tmp_path / "shard-00000.jsonl").write_bytes(shards(dataset)[0].read_bytes())
    record = next(read(tmp_path))
    with pytest.raises(MissingFileError, match=r"shard-00000.jsonl line 1: There is no image"):
        record.image(0)
    record.path(0).parent.mkdir(parents=True)
    record.path(0).write_text("no picture")
    with pytest.raises(ImageError, match=r"shard-00000.jsonl line 1: .* is not an image"):
        record.image(0)
    Image.new("RGB", (8, 8)).save(record.path(0))
    assert record.image(0).size == (8, 8)


def test_a_folder_without_shards_is_no_dataset(tmp_path):
    with pytest.raises(MissingFileError, match="holds no dataset"):
        list(read(tmp_path))
