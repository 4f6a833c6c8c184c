"""The checklist in a real ComfyUI: made as text, edited, and what a run goes by."""

from __future__ import annotations

import json

import pytest

from clvr.checklist import parse_text, to_text
from clvr.shapes.checks import checklist
from clvr.shapes.language import parse
from scripts.comfy import ComfyError

from .comfy_fixtures import hurried, nodes_of

pytestmark = [pytest.mark.comfy, pytest.mark.xdist_group("comfy")]

PROMPT = "a red circle and no black shapes"
EDITED = "# only this counts\n[color x2] Is there a red circle?\n"


def made(prompt: str) -> dict:
    return {
        "judges": {"class_type": "CLVRControllerBuiltin", "inputs": {}},
        "list": {"class_type": "CLVRChecklist", "inputs": {"controller": ["judges", 0], "prompt": prompt}},
    }


def test_the_checklist_of_a_prompt_is_shown_as_text(client):
    text = client.run(made(PROMPT))["outputs"]["list"]["text"][0]
    assert text == to_text(checklist(parse(PROMPT)))


def test_a_prompt_beyond_the_controller_is_named(client):
    with pytest.raises(ComfyError, match="does not know 'cat'"):
        client.run(made("a cat"))


def test_a_run_in_one_node_goes_by_the_edited_checklist(client, server):
    workflow = hurried("clvr_closed_loop", rounds=1)
    nodes_of(workflow, "CLVRClosedLoop")[0]["inputs"] |= {"checklist": EDITED, "prompt": PROMPT, "folder": "edited/run"}
    client.run(workflow)
    goal = json.loads((server.output / "edited" / "run_00001" / "trajectory.json").read_text("utf-8"))["goal"]
    assert [(c["question"], c["kind"], c["weight"]) for c in goal["checks"]] == [("Is there a red circle?", "color", 2)]


def test_a_run_in_single_nodes_goes_by_the_edited_checklist_and_tells_it(client):
    workflow = hurried("clvr_step_by_step", rounds=1)
    start = next(key for key, node in workflow.items() if node["class_type"] == "CLVRStart")
    workflow[start]["inputs"] |= {"checklist": EDITED, "prompt": PROMPT}
    workflow["told"] = {"class_type": "PreviewAny", "inputs": {"source": [start, 1]}}
    text = client.run(workflow)["outputs"]["told"]["text"][0]
    assert parse_text(text) == parse_text(EDITED)


def test_a_line_that_cannot_be_read_is_named(client):
    workflow = hurried("clvr_closed_loop", rounds=1)
    nodes_of(workflow, "CLVRClosedLoop")[0]["inputs"]["checklist"] = "Is it red?\n[colour] Is it big?"
    with pytest.raises(ComfyError, match=r"Line 2 of the checklist: 'colour' in \[colour\] is neither a kind"):
        client.run(workflow)
