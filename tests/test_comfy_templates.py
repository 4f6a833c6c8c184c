"""The klein templates: with stand-ins they run where ComfyUI knows klein; everywhere they fit the nodes' schemas."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from scripts import twins, workflows
from scripts.comfy import ROOT, Client
from scripts.templates import TEMPLATES as DRAWN
from scripts.thumbnails import guided

from .comfy_fixtures import KLEIN, MERGES, TEMPLATES, api, drawn, nodes_of

pytestmark = [pytest.mark.comfy, pytest.mark.xdist_group("comfy")]

FILE = re.compile(r"[\w.-]+\.safetensors")


@pytest.fixture
def info(client: Client) -> dict[str, Any]:
    return client.get("object_info")


@pytest.fixture
def klein(client: Client) -> None:
    if client.get("object_info/CLVRGeneratorNative")["CLVRGeneratorNative"]["description"].startswith("ComfyUI "):
        pytest.skip("THIS COMFYUI KNOWS NO KLEIN: name one of 2026 by COMFYUI_PATH")


@pytest.mark.parametrize("template", DRAWN, ids=lambda template: template.name)
def test_a_template_is_as_its_description_draws_it(template, info):
    assert workflows.draw(template, info) == drawn(template.name), "run: python -m scripts.workflows"


def test_every_shipped_template_is_drawn_from_its_description():
    shipped = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert shipped == {template.name for template in DRAWN} == set(TEMPLATES)


def misfits(workflow: dict[str, Any], info: dict[str, Any]) -> list[str]:
    """What ComfyUI would refuse, the presence of model files aside."""
    found = []
    for number, node in workflow.items():
        if node["class_type"] not in info:
            found.append(f"no {node['class_type']}")
            continue
        inputs, where = workflows.declared(node["class_type"], info), f"{node['class_type']} ({number})"
        needed = {name for name, (_, _, optional) in inputs.items() if not optional}
        found += [f"{where}: {name}" for name in needed ^ (needed & set(node["inputs"]))]
        for name, value in node["inputs"].items():
            if name not in inputs:
                found.append(f"{where}: no input {name}")
            elif not fits(value, inputs[name], workflow, info):
                found.append(f"{where}: {name} = {value}")
    return found


def fits(value: Any, spec: tuple[Any, Any, bool], workflow: dict[str, Any], info: dict[str, Any]) -> bool:
    kind, settings, _ = spec
    if isinstance(value, list):
        given = info[workflow[value[0]]["class_type"]]["output"][value[1]]
        return kind in ("*", given)
    options = kind if isinstance(kind, list) else settings.get("options", [])
    if options:
        return value in options or bool(FILE.fullmatch(str(value)))
    return settings.get("min", value) <= value <= settings.get("max", value) if kind in ("INT", "FLOAT") else True


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_fits_the_schemas_of_its_nodes(name, info):
    assert misfits(api(name), info) == []


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_has_no_null_field_which_the_frontend_warns_of(name):
    assert None not in drawn(name).values()


def test_a_misfit_is_seen(info):
    workflow = api("clvr_own_sampler")
    nodes_of(workflow, "CFGGuider")[0]["inputs"]["cfg"] = 1000.0
    del nodes_of(workflow, "CLVRLoopEnd")[0]["inputs"]["loop"]
    nodes_of(workflow, "CLVRPlan")[0]["inputs"]["run"] = [next(iter(workflow)), 0]
    assert len(misfits(workflow, info)) == 3


@pytest.mark.parametrize("name", [*KLEIN, *MERGES])
def test_the_note_names_each_model_file_with_its_folder(name):
    note = next(node for node in drawn(name)["nodes"] if node["type"] == "MarkdownNote")["widgets_values"][0]
    used = {value for node in api(name).values() for value in node["inputs"].values() if FILE.fullmatch(str(value))}
    assert used
    for file in used:
        assert re.search(rf"(diffusion_models|text_encoders|vae|loras) \| `{re.escape(file)}`", note), file


@pytest.mark.parametrize("name", KLEIN)
def test_a_klein_template_runs_with_small_models_under_its_files_names(client, klein, name):
    workflow = guided(twins.small(api(name)))
    for node in nodes_of(workflow, "CLVRThinkingBudget"):
        node["inputs"]["rounds"] = 2
    outputs = client.run(workflow)["outputs"]
    sheet = next(key for key, node in workflow.items() if node["_meta"]["title"] == "Contact sheet")
    assert outputs[sheet]["images"]


def test_your_own_sampler_draws_what_the_native_generator_draws(client, server, klein):
    found = []
    for name, kind in (("clvr_klein_native", "CLVRClosedLoop"), ("clvr_own_sampler", "CLVRSaveTrajectory")):
        workflow = guided(twins.small(api(name)))
        nodes_of(workflow, kind)[0]["inputs"]["folder"] = f"twice/{name}"
        nodes_of(workflow, "CLVRThinkingBudget")[0]["inputs"]["rounds"] = 2
        client.run(workflow)
        steps = sorted((server.output / "twice" / f"{name}_00001").glob("steps/*/*.png"))
        found.append([step.read_bytes() for step in steps])
    assert found[0] == found[1]
    assert len(found[0]) == 2


def test_a_run_is_exported_as_a_conversation_with_its_images_and_as_a_report(client, server):
    workflow = api("clvr_loop")
    nodes_of(workflow, "CLVRGeneratorBuiltin")[0]["inputs"]["drawing_steps"] = 4
    nodes_of(workflow, "CLVRThinkingBudget")[0]["inputs"]["rounds"] = 2
    finish = next(key for key, node in workflow.items() if node["class_type"] == "CLVRFinish")
    for content in ("ShareGPT and report", "ShareGPT", "report"):
        inputs = {"trajectory": [finish, 2], "content": content, "folder": "exported/run"}
        client.run({**workflow, "out": {"class_type": "CLVRExportTrajectory", "inputs": inputs}})
    both, talk, page = (server.output / "exported" / f"run_{k:05}" for k in (1, 2, 3))
    (record,) = json.loads((both / "sharegpt.json").read_text())
    assert record["conversations"][0]["from"] == "human"
    assert all((both / path).is_file() for path in record["images"])
    assert record["images"]
    assert (both / "report.html").stat().st_size > 1000
    assert sorted(path.name for path in talk.iterdir()) == ["images", "sharegpt.json"]
    assert [path.name for path in page.iterdir()] == ["report.html"]
