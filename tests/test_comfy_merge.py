"""The merge nodes in a real ComfyUI: the patches' arithmetic, the file merge from its models folders, and that
both draw the same."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from clvr.builtin import PATH
from clvr.flux2.keymap import to_bfl
from scripts import twins
from scripts.comfy import Client, ComfyError, Server, find

from . import tiny_klein
from .comfy_fixtures import MERGES, api, drawn, nodes_of

pytestmark = [pytest.mark.comfy, pytest.mark.xdist_group("comfy")]

HERE = Path(__file__).parent
DTYPES = ("float32", "bfloat16")


@pytest.fixture(scope="module")
def comfy():
    try:
        return find()
    except ComfyError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"NO COMFYUI: {error}")


def worked(script: str, *arguments: object) -> str:
    command = [sys.executable, str(HERE / script), *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def scenes(comfy):
    """What the scenes of merge_comfy_worker.py found, by dtype and name."""
    return json.loads(worked("merge_comfy_worker.py", comfy).split("RESULT ")[-1])


@pytest.fixture(params=DTYPES)
def found(scenes, request):
    return scenes[request.param]


@pytest.mark.parametrize(
    "scene", ["plain", "strengths", "lora_on_aligned", "lora_on_distilled", "chain", "lora_after", "half", "remade"]
)
def test_loaded_whole_or_layer_by_layer_no_element_differs_from_fp32_rounded_once(found, scene):
    assert found[scene]
    assert set(found[scene]) == {0}


def test_plain_patches_would_differ_from_fp32_rounded_once(scenes):
    assert min(scenes["bfloat16"]["naive"]) > 0


def test_a_merge_that_adds_nothing_is_the_distilled_model(found):
    assert found["nothing_added"] == [0, 0, 0, 0]


def test_only_weights_that_alignment_changed_are_patched(found):
    assert found["lora_on_base"] == [1, 0, 0, 0]


def test_loading_leaves_all_weights_as_they_were_and_where_they_were(found):
    assert found["restored"] == {"changed": 0, "moved": 0, "shared": True, "patches": 0}


def test_a_merge_copies_no_weights(found):
    memory = found["memory"]
    assert memory["before"] >= 3 * memory["model"] > 0
    assert max(memory["made"], memory["used"]) < 0.01 * memory["model"]


def test_a_merge_does_not_see_what_other_models_patched_into_shared_weights(found):
    assert found["reloaded"] == [0, 0]


def test_comfyui_tells_a_merge_from_its_inputs_and_from_other_merges(found):
    assert found["identities"] == {"distilled": False, "another": False, "clone": True}


def test_models_that_cannot_be_merged_are_named_with_what_is_wrong(found):
    said = found["refusals"]
    assert "aligned model lacks two.weight" in said["smaller aligned"]
    assert "base model lacks two.weight" in said["smaller base"]
    assert "two.weight (32, 96) instead of (32, 48)" in said["wider aligned"]
    assert "aligned model is quantised (one.weight is float8_e4m3fn)" in said["fp8 aligned"]
    assert "base model is quantised" in said["quantised base"]
    assert "no diffusion model" in said["empty aligned"]


# ---- files, on the server


def merge_files(**inputs: object) -> dict:
    workflow = api("clvr_merge_files")
    nodes_of(workflow, "CLVRMergeFiles")[0]["inputs"] |= inputs
    return workflow


def shown(history: dict, workflow: dict, kind: str) -> dict:
    return history["outputs"][next(key for key, node in workflow.items() if node["class_type"] == kind)]


def models(server: Server) -> Path:
    return server.base / "models" / "diffusion_models"


def executed(client: Client, workflow: dict) -> list[str]:
    """The classes of the nodes that were not taken from the cache."""
    nodes = [data["node"] for kind, data in client.follow(workflow) if kind == "executing" and data.get("node")]
    return [workflow[node]["class_type"] for node in nodes]


def leftovers(server: Server) -> set[str]:
    return {path.name for path in models(server).rglob("*")}


def test_the_template_merges_the_files_and_shows_report_and_plot(client, server):
    workflow = merge_files(name="made/template")
    history = client.run(workflow)
    node = shown(history, workflow, "CLVRMergeFiles")
    report = node["text"][0]
    for word in ("distilled", "align 1", "align 2", "bf16"):
        assert word in report
    for kind in ("CLVRMergeFiles", "PreviewImage"):
        picture = Image.open(io.BytesIO(client.image(shown(history, workflow, kind)["images"][0])))
        assert min(picture.size) > 500
    made = models(server) / "made" / "template.safetensors"
    with safe_open(made, "pt") as file:
        assert json.loads(file.metadata()["clvr_merge"])["inputs"]
    base, distilled, aligned = (load_file(models(server) / n) for n in (twins.BASE, twins.DISTILLED, twins.ALIGNED))
    lora = load_file(server.base / "models" / "loras" / twins.LORA)
    for key, weight in load_file(made).items():
        b = base[key].float()
        wanted = b + (distilled[key].float() - b) + (aligned[key].float() - b)
        module = f"diffusion_model.{key.removesuffix('.weight')}"
        if f"{module}.lora_A.weight" in lora:
            wanted += lora[f"{module}.lora_B.weight"] @ lora[f"{module}.lora_A.weight"]
        torch.testing.assert_close(weight, wanted.bfloat16(), rtol=2**-7, atol=0)


def test_the_new_file_is_in_the_loader_s_list_and_its_name_is_given_as_it_stands_there(client, server):
    workflow = merge_files(name="made/listed")
    workflow["9"] = {"class_type": "PreviewAny", "inputs": {"source": ["2", 0]}, "_meta": {"title": "Name"}}
    name = client.run(workflow)["outputs"]["9"]["text"][0]
    assert name == os.path.join("made", "listed.safetensors")
    names = client.get("object_info/UNETLoader")["UNETLoader"]["input"]["required"]["unet_name"][0]
    assert name in names


def test_the_same_merge_is_made_once_and_again_when_an_input_or_the_output_changed(client, server):
    name = "made/once"
    workflow, out = merge_files(name=name, overwrite=True), models(server) / "made" / "once.safetensors"
    assert "CLVRMergeFiles" in executed(client, workflow)
    written = out.stat().st_mtime_ns
    assert "CLVRMergeFiles" not in executed(client, workflow)
    out.unlink()
    assert "CLVRMergeFiles" in executed(client, workflow)
    assert out.exists()
    assert "CLVRMergeFiles" not in executed(client, workflow)
    os.utime(models(server) / twins.ALIGNED)
    assert "CLVRMergeFiles" in executed(client, workflow)
    assert "CLVRMergeFiles" not in executed(client, workflow)
    assert out.stat().st_mtime_ns > written


def test_a_file_that_is_there_stays_unless_overwriting_is_asked_for(client, server):
    out = models(server) / "made" / "kept.safetensors"
    out.parent.mkdir(exist_ok=True)
    out.write_bytes(b"mine")
    with pytest.raises(ComfyError, match="already there"):
        client.run(merge_files(name="made/kept"))
    assert out.read_bytes() == b"mine"


@pytest.mark.parametrize(
    "name",
    [
        "../escape",
        "made/../../escape",
        "/tmp/escape",
        "C:\\escape",
        "..\\escape",
        "C:escape",
        "\\\\host\\escape",
        "",
        ".",
        "made/",
        "a\0b",
        "link/escape",
        "hidden/.escape",
    ],
)
def test_nothing_is_written_outside_of_the_models_folder(client, server, tmp_path, name):
    link = models(server) / "link"
    if not link.is_symlink():
        link.symlink_to(tmp_path, target_is_directory=True)
    with pytest.raises(ComfyError, match="models/diffusion_models"):
        client.run(merge_files(name=name))
    assert not list(server.base.rglob("*escape*"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["../loras", "/etc", "..", "C:\\models", "not/there", "a/../../b"])
def test_only_what_lies_in_the_models_folders_is_read(client, path):
    with pytest.raises(ComfyError, match="nothing inside models/diffusion_models or models/diffusers"):
        client.run(merge_files(name="made/never", aligned_path=path))


def test_a_diffusers_folder_is_merged_by_its_path(client, server):
    folder = server.base / "models" / "diffusers" / "builtin"
    folder.parent.mkdir(exist_ok=True)
    folder.symlink_to(PATH, target_is_directory=True)
    client.run(merge_files(name="made/folder", base="none", base_path="builtin", lora="none"))
    client.run(merge_files(name="made/file", lora="none"))
    one, two = (load_file(models(server) / "made" / f"{name}.safetensors") for name in ("folder", "file"))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)


@pytest.mark.parametrize("content", [b"", b"\xff" * 64], ids=["empty", "garbage"])
def test_a_bad_file_is_named_and_leaves_nothing(client, server, content):
    (models(server) / "bad.safetensors").write_bytes(content)
    before = leftovers(server)
    with pytest.raises(ComfyError, match=r"CLVRMergeFiles: .*bad\.safetensors .*damaged"):
        client.run(merge_files(name="made/bad", aligned="bad.safetensors"))
    assert leftovers(server) == before


def test_an_interrupt_ends_the_merge_and_leaves_nothing(client, server):
    for shade, name in ((0.5, "large-base"), (0.6, "large-distilled"), (0.7, "large-aligned")):
        save_file(large(shade), models(server) / f"{name}.safetensors")
    named = {k: f"large-{k}.safetensors" for k in ("base", "distilled", "aligned")}
    before = leftovers(server)
    told = []
    for kind, data in client.follow(merge_files(name="made/cut", lora="none", dtype="fp32", **named)):
        told.append(kind)
        if kind == "executing" and data.get("node"):
            client.interrupt()
    for name in named.values():
        (models(server) / name).unlink()
    assert "execution_interrupted" in told
    assert leftovers(server) | set(named.values()) == before


def large(shade: float) -> dict[str, torch.Tensor]:
    """A FLUX.2 of one value: 140 MB."""
    with torch.device("meta"):
        model = tiny_klein.transformer(double=1, single=2, heads=8, context=1024)
    return {
        key: torch.full(weight.shape, shade, dtype=torch.bfloat16) for key, weight in to_bfl(model.state_dict()).items()
    }


# ---- the same drawing by both nodes: needs a ComfyUI that knows klein


OLD = "THIS COMFYUI KNOWS NO KLEIN (48 heads only): name one of 2026 by COMFYUI_PATH"


@pytest.fixture(scope="module", params=DTYPES)
def latents(comfy, request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampled")
    laid, out = twins.lay_out(folder, getattr(torch, request.param)), folder / "latents.safetensors"
    if "48" in worked("klein_merge_comfy_worker.py", comfy, laid, request.param, out).split():
        pytest.skip(OLD)
    return load_file(out)


@pytest.mark.parametrize("path", ["full", "low"])
def test_the_merge_in_the_graph_draws_what_the_merged_file_draws(latents, path):
    assert torch.equal(latents[f"plain {path} graph"], latents[f"plain {path} file"])
    assert not torch.allclose(latents[f"plain {path} graph"], latents["distilled"], rtol=1e-3)


@pytest.mark.parametrize("path", ["full", "low"])
def test_with_a_lora_on_the_aligned_model_they_agree_within_rounding(latents, path):
    graph, file = latents[f"lora {path} graph"], latents[f"lora {path} file"]
    assert (graph - file).abs().max() < 1e-4 * file.abs().max()
    assert not torch.allclose(graph, latents[f"plain {path} graph"], rtol=1e-4)


def test_the_template_of_the_merge_in_the_graph_runs_and_shows_its_drawing(client):
    workflow = twins.small(api("clvr_merge_models"))
    try:
        history = client.run(workflow)
    except ComfyError as error:
        if "num_heads 48" not in str(error):
            raise
        pytest.skip(OLD)
    picture = Image.open(io.BytesIO(client.image(shown(history, workflow, "PreviewImage")["images"][0])))
    assert picture.size == (twins.SIDE, twins.SIDE)


@pytest.mark.parametrize("name", MERGES)
def test_a_template_says_which_files_it_needs(name):
    drawn_workflow = drawn(name)
    note = next(node for node in drawn_workflow["nodes"] if node["type"] == "MarkdownNote")["widgets_values"][0]
    for node in api(name).values():
        for value in node["inputs"].values():
            if isinstance(value, str) and value.endswith(".safetensors"):
                assert f"`{value}`" in note
