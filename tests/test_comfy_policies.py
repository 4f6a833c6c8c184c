"""The policy of a run, chosen in a node of a real ComfyUI."""

from __future__ import annotations

from typing import Any

import pytest

from clvr import journal
from clvr.journal import Record
from clvr.policies import POLICIES
from scripts.comfy import ComfyError, Server

from .comfy_fixtures import nodes_of
from .test_comfy_resume import SHAPES, going_on, settled, story, whole

pytestmark = [pytest.mark.comfy, pytest.mark.xdist_group("comfy")]


def by(workflow: dict[str, Any], policy: str) -> dict[str, Any]:
    (first,) = nodes_of(workflow, "CLVRClosedLoop") or nodes_of(workflow, "CLVRStart")
    first["inputs"]["policy"] = policy
    return workflow


def kept(server: Server, run: str) -> Record:
    return journal.read(server.output / run)


def tactics(record: Record) -> list[str]:
    return [step.decision.brief.tactic for step in record.trajectory.steps]


@pytest.mark.parametrize("kind", ["CLVRClosedLoop", "CLVRStart"])
def test_the_nodes_that_begin_a_run_offer_every_policy_behind_what_saved_workflows_have(client, kind):
    inputs = client.get(f"object_info/{kind}")[kind]["input"]["optional"]
    options, settings = inputs["policy"]
    assert list(inputs)[-1] == "policy"
    assert (settings.get("options") or options) == list(POLICIES)
    assert settings["default"] == "clvr"
    assert all(f"{name}: " in settings["tooltip"] for name in POLICIES)


def test_a_saved_workflow_without_a_policy_runs_as_it_did(client, server):
    workflow = whole("policy/old", rounds=1)
    del nodes_of(workflow, "CLVRClosedLoop")[0]["inputs"]["policy"]
    settled(client, workflow)
    assert kept(server, "policy/old_00001").header.policy == "clvr"


def test_one_node_and_a_loop_of_nodes_run_strokes_alike(client, server):
    found = []
    for name, shape in SHAPES.items():
        settled(client, by(shape(f"strokes/{name}", rounds=3), "strokes"))
        found.append(kept(server, f"strokes/{name}_00001"))
    assert [record.header.policy for record in found] == ["strokes", "strokes"]
    assert found[0].trajectory.steps[0].decision.brief.checks
    assert story(found[0]) == story(found[1])


def test_every_round_of_one_shot_draws_the_whole_goal_anew(client, server):
    settled(client, by(whole("policy/once", rounds=2), "one-shot"))
    record = kept(server, "policy/once_00001")
    assert tactics(record) == ["one-shot", "one-shot"]
    assert [step.decision.action for step in record.trajectory.steps] == ["generate", "generate"]


@pytest.mark.parametrize("name", SHAPES)
def test_a_run_that_goes_on_keeps_its_policy_whatever_the_widget_says(client, server, name):
    place = f"director {name}"
    settled(client, by(SHAPES[name](f"{place}/run", rounds=1), "director"))
    settled(client, by(going_on(SHAPES[name](f"{place}/run", rounds=3), f"{place}/run_00001"), "one-shot"))
    settled(client, by(SHAPES[name](f"{place}/uncut", rounds=3), "director"))
    again, uncut = (kept(server, f"{place}/{run}_00001") for run in ("run", "uncut"))
    assert again.header.policy == "director"
    assert tactics(again) == tactics(uncut) == ["", "edit", "edit"]
    assert story(again)["pictures"] == story(uncut)["pictures"]


def test_a_policy_that_there_is_not_is_refused(client):
    with pytest.raises(ComfyError, match="magic"):
        client.run(by(whole("policy/none", rounds=1), "magic"))
