"""The laboratory: stages that go on and are redone when their recipe changes, rows, claims, and the whole chain."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
from PIL import Image

from clvr.flux2.folder import find
from clvr.shapes.checks import checklist
from clvr.shapes.language import parse
from clvr.shapes.render import render
from clvr.shapes.sampler import prompt
from clvr.shapes.scene import realise
from clvr.shapes.verifier import MeasuringVerifier
from training.lab import page, plots
from training.lab.__main__ import main
from training.lab.chain import Chain
from training.lab.config import GENEVAL, Evaluation, LabConfig, deciding
from training.lab.found import CLAIMS, Claim, Found, Rate, difference, saved, verdict
from training.lab.rows import PICTURES, ROWS, Measured, chosen, held_back, rewritten
from training.lab.speeds import Speeds
from training.lab.stages import Stage
from training.recipe import FOLDER, load
from training.runs import RunConfig
from training.sft_dit import SFTConfig

SPEEDS = Speeds(forward=0.004, learn=0.012, single=0.01)


CONFIG = LabConfig()


def chain(config: LabConfig = CONFIG) -> Chain:
    return Chain(config, torch.device("cpu"), SPEEDS)


def digests(config: LabConfig) -> dict[str, str]:
    return {name: stage.digest for name, stage in chain(config).stages.items()}


def changed(before: LabConfig, after: LabConfig) -> set[str]:
    return {name for name, digest in digests(after).items() if digest != digests(before)[name]}


def measured(task: int, passed: bool, category: str = "two", seconds: float = 1.0) -> Measured:
    return Measured(task, category, f"prompt {task}", passed, float(passed), 2, 8, seconds, "")


def found(rows: dict[str, list[Measured]], **given: object) -> Found:
    nothing: dict[str, object] = {"merges": {}, "clocks": {}, "folders": {}, "seconds": {}}
    return Found(rows, **(nothing | given))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["lab.yaml", "lab_quick.yaml"])
def test_the_recipes_are_read_whole(name: str):
    assert load(FOLDER / name, LabConfig).rl.teacher == "world"


def test_a_change_begins_anew_what_depends_on_it_and_nothing_else():
    before = LabConfig()
    sft = dataclasses.replace(before, sft=SFTConfig(epochs=5))
    touched = changed(before, sft)
    assert {"sft", "simple", "pprl", "dswm-sft", "row-few-pprl"} <= touched
    assert not {"distilled", "data", "row-base", "row-few-loop", "clock-base"} & touched
    more = dataclasses.replace(before, evaluation=Evaluation(rounds=4))
    assert changed(before, more) == {f"row-{r.key}" for r in ROWS if r.looped} | {"clock-base", "clock-dswm"}


def test_what_leaves_the_result_as_it_is_begins_nothing_anew():
    before = LabConfig()
    after = dataclasses.replace(before, sft=SFTConfig(run=RunConfig(checkpoint_every=7, report_seconds=1)))
    assert not changed(before, after)
    assert "checkpoint_every" not in json.dumps(deciding(after.sft))


def test_an_interrupted_stage_goes_on_in_its_folder_and_a_finished_one_says_so(tmp_path: Path):
    calls: list[int] = []

    def work(out: Path, folders: object) -> None:
        calls.append(len(list(out.iterdir())))
        (out / f"part-{len(calls)}").touch()
        if len(calls) == 1:
            raise KeyboardInterrupt

    stage = Stage("one", "", {}, work, (), 10.0)
    with pytest.raises(KeyboardInterrupt):
        stage.run(tmp_path)
    assert not stage.done(tmp_path)
    stage.run(tmp_path)
    assert stage.done(tmp_path)
    assert calls == [0, 2]  # the first part and the stamp were there
    assert stage.left(tmp_path) == 0


def test_simple_rl_and_pprl_differ_in_nothing_but_the_reward():
    stages = chain().stages
    ours, theirs = (dict(stages[name].recipe) for name in ("pprl", "simple"))
    assert (ours.pop("simple"), theirs.pop("simple")) == (False, True)
    assert ours == theirs


def test_merges_are_made_of_what_their_rows_say():
    stages = chain().stages
    assert [s.name for s in stages["dswm-pprl"].needs] == ["distilled", "sft", "pprl"]
    assert [s.name for s in stages["base-simple"].needs] == ["sft", "simple"]
    assert [s.name for s in stages["row-few-simple"].needs] == ["dswm-simple"]
    assert stages["row-base"].needs == ()


def test_the_prompts_are_spread_over_the_categories():
    items = held_back(Evaluation(prompts=3))
    assert {item.tags["category"] for item in items} == {*GENEVAL, "complex"}
    assert len(items) == 21
    assert len({item.tags["category"] for _, item in chosen(items, 7)}) == 7


@pytest.mark.parametrize("category", [*GENEVAL, "complex"])
def test_a_rewritten_prompt_asks_for_what_the_prompt_asked(category: str):
    rng = random.Random(category)
    for seed in range(8):
        text, spec = prompt(category, rng, held=True)
        scene = realise(parse(rewritten(text, seed)), random.Random(seed))
        assert MeasuringVerifier().judge(render(scene, seed), checklist(spec)).satisfied(checklist(spec)), text


def test_a_claim_is_judged_on_the_prompts_that_both_rows_drew():
    claim = Claim("", "more", "less")
    better = [measured(n, n % 10 > 0) for n in range(100)]
    worse = [measured(n, n % 2 > 0) for n in range(200)]
    between = difference(found({"more": better, "less": worse}), claim)
    assert between is not None
    assert between[0] == pytest.approx(0.4)
    assert verdict(between) == "agrees"
    assert verdict((-0.2, -0.3, -0.1)) == "disagrees"
    assert verdict((0.1, -0.1, 0.3)) == "undecided"
    assert difference(found({"more": better}), claim) is None


def test_a_claim_of_two_loops_is_judged_by_the_pictures_that_they_take_too():
    few = [dataclasses.replace(measured(n, True), images=1 + n % 2) for n in range(100)]
    many = [dataclasses.replace(measured(n, True), images=3) for n in range(100)]
    told = found({"pprl": few, "sft": many, "base": many})
    assert told.within("pprl", 1) == Rate(50, 100)
    assert told.within("sft", 2) == Rate(0, 100)
    between = saved(told, Claim("", "pprl", "sft"))
    assert between is not None
    assert between[0] == pytest.approx(1.5)
    assert verdict(between) == "agrees"
    assert saved(told, Claim("", "pprl", "base")) is None  # one shot


def test_every_claim_compares_rows_that_there_are():
    assert {name for claim in CLAIMS for name in (claim.more, claim.less)} <= {row.key for row in ROWS}


def test_the_overall_leaves_out_what_geneval_has_not():
    runs = [measured(0, True), measured(1, False), measured(2, True, "complex")]
    assert found({"base": runs}).rate("base") == Rate(1, 2)
    assert found({"base": runs}).macro("base") == 0.5
    assert str(Rate(0, 0)) == "–"


def test_the_page_tells_what_is_done_and_names_no_picture_that_is_not_there(tmp_path: Path):
    made = page.write(chain(), tmp_path, tmp_path / "out")
    assert [path.name for path in made] == ["ablation.md"]
    text = made[0].read_text()
    assert "0 of 23 stages" in text
    assert "](" not in text


def test_the_sheet_shows_the_same_prompts_by_every_row(tmp_path: Path):
    rows = {row.key: [measured(n, n > 0) for n in range(3)] for row in ROWS}
    for row in ROWS:
        (tmp_path / row.key / PICTURES).mkdir(parents=True)
        for task in (0, 2):
            Image.new("RGB", (64, 64), "red").save(tmp_path / row.key / PICTURES / f"{task}.png")
    folders = {f"row-{row.key}": tmp_path / row.key for row in ROWS}
    sheet = plots.sheet(found(rows, folders=folders))
    assert sheet is not None
    assert sheet.width > 11 * 104
    colors = {color for _, color in sheet.getcolors(1 << 20) or ()}
    assert {(255, 0, 0), (18, 114, 74), (185, 49, 24)} <= colors


def test_a_faster_machine_or_a_shorter_recipe_takes_less():
    config = LabConfig()
    slow = sum(stage.seconds for stage in chain(config).stages.values())
    fast = Chain(config, torch.device("cpu"), Speeds(0.001, 0.003, 0.002))
    assert sum(stage.seconds for stage in fast.stages.values()) < slow
    few = dataclasses.replace(config, evaluation=Evaluation(steps=4))
    assert chain(few).stages["row-base"].seconds < chain(config).stages["row-base"].seconds


def test_a_stage_that_there_is_not_is_refused_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--quick", "--plan", "--only", "pizza", "--work", str(tmp_path)]) == 2
    assert "There is no stage 'pizza'. There are distilled, data" in capsys.readouterr().out


@pytest.mark.slow
def test_the_whole_chain_comes_to_its_end_and_is_not_done_twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--quick", "--work", str(tmp_path)]) == 0
    results = tmp_path / "quick" / "results"
    text = (results / "ablation.md").read_text()
    assert all(f"| {row.name} |" in text for row in ROWS)
    assert "distilled · sft" in text
    for line in text.splitlines():
        if line.startswith("!["):
            Image.open(results / line.partition("](")[2].rstrip(")")).verify()
    assert text.count("![") == 4
    capsys.readouterr()
    assert main(["--quick", "--work", str(tmp_path)]) == 0
    assert all(line.startswith(str(results)) for line in capsys.readouterr().out.splitlines())
    shipped = tmp_path / "shipped"
    assert main(["--quick", "--work", str(tmp_path), "--ship", str(shipped)]) == 0
    assert [find(shipped / name).distilled for name in ("sft", "distilled", "merged")] == [False, True, True]
    assert {path.parent.name for path in shipped.glob("loras/*/*.safetensors")} == {"simple", "pprl"}


def test_weights_of_a_chain_that_is_not_done_are_not_shipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["--quick", "--work", str(tmp_path), "--ship", str(tmp_path / "shipped")]) == 2
    assert "The stage sft is not done" in capsys.readouterr().out
    assert not (tmp_path / "shipped").exists()
