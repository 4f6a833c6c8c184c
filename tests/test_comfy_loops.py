"""Loop Start and Loop End around the user's own graph, in a real ComfyUI."""

from __future__ import annotations

import json
from typing import Any

import pytest

from scripts.comfy import Client, ComfyError, Server

from .comfy_fixtures import hurried, nodes_of

pytestmark = [pytest.mark.comfy, pytest.mark.xdist_group("comfy")]

PROMPT = "two red circles above a blue square and a green triangle"


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def looped(folder: str, rounds: int = 3, seed: int = 5, steps: int = 4) -> dict[str, Any]:
    """The phases between Loop Start and Loop End, with a preview that hangs off the round."""
    budget = hurried("clvr_closed_loop", rounds)
    return {
        "draw": node("CLVRGeneratorBuiltin", drawing_steps=steps, guidance=0),
        "judge": node("CLVRControllerBuiltin"),
        "budget": nodes_of(budget, "CLVRThinkingBudget")[0],
        "begin": node(
            "CLVRStart",
            prompt=PROMPT,
            seed=seed,
            width=0,
            height=0,
            controller=["judge", 0],
            budget=["budget", 0],
        ),
        "start": node("CLVRLoopStart", run=["begin", 0]),
        "plan": node("CLVRPlan", run=["start", 1], controller=["judge", 0]),
        "paint": node("CLVRGenerate", run=["plan", 0], generator=["draw", 0]),
        "verify": node("CLVRVerify", run=["paint", 0], verifier=["judge", 1]),
        "look": node("PreviewImage", images=["verify", 1]),
        "end": node("CLVRLoopEnd", loop=["start", 0], run=["verify", 0]),
        "finish": node("CLVRFinish", run=["end", 0]),
        "keep": node("CLVRSaveTrajectory", trajectory=["finish", 2], folder=folder),
    }


def pictures(server: Server, folder: str) -> dict[str, bytes]:
    """Every candidate of a kept run, by its path."""
    kept = server.output / f"{folder}_00001"
    return {str(p.relative_to(kept)): p.read_bytes() for p in sorted(kept.glob("steps/*/*.png"))}


def test_a_loop_of_nodes_gives_the_same_pictures_as_the_loop_in_one_node(client, server):
    whole = hurried("clvr_closed_loop", rounds=3)
    nodes_of(whole, "CLVRClosedLoop")[0]["inputs"] |= {"folder": "laps/whole", "seed": 5, "prompt": PROMPT}
    client.run(whole)
    client.run(looped("laps/nodes"))
    found = pictures(server, "laps/nodes")
    assert len(found) == 3
    assert found == pictures(server, "laps/whole")


def test_what_hangs_off_a_round_is_shown_in_every_round_on_the_user_s_own_nodes(client):
    workflow, shown = looped("laps/shown", seed=6), []
    for kind, data in client.follow(workflow):
        if kind == "executed":
            assert data["display_node"] in workflow
            shown.append(data["display_node"])
    assert shown.count("look") == 3
    assert shown.count("paint") == 3


def test_the_loop_stops_as_soon_as_the_goal_is_reached(client, server):
    workflow = looped("laps/early", rounds=50, seed=7)
    workflow["budget"]["inputs"]["threshold"] = 0.01
    client.run(workflow)
    assert len(pictures(server, "laps/early")) == 1


def rounds_of(events: Any) -> int:
    return sum(kind == "clvr.event" and data["kind"] == "settled" for kind, data in events)


def test_nothing_is_made_again_when_nothing_changed_and_everything_with_another_seed(client):
    assert rounds_of(client.follow(looped("laps/again", seed=8))) == 3
    assert rounds_of(client.follow(looped("laps/again", seed=8))) == 0
    assert rounds_of(client.follow(looped("laps/again", seed=9))) == 3


def test_a_change_behind_the_loop_makes_no_round_again(client, server):
    assert rounds_of(client.follow(looped("laps/before", seed=16))) == 3
    assert rounds_of(client.follow(looped("laps/behind", seed=16))) == 0
    assert pictures(server, "laps/before") == pictures(server, "laps/behind") != {}


def test_an_interrupt_in_the_second_round_leaves_nothing_behind_for_the_next_run(client, server):
    workflow = looped("laps/cut", seed=10, steps=12)
    settled, ended = 0, ""
    for kind, data in client.follow(workflow):
        if kind == "clvr.event" and data["kind"] == "settled":
            settled += 1
        if kind == "clvr.event" and data["kind"] == "drawing" and settled == 1:
            client.interrupt()
        ended = kind
    assert (settled, ended) == (1, "execution_interrupted")
    client.run(workflow)
    whole = hurried("clvr_closed_loop", rounds=3, steps=12)
    nodes_of(whole, "CLVRClosedLoop")[0]["inputs"] |= {"folder": "laps/uncut", "seed": 10, "prompt": PROMPT}
    client.run(whole)
    assert pictures(server, "laps/cut") == pictures(server, "laps/uncut")


def test_a_loop_in_which_nothing_happens_is_named(client):
    workflow = looped("laps/idle", seed=11)
    workflow["end"]["inputs"]["run"] = ["start", 1]
    with pytest.raises(ComfyError, match="Nothing happens to the run"):
        client.run(workflow)


def test_a_loop_end_whose_run_took_another_way_is_named(client):
    workflow = looped("laps/astray", seed=12)
    workflow["plan"]["inputs"]["run"] = ["begin", 0]
    with pytest.raises(ComfyError, match="did not come through Loop Start"):
        client.run(workflow)


def test_two_loops_in_a_row_go_on_with_the_same_run(client, server):
    workflow = looped("laps/row", rounds=4, seed=13)
    first = nodes_of(hurried("clvr_closed_loop", 2), "CLVRThinkingBudget")[0]
    assert first["inputs"]["rounds"] == 2
    workflow |= {
        "start 2": node("CLVRLoopStart", run=["end", 0]),
        "plan 2": node("CLVRPlan", run=["start 2", 1], controller=["judge", 0]),
        "paint 2": node("CLVRGenerate", run=["plan 2", 0], generator=["draw", 0]),
        "verify 2": node("CLVRVerify", run=["paint 2", 0], verifier=["judge", 1]),
        "end 2": node("CLVRLoopEnd", loop=["start 2", 0], run=["verify 2", 0]),
    }
    workflow["finish"]["inputs"]["run"] = ["end 2", 0]
    client.run(workflow)
    assert len(pictures(server, "laps/row")) == 4


def traffic(client: Client, workflow: dict[str, Any]) -> int:
    """Characters of JSON that a run sends to the browser."""
    return sum(len(json.dumps(data)) for kind, data in client.follow(workflow) if kind != "preview")


def test_more_than_fifty_rounds_are_refused(client):
    with pytest.raises(ComfyError, match="Value 51 bigger than max of 50: rounds"):
        client.run(looped("laps/cap", rounds=51, seed=15))


def test_twenty_rounds_are_told_to_the_browser_in_a_few_megabytes(client):
    workflow = looped("laps/many", rounds=20, seed=14, steps=1)
    workflow["budget"]["inputs"]["patience"] = 50
    assert traffic(client, workflow) < 5e6
