"""FLUX.2 [klein] through ComfyUI's own sampling: what it draws, what it counts, what it says."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file

from clvr import builtin
from clvr.context import Context, Turn
from clvr.flux2.export import export
from clvr.flux2.generator import Flux2Generator
from clvr.flux2.keymap import to_diffusers
from clvr.flux2.limits import scaled
from scripts.comfy import ROOT, Client, ComfyError, Server, find

from .native_comfy_worker import GUIDANCE, SEEDS, SIZE, STEPS, TEXT

pytestmark = pytest.mark.comfy
TOO_OLD = "does not know FLUX.2 [klein]. Update ComfyUI to a release of 2026, or draw with CLVR Generator (diffusers)."


@pytest.fixture(scope="module")
def comfy():
    try:
        return find()
    except ComfyError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"NO COMFYUI: {error}")


def knows_klein(comfy: Path) -> bool:
    return "KleinTokenizer" in (comfy / "comfy" / "text_encoders" / "flux.py").read_text("utf-8")


@pytest.fixture(scope="module")
def klein_comfy(comfy):
    if not knows_klein(comfy):
        pytest.skip("THIS COMFYUI KNOWS NO KLEIN: name one of 2026 by COMFYUI_PATH")
    return comfy


@pytest.fixture(scope="module")
def twin(tmp_path_factory):
    path = tmp_path_factory.mktemp("twin") / "diffusion_models" / "twin.safetensors"
    export(builtin.PATH, path)
    return path


def work(comfy: Path, out: Path, klein: str = "", twin: str = "") -> dict:
    worker = Path(__file__).with_name("native_comfy_worker.py")
    command = [sys.executable, str(worker), str(comfy), klein, twin, str(out)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((out / "measured.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("native")


@pytest.fixture(scope="module")
def measured(klein_comfy, twin, folder):
    return work(klein_comfy, folder, str(builtin.PATH), str(twin))


@pytest.fixture(scope="module")
def registered(comfy, tmp_path_factory):
    return work(comfy, tmp_path_factory.mktemp("registered"))["registered"]


@pytest.fixture(scope="module")
def diffusers(twin):
    """The diffusers generator with the twin's weights and the padding that ComfyUI's klein tokenizer makes."""
    made = Flux2Generator.load(builtin.PATH, device="cpu", dtype="float32", steps=STEPS, guidance=GUIDANCE)
    made.pipeline.transformer.load_state_dict({k: t.float() for k, t in to_diffusers(load_file(twin)).items()})
    made.sampling = replace(made.sampling, max_sequence_length=512)
    return made


def seen(folder: Path, name: str, k: int = 0) -> Image.Image:
    return Image.open(folder / f"{name}_{k}.png")


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one).astype(int) - np.asarray(other)).max())


@pytest.mark.xdist_group("comfy")
def test_the_nodes_register_on_every_comfyui(client):
    assert {"CLVRGeneratorNative", "CLVRConditioning", "CLVRTakeDrawing"} <= set(client.get("object_info"))


def test_a_comfyui_without_klein_says_so_before_and_while_it_runs(comfy, registered):
    if knows_klein(comfy):
        assert registered["validated"] == [True, "There is no mode 'nonsense'. Choose distilled, base or custom."]
        assert not any("does not know" in text for text in registered["described"])
        return
    assert all(text.startswith("ComfyUI") and "does not know" in text for text in registered["described"])
    assert all(TOO_OLD in text for text in registered["validated"])
    assert all(kind == "HostError" and TOO_OLD in text for kind, text in registered["executed"])


def test_guided_drawings_from_two_references_are_those_of_diffusers(measured, folder, diffusers):
    given = tuple((label, seen(folder, "reference", k)) for k, label in enumerate(("IMG_REF_0", "IMG_GEN_0")))
    context = Context(TEXT, (Turn(0, "draw", "IMG_GEN_0"), Turn(1, "move")), given)
    for k, image in enumerate(diffusers.draw(context, SIZE, SEEDS).images):
        assert difference(image, seen(folder, "guided", k)) <= 1


def test_drawings_from_a_text_beyond_the_padding_are_those_of_diffusers(measured, folder, diffusers):
    context = Context((folder / "long.txt").read_text(), (Turn(0, "draw", "IMG_GEN_0"), Turn(1, "move")))
    diffusers.sampling = replace(diffusers.sampling, guidance=1.0)
    assert difference(diffusers.draw(context, (64, 64), SEEDS[:1]).images[0], seen(folder, "long")) <= 1
    assert measured["parity"]["notes"] == []


@pytest.mark.parametrize("size", [(64, 64), (100, 84), (1024, 1024), (2000, 900), (3000, 401), (777, 1999)])
def test_references_are_scaled_as_the_klein_pipeline_scales_them(size):
    from diffusers.pipelines.flux2.image_processor import Flux2ImageProcessor

    image = Image.effect_noise(size, 80).convert("RGB")
    processor, theirs = Flux2ImageProcessor(vae_scale_factor=16), image
    if size[0] * size[1] > 1024 * 1024:
        theirs = processor._resize_to_target_area(image, 1024 * 1024)
    width, height = (side // 16 * 16 for side in theirs.size)
    pixels = processor.preprocess(theirs, height=height, width=width, resize_mode="crop")
    wanted = ((pixels[0].permute(1, 2, 0) + 1) * 127.5).round().numpy().astype(np.uint8)
    assert np.array_equal(np.asarray(scaled(image)), wanted)


def test_each_candidate_of_a_batch_is_what_its_seed_draws_alone(measured, folder):
    found = measured["batches"]
    assert found["noise"]
    assert found["different"]
    assert all(difference(seen(folder, "batch", k), seen(folder, "alone", k)) <= 1 for k in range(2))


def test_samplers_that_add_noise_draw_candidates_one_by_one(measured):
    assert measured["batches"]["ancestral"]


def test_candidates_are_split_when_memory_is_short(measured):
    found = measured["memory"]
    assert found["estimated"] == [2, 1]
    assert found["progress"] == [[1, 4], [2, 4], [3, 4], [4, 4]]
    assert found["forced"] == [3, 1, 1, 1]
    assert found["notes"] == ["out of memory with 3 images at once; drew 1 at once"]
    assert max(found["close"]) <= 1


def test_references_and_their_order_matter(measured):
    assert measured["order"] == {"order": True, "presence": True}


def test_nothing_that_stayed_the_same_is_encoded_twice_and_little_is_kept(measured):
    first, again, new_text, fewer, other_generator, many = measured["caching"]["counts"]
    assert first == [2, 2]  # the text and the empty one, two references
    assert again == fewer == other_generator == [0, 0]
    assert new_text == [1, 0]
    assert many == [10, 0]  # nine new texts, and the first one again


def test_long_traces_are_read_whole_and_what_is_left_out_is_named(measured):
    found = measured["long_traces"]
    assert found["whole"] == [found["counted"], 0]
    assert found["counted"] > 700
    assert found["length"] <= 600
    assert found["notes"] == ["left out of the text encoder's 600 tokens: r_0, r_1, r_2"]
    assert found["failed"][0] == "ContextLimitError"


@pytest.mark.parametrize(("mode", "counted", "foretold"), [("distilled", 8, 8), ("base", 112, 112), ("heun", 10, 6)])
def test_evaluations_are_counted_as_the_guider_makes_them(measured, mode, counted, foretold):
    assert measured["evaluations"][mode] == [counted, foretold, counted]


def test_an_interrupt_ends_a_drawing_within_a_second(measured):
    found = measured["interrupt"]
    assert found["seconds"] < 1
    assert (found["failed"], found["cancelled"]) == (["InterruptProcessingException"], ["Cancelled"])
    assert found["after"] == 1


def test_quantised_and_lora_patched_models_draw(measured):
    found = measured["patched_models"]
    assert found["fp8"][0] == "torch.float8_e4m3fn"
    assert 0 < found["fp8"][1] < 128
    assert found["lora"] > 1
    assert found["merged"] <= 1
    assert found["unchanged"]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [("model", "not a FLUX.2"), ("clip", "CLIPLoader, type flux2"), ("vae", "flux2-vae"), ("size", "multiples of 16")],
)
def test_a_wrong_connection_is_named(measured, wrong, said):
    kind, text = measured["mistakes"][wrong]
    assert kind == "SettingError"
    assert said in text


@pytest.mark.parametrize("graph", ["distilled", "distilled KSampler", "base", "base KSampler"])
def test_a_sampler_graph_draws_from_the_conditioning_what_the_generator_draws_bit_for_bit(measured, graph):
    assert measured["graphs"][graph]


def test_a_loop_drawn_outside_has_the_trajectory_of_the_native_generator(measured):
    found = measured["own_graph"]
    assert found["steps"] > 1
    assert found["same"]
    assert all(found["images"])


def test_nothing_is_left_to_draw_of_a_run_that_has_stopped(measured):
    found = measured["own_graph"]
    assert found["blocked"] == ["ExecutionBlocker"] * (found["outputs"] - 1)


def test_a_closed_loop_with_the_native_generator_edits_its_own_canvas(measured):
    found = measured["closed_loop"]
    assert found["steps"] > 1
    assert found["stop"]
    assert found["references"][0] == []
    assert found["references"][1] == ["IMG_GEN_0"]
    assert found["nfe"] == found["steps"] * 4 * 2
    assert found["previews"] == found["steps"] * 4
    assert found["seconds"] == ["decode", "draw", "encode", "plan", "verify"]


@pytest.fixture(scope="module")
def tiny_server(klein_comfy, twin, tmp_path_factory):
    """A server that has the twin in its models folder, and the pack that loads the small encoders."""
    base = tmp_path_factory.mktemp("server")
    (base / "models" / "diffusion_models").mkdir(parents=True)
    (base / "models" / "diffusion_models" / "klein.safetensors").symlink_to(twin)
    (base / "custom_nodes").mkdir()
    (base / "custom_nodes" / "tiny_pack").symlink_to(ROOT / "tests" / "tiny_pack", target_is_directory=True)
    with Server(base, comfy=klein_comfy) as running:
        yield running


def loaders() -> dict:
    return {
        "unet": node("UNETLoader", unet_name="klein.safetensors", weight_dtype="default"),
        "parts": node("TinyKleinLoader", folder=str(builtin.PATH)),
        "judges": node("CLVRControllerBuiltin"),
        "budget": node(
            "CLVRThinkingBudget", rounds=2, candidates=2, evaluations=0, seconds=0.0, vlm_calls=0, verify_every=1,
            threshold=1.0, patience=4,
        ),
    }  # fmt: skip


def node(kind: str, **inputs) -> dict:
    return {"class_type": kind, "inputs": inputs}


def goal() -> dict:
    return {"prompt": TEXT, "seed": 7, "width": 64, "height": 64, "budget": ["budget", 0]}


def completed(workflow: dict, client: Client) -> dict:
    """With the defaults of the widgets that a test does not care about."""
    known = client.get("object_info")
    for one in workflow.values():
        required = known[one["class_type"]]["input"].get("required", {})
        for name, (kind, *options) in required.items():
            settings = options[0] if options else {}
            choices = kind if isinstance(kind, list) else settings.get("options", [])
            if choices or "default" in settings:
                one["inputs"].setdefault(name, settings.get("default", choices[0] if choices else None))
    return workflow


def closed() -> dict:
    """The whole loop in one node."""
    given = {"model": ["unet", 0], "clip": ["parts", 0], "vae": ["parts", 1]}
    ports = {"generator": ["native", 0], "controller": ["judges", 0], "verifier": ["judges", 1]}
    return {
        **loaders(),
        "native": node("CLVRGeneratorNative", **given, mode="distilled", drawing_steps=9, guidance=9.0),
        "loop": node("CLVRClosedLoop", **ports, **goal(), folder="clvr/native"),
        "save": node("SaveImage", images=["loop", 0], filename_prefix="closed"),
    }


def unrolled(rounds: int) -> dict:
    """The same loop with ComfyUI's own sampler nodes in it."""
    graph = loaders() | {
        "start": node("CLVRStart", controller=["judges", 0], **goal()),
        "sampler": node("KSamplerSelect", sampler_name="euler"),
        "sigmas": node("Flux2Scheduler", steps=4, width=64, height=64),
    }
    run = ["start", 0]
    for k in range(rounds):
        graph |= {
            f"plan{k}": node("CLVRPlan", run=run, controller=["judges", 0]),
            f"text{k}": node("CLVRConditioning", run=[f"plan{k}", 0], clip=["parts", 0], vae=["parts", 1]),
            f"guider{k}": node(
                "CFGGuider", model=["unet", 0], positive=[f"text{k}", 1], negative=[f"text{k}", 2], cfg=1.0
            ),
            f"sample{k}": node(
                "SamplerCustomAdvanced", noise=[f"text{k}", 4], guider=[f"guider{k}", 0], sampler=["sampler", 0],
                sigmas=["sigmas", 0], latent_image=[f"text{k}", 3],
            ),
            f"decode{k}": node("VAEDecode", samples=[f"sample{k}", 0], vae=["parts", 1]),
            f"take{k}": node("CLVRTakeDrawing", run=[f"text{k}", 0], images=[f"decode{k}", 0], evaluations=4),
            f"judge{k}": node("CLVRVerify", run=[f"take{k}", 0], verifier=["judges", 1]),
        }  # fmt: skip
        run = [f"judge{k}", 0]
    graph["finish"] = node("CLVRFinish", run=run)
    graph["save"] = node("SaveImage", images=["finish", 0], filename_prefix="unrolled")
    return graph


def test_on_a_server_the_loop_in_one_node_and_a_graph_of_stock_samplers_draw_the_same(tiny_server):
    client = Client(tiny_server.address)
    pictures = []
    for workflow in (closed(), unrolled(2)):
        saved = client.run(completed(workflow, client))["outputs"]["save"]["images"][0]
        pictures.append(client.image(saved))
    first, second = (np.asarray(Image.open(io.BytesIO(picture))) for picture in pictures)
    assert np.array_equal(first, second)


def test_on_a_server_a_round_after_the_stop_samples_nothing(tiny_server):
    ran = set()
    client = Client(tiny_server.address)
    for kind, data in client.follow(completed(unrolled(3), client)):
        assert kind != "execution_error", data["exception_message"]
        if kind == "executing":
            ran.add(data["node"])
    assert {"judge2", "finish"} <= ran
    assert not ran & {"sample2", "decode2", "guider2"}


def test_on_a_server_previews_of_the_native_generator_are_shown(tiny_server):
    workflow = closed()
    workflow["loop"]["inputs"]["seed"] = 11
    client = Client(tiny_server.address)
    kinds = [kind for kind, _ in client.follow(completed(workflow, client))]
    assert kinds.count("preview") >= 2
    assert kinds[-1] == "execution_success"
