"""The panel's routes on a real server: what a script sees of a run, and how it steps in."""

from __future__ import annotations

import io
import json
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from PIL import Image

from scripts.comfy import Client

from .comfy_fixtures import hurried, nodes_of

pytestmark = [pytest.mark.comfy, pytest.mark.xdist_group("comfy")]


def workflow(
    folder: str, pause: str = "never", rounds: int = 2, seconds: float = 60.0, **inputs: Any
) -> dict[str, Any]:
    found = hurried("clvr_closed_loop", rounds=rounds)
    loop = nodes_of(found, "CLVRClosedLoop")[0]["inputs"]
    loop |= {"folder": folder, "pause": pause, "pause_seconds": seconds, "seed": 3, **inputs}
    return found


def asked(client: Client, path: str, data: object = None, kind: str = "application/json") -> tuple[int, Any]:
    """Status and JSON of a request, refused ones too. `data`: an object to post, or bytes as they are."""
    body = data if isinstance(data, bytes) or data is None else json.dumps(data).encode()
    request = urllib.request.Request(f"http://{client.address}/{path}", data=body, headers={"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        text = error.read()
        return error.code, json.loads(text) if text.startswith(b"{") else text


def until(client: Client, run: str, holds: Callable[[dict], object], patience: float = 60.0) -> dict[str, Any]:
    """The run as soon as it is as it should be."""
    deadline = time.monotonic() + patience
    told: Any = None
    while time.monotonic() < deadline:
        status, told = asked(client, f"clvr/runs/{run}")
        if status == 200 and holds(told):
            return told
        time.sleep(0.1)
    raise AssertionError(f"{run} did not get there: {json.dumps(told)[:2000]}")


def waits(moment: str, step: int) -> Callable[[dict], object]:
    return lambda run: run["paused"] and (run["paused"]["moment"], run["paused"]["step"]) == (moment, step)


def say(client: Client, run: str, action: str, **said: object) -> None:
    status, told = asked(client, "clvr/answer", {"run": run, "action": action, **said})
    assert status == 200, told


@contextmanager
def running(client: Client, flow: dict[str, Any]) -> Iterator[list[tuple[str, Any]]]:
    """A workflow that runs with a client connected; its messages. Leaving waits for its end."""
    heard: list[tuple[str, Any]] = []
    thread = threading.Thread(target=lambda: heard.extend(client.follow(flow, patience=120)), daemon=True)
    thread.start()
    try:
        yield heard
    except BaseException:
        client.interrupt()
        raise
    finally:
        thread.join(120)
    assert not thread.is_alive()


def test_a_run_is_told_as_it_happens_and_afterwards(client):
    messages = [(k, d) for k, d in client.follow(workflow("panel/told")) if k == "clvr.event"]
    run = "panel/told_00001"
    assert {data["run"] for _, data in messages} == {run}
    assert {data["node"] for _, data in messages} == {messages[0][1]["node"]}
    assert all(data["prompt_id"] for _, data in messages)
    status, told = asked(client, f"clvr/runs/{run}")
    assert status == 200
    assert told["running"] is False
    assert told["stop"]
    assert told["report"] is True
    step = told["steps"][0]
    outcomes = [result["outcome"] for result in step["candidates"][0]["active"]]
    assert len(outcomes) == len(told["checks"])
    assert step["instruction"]
    assert [row["name"] for row in told["spent"]] == ["rounds", "evaluations", "seconds", "VLM calls", "tokens"]


def test_pictures_and_the_report_of_a_run_are_served(client):
    client.run(workflow("panel/shown", rounds=1))
    run = "panel/shown_00001"
    query = urllib.parse.urlencode({"run": run, "label": "IMG_GEN_0/0"})
    whole = Image.open(io.BytesIO(client.fetch(f"clvr/image?{query}")))
    assert whole.format == "PNG"
    assert Image.open(io.BytesIO(client.fetch(f"clvr/image?{query}&size=128"))).format == "WEBP"
    with urllib.request.urlopen(f"http://{client.address}/clvr/report?run={run}", timeout=30) as reply:
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert b"default-src 'none'" in reply.read()
    assert run in [listed["id"] for listed in asked(client, "clvr/runs")[1]["runs"]]


def test_a_person_edits_chooses_adds_a_check_goes_back_and_stops_by_http(client, server):
    flow = workflow("panel/person", "both", rounds=4)
    nodes_of(flow, "CLVRThinkingBudget")[0]["inputs"] |= {"candidates": 2, "threshold": 1.0}
    run = "panel/person_00001"
    with running(client, flow) as heard:
        told = until(client, run, waits("planned", 0))
        assert told["paused"]["actions"] == ["approve", "edit", "check", "stop"]
        say(client, run, "check", question="Is there a yellow star?")
        assert until(client, run, waits("planned", 0))["paused"]["added"] == ["Is there a yellow star?"]
        say(client, run, "edit", instruction="Draw a green circle.")
        told = until(client, run, waits("judged", 0))
        assert told["round"]["instruction"] == "Draw a green circle."
        assert told["checks"][-1]["question"] == "Is there a yellow star?"
        other = 1 - told["round"]["chosen"]
        say(client, run, "choose", candidate=other)
        until(client, run, waits("planned", 1))
        say(client, run, "approve")
        until(client, run, waits("judged", 1))
        say(client, run, "check", question="Is there a purple triangle?")
        told = until(
            client,
            run,
            lambda r: waits("judged", 1)(r) and len(r["round"]["candidates"][0]["active"]) == len(r["checks"]),
        )
        assert told["checks"][-1]["hand"] is True
        say(client, run, "back", step=0)
        told = until(client, run, waits("planned", 2))
        say(client, run, "stop")
    kinds = [data["kind"] for kind, data in heard if kind == "clvr.event"]
    assert kinds.count("paused") == kinds.count("resumed") == 6
    told = until(client, run, lambda r: r["stop"])
    assert told["stop"] == "stopped by hand"
    first, second, *_ = told["steps"]
    assert (first["accepted"], first["hand"], first["chosen"]) == (True, "kept", other)
    assert (second["accepted"], second["hand"]) == (False, "dropped")
    journal = (server.output / run / "journal.jsonl").read_text()
    assert journal.count('"kind":"answer"') == 6
    assert asked(client, "clvr/answer", {"run": run, "action": "approve"})[0] == 409


def test_a_run_that_is_stopped_before_it_drew_ends_as_an_interrupted_one_without_an_error(client):
    run = "panel/nothing_00001"
    with running(client, workflow("panel/nothing", "after planning")) as heard:
        until(client, run, waits("planned", 0))
        say(client, run, "stop")
    kinds = [kind for kind, _ in heard]
    assert kinds[-1] == "execution_interrupted"
    assert "execution_error" not in kinds
    assert until(client, run, lambda r: not r["running"])["stop"] == "stopped by hand"


def test_a_pause_between_two_nodes_waits_too(client):
    flow = hurried("clvr_step_by_step", rounds=1)
    for number, kind in (("900", "CLVRPlan"), ("901", "CLVRVerify")):
        before = next(key for key, node in flow.items() if node["class_type"] == kind)
        (after,) = [n for n in flow.values() if n["inputs"].get("run") == [before, 0]]
        after["inputs"]["run"] = [number, 0]
        flow[number] = {"class_type": "CLVRPause", "inputs": {"run": [before, 0], "pause_seconds": 60.0}}
    with running(client, flow):
        run = until_some_waits(client)
        say(client, run, "edit", instruction="Draw a red square.")
        told = until(client, run, waits("judged", 0))
        assert told["steps"][0]["instruction"] == "Draw a red square."
        query = urllib.parse.urlencode({"run": run, "label": "IMG_GEN_0/0"})
        assert Image.open(io.BytesIO(client.fetch(f"clvr/image?{query}"))).size
        say(client, run, "reject")
    assert until(client, run, lambda r: r["stop"])["steps"][0]["hand"] == "dropped"


def until_some_waits(client: Client) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = [run["id"] for run in asked(client, "clvr/runs")[1]["runs"] if run["paused"]]
        if found:
            return found[0]
        time.sleep(0.1)
    raise AssertionError("no run waits")


def test_an_interrupt_ends_a_pause_within_a_second(client):
    run = "panel/cut_00001"
    began = 0.0
    with running(client, workflow("panel/cut", "after planning")) as heard:
        until(client, run, waits("planned", 0))
        began = time.monotonic()
        client.interrupt()
        until(client, run, lambda r: not r["running"])
        assert time.monotonic() - began < 1.0
    assert heard[-1][0] == "execution_interrupted"
    assert asked(client, f"clvr/runs/{run}")[1]["paused"] is None


def test_a_pause_goes_on_as_proposed_when_its_time_is_up(client):
    with running(client, workflow("panel/late", "after planning", rounds=1, seconds=1.0)) as heard:
        pass
    resumed = [data for kind, data in heard if kind == "clvr.event" and data["kind"] == "resumed"]
    assert [data["answered"] for data in resumed] == [False]
    assert heard[-1][0] == "execution_success"


def test_without_anybody_there_a_pause_goes_on_by_itself(client):
    began = time.monotonic()
    prompt = client.queue(workflow("panel/alone", "after planning", rounds=1, seconds=3600.0))
    client.history(prompt, patience=120)
    assert time.monotonic() - began > 14
    assert asked(client, "clvr/runs/panel/alone_00001")[1]["stop"]


def test_a_run_that_is_not_waiting_can_be_stopped(client):
    flow = workflow("panel/stopped", rounds=8, prompt="three red circles above two blue squares")
    nodes_of(flow, "CLVRGeneratorBuiltin")[0]["inputs"]["drawing_steps"] = 40
    run = "panel/stopped_00001"
    with running(client, flow) as heard:
        until(client, run, lambda r: r["steps"])
        say(client, run, "stop")
    assert heard[-1][0] == "execution_success"
    assert asked(client, f"clvr/runs/{run}")[1]["stop"] == "stopped by hand"


@pytest.mark.parametrize(
    ("data", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"[" * 5000, "application/json", 400),
        (b'{"run": "x"}', "text/plain", 400),
        (b"x" * 70_000, "application/json", 400),
        ({"action": "approve"}, "application/json", 404),
        ({"run": 3, "action": "approve"}, "application/json", 404),
        ({"run": "nowhere", "action": "approve"}, "application/json", 404),
    ],
)
def test_a_bad_answer_is_refused_with_a_reason(client, data, kind, status):
    code, told = asked(client, "clvr/answer", data, kind)
    assert code == status
    assert told["error"]


def test_an_answer_that_cannot_be_meant_is_refused_and_the_run_still_waits(client):
    run = "panel/refused_00001"
    with running(client, workflow("panel/refused", "after planning", rounds=1)):
        until(client, run, waits("planned", 0))
        for said in ({"action": "choose", "candidate": 0}, {"action": "edit"}, {}, {"action": "back", "step": 0}):
            code, told = asked(client, "clvr/answer", {"run": run, **said})
            assert code == 400
            assert told["error"]
        until(client, run, waits("planned", 0))
        say(client, run, "approve")


@pytest.mark.parametrize(
    "path",
    [
        "clvr/runs/..%2f..%2fetc",
        "clvr/runs/%2e%2e/%2e%2e/etc/passwd",
        "clvr/runs/%2fetc",
        "clvr/runs/nothing%00here",
        "clvr/image?run=../../etc&label=passwd",
        "clvr/image?run=/etc&label=IMG_GEN_0",
        "clvr/report?run=..%2f..",
        "clvr/image?run=nowhere&label=IMG_GEN_0&size=3",
        "clvr/image",
    ],
)
def test_nothing_outside_of_a_run_is_served(client, path):
    code, told = asked(client, path)
    assert code in (400, 404)
    assert "root:" not in str(told)


def test_a_label_is_no_path_and_a_link_leads_nowhere(client, server):
    client.run(workflow("panel/links", rounds=1))
    run = "panel/links_00001"
    for label in ("../../../etc/passwd", "journal.jsonl", "IMG_GEN_0/../../x", "IMG_GEN_9/0"):
        assert asked(client, "clvr/image?" + urllib.parse.urlencode({"run": run, "label": label}))[0] == 404
    report = server.output / run / "report.html"
    report.unlink()
    report.symlink_to("/etc/hostname")
    assert asked(client, f"clvr/report?run={run}")[0] == 404


def test_a_damaged_run_is_listed_with_what_is_wrong(client, server):
    folder = server.output / "panel" / "damaged"
    folder.mkdir(parents=True)
    (folder / "journal.jsonl").write_text("not a journal\n")
    listed = {run["id"]: run for run in asked(client, "clvr/runs")[1]["runs"]}
    assert "damaged" in listed["panel/damaged"]["stop"]
    assert asked(client, "clvr/runs/panel/damaged")[0] == 400
