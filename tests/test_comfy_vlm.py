"""The VLM nodes in a real ComfyUI: there on every version, running where the host can, and clear where it cannot."""

from __future__ import annotations

import json
import re

import pytest

from scripts.comfy import ROOT, ComfyError, Server

from .comfy_fixtures import hurried, nodes_of
from .tiny_vlm import make
from .vlm_fixtures import completion, serving

pytestmark = pytest.mark.comfy
VLMS = ("CLVRVLMTransformers", "CLVRVLMFromCLIP")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tiny-vlm"))


def planned_by(**inputs):
    """The shipped closed loop with transformers in the place of the built-in controller."""
    workflow = hurried("clvr_closed_loop", rounds=1)
    (node,) = nodes_of(workflow, "CLVRControllerBuiltin")
    node["class_type"] = "CLVRVLMTransformers"
    node["inputs"] = {
        "dtype": "float32", "device": "cpu", "offload": "always", "keep_prefix": True, "max_tokens": 64,
        "image_side": 64, **inputs,
    }  # fmt: skip
    return workflow


@pytest.mark.parametrize("name", VLMS)
def test_the_nodes_are_there_with_sockets_that_fit_and_a_help_page(client, name):
    node = client.get(f"object_info/{name}")[name]
    assert node["output"] == ["CLVR_CONTROLLER", "CLVR_VERIFIER"]
    assert all(spec[1].get("tooltip") for spec in node["input"]["required"].values())
    assert (ROOT / "web" / "docs" / f"{name}.md").is_file()


def test_an_old_comfyui_says_that_the_clip_node_cannot_run_there(client, server: Server):
    known = (server.comfy / "comfy" / "text_encoders" / "qwen3vl.py").is_file()
    told = client.get("object_info/CLVRVLMFromCLIP")["CLVRVLMFromCLIP"]["description"]
    assert ("NOT USABLE HERE" in told) != known


def test_a_folder_is_loaded_and_asked_in_the_server(client, folder):
    with pytest.raises(ComfyError, match="gave no usable checklist, twice"):  # its weights are random
        client.run(planned_by(model=str(folder)))


def test_a_name_in_a_model_folder_is_found(client, server: Server, folder):
    place = server.base / "models" / "LLM" / "Tiny-VL"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(folder, target_is_directory=True)
    with pytest.raises(ComfyError, match="gave no usable checklist, twice"):
        client.run(planned_by(model="someone/Tiny-VL"))


def test_a_folder_that_is_not_there_is_named_with_a_remedy(client):
    with pytest.raises(ComfyError, match=r"There is no folder /nowhere/at/all.*name a hub id"):
        client.run(planned_by(model="/nowhere/at/all"))


def test_a_server_is_sent_each_candidate_and_asked_for_the_form_and_the_certainty_of_its_answer(client):
    def questions(body):
        return re.findall(r"^- (\S+):", body["messages"][-1]["content"][-1].get("text", ""), re.MULTILINE)

    def answer(body):
        asked = questions(body)
        if not asked:
            return completion('{"reason": "They look alike.", "better": "tie"}')
        return completion(json.dumps({"results": [{"check": check, "answer": "yes"} for check in asked]}))

    with serving(answer) as vlm:
        workflow = hurried("clvr_closed_loop", rounds=1)
        inputs = {"address": vlm.url, "model": "tiny", "seconds": 30, "retries": 0, "max_tokens": 64, "at_once": 2}
        workflow["vlm"] = {"class_type": "CLVRVLMServer", "inputs": inputs}
        nodes_of(workflow, "CLVRThinkingBudget")[0]["inputs"]["candidates"] = 3
        nodes_of(workflow, "CLVRClosedLoop")[0]["inputs"] |= {"verifier": ["vlm", 1], "folder": "asked/server"}
        client.run(workflow)
    judged = [body for body in vlm.chats if questions(body)]
    assert len(judged) == 6  # three candidates, on the goal's checks and on the step's own
    assert len(vlm.chats) - len(judged) == 4  # even verdicts: two rivals side by side, both ways
    pictures = [part["image_url"]["url"] for body in judged for part in body["messages"][-1]["content"][1:2]]
    assert all(url.startswith("data:image/png;base64,") for url in pictures)
    assert len(set(pictures)) == 3
    for body in vlm.chats:
        assert body["logprobs"] is True
        assert body["response_format"]["type"] == "json_schema"
    assert not any("authorization" in headers for _, headers, _ in vlm.requests)
