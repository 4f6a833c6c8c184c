"""One real ComfyUI server for all tests that need one, and what they ask of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from scripts import twins
from scripts.comfy import ROOT, Client, Server

LOOPS = ("clvr_closed_loop", "clvr_step_by_step")
MORE_LOOPS = ("clvr_loop", "clvr_edit", "clvr_human_in_the_loop")
KLEIN = ("clvr_klein_native", "clvr_klein_server", "clvr_own_sampler")
MERGES = ("clvr_merge_files", "clvr_merge_models")
TEMPLATES = (*LOOPS, *MORE_LOOPS, *KLEIN, *MERGES)
ARTIFACTS = ROOT / "tests" / "artifacts"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    base = tmp_path_factory.mktemp("comfy")
    twins.lay_out(base)
    with Server(base) as running:
        yield running
    ARTIFACTS.mkdir(exist_ok=True)
    (ARTIFACTS / "server.log").write_bytes(running.log.read_bytes())


@pytest.fixture
def client(server: Server) -> Client:
    return Client(server.address)


def drawn(name: str) -> dict[str, Any]:
    """A shipped workflow in UI format."""
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def api(name: str) -> dict[str, Any]:
    """Its API-format twin."""
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))


def nodes_of(workflow: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [node for node in workflow.values() if node["class_type"] == kind]


def hurried(name: str, rounds: int = 2, steps: int = 4) -> dict[str, Any]:
    """A shipped workflow that draws coarsely and not for long."""
    workflow = api(name)
    for node in nodes_of(workflow, "CLVRGeneratorBuiltin"):
        node["inputs"]["drawing_steps"] = steps
    for node in nodes_of(workflow, "CLVRThinkingBudget"):
        node["inputs"]["rounds"] = rounds
    for node in nodes_of(workflow, "CLVRClosedLoop"):
        node["inputs"]["pause_seconds"] = 0.1
    return workflow


def with_model(workflow: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The workflow with another model in the place of the built-in one."""
    for node in nodes_of(workflow, "CLVRGeneratorBuiltin"):
        node["class_type"] = "CLVRGeneratorDiffusers"
        node["inputs"] |= {"model": str(folder), "device": "cpu", "dtype": "float32", "offload": "none"}
    return workflow
