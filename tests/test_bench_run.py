"""A benchmark on disk: nothing lost or doubled by a kill, the official layouts, the page, the command."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from clvr import cli, journal
from clvr.bench.judging import CheckJudge
from clvr.bench.page import render
from clvr.bench.results import Folder, Plan, Result
from clvr.bench.running import Bench, Shared, found_images
from clvr.bench.scores import summarise
from clvr.bench.suite import Item, Suite
from clvr.errors import FormatError, ReplyError, RunLockedError, VLMConnectionError
from clvr.trajectory import CheckVerdict, decode

from . import bench_fixtures as world
from .engine_fixtures import CHECKS, FakeController, FakeGenerator, FakeVerifier
from .vlm_fixtures import completion, serving

CHILD = Path(world.__file__)
ROOT = CHILD.parent.parent


@pytest.fixture(autouse=True)
def no_names_in_the_environment(monkeypatch):
    for name in ("CLVR_VLM_URL", "CLVR_VLM_MODEL", "CLVR_VLM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def told(path):
    """results.jsonl without what a clock says."""
    rows = [json.loads(line) for line in (path / "results.jsonl").read_text().splitlines()]
    for row in rows:
        row["judging"] = row["run"]["cost"] = None
    return rows


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted benchmark leaves."""
    path = tmp_path_factory.mktemp("whole")
    world.run(path)
    return told(path)


def test_every_prompt_is_a_run_of_its_own_with_its_image_and_verdict(tmp_path):
    results = world.run(tmp_path)
    assert [r.item for r in results] == [i.id for i in world.ITEMS]
    for result in results:
        record = journal.read(tmp_path / "runs" / result.item)
        best = record.album()[record.trajectory.best.label]
        assert Image.open(tmp_path / "images" / result.image).tobytes() == best.tobytes()
        assert (tmp_path / "runs" / result.item / "report.html").exists()
        assert result.run.rounds == len(record.trajectory.steps)
        assert result.run.pictures == 2 * result.run.rounds
    assert len({record["prompt"] for record in told(tmp_path)}) == len(world.ITEMS)


def test_workers_change_nothing_but_the_time_and_never_draw_at_once(tmp_path, whole):
    class Alone(FakeGenerator):
        inside = 0

        def draw(self, *arguments, **more):
            self.inside += 1
            assert self.inside == 1
            try:
                return super().draw(*arguments, **more)
            finally:
                self.inside -= 1

    world.run(tmp_path, Alone(pause=0.001), workers=4)
    assert told(tmp_path) == whole


@pytest.mark.parametrize("lines", [3, 6, 11])
def test_a_kill_anywhere_loses_and_doubles_nothing(tmp_path, whole, lines):
    path = tmp_path / "killed"
    child = subprocess.Popen([sys.executable, str(CHILD), str(path)], stdout=subprocess.PIPE, text=True, cwd=ROOT,
                             env={"PYTHONPATH": str(ROOT), "PATH": ""})  # fmt: skip
    for _ in range(lines):
        child.stdout.readline()
    child.kill()
    child.wait()
    child.stdout.close()
    generator = FakeGenerator()
    world.run(path, generator, workers=2)
    assert told(path) == whole
    assert len(list((path / "verdicts").iterdir())) == len(world.ITEMS)


def test_a_second_time_nothing_is_drawn_or_judged(tmp_path):
    first = world.run(tmp_path)

    class Idle:
        name = "fake verifier"

        def judge(self, *_):
            raise AssertionError

    def never():
        raise AssertionError

    with Folder(tmp_path, Plan("greys", world.SUITE.digest, "clvr")) as folder:
        drawer = world.drawer(Shared(never))
        bench = Bench(world.SUITE, folder, lambda: CheckJudge(Idle()), drawer, folder.images, "a judge")
        assert bench.run(world.ITEMS) == first


def test_another_judge_judges_anew_and_draws_nothing(tmp_path):
    world.run(tmp_path)
    blind = FakeVerifier(blind=("c1", "c2", "c3", "c4"))
    with Folder(tmp_path, Plan("greys", world.SUITE.digest, "clvr")) as folder:
        drawer = world.drawer(Shared(lambda: FakeGenerator()))
        bench = Bench(world.SUITE, folder, lambda: CheckJudge(blind), drawer, folder.images, "another")
        summary = summarise(world.SUITE, bench.run(world.ITEMS))
    assert (summary.judged, summary.unjudged, summary.missing) == (0, 4, 0)
    assert summary.scores[0].value is None


def test_what_goes_wrong_with_one_prompt_leaves_the_others_and_is_tried_again(tmp_path):
    class Odd(FakeController):
        broken = True

        def checklist(self, goal, images):
            if self.broken and goal.prompt.endswith("2"):
                raise ReplyError("No usable checklist.", "Try again.")
            return super().checklist(goal, images)

    results = world.run(tmp_path, controller=Odd)
    assert [bool(r.image) for r in results] == [True, True, False, True]
    assert "No usable checklist" in results[2].error
    Odd.broken = False
    assert all(r.image and not r.error for r in world.run(tmp_path, controller=Odd))


def test_what_goes_wrong_with_every_prompt_ends_the_benchmark(tmp_path):
    asked = []

    class Down(FakeController):
        def checklist(self, goal, images):
            asked.append(goal.prompt)
            raise VLMConnectionError("No VLM server answers.", "Start one.")

    with pytest.raises(VLMConnectionError):
        world.run(tmp_path, controller=Down, workers=1)
    assert len(asked) == 1


def test_an_interrupt_keeps_whole_rounds(tmp_path, whole):
    def tell(result):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        world.run(tmp_path, workers=2, tell=tell)
    assert len(list((tmp_path / "verdicts").iterdir())) < len(world.ITEMS)
    world.run(tmp_path)
    assert told(tmp_path) == whole


def test_a_folder_of_another_benchmark_is_refused_and_a_used_one_locked(tmp_path):
    plan = Plan("greys", "x", "clvr")
    with Folder(tmp_path, plan), pytest.raises(RunLockedError):
        Folder(tmp_path, plan)
    with pytest.raises(FormatError, match="seed 0, not 4"):
        Folder(tmp_path, dataclasses.replace(plan, seed=4))
    (tmp_path / "bench.json").write_text("{")
    with pytest.raises(FormatError, match="damaged"):
        Folder(tmp_path, plan)


def test_results_read_back_as_they_were(tmp_path):
    results = world.run(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [decode(Result, row) for row in rows] == results


def test_images_of_others_are_found_whatever_their_format_and_all_samples_count(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "1.webp")
    assert found_images(tmp_path, Item("1", "p", {}, "1.jpg")) == [tmp_path / "1.webp"]
    samples = tmp_path / "00000" / "samples"
    samples.mkdir(parents=True)
    for name in ("0000.png", "0001.png", "grid.png"):
        Image.new("RGB", (8, 8)).save(samples / name)
    found = found_images(tmp_path, Item("00000", "p", {}, "00000/samples/0000.png"))
    assert [p.name for p in found] == ["0000.png", "0001.png"]


def page(results, suite=world.SUITE, folder=Path()):
    return render(suite, Plan("greys", "x", "clvr"), summarise(suite, results), results, folder / "images", folder)


def test_the_page_escapes_what_it_shows_and_needs_nothing_else(tmp_path):
    item = Item("1", "<script>alert(1)</script>", {"task": "<b>"}, "1.png", CHECKS)
    suite = Suite("s", "S & co", (item,), "task")
    verdicts = tuple(CheckVerdict(c.id, "fail") for c in CHECKS)
    bad = Result(
        "1", "1", item.prompt, item.tags, "1.png", {"correct": 0.0, "checks": 0.0}, CHECKS, verdicts, error="<i>"
    )
    text = page([bad], suite, tmp_path)
    assert "<script" not in text
    assert "<b>" not in text.split("<body", 1)[1].split("By ", 1)[1].split("colophon")[0]
    assert "http" not in text.split("<body", 1)[1]
    assert "The image cannot be read" in text


def test_the_page_links_runs_and_tells_unjudged_and_missing(tmp_path):
    results = world.run(tmp_path)
    results[1] = dataclasses.replace(results[1], image="", values={}, error="it broke")
    text = page(results, folder=tmp_path)
    assert 'href="runs/grey-0/report.html"' in text
    assert "it broke" in text
    assert "No image" in text
    assert text.count("<article") == 4


def command(*arguments):
    return cli.main(["bench", *(str(a) for a in arguments)])


@pytest.mark.slow
def test_the_built_in_suite_runs_end_to_end(tmp_path, capsys):
    out = tmp_path / "out"
    assert command("builtin", "--out", out, "--limit", 2, "--steps", 1, "--one-shot") == 0
    said = capsys.readouterr()
    assert "correct, micro average over images" in said.out
    assert "Wilson, n 2" in said.out
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["judged"], summary["judges"]) == (2, ["measuring verifier"])
    assert {p.name for p in (out / "images").iterdir()} == {"single-000.png", "two-000.png"}
    assert journal.read(out / "runs" / "single-000").header.models["verifier"] == "nobody"
    assert command("builtin", "--out", tmp_path / "scored", "--limit", 2, "--images", out / "images") == 0
    again = json.loads((tmp_path / "scored" / "summary.json").read_text())
    assert again["scores"] == summary["scores"]


def all_yes(body):
    ids = [line[2:].split(":")[0] for part in body["messages"][-1]["content"] if part["type"] == "text"
           for line in part["text"].splitlines() if line.startswith("- ")]  # fmt: skip
    results = [{"check": i, "reason": "seen", "answer": "yes", "probability": 0.9, "boxes": []} for i in ids]
    return completion(json.dumps({"results": results}))


def test_geneval_images_are_scored_by_a_vlm_and_missing_ones_are_no_failures(tmp_path, capsys):
    samples = tmp_path / "images" / "00000" / "samples"
    samples.mkdir(parents=True)
    for name in ("0000.png", "0001.png"):
        Image.new("RGB", (8, 8), "red").save(samples / name)
    with serving(all_yes) as server:
        code = command("geneval", "--out", tmp_path / "out", "--images", tmp_path / "images", "--limit", 2,
                       "--judge", server.url, "--parallel", 2)  # fmt: skip
        calls = len(server.chats)
        command(
            "geneval", "--out", tmp_path / "out", "--images", tmp_path / "images", "--limit", 2, "--judge", server.url
        )
        assert len(server.chats) == calls == 2
    assert code == 0
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert (summary["images"], summary["judged"], summary["missing"]) == (2, 2, 1)
    assert summary["scores"][0]["value"] == 1.0
    assert "1 without an image" in capsys.readouterr().out


def test_geneval_and_genevalpp_leave_their_official_layouts(tmp_path, monkeypatch):
    from clvr import models

    monkeypatch.setattr(models, "load_generator", lambda choice: FakeGenerator())
    with serving(all_yes) as server:
        for name in ("geneval", "geneval++"):
            assert command(name, "--out", tmp_path / name, "--one-shot", "--limit", 1, "--judge", server.url) == 0
    images = tmp_path / "geneval" / "images" / "00000"
    assert json.loads((images / "metadata.jsonl").read_text())["tag"] == "single_object"
    assert Image.open(images / "samples" / "0000.png").format == "PNG"
    assert Image.open(tmp_path / "geneval++" / "images" / "1.jpg").format == "JPEG"


def test_best_of_n_is_one_round_of_n_images(tmp_path, monkeypatch):
    from clvr import models

    monkeypatch.setattr(models, "load_generator", lambda choice: FakeGenerator())
    command("builtin", "--out", tmp_path, "--limit", 2, "--best-of", 3)
    facts = [json.loads(line)["run"] for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(f["rounds"], f["pictures"]) for f in facts] == [(1, 3), (1, 3)]


def test_the_loops_own_judge_is_said_aloud(tmp_path, monkeypatch, capsys):
    from clvr import models

    monkeypatch.setattr(models, "load_generator", lambda choice: FakeGenerator())
    command("builtin", "--out", tmp_path, "--limit", 1, "--budget", "steps=1")
    assert "THE JUDGE IS THE LOOP'S OWN" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("geneval",), "needs a VLM that judges"),
        (("nonsense",), "There is no suite"),
        (("builtin", "--limit", 0), "--limit 0"),
        (("builtin", "--best-of", 0), "--best-of 0"),
        (("builtin", "--images", "/nowhere"), "no folder /nowhere"),
        (("builtin", "--policy", "magic"), "no policy 'magic'"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(tmp_path, capsys, arguments, said):
    assert command(*arguments, "--out", tmp_path / "out") == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
