"""Run the shipped workflows and keep their contact sheets as the templates' thumbnails.

python -m scripts.thumbnails
"""

from __future__ import annotations

import io
import json
import sys
import tempfile
from pathlib import Path

from PIL import Image

from scripts.comfy import ROOT, Client, Server
from scripts.demo import LEAN

WIDTH = 800


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="clvr-") as base, Server(Path(base), environment=LEAN) as server:
        client = Client(server.address)
        for path in sorted((ROOT / "workflows" / "api").glob("*.json")):
            target = ROOT / "workflows" / f"{path.stem}.jpg"
            sheet(client, json.loads(path.read_text(encoding="utf-8"))).save(target, quality=85, optimize=True)
            print(target.relative_to(ROOT))
    return 0


def sheet(client: Client, workflow: dict) -> Image.Image:
    """The picture that the node titled 'Contact sheet' shows, WIDTH pixels wide."""
    node = next(key for key, made in workflow.items() if made["_meta"]["title"] == "Contact sheet")
    shown = client.run(workflow)["outputs"][node]["images"][0]
    picture = Image.open(io.BytesIO(client.image(shown))).convert("RGB")
    return picture.resize((WIDTH, round(picture.height * WIDTH / picture.width)), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    sys.exit(main())
