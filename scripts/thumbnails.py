"""Run the shipped workflows and keep what they show as the templates' thumbnails.

python -m scripts.thumbnails [TEMPLATE …]

Those that load klein need a ComfyUI that knows it: name one of 2026 by COMFYUI_PATH. Graphs and the panel are
pictures of the frontend in Chromium."""

from __future__ import annotations

import io
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageDraw, ImageFont

from scripts import twins
from scripts.browser import RUN, frontend
from scripts.comfy import ROOT, Client, Server
from scripts.demo import LEAN

if TYPE_CHECKING:
    from playwright.sync_api import Page

WIDTH = 800
TILE, GAP, CAPTION = 384, 16, 34
PAPER, INK = "#f6f5f1", "#1a1c21"
GUIDED = {
    "Flux2Scheduler": {"steps": 28},
    "CFGGuider": {"cfg": 4.0},
    "CLVRGeneratorNative": {"mode": "base"},
    "CLVRTakeDrawing": {"evaluations": 56},
}
"""The built-in model is not distilled, so its twins draw as a base model does."""
OTHER_PROMPTS = {
    "clvr_klein_native": "three yellow triangles left of a large purple circle",
    "clvr_klein_server": "a green cross above two small blue squares",
    "clvr_loop": "a purple square right of two yellow circles",
    "clvr_own_sampler": "a large blue triangle below three red circles",
    "clvr_human_in_the_loop": "a yellow cross left of a black square and a green circle",
}
"""So that no two templates show the same picture."""
OPEN = """async ([workflow, drawn]) => {
    await app.loadApiJson(workflow, 'thumbnail');
    for (const {id, pos, size, title} of drawn.nodes) {
        const node = app.graph.getNodeById(id);
        if (node) Object.assign(node, {pos, size}, title ? {title} : {});
    }
    for (const {title, bounding, color} of drawn.groups) {
        const group = new LiteGraph.LGraphGroup(title);
        Object.assign(group, {pos: bounding.slice(0, 2), size: bounding.slice(2), color});
        app.graph.add(group);
    }
    const set = (name, value) => app.extensionManager.setting.set(name, value);
    await set('Comfy.Minimap.Visible', false);
    await set('Comfy.NodeBadge.NodeSourceBadgeMode', 'None');
}"""
LOOK = """([x, y, scale]) => {
    app.canvas.ds.scale = scale;
    app.canvas.ds.offset = [-x, -y];
    app.canvas.setDirty(true, true);
}"""


@dataclass(frozen=True)
class Scene:
    """A template that is about to be pictured. `workflow` is its API format for small models."""

    name: str
    workflow: dict[str, Any]
    server: Server

    @property
    def client(self) -> Client:
        return Client(self.server.address)

    @property
    def drawn(self) -> dict[str, Any]:
        return json.loads((ROOT / "workflows" / f"{self.name}.json").read_text(encoding="utf-8"))

    def nodes(self, kind: str) -> list[str]:
        return [key for key, node in self.workflow.items() if node["class_type"] == kind]


def sheet(scene: Scene) -> Image.Image:
    return shown(scene, "Contact sheet")


def plot(scene: Scene) -> Image.Image:
    """The upper third of the merge's plot: all of it would be too small to see."""
    found = shown(scene, "Plot")
    return found.crop((0, 0, found.width, round(found.width * 0.45)))


def edited(scene: Scene) -> Image.Image:
    """The picture before and after."""
    outputs = scene.client.run(scene.workflow)["outputs"]
    before, after = (fetched(scene, outputs, node) for node in scene.nodes("CLVRClosedLoop"))
    (_, prompt) = (scene.workflow[node]["inputs"]["prompt"] for node in scene.nodes("CLVRClosedLoop"))
    return row([before, after], ["before", prompt])


def merged(scene: Scene) -> Image.Image:
    """What each of the models draws, and what their merge draws."""
    (guider,), (merge,) = scene.nodes("CFGGuider"), scene.nodes("CLVRMergeModels")
    found = []
    for name in ("base", "distilled", "aligned", "merge"):
        link = [merge, 0] if name == "merge" else scene.workflow[merge]["inputs"][name]
        scene.workflow[guider]["inputs"]["model"] = link
        found.append(shown(scene, "Drawing"))
    return row(found, ["base", "distilled", "aligned", "DSWM merge"])


def graph(scene: Scene) -> Image.Image:
    """The nodes from the round on, after a run."""
    with tempfile.TemporaryDirectory(prefix="clvr-") as profile, frontend(scene.server, Path(profile)) as page:
        page.evaluate(OPEN, [scene.workflow, scene.drawn])
        page.evaluate(RUN)
        return photographed(page, scene.drawn["groups"][2:])


def photographed(page: Page, groups: Sequence[dict[str, Any]]) -> Image.Image:
    """The part of the canvas that holds these groups."""
    left, top, margin = 120, 140, 20
    boxes = [group["bounding"] for group in groups]
    x, y = min(box[0] for box in boxes) - margin, min(box[1] for box in boxes) - margin
    wide = max(box[0] + box[2] for box in boxes) + margin - x
    high = max(box[1] + box[3] for box in boxes) + margin - y
    scale = min(1600 / wide, 900 / high)
    page.evaluate(LOOK, [x - left / scale, y - top / scale, scale])
    page.wait_for_timeout(1500)
    seen = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    return seen.crop((left, top, left + round(wide * scale), top + round(high * scale)))


def question(scene: Scene) -> Image.Image:
    """The panel's card while the run waits for a person with its second picture."""
    for node in scene.nodes("CLVRClosedLoop"):
        scene.workflow[node]["inputs"] |= {"pause": "after judging", "pause_seconds": 300.0}
    with tempfile.TemporaryDirectory(prefix="clvr-") as profile, frontend(scene.server, Path(profile)) as page:
        page.evaluate(OPEN, [scene.workflow, scene.drawn])
        page.locator(".clvr-tab-button").click()
        page.evaluate("() => { app.queuePrompt(0, 1); }")
        card = page.locator(".clvr .pause")
        card.get_by_role("button", name="Approve").click()
        card.get_by_text("Round 2").wait_for()
        page.wait_for_timeout(1500)
        found = card.screenshot()
        card.get_by_role("button", name="Stop and keep").click()
        page.locator(".clvr .state.done, .clvr .state.cut").first.wait_for()
    return Image.open(io.BytesIO(found)).convert("RGB")


HOW: dict[str, Callable[[Scene], Image.Image]] = {
    "clvr_edit": edited,
    "clvr_human_in_the_loop": question,
    "clvr_loop": graph,
    "clvr_merge_files": plot,
    "clvr_merge_models": merged,
    "clvr_own_sampler": graph,
    "clvr_step_by_step": graph,
}
"""How a template is pictured; the contact sheet of all others."""


def main(names: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="clvr-") as base:
        twins.lay_out(Path(base))
        with Server(Path(base), environment=LEAN) as server:
            for path in sorted((ROOT / "workflows" / "api").glob("*.json")):
                if names and path.stem not in names:
                    continue
                target = ROOT / "workflows" / f"{path.stem}.jpg"
                workflow = json.loads(path.read_text(encoding="utf-8"))
                scene = Scene(path.stem, prompted(guided(twins.small(workflow)), path.stem), server)
                found = HOW.get(path.stem, sheet)(scene)
                sized(found).save(target, quality=85, optimize=True)
                print(target.relative_to(ROOT))
    return 0


def shown(scene: Scene, title: str) -> Image.Image:
    """What the node of this title shows after a run."""
    node = next(key for key, made in scene.workflow.items() if made["_meta"]["title"] == title)
    return fetched(scene, scene.client.run(scene.workflow)["outputs"], node)


def fetched(scene: Scene, outputs: dict[str, Any], node: str) -> Image.Image:
    return Image.open(io.BytesIO(scene.client.image(outputs[node]["images"][0]))).convert("RGB")


def row(images: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Pictures beside each other, each with its caption."""
    font = ImageFont.load_default(24)
    made = Image.new("RGB", (GAP + len(images) * (TILE + GAP), TILE + 2 * GAP + CAPTION), PAPER)
    pen = ImageDraw.Draw(made)
    for k, (image, caption) in enumerate(zip(images, captions, strict=True)):
        x = GAP + k * (TILE + GAP)
        made.paste(image.resize((TILE, TILE), Image.Resampling.NEAREST), (x, GAP))
        pen.text((x + TILE / 2, TILE + GAP + CAPTION / 2 + 4), caption, fill=INK, font=font, anchor="mm")
    return made


def sized(image: Image.Image) -> Image.Image:
    return image.resize((WIDTH, round(image.height * WIDTH / image.width)), Image.Resampling.LANCZOS)


def prompted(workflow: dict, name: str) -> dict:
    for node in workflow.values():
        if "prompt" in node["inputs"] and name in OTHER_PROMPTS:
            node["inputs"]["prompt"] = OTHER_PROMPTS[name]
    return workflow


def guided(workflow: dict) -> dict:
    """A workflow for distilled models with a base model's steps and guidance, against the empty prompt."""
    for node in workflow.values():
        node["inputs"] |= GUIDED.get(node["class_type"], {})
        if node["class_type"] == "ConditioningZeroOut":
            prompt = workflow[node["inputs"]["conditioning"][0]]
            node |= {"class_type": "CLIPTextEncode", "inputs": {**prompt["inputs"], "text": ""}}
    return workflow


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
