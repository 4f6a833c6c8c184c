"""Judges by name: what --judge, --agreement, --judge-threshold and --spare-vlm make of each other."""

from __future__ import annotations

import json

import pytest

from clvr import cli, journal, models
from clvr.errors import MissingFileError, SettingError, VLMSetupError
from clvr.jury import Jury, read_threshold
from clvr.models import Choice, load_judges
from clvr.trajectory import Check
from clvr.vlm import VLMVerifier

from . import tiny_detector
from .judges_fixtures import Says, everything, sign

OPEN = Check("open", 'Does the sign say "OPEN"?', "text")


def seated(*judges, other=None, **rest):
    return Jury(judges, **rest).seated(Says("planner", everything("y")), other or (lambda name: Says(name, {})))


def test_without_names_the_planning_vlm_judges_alone():
    assert seated().name == "planner"
    assert seated("vlm").name == "planner"


def test_other_vlms_form_a_panel_and_the_planner_is_in_it_when_named():
    assert seated("vlm", "http://a:1").name == "panel (majority): planner, http://a:1"
    assert seated("http://a:1#big").name == "http://a:1#big"
    weighted = seated("vlm", "http://a:1", "transformers:x", agreement="weighted=2,1,1")
    assert weighted.name == "panel (weighted): planner, http://a:1, transformers:x"


def test_what_measures_stands_beside(tmp_path):
    owl = tiny_detector.make(tmp_path / "owl")
    judge = seated("ocr:words", "measuring", f"detector:{owl}")
    assert judge.name == "planner with OCR (words), measuring verifier, detector owl"
    verdict = judge.judge(sign("CLOSED"), [OPEN])
    assert verdict.outcome("open") == "fail"


def test_the_vlm_can_be_spared():
    vlm = Says("planner", {"open": "y"})
    Jury(("ocr",), spare=True).seated(vlm, Says).judge(sign("OPEN"), [OPEN])
    assert vlm.asked == []


def test_the_threshold_is_the_planning_vlm_s():
    judge = Jury(("vlm", "http://a:1"), threshold="0.3,0.7").seated(Says("planner", {}), lambda name: Says(name, {}))
    assert judge.name == "panel (majority): planner, yes from 0.7, no below 0.3, http://a:1"


@pytest.mark.parametrize(
    ("judges", "rest", "said"),
    [
        (("foo",), {}, "There is no judge 'foo'"),
        (("ocr:fuzzy",), {}, "There is no text match 'fuzzy'"),
        (("detector",), {}, "detector:FOLDER"),
        (("vlm", "http://a:1"), {"agreement": "most"}, "There is no agreement 'most'"),
        (("vlm", "http://a:1"), {"agreement": "weighted=x"}, "weighted=2,1"),
        (("vlm", "http://a:1"), {"agreement": "weighted=1"}, "one weight a judge"),
        ((), {"threshold": "1,2,3"}, "is no threshold"),
        ((), {"threshold": "7"}, "cannot work"),
    ],
)
def test_mistakes_are_explained(judges, rest, said):
    with pytest.raises(SettingError, match=said):
        seated(*judges, **rest)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(MissingFileError, match="clvr calibrate"):
        read_threshold(str(tmp_path / "nothing.json"))
    with pytest.raises(MissingFileError, match="holds no detector"):
        seated(f"detector:{tmp_path}")


def test_a_choice_survives_its_record(tmp_path):
    file = tmp_path / "qwen.json"
    file.write_text(json.dumps({"version": 1, "judge": "qwen", "low": 0.25, "high": 0.75}))
    named = Choice(vlm="http://a:1", judges=("vlm", "ocr"), agreement="all", judge_threshold=str(file), spare_vlm=True)
    choice = named.resolved()
    file.unlink()
    again = Choice.recorded(choice.options())
    assert again == Choice(**{**vars(choice), "trusted": False})
    assert read_threshold(again.judge_threshold).high == 0.75


def test_a_key_is_not_sent_to_another_judge(monkeypatch):
    monkeypatch.setenv("CLVR_VLM_API_KEY", "secret")
    opened = []

    def note(choice):
        opened.append((choice.vlm, choice.vlm_model, models.api_key(choice)))
        return models.load_client(choice)

    judges = ("vlm", "http://b:1", "http://a:1#large")
    load_judges(Choice(vlm="http://a:1", vlm_model="small", judges=judges), open_client=note)
    assert opened == [("http://a:1", "small", "secret"), ("http://b:1", "", None), ("http://a:1", "large", "secret")]
    with pytest.raises(VLMSetupError):
        load_judges(Choice(vlm="http://a:1", judges=("vlm", "http://b c:1")))


def test_servers_are_asked_for_their_certainty():
    _, verifier = load_judges(Choice(vlm="http://a:1"))
    assert isinstance(verifier, VLMVerifier)
    assert verifier._logprobs


def test_a_run_is_judged_as_named_and_resumed_so(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    out = tmp_path / "run"
    options = ["--seed", "1", "--steps", "2", "--judge", "measuring", "--judge", "ocr", "--budget", "steps=1"]
    assert cli.main(["generate", "a red circle", *options, "--out", str(out)]) == 0
    assert cli.main(["resume", str(out), "--budget", "steps=2"]) == 0
    record = journal.read(out)
    assert record.header.models["verifier"] == "measuring verifier with measuring verifier, OCR (exact)"
    evidence = record.trajectory.steps[-1].winner.active.results[0].evidence
    assert [(e.judge, e.says is not None) for e in evidence] == [("measuring verifier", True)] * 2
