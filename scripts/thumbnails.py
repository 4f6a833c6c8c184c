"""Run the shipped workflows and keep what they show as the templates' thumbnails.

python -m scripts.thumbnails [TEMPLATE …]

Those that load klein need a ComfyUI that knows it: name one of 2026 by COMFYUI_PATH."""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

from scripts import twins
from scripts.comfy import ROOT, Client, Server
from scripts.demo import LEAN

WIDTH = 800
SHOWN = {"clvr_merge_files": "Plot", "clvr_merge_models": "Drawing"}
"""Title of the node whose picture is kept; the contact sheet of all others."""
GUIDED = {
    "Flux2Scheduler": {"steps": 28},
    "CFGGuider": {"cfg": 4.0},
    "CLVRGeneratorNative": {"mode": "base"},
    "CLVRTakeDrawing": {"evaluations": 56},
}
"""The built-in model is not distilled, so its twins draw as a base model does."""
ALONE = {"CLVRClosedLoop": {"pause_seconds": 0.1}}
"""Nobody answers here."""


def main(names: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="clvr-") as base:
        twins.lay_out(Path(base))
        with Server(Path(base), environment=LEAN) as server:
            client = Client(server.address)
            for path in sorted((ROOT / "workflows" / "api").glob("*.json")):
                if names and path.stem not in names:
                    continue
                target = ROOT / "workflows" / f"{path.stem}.jpg"
                workflow = json.loads(path.read_text(encoding="utf-8"))
                found = picture(client, workflow, SHOWN.get(path.stem, "Contact sheet"))
                found.save(target, quality=85, optimize=True)
                print(target.relative_to(ROOT))
    return 0


def picture(client: Client, workflow: dict, title: str) -> Image.Image:
    """What the node of this title shows, WIDTH pixels wide."""
    workflow = guided(twins.small(workflow))
    node = next(key for key, made in workflow.items() if made["_meta"]["title"] == title)
    shown = client.run(workflow)["outputs"][node]["images"][0]
    found = Image.open(io.BytesIO(client.image(shown))).convert("RGB")
    smooth = Image.Resampling.LANCZOS if found.width > twins.SIDE else Image.Resampling.NEAREST
    return found.resize((WIDTH, round(found.height * WIDTH / found.width)), smooth)


def guided(workflow: dict) -> dict:
    """A workflow for distilled models with a base model's steps and guidance, against the empty prompt."""
    for node in workflow.values():
        node["inputs"] |= GUIDED.get(node["class_type"], {}) | ALONE.get(node["class_type"], {})
        if node["class_type"] == "ConditioningZeroOut":
            prompt = workflow[node["inputs"]["conditioning"][0]]
            node |= {"class_type": "CLIPTextEncode", "inputs": {**prompt["inputs"], "text": ""}}
    return workflow


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
