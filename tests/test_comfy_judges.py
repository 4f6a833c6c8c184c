"""Judges around judges in a real ComfyUI: a panel, measured evidence, calibrated thresholds."""

from __future__ import annotations

import json
from typing import Any

import pytest

from clvr import cli, journal
from clvr.journal import Record
from scripts.comfy import ComfyError, Server

from .comfy_fixtures import nodes_of
from .test_comfy_loops import node
from .test_comfy_resume import settled, whole
from .vlm_fixtures import completion, serving

pytestmark = [pytest.mark.comfy, pytest.mark.xdist_group("comfy")]


def judged(folder: str, judge: dict[str, Any], **others: dict[str, Any]) -> dict[str, Any]:
    """The loop in one node for one round, with this node as its judge."""
    workflow = whole(folder, rounds=1)
    nodes_of(workflow, "CLVRClosedLoop")[0]["inputs"]["verifier"] = ["judge", 0]
    return {**workflow, "built in": node("CLVRControllerBuiltin"), "judge": judge, **others}


def panel(*judges: str, **inputs: object) -> dict[str, Any]:
    given = {"agreement": "majority", "weights": "", "together": False} | inputs
    sockets = zip(("first", "second", "third", "fourth"), judges, strict=False)
    return node("CLVRJudges", **given, **{socket: [judge, 1] for socket, judge in sockets})


def evidence(**inputs: object) -> dict[str, Any]:
    given = {"text": "off", "detector": "", "device": "cpu", "measuring": False, "spare_judge": False} | inputs
    return node("CLVREvidence", verifier=["built in", 1], **given)


def record(server: Server, folder: str) -> Record:
    return journal.read(server.output / f"{folder}_00001")


def test_a_panel_votes_on_every_check_and_a_server_s_word_is_one_vote(client, server):
    with serving(lambda body: completion("I would rather not say.")) as vlm:
        silent = node("CLVRVLMServer", address=vlm.url, model="tiny", seconds=60, retries=0, max_tokens=64)
        workflow = judged("panel/run", panel("built in", "silent", "built in"), silent=silent)
        settled(client, workflow)
        assert vlm.chats
    found = record(server, "panel/run")
    assert found.header.models["verifier"].startswith("panel (majority): measuring verifier, tiny")
    verdict = found.trajectory.steps[0].winner.active
    assert verdict
    assert verdict.results[0].evidence[0].note.endswith("1 cannot tell (majority)")


def test_what_is_measured_overrules_the_judge_and_the_command_line_knows_the_same_judge_again(client, server, capsys):
    settled(client, judged("witness/run", evidence(text="words", measuring=True)))
    found = record(server, "witness/run")
    assert found.header.models["verifier"] == "measuring verifier with OCR (words), measuring verifier"
    assert found.header.options["judges"] == "vlm\nocr:words\nmeasuring"
    folder = server.output / "witness" / "run_00001"
    assert cli.main(["resume", str(folder), "--budget", "steps=2"]) == 0
    capsys.readouterr()
    assert len(record(server, "witness/run").trajectory.steps) == 2


def test_evidence_that_measures_nothing_is_refused(client):
    with pytest.raises(ComfyError, match="measures nothing"):
        client.run(judged("witness/none", evidence()))


def test_a_folder_that_holds_no_detector_is_named(client, tmp_path):
    with pytest.raises(ComfyError, match="holds no detector"):
        client.run(judged("witness/bad", evidence(detector=str(tmp_path))))


def calibrated(threshold: str) -> dict[str, Any]:
    return node("CLVRCalibratedJudge", verifier=["built in", 1], threshold=threshold)


def test_a_threshold_is_read_from_a_file_in_the_input_folder(client, server):
    file = server.base / "input" / "calibrated.json"
    file.write_text(json.dumps({"version": 1, "low": 0.3, "high": 0.6, "judge": "someone"}))
    settled(client, judged("threshold/run", calibrated("calibrated.json")))
    header = record(server, "threshold/run").header
    assert header.models["verifier"] == "measuring verifier, yes from 0.6, no below 0.3"
    assert header.options["judge_threshold"] == "0.3,0.6"


def test_a_file_of_thresholds_that_is_written_anew_is_read_anew(client, server):
    file = server.base / "input" / "again.json"
    for high in (0.6, 0.8):
        file.write_text(json.dumps({"version": 1, "low": 0.3, "high": high, "judge": "someone"}))
        settled(client, judged("threshold/again", calibrated("again.json")))
    second = journal.read(server.output / "threshold" / "again_00002")
    assert second.header.options["judge_threshold"] == "0.3,0.8"


@pytest.mark.parametrize("threshold", ["nothing.json", "0.1,0.2,0.3", "2"])
def test_a_threshold_that_cannot_be_is_refused(client, threshold):
    with pytest.raises(ComfyError, match=r"nothing\.json|0\.1,0\.2,0\.3|thresholds 2 and 2"):
        client.run(judged("threshold/bad", calibrated(threshold)))


def test_weights_that_do_not_fit_are_refused(client):
    workflow = judged("panel/bad", panel("built in", "built in", agreement="weighted", weights="1,x"))
    with pytest.raises(ComfyError, match="'1,x' is no list of weights"):
        client.run(workflow)
