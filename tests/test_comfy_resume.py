"""Runs that were cut short in a real ComfyUI, by SIGKILL or an interrupt, go on exactly; queued runs stay apart."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from clvr import cli, journal
from clvr.journal import Record
from scripts.comfy import Client, ComfyError, Server

from .comfy_fixtures import hurried, nodes_of
from .test_comfy_loops import PROMPT, looped, node
from .vlm_fixtures import Sent, completion, serving

pytestmark = [pytest.mark.comfy, pytest.mark.xdist_group("comfy")]

SEED, STEPS = 21, 6


def whole(folder: str, rounds: int = 3, seed: int = SEED) -> dict[str, Any]:
    """The loop in one node."""
    workflow = hurried("clvr_closed_loop", rounds, STEPS)
    nodes_of(workflow, "CLVRClosedLoop")[0]["inputs"] |= {"folder": folder, "seed": seed, "prompt": PROMPT}
    return workflow


def laid_out(folder: str, rounds: int = 3, seed: int = SEED) -> dict[str, Any]:
    """The loop of nodes, kept under the same name from its start to its end."""
    workflow = looped(folder, rounds, seed, STEPS)
    workflow["begin"]["inputs"]["folder"] = folder
    return workflow


SHAPES = {"whole": whole, "laid out": laid_out}


def going_on(workflow: dict[str, Any], run: str) -> dict[str, Any]:
    """The workflow continuing a kept run, with another prompt and seed on its widgets, which must not count."""
    (first,) = nodes_of(workflow, "CLVRClosedLoop") or nodes_of(workflow, "CLVRStart")
    first["inputs"] |= {"continue_from": ["kept", 0], "seed": 999, "prompt": "a green square"}
    return {**workflow, "kept": node("CLVRLoadTrajectory", folder=run)}


def until_drawing(client: Client, workflow: dict[str, Any], step: int) -> Iterator[tuple[str, Any]]:
    """ComfyUI's events from the moment in which the run draws its round `step`."""
    reached = False
    for kind, data in client.follow(workflow):
        reached |= kind == "clvr.event" and data["kind"] == "drawing" and data["step"] == step
        if reached:
            yield kind, data


def settled(client: Client, workflow: dict[str, Any]) -> int:
    """Rounds that a workflow run to its end completes. Fails where it does not get there."""
    heard = list(client.follow(workflow))
    assert heard[-1][0] == "execution_success", heard[-1]
    return sum(kind == "clvr.event" and data["kind"] == "settled" for kind, data in heard)


def story(record: Record) -> dict[str, Any]:
    """A run apart from its seconds, with the digests of its pictures."""
    return {**without_seconds(record.trajectory.to_dict()), "pictures": dict(record.digests)}


def without_seconds(data: Any) -> Any:
    if isinstance(data, dict):
        return {key: without_seconds(value) for key, value in data.items() if key != "seconds"}
    return [without_seconds(value) for value in data] if isinstance(data, list) else data


def folders(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


@pytest.fixture(scope="module")
def wrecked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that was killed in the second round of a run, twice, and is up again."""
    server = Server(tmp_path_factory.mktemp("wrecked"))
    for name, shape in SHAPES.items():
        with server:
            for _ in until_drawing(Client(server.address), shape(f"cut/{name}"), 1):
                break
            server.kill()
    with server:
        settled(Client(server.address), whole("cut/uncut"))
        yield server


@pytest.fixture
def uncut(wrecked: Server) -> dict[str, Any]:
    return story(journal.read(wrecked.output / "cut" / "uncut_00001"))


def copied(server: Server, name: str, run: str) -> Path:
    return Path(shutil.copytree(server.output / "cut" / f"{name}_00001", server.output / run))


@pytest.mark.parametrize("name", SHAPES)
def test_a_killed_server_leaves_the_complete_rounds_and_the_panel_lists_the_run_as_unfinished(wrecked, name):
    record = journal.read(wrecked.output / "cut" / f"{name}_00001")
    assert (len(record.trajectory.steps), record.trajectory.stop_reason) == (1, "")
    listed = {run["id"]: run for run in Client(wrecked.address).get("clvr/runs")["runs"]}
    run = listed[f"cut/{name}_00001"]
    assert (run["rounds"], run["stop"], run["running"]) == (1, "", False)


def test_a_wrong_name_is_answered_with_the_unfinished_runs(wrecked):
    with pytest.raises(ComfyError, match=r"Unfinished runs: cut/laid out_00001, cut/whole_00001"):
        Client(wrecked.address).run(going_on(whole("cut/other"), "cut/nothing"))


@pytest.mark.parametrize("by", SHAPES)
@pytest.mark.parametrize("name", SHAPES)
def test_a_run_of_either_kind_goes_on_in_its_folder_in_either_kind_of_graph_to_the_same_end(wrecked, uncut, name, by):
    folder = copied(wrecked, name, f"{name} by {by}/run_00001")
    run = f"{folder.parent.name}/run"
    again = going_on(SHAPES[by](run), f"{run}_00001")
    assert settled(Client(wrecked.address), again) == 2
    assert folders(folder.parent) == ["run_00001"]
    assert {"final.png", "sheet.png", "report.html"} <= {path.name for path in folder.iterdir()}
    assert story(journal.read(folder)) == uncut
    assert settled(Client(wrecked.address), again) == 0
    assert story(journal.read(folder)) == uncut


def test_the_command_line_continues_a_run_that_a_node_began(wrecked, uncut, capsys):
    folder = copied(wrecked, "whole", "by_hand/run_00001")
    assert cli.main(["resume", str(folder)]) == 0
    assert story(journal.read(folder)) == uncut
    assert str(folder / "final.png") in capsys.readouterr().out


def test_a_run_in_the_input_folder_goes_on_in_the_output_folder(wrecked, uncut):
    given = wrecked.base / "input" / "given_00001"
    shutil.copytree(wrecked.output / "cut" / "whole_00001", given)
    before = (given / "journal.jsonl").read_bytes()
    assert settled(Client(wrecked.address), going_on(whole("taken/in"), "given_00001")) == 2
    assert (given / "journal.jsonl").read_bytes() == before
    assert story(journal.read(wrecked.output / "taken" / "in_00001")) == uncut


def test_a_run_that_is_over_goes_on_with_a_larger_budget_only(client, server):
    place = server.output / "more"
    assert settled(client, whole("more/run", rounds=1)) == 1
    assert settled(client, going_on(whole("more/run", rounds=1), "more/run_00001")) == 0
    assert "1 step" in journal.read(place / "run_00001").trajectory.stop_reason
    assert settled(client, going_on(whole("more/run", rounds=2), "more/run_00001")) == 1
    record = journal.read(place / "run_00001")
    assert (len(record.trajectory.steps), record.header.budget.steps) == (2, 2)
    assert folders(place) == ["run_00001"]


def test_a_start_that_is_taken_up_with_another_generator_leaves_the_first_run_as_it_is(client, server):
    workflow = laid_out("fork/run", rounds=1)
    settled(client, workflow)
    before = (server.output / "fork" / "run_00001" / "journal.jsonl").read_bytes()
    workflow["draw"]["inputs"]["drawing_steps"] = STEPS - 1
    assert settled(client, workflow) == 1
    assert (server.output / "fork" / "run_00001" / "journal.jsonl").read_bytes() == before
    first, second = (journal.read(server.output / "fork" / f"run_0000{k}").trajectory for k in (1, 2))
    assert first.cost.nfe > second.cost.nfe


def test_a_graph_keeps_nothing_by_itself_when_its_start_names_no_folder(client, server):
    workflow = laid_out("silent/run", rounds=1)
    workflow["begin"]["inputs"]["folder"] = ""
    del workflow["keep"]
    workflow["see"] = node("CLVRShowTrajectory", trajectory=["finish", 2])
    settled(client, workflow)
    assert not (server.output / "silent").exists()


def test_two_queued_prompts_end_each_with_its_own_run(client, server):
    asked = {"one": whole("pair/one", 2, seed=31), "two": laid_out("pair/two", 2, seed=32)}
    prompts = {name: client.queue(workflow) for name, workflow in asked.items()}
    for name, prompt in prompts.items():
        assert client.history(prompt, patience=120)["status"]["status_str"] == "success", name
    for name, seed in (("one", 31), ("two", 32)):
        record = journal.read(server.output / "pair" / f"{name}_00001")
        assert (record.trajectory.seed, len(record.trajectory.steps), record.warnings) == (seed, 2, ())
        assert set(record.pictures()) >= {"IMG_GEN_0/0", "IMG_GEN_1/0"}
    assert folders(server.output / "pair") == ["one_00001", "two_00001"]
    alone = settled(client, whole("pair/alone", 2, seed=32))
    assert alone == 2
    found = [story(journal.read(server.output / "pair" / f"{name}_00001")) for name in ("two", "alone")]
    assert found[0] == found[1]


@pytest.mark.parametrize("name", SHAPES)
def test_an_interrupted_run_goes_on_as_if_it_had_not_been(client, server, name):
    place = f"interrupted {name}"
    for _ in until_drawing(client, SHAPES[name](f"{place}/run", rounds=2, seed=41), 1):
        client.interrupt()
    assert len(journal.read(server.output / place / "run_00001").trajectory.steps) == 1
    settled(client, going_on(SHAPES[name](f"{place}/run", rounds=2, seed=41), f"{place}/run_00001"))
    settled(client, whole(f"{place}/uncut", rounds=2, seed=41))
    found = [story(journal.read(server.output / place / f"{run}_00001")) for run in ("run", "uncut")]
    assert found[0] == found[1]


def test_an_interrupt_while_a_vlm_thinks_hangs_up_within_a_second_and_loses_no_round(client, server):
    slow = threading.Event()

    def answer(body: dict[str, Any]) -> Sent:
        return Sent(after=60) if slow.is_set() else completion("I would rather not say.")

    with serving(answer) as vlm:
        workflow = whole("thinking/run", rounds=2)
        address = {"address": vlm.url, "model": "tiny", "seconds": 60, "retries": 0, "max_tokens": 64}
        workflow["vlm"] = node("CLVRVLMServer", **address)
        nodes_of(workflow, "CLVRClosedLoop")[0]["inputs"]["verifier"] = ["vlm", 1]
        asked, ended, known = 0.0, 0.0, 0
        for kind, data in client.follow(workflow):
            if kind == "clvr.event" and data["kind"] == "settled":
                slow.set()
                known = len(vlm.chats)
            if kind == "clvr.event" and data["kind"] == "drawn" and data["step"] == 1:
                assert soon(lambda known=known: len(vlm.chats) > known)
                client.interrupt()
                asked = time.monotonic()
            if kind == "execution_interrupted":
                ended = time.monotonic()
        assert 0 < ended - asked < 1.0
        assert vlm.gone.wait(1.0)
        slow.clear()
        assert settled(client, going_on(workflow, "thinking/run_00001")) == 1
    assert len(journal.read(server.output / "thinking" / "run_00001").trajectory.steps) == 2


def soon(holds: Callable[[], object]) -> bool:
    """Whether it becomes true within ten seconds."""
    deadline = time.monotonic() + 10
    while not holds() and time.monotonic() < deadline:
        time.sleep(0.01)
    return bool(holds())
