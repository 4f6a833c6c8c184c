"""The thinking budget and the estimate in a real ComfyUI."""

from __future__ import annotations

import pytest

from clvr.budget import PRESETS, Budget
from clvr.past import CHECKLIST, History

from .comfy_fixtures import hurried, nodes_of

pytestmark = [pytest.mark.comfy, pytest.mark.xdist_group("comfy")]


def started(client, workflow):
    """The budget of the run, and all that was told of it."""
    told = [data for kind, data in client.follow(workflow) if kind == "clvr.event"]
    (budget,) = [data["budget"] for data in told if data["kind"] == "started"]
    return Budget.parse(budget), told


def asked(folder, seed, **limits):
    """The shipped loop with this budget; a threshold that the first drawing reaches ends it early."""
    workflow = hurried("clvr_closed_loop", rounds=1, steps=2)
    for node in nodes_of(workflow, "CLVRThinkingBudget"):
        node["inputs"] |= limits
    for node in nodes_of(workflow, "CLVRClosedLoop"):
        node["inputs"] |= {"folder": folder, "seed": seed, "prompt": "a red circle"}
    return workflow


def test_a_saved_workflow_without_the_later_inputs_means_what_it_meant(client):
    workflow = asked("budget/old", 1, rounds=1, patience=3)
    for node in nodes_of(workflow, "CLVRThinkingBudget"):
        for name in ("tokens", "batch", "preset"):
            del node["inputs"][name]
    assert started(client, workflow)[0] == Budget(steps=1, patience=3)


def test_tokens_and_batch_are_limits_of_the_node(client):
    given = started(client, asked("budget/custom", 2, rounds=1, tokens=900, batch=1, candidates=2))[0]
    assert given == Budget(steps=1, candidates=2, tokens=900, batch=1)


def test_a_preset_takes_the_place_of_the_rounds_and_keeps_the_other_limits(client):
    given, _ = started(client, asked("budget/fast", 3, preset="fast", rounds=50, candidates=9, evaluations=2))
    assert given == Budget.parse("fast,nfe=2")


def test_the_node_offers_every_preset(client):
    inputs = client.get("object_info/CLVRThinkingBudget")["CLVRThinkingBudget"]["input"]
    kind, settings = inputs["optional"]["preset"]
    assert [*inputs["required"], *inputs["optional"]][-3:] == ["tokens", "batch", "preset"]
    assert (settings.get("options") or kind) == ["custom", *PRESETS]
    assert settings["default"] == "custom"


def test_what_a_run_took_tells_what_the_next_one_will_take(client, state_folder):
    def estimated(seed):
        _, told = started(client, asked("budget/past", seed, rounds=1, candidates=3))
        (line,) = [data["expected"] for data in told if data["kind"] == "estimated"]
        watched = client.get(f"clvr/runs/{told[0]['run']}") if told[0]["run"] else {}
        assert watched.get("expected", line) == line
        return line

    before = len(History(state_folder).read()[0])
    estimated(4)
    steps, warning = History(state_folder).read()
    assert not warning
    assert [p.index for p in steps[before:]] == [CHECKLIST, 0]
    assert steps[-1].images == 3
    assert "going by" in estimated(5)


def test_the_steps_of_a_graph_of_single_nodes_are_remembered_alike(client, state_folder):
    workflow = hurried("clvr_step_by_step", rounds=1, steps=2)
    before = len(History(state_folder).read()[0])
    client.run(workflow)
    new = [p for p in History(state_folder).read()[0][before:] if p.index == 0]
    assert [p.images for p in new] == [1]
    assert all(p.generator and p.vlm.count(",") == 1 for p in new)
