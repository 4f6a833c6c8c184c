"""The command line over a world without weights; the last tests start real processes."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from clvr import cli, journal, models
from clvr.budget import Budget
from clvr.context import from_sharegpt
from clvr.errors import VLMError, VLMSetupError, WeightsError
from clvr.estimate import Setup
from clvr.models import Choice
from clvr.past import CHECKLIST, History
from clvr.policies import POLICIES, SUMMARIES
from clvr.trajectory import Goal

from .engine_fixtures import CHECKS, SIZE, FakeController, FakeGenerator, FakeVerifier, draw

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def no_names_in_the_environment(monkeypatch):
    for name in ("CLVR_VLM_URL", "CLVR_VLM_MODEL", "CLVR_VLM_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fakes(monkeypatch):
    """Ports that the command line gets whatever is named; a test may change them."""
    parts = {
        "controller": FakeController(),
        "verifier": FakeVerifier(blind=("c4",)),
        "generator": FakeGenerator(),
    }
    monkeypatch.setattr(models, "load_judges", lambda choice, **_: (parts["controller"], parts["verifier"]))
    monkeypatch.setattr(models, "load_generator", lambda choice: parts["generator"])
    return parts


def run(*arguments):
    return cli.main([str(a) for a in arguments])


def generate(folder, *arguments):
    return run(
        "generate",
        "a bright grey",
        "--seed",
        5,
        "--budget",
        "steps=3,candidates=2",
        "--out",
        folder,
        *arguments,
    )


def test_a_run_leaves_everything_in_its_folder_and_its_paths_on_stdout(fakes, tmp_path, capsys):
    folder = tmp_path / "run"
    assert generate(folder) == 0
    names = ["final.png", "sheet.png", "report.html", "trajectory.json"]
    assert capsys.readouterr().out.split() == [str(folder / name) for name in names]
    assert all((folder / name).stat().st_size for name in [*names, "journal.jsonl", "steps/02/1.png"])
    record = journal.read(folder)
    best = record.album()[record.trajectory.best.label]
    assert Image.open(folder / "final.png").convert("RGB").tobytes() == best.tobytes()
    assert record.header.models["generator"] == "fake generator"
    assert record.header.size == SIZE


def test_progress_goes_to_stderr(fakes, tmp_path, capsys):
    generate(tmp_path / "run")
    said = capsys.readouterr().err
    assert "round 2/3" in said
    assert "checks passing" in said
    assert "stopped: the budget of 3 steps is used" in said


@pytest.fixture
def outlined(monkeypatch, tmp_path):
    """The fakes as the estimate sees them, and a past of their own."""
    setup = Setup("fake generator", "fake controller, fake verifier", SIZE, 2)
    monkeypatch.setattr(models, "outline", lambda choice, size: setup)
    monkeypatch.setenv("CLVR_STATE_DIR", str(tmp_path / "state"))


def test_a_run_is_estimated_before_it_starts_from_the_runs_before_it(fakes, outlined, tmp_path, capsys):
    generate(tmp_path / "one")
    first = capsys.readouterr().err.splitlines()[0]
    assert first.startswith("estimate: up to 3 rounds, 6 images, 12 function evaluations; the time is not known")
    generate(tmp_path / "two")
    assert "going by 3 past steps; runs so far ended after 3 rounds" in capsys.readouterr().err.splitlines()[0]


def test_an_estimate_alone_draws_nothing(fakes, outlined, tmp_path, capsys):
    assert generate(tmp_path / "run", "--estimate", "--budget", "thorough,steps=2") == 0
    told = capsys.readouterr()
    assert told.out.startswith("estimate: up to 2 rounds, 8 images")
    assert not told.err
    assert not (tmp_path / "run").exists()
    assert not fakes["generator"].sizes


def test_a_resumed_run_leaves_its_costs_too(fakes, outlined, tmp_path, capsys):
    generate(tmp_path / "run")
    assert run("resume", tmp_path / "run", "--budget", "steps=5") == 0
    steps, _ = History().read()
    assert [p.index for p in steps] == [CHECKLIST, 0, 1, 2, 3, 4]


def test_a_damaged_past_is_told_and_stops_nothing(fakes, outlined, tmp_path, capsys):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "steps.jsonl").write_text("?\n")
    assert generate(tmp_path / "run") == 0
    assert "steps.jsonl was damaged" in capsys.readouterr().err


def test_what_is_outlined_is_what_is_loaded():
    """On the built-in model, whose weights are at hand."""
    choice = Choice(steps=2, guidance=3.0, device="cpu").resolved()
    outlined = models.outline(choice)
    assert outlined == Setup.of(models.load_generator(choice), *models.load_judges(choice))
    assert models.outline(choice, (32, 48)).size == (32, 48)


def test_a_model_that_is_not_here_is_not_downloaded_for_an_estimate(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert run("generate", "a cat", "--estimate", "--model", "nobody/nothing", "--vlm", "transformers:none/such") == 2
    assert "nobody/nothing is not on this machine yet" in capsys.readouterr().err


def test_a_budget_by_name(fakes, tmp_path):
    assert generate(tmp_path / "run", "--budget", "fast,patience=3") == 0
    record = journal.read(tmp_path / "run")
    assert record.header.budget == Budget.parse("steps=2,patience=3")
    assert len(record.trajectory.steps) == 2


def test_references_are_read_and_kept(fakes, tmp_path):
    Image.new("RGBA", (5, 4), (255, 0, 0, 255)).save(tmp_path / "given.png")
    assert generate(tmp_path / "run", "--reference", tmp_path / "given.png") == 0
    assert journal.read(tmp_path / "run").album()["IMG_REF_0"].getpixel((0, 0)) == (255, 0, 0)


def test_the_default_folder_is_named_after_time_and_prompt(fakes, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("generate", "Two red, circles/..", "--budget", "steps=1") == 0
    (folder,) = (tmp_path / "out").iterdir()
    assert folder.name.endswith("-two-red-circles")


def test_a_run_that_broke_off_is_resumed_to_the_same_end(fakes, tmp_path, capsys):
    generate(tmp_path / "whole")
    fakes["generator"] = Interrupted(calls=2)
    assert generate(tmp_path / "run") == 130
    assert f"clvr resume {tmp_path / 'run'}" in capsys.readouterr().err
    fakes["generator"] = FakeGenerator()
    assert run("resume", tmp_path / "run") == 0
    whole, resumed = (journal.read(tmp_path / name).trajectory.steps for name in ("whole", "run"))
    assert [s.candidates for s in resumed] == [s.candidates for s in whole]
    assert (tmp_path / "run" / "final.png").is_file()


@pytest.mark.parametrize(
    ("models_of", "options", "said"),
    [
        ({"generator": "klein"}, {"model": models.IN_A_GRAPH, "vlm": "builtin"}, "What draws in .*: klein"),
        ({"controller": "qwen@ComfyUI"}, {"model": "builtin"}, "What plans in .*: qwen@ComfyUI"),
        ({"controller": "fake controller"}, {"vlm": "builtin"}, "What draws in .*: not known yet"),
        ({"verifier": "qwen@ComfyUI"}, {"model": "builtin", "vlm": "builtin"}, "qwen@ComfyUI judges in"),
        ({}, {}, "does not say with which models"),
    ],
)
def test_a_run_whose_models_live_in_a_graph_says_where_it_can_go_on(fakes, tmp_path, capsys, models_of, options, said):
    header = journal.Header(Goal("a bright grey"), 5, SIZE, models=models_of, options=options)
    with journal.Journal.create(tmp_path / "run") as log:
        log.begin(header)
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    assert run("resume", tmp_path / "run") == 2
    told = capsys.readouterr().err
    assert re.search(said, told)
    assert "continue_from of CLVR Closed Loop" in told
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == before


def test_a_run_that_left_its_size_to_the_generator_is_resumed_at_the_generator_s(fakes, tmp_path):
    header = journal.Header(Goal("a bright grey", checks=CHECKS), 5, (0, 0), options=Choice(vlm="builtin").options())
    with journal.Journal.create(tmp_path / "run") as log:
        log.begin(header)
    assert run("resume", tmp_path / "run", "--budget", "steps=1") == 0
    assert fakes["generator"].sizes == [SIZE]


@dataclasses.dataclass
class Interrupted(FakeGenerator):
    """Ctrl-C in the drawing after so many calls."""

    calls: int = 0

    def draw(self, context, size, seeds, on_step=None):
        self.calls -= 1
        if self.calls < 0:
            raise KeyboardInterrupt
        return super().draw(context, size, seeds, on_step)


def test_a_finished_run_says_so_and_goes_on_with_more_budget(fakes, tmp_path, capsys):
    generate(tmp_path / "run")
    assert run("resume", tmp_path / "run") == 0
    assert "The run is over" in capsys.readouterr().err
    assert run("resume", tmp_path / "run", "--budget", "steps=5") == 0
    record = journal.read(tmp_path / "run")
    assert len(record.trajectory.steps) == 5
    assert record.header.budget.candidates == 2


def test_a_vlm_that_fails_in_the_middle_leaves_an_image_and_a_run_to_resume(fakes, tmp_path, capsys):
    fakes["controller"] = FakeController([draw(), VLMError("The server is gone.", "Start it.")])
    assert generate(tmp_path / "run") == 2
    told = capsys.readouterr()
    assert "The server is gone." in told.err
    assert "final.png" in told.out
    fakes["controller"] = FakeController()
    assert run("resume", tmp_path / "run") == 0
    assert len(journal.read(tmp_path / "run").trajectory.steps) == 3


def test_a_report_is_redrawn(fakes, tmp_path):
    generate(tmp_path / "run")
    for name in ("final.png", "sheet.png", "report.html"):
        (tmp_path / "run" / name).unlink()
    assert run("report", tmp_path / "run") == 0
    assert (tmp_path / "run" / "report.html").stat().st_size > 1000


@pytest.mark.parametrize("name", ["all.json", "all.jsonl"])
def test_an_export_reads_back_and_its_image_paths_lead_to_images(fakes, tmp_path, name):
    generate(tmp_path / "a")
    generate(tmp_path / "b", "--seed", 6)
    (tmp_path / "sets").mkdir()
    file = tmp_path / "sets" / name
    assert run("export", tmp_path / "a", tmp_path / "b", "--sharegpt", file) == 0
    text = file.read_text()
    records = json.loads(text) if name.endswith("json") else [json.loads(line) for line in text.splitlines()]
    assert from_sharegpt(records[1])[0] == journal.read(tmp_path / "b").trajectory
    assert all((file.parent / path).is_file() for record in records for path in record["images"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["generate", "x", "--budget", "steps=0"], "steps must be a whole number"),
        (["generate", "x", "--budget", "rounds=3"], "no limit"),
        (["generate", "x", "--reference", "nowhere.png"], "no image nowhere.png"),
        (["generate", "x", "--policy", "magic"], "no policy 'magic'"),
        (["generate", "x", "--model", "some/model"], "vllm serve"),
        (["resume", "nowhere"], "clvr generate"),
        (["report", "nowhere"], "clvr generate"),
        (["export", "nowhere", "--sharegpt", "x.json"], "clvr generate"),
    ],
)
def test_a_mistake_is_one_line_on_stderr_and_exit_code_2(fakes, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    told = capsys.readouterr()
    assert said in told.err
    assert told.err.count("\n") == 1
    assert not told.out
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


@pytest.mark.parametrize("arguments", [[], ["generate"], ["generate", "x", "--size", "big"], ["draw"]])
def test_wrong_arguments_exit_with_2(arguments):
    with pytest.raises(SystemExit) as caught:
        run(*arguments)
    assert caught.value.code == 2


def test_broken_weights_leave_no_folder_behind(fakes, tmp_path, monkeypatch, capsys):
    def fail(choice):
        raise WeightsError("It is truncated.", "Get it again.")

    monkeypatch.setattr(models, "load_generator", fail)
    assert generate(tmp_path / "run") == 2
    assert "Get it again." in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_second_run_into_the_same_folder_is_refused(fakes, tmp_path, capsys):
    generate(tmp_path / "run")
    before = (tmp_path / "run" / "journal.jsonl").read_bytes()
    assert generate(tmp_path / "run") == 2
    assert "clvr resume" in capsys.readouterr().err
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == before


def test_a_key_is_never_written(fakes, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CLVR_VLM_API_KEY", "sk-secret")
    assert generate(tmp_path / "run", "--vlm", "http://127.0.0.1:9/v1", "--vlm-model", "qwen") == 0
    assert journal.read(tmp_path / "run").header.options["vlm"] == "http://127.0.0.1:9/v1"
    assert not any(b"sk-secret" in p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file())
    assert "sk-secret" not in "".join(capsys.readouterr())


def test_a_key_goes_only_to_an_address_that_the_user_named(monkeypatch):
    monkeypatch.setenv("CLVR_VLM_API_KEY", "sk-secret")
    named = Choice(vlm="http://a/v1")
    recorded = Choice.recorded(named.options())
    assert models.api_key(named) == "sk-secret"
    assert models.api_key(recorded) is None
    for same in ("http://a/v1", "http://a/", "a"):
        monkeypatch.setenv("CLVR_VLM_URL", same)
        assert models.api_key(Choice.recorded(named.options())) == "sk-secret"
    for other in ("", "http://b/v1", "https://a/v1", "http://a:81/v1", "http://a/v1/x", "http://a b"):
        monkeypatch.setenv("CLVR_VLM_URL", other)
        assert models.api_key(Choice.recorded(named.options())) is None


def test_a_choice_survives_the_journal():
    choice = Choice("folder", "builtin", "", 8, 2.5, "cpu", "float32", "model")
    assert dataclasses.replace(Choice.recorded(choice.options()), trusted=True) == choice


def test_the_built_in_model_brings_its_own_judges_and_a_real_one_needs_a_vlm(monkeypatch):
    assert Choice().resolved().vlm == "builtin"
    with pytest.raises(VLMSetupError, match="vllm serve"):
        Choice(model="some/model").resolved()
    monkeypatch.setenv("CLVR_VLM_URL", "http://a")
    assert Choice(model="some/model").resolved().vlm == "http://a"
    assert Choice().resolved().vlm == "builtin"


def test_models_names_what_is_missing(monkeypatch, tmp_path, capsys):
    snapshot = tmp_path / "models--someone--klein-tuned" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text('{"_class_name": "Flux2KleinPipeline"}')
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert run("models", "--vlm", "http://127.0.0.1:9") == 0
    told = capsys.readouterr().out
    assert "package: torch" in told
    assert "missing  model: someone/klein-tuned" in told
    assert "hf download black-forest-labs/FLUX.2-klein-4B" in told
    assert "missing  VLM server: http://127.0.0.1:9" in told


def test_the_help_of_generate_tells_what_each_policy_does(capsys):
    with pytest.raises(SystemExit):
        cli.main(["generate", "--help"])
    told = capsys.readouterr().out.split("policies:\n")[1].splitlines()
    assert [line.split()[0] for line in told if line[2] != " "] == list(POLICIES) == list(SUMMARIES)
    assert max(map(len, told)) < 80


def test_help_names_every_command_and_loads_nothing_heavy():
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "clvr", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert all(name in done.stdout for name in ("generate", "resume", "report", "export", "models"))
    loaded = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert "clvr.cli" in loaded
    assert not loaded & {"torch", "numpy", "PIL", "tqdm", "httpx", "clvr.loop"}


def test_python_m_clvr_exits_with_the_command_s_code(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "clvr", "report", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
