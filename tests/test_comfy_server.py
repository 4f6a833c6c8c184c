"""The pack in a real ComfyUI: it loads, its workflows run, an interrupt stops it, mistakes are named."""

from __future__ import annotations

import io
import json
import re
import time
from itertools import pairwise
from pathlib import Path

import pytest
from PIL import Image

from scripts.comfy import PACK, ROOT, Client, ComfyError

from .comfy_fixtures import LOOPS, MORE_LOOPS, TEMPLATES, api, drawn, hurried, nodes_of, with_model

pytestmark = [pytest.mark.comfy, pytest.mark.xdist_group("comfy")]

NODES = {
    "CLVRCalibratedJudge",
    "CLVRChecklist",
    "CLVRClosedLoop",
    "CLVRConditioning",
    "CLVRControllerBuiltin",
    "CLVREvidence",
    "CLVRExportTrajectory",
    "CLVRFinish",
    "CLVRGenerate",
    "CLVRGeneratorBuiltin",
    "CLVRGeneratorDiffusers",
    "CLVRGeneratorNative",
    "CLVRJudges",
    "CLVRLoadTrajectory",
    "CLVRLoopEnd",
    "CLVRLoopStart",
    "CLVRMergeFiles",
    "CLVRMergeModels",
    "CLVRPause",
    "CLVRPlan",
    "CLVRSaveTrajectory",
    "CLVRShowTrajectory",
    "CLVRStart",
    "CLVRTakeDrawing",
    "CLVRThinkingBudget",
    "CLVRVLMFromCLIP",
    "CLVRVLMServer",
    "CLVRVLMTransformers",
    "CLVRVerify",
}


@pytest.fixture(scope="module")
def patient_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real klein of random weights with enough steps to be interrupted in."""
    from .tiny_klein import make

    folder = make(tmp_path_factory.mktemp("klein") / "tiny")
    settings = json.loads((folder / "clvr.json").read_text())
    (folder / "clvr.json").write_text(json.dumps({**settings, "steps": 100}))
    return folder


def info(client: Client) -> dict:
    return client.get("object_info")


def test_every_node_is_registered(client):
    assert {name for name in info(client) if name.startswith("CLVR")} == NODES


def test_the_pack_loads_without_a_complaint(server):
    log = server.log.read_text(encoding="utf-8", errors="replace")
    line = next(line for line in log.splitlines() if "seconds" in line and line.endswith("comfyui-clvr"))
    assert "IMPORT FAILED" not in line
    assert not ours(log.split("Starting server")[0])


def ours(log: str) -> list[str]:
    """Tracebacks that lead through this pack. ComfyUI's own extras have theirs, where packages are missing."""
    found = re.findall(r"^Traceback .*\n(?:(?: .*)?\n)*(?:\S.*)?", log, re.MULTILINE)
    return [trace for trace in found if PACK in trace or str(ROOT) in trace]


def test_every_input_has_a_tooltip_and_every_node_a_help_page(client):
    for name in NODES:
        node = client.get(f"object_info/{name}")[name]
        inputs = [pair for group in ("required", "optional") for pair in node["input"].get(group, {}).items()]
        bare = [key for key, spec in inputs if len(spec) < 2 or not spec[1].get("tooltip")]
        assert not bare, f"{name}: {bare}"
        assert node["description"]
        assert client.fetch(f"extensions/comfyui-clvr/docs/{name}.md").startswith(b"# ")


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_api_twin_is_what_the_drawn_workflow_converts_to(client, name):
    convert = pytest.importorskip("comfy_cli.workflow_to_api").convert_ui_to_api
    assert queued(convert(drawn(name), info(client))) == queued(api(name))


def queued(workflow: dict) -> dict:
    """What is run of it. The titles of core's nodes differ between versions of ComfyUI."""
    return {key: (node["class_type"], node["inputs"]) for key, node in workflow.items()}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_shipped_workflow_appears_among_the_templates_with_its_thumbnail(client, name):
    assert name in client.get("workflow_templates")["comfyui-clvr"]
    assert json.loads(client.fetch(f"api/workflow_templates/comfyui-clvr/{name}.json"))["nodes"]
    picture = Image.open(io.BytesIO(client.fetch(f"api/workflow_templates/comfyui-clvr/{name}.jpg")))
    assert min(picture.size) >= 200


@pytest.mark.parametrize("name", [*LOOPS, *MORE_LOOPS])
def test_a_shipped_workflow_runs_and_shows_its_pictures(client, name):
    outputs = client.run(hurried(name))["outputs"]
    shown = [found for output in outputs.values() for found in output.get("images", [])]
    assert len(shown) >= 2
    for found in shown:
        assert min(Image.open(io.BytesIO(client.image(found))).size) >= 64


def test_a_run_leaves_its_folder_with_comfyui_s_metadata_in_the_final_picture(client, server):
    workflow = hurried("clvr_closed_loop", rounds=1)
    nodes_of(workflow, "CLVRClosedLoop")[0]["inputs"]["folder"] = "kept/run"
    for _ in client.follow(workflow, drawn("clvr_closed_loop")):
        pass
    folder = server.output / "kept" / "run_00001"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"final.png", "sheet.png", "report.html", "trajectory.json", "journal.jsonl", "steps"}
    text = Image.open(folder / "final.png").text
    assert json.loads(text["prompt"]) == workflow
    assert json.loads(text["workflow"])["nodes"]
    assert "trainedAlgorithmicMedia" in text["XML:com.adobe.xmp"]


def test_the_loop_tells_its_rounds_and_shows_what_it_is_drawing(client):
    kinds, previews = [], 0
    workflow = hurried("clvr_closed_loop", rounds=1)
    nodes_of(workflow, "CLVRClosedLoop")[0]["inputs"]["seed"] = 77
    for kind, data in client.follow(workflow):
        previews += kind == "preview"
        if kind == "clvr.event":
            kinds.append(data["kind"])
    assert kinds[:4] == ["estimated", "started", "checklisted", "planned"]
    assert kinds.count("drawing") == 4
    assert kinds[-3:] == ["settled", "stopped", "reported"]
    assert previews


def test_the_phases_as_nodes_give_the_same_pictures_as_the_loop_in_one_node(client, server):
    loop = hurried("clvr_closed_loop", rounds=3)
    nodes_of(loop, "CLVRClosedLoop")[0]["inputs"] |= {"folder": "same/loop", "seed": 5}
    phases = hurried("clvr_step_by_step", rounds=3)
    nodes_of(phases, "CLVRStart")[0]["inputs"]["seed"] = 5
    nodes_of(phases, "CLVRSaveTrajectory")[0]["inputs"]["folder"] = "same/phases"
    client.run(loop)
    client.run(phases)
    found = [server.output / "same" / f"{name}_00001" for name in ("loop", "phases")]
    steps = [sorted(p.relative_to(f) for p in f.glob("steps/*/*.png")) for f in found]
    assert steps[0] == steps[1] != []
    for path in steps[0]:
        assert (found[0] / path).read_bytes() == (found[1] / path).read_bytes()


def test_an_unrelated_node_that_changes_draws_nothing_again_and_another_seed_does(client):
    def rounds(side: int, seed: int) -> int:
        workflow = hurried("clvr_closed_loop", rounds=1)
        nodes_of(workflow, "CLVRClosedLoop")[0]["inputs"] |= {"folder": "cached/run", "seed": seed}
        inputs = {"width": side, "height": side, "batch_size": 1, "color": 0}
        workflow["other"] = {"class_type": "EmptyImage", "inputs": inputs}
        workflow["seen"] = {"class_type": "PreviewImage", "inputs": {"images": ["other", 0]}}
        told = [data for kind, data in client.follow(workflow) if kind == "clvr.event"]
        return sum(data["kind"] == "settled" for data in told)

    assert [rounds(64, 91), rounds(65, 91), rounds(65, 92), rounds(66, 92)] == [1, 0, 1, 0]


def test_an_interrupt_stops_the_drawing_within_a_second_and_keeps_what_was_complete(client, server, patient_model):
    workflow = with_model(api("clvr_closed_loop"), patient_model)
    nodes_of(workflow, "CLVRClosedLoop")[0]["inputs"]["folder"] = "cut/run"
    asked = ended = 0.0
    steps: list[float] = []
    for kind, data in client.follow(workflow):
        if kind == "clvr.event" and data["kind"] == "drawing" and data["step"] == 1:
            steps.append(time.monotonic())
            if len(steps) == 5:
                client.interrupt()
                asked = time.monotonic()
        if kind == "execution_interrupted":
            ended = time.monotonic()
    slowest = max(later - sooner for sooner, later in pairwise(steps[:5]))
    assert 0 < ended - asked < 1.0 + 5 * slowest  # a busy machine takes its time for every step
    assert len(steps) < 50
    assert (server.output / "cut" / "run_00001" / "steps" / "00").is_dir()


def test_a_kept_run_is_loaded_and_shown_again(client):
    workflow = hurried("clvr_closed_loop", rounds=1)
    nodes_of(workflow, "CLVRClosedLoop")[0]["inputs"]["folder"] = "again/run"
    client.run(workflow)
    outputs = client.run(
        {
            "1": {"class_type": "CLVRLoadTrajectory", "inputs": {"folder": "again/run_00001"}},
            "2": {"class_type": "CLVRShowTrajectory", "inputs": {"trajectory": ["1", 0]}},
            "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 1]}},
        }
    )["outputs"]
    assert outputs["2"]["images"]
    assert outputs["3"]["images"]


@pytest.mark.parametrize("name", ["../../etc", "/etc", "..", "", "again/nothing_here"])
def test_only_runs_in_comfyui_s_folders_are_loaded(client, name):
    workflow = {
        "1": {"class_type": "CLVRLoadTrajectory", "inputs": {"folder": name}},
        "2": {"class_type": "CLVRShowTrajectory", "inputs": {"trajectory": ["1", 0]}},
    }
    with pytest.raises(ComfyError, match="is no run in ComfyUI's output or input folder"):
        client.run(workflow)


def refused(client: Client, kind: str, **inputs: object) -> str:
    """What ComfyUI says of the closed-loop workflow with these inputs."""
    workflow = hurried("clvr_closed_loop", rounds=1)
    nodes_of(workflow, kind)[0]["inputs"] |= inputs
    with pytest.raises(ComfyError) as error:
        client.run(workflow)
    return str(error.value)


def test_a_prompt_outside_the_built_in_world_is_named(client, server):
    said = refused(client, "CLVRClosedLoop", prompt="a portrait of my aunt", folder="bad/prompt")
    assert "CLVRClosedLoop" in said
    assert "portrait" in said
    assert not (server.output / "bad" / "prompt_00001").exists()


def test_half_a_size_is_refused(client):
    assert "half a size" in refused(client, "CLVRClosedLoop", width=64)


def test_a_folder_outside_of_the_output_is_refused(client):
    assert "outside of ComfyUI's output folder" in refused(client, "CLVRClosedLoop", folder="../escape")


def test_a_budget_of_no_rounds_is_refused(client):
    assert "CLVRThinkingBudget" in refused(client, "CLVRThinkingBudget", rounds=0)


def test_a_missing_model_folder_is_named(client, tmp_path):
    workflow = with_model(api("clvr_closed_loop"), tmp_path / "nowhere")
    with pytest.raises(ComfyError, match="nowhere"):
        client.run(workflow)


def test_a_vlm_that_is_down_is_named_by_its_address(client):
    workflow = hurried("clvr_closed_loop", rounds=1)
    node = nodes_of(workflow, "CLVRControllerBuiltin")[0]
    address = "http://127.0.0.1:9/v1"
    node["class_type"] = "CLVRVLMServer"
    node["inputs"] = {"address": address, "model": "none", "seconds": 5, "retries": 0, "max_tokens": 64}
    with pytest.raises(ComfyError, match=r"127\.0\.0\.1:9"):
        client.run(workflow)


def test_no_node_takes_a_key(client):
    for name in NODES:
        spec = client.get(f"object_info/{name}")[name]["input"]
        assert not [key for group in spec.values() for key in group if "key" in key.lower()]


def test_the_checkout_stays_clean(server):
    assert server.base not in ROOT.parents
    assert not list(ROOT.glob("*.db"))
