"""Show the closed loop in a real ComfyUI, without a browser or with one.

python -m scripts.demo --prompt "two red circles above a blue square"
python -m scripts.demo --serve
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import signal
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from scripts.comfy import ROOT, Client, ComfyError, Server, cache

TEMPLATE = "clvr_closed_loop"
FILES = ("final.png", "sheet.png", "report.html", "trajectory.json")
BAR = 28
LEAN = {"OMP_NUM_THREADS": "1"}
"""The built-in model is too small for more threads: on a busy machine they wait for each other."""


def main() -> int:
    options = _options()
    signal.signal(signal.SIGTERM, _terminated)
    try:
        if options.serve:
            return serve()
        return demo(options.prompt, options.seed, options.out)
    except KeyboardInterrupt:
        print("\nInterrupted; the server is stopped.")
        return 130
    except ComfyError as error:
        print(f"\n{error}", file=sys.stderr)
        return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--prompt", default="", help="what to draw; empty takes the template's prompt")
    parser.add_argument("--seed", type=int, help="fixes everything that is random")
    parser.add_argument("--out", type=Path, default=ROOT / "out", help="where the run's folder goes")
    parser.add_argument("--serve", action="store_true", help="leave a server open for your browser")
    return parser.parse_args()


def _terminated(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def serve() -> int:
    """A server with the pack until Ctrl-C. Its settings persist, its pictures go to out/."""
    print("Starting ComfyUI …", flush=True)
    with Server(cache() / "serve", output=ROOT / "out") as server:
        print(f"Open {server.url}")
        print(f"Then Workflow > Browse Templates > Extensions > comfyui-clvr > {TEMPLATE}, and press Run.")
        print("Ctrl-C stops the server.", flush=True)
        return server.wait()


def demo(prompt: str, seed: int | None, out: Path) -> int:
    """One run of the template. Writes out/<run>/ and says where."""
    workflow, drawn = _filled(prompt, seed)
    began = time.monotonic()
    print("Starting ComfyUI …", flush=True)
    with tempfile.TemporaryDirectory(prefix="clvr-") as base, Server(Path(base), environment=LEAN) as server:
        client = Client(server.address)
        version = client.get("system_stats")["system"]["comfyui_version"]
        print(f"ComfyUI {version} with the pack answers after {time.monotonic() - began:.0f} s.", flush=True)
        show = Terminal()
        for kind, data in client.follow(workflow, drawn):
            show(kind, data)
        if show.failed:
            return 1
        kept = _keep(server.output, out, show.prompt)
    print(f"\n{time.monotonic() - began:.0f} s in all. Look at:")
    for name in FILES:
        print(f"  {_short(kept / name)}")
    return 0


def _filled(prompt: str, seed: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """The template in API and in UI format, with the prompt and the seed put in."""
    workflow = json.loads((ROOT / f"workflows/api/{TEMPLATE}.json").read_text(encoding="utf-8"))
    drawn = json.loads((ROOT / f"workflows/{TEMPLATE}.json").read_text(encoding="utf-8"))
    node = next(n for n in workflow.values() if n["class_type"] == "CLVRClosedLoop")
    shown = next(n for n in drawn["nodes"] if n["type"] == "CLVRClosedLoop")
    if prompt:
        node["inputs"]["prompt"] = shown["widgets_values"][0] = prompt
    if seed is not None:
        node["inputs"]["seed"] = shown["widgets_values"][1] = seed
    return workflow, drawn


def _keep(output: Path, out: Path, prompt: str) -> Path:
    """Move the run's folder from the server's output folder to `out`."""
    made = next((folder.parent for folder in output.rglob("trajectory.json")), None)
    if made is None:
        raise ComfyError(f"The run left no trajectory in {output}.")
    slug = re.sub(r"[^a-z0-9]+", "-", prompt.lower())[:40].strip("-") or "run"
    target = out / f"{datetime.now():%Y%m%d-%H%M%S}-{slug}"
    out.mkdir(parents=True, exist_ok=True)
    shutil.move(made, target)
    return target


def _short(path: Path) -> str:
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


class Terminal:
    """Tells a run's events as lines; the bar of the drawing under way is redrawn in place on a terminal."""

    def __init__(self) -> None:
        self.prompt = ""
        self.failed = False
        self._live = sys.stdout.isatty()
        self._tellers = {
            "started": self._started,
            "checklisted": self._checklisted,
            "planned": self._planned,
            "drawing": self._drawing,
            "settled": self._settled,
            "warned": self._warned,
            "stopped": self._stopped,
        }

    def __call__(self, kind: str, data: Any) -> None:  # noqa: ANN401
        if kind == "clvr.event" and data["kind"] in self._tellers:
            self._tellers[data["kind"]](data)
        elif kind == "execution_error":
            self.failed = True
            self._say(f"{data['node_type']}: {data['exception_message'].strip()}")
        elif kind == "execution_interrupted":
            self.failed = True
            self._say("The run was interrupted.")

    def _started(self, data: dict[str, Any]) -> None:
        self.prompt = data["prompt"]
        self._say(f"\n“{data['prompt']}”  (seed {data['seed']}, {data['budget']})")

    def _checklisted(self, data: dict[str, Any]) -> None:
        self._say(f"{len(data['checks'])} checks:")
        for question in data["checks"]:
            self._say(f"  · {question}")

    def _planned(self, data: dict[str, Any]) -> None:
        title = f"Round {data['step'] + 1}: {data['action']}"
        self._say(f"\n{title}  {data['instruction']}".rstrip())

    def _drawing(self, data: dict[str, Any]) -> None:
        done = BAR * data["done"] // data["of"]
        bar = "█" * done + "░" * (BAR - done)
        if self._live:
            print(f"\r  {bar} {data['done']}/{data['of']} ", end="", flush=True)
        elif data["done"] == data["of"]:
            print(f"  drawn in {data['of']} steps", flush=True)

    def _settled(self, data: dict[str, Any]) -> None:
        verdict = "kept" if data["accepted"] else "rolled back"
        if data["passing"] is not None:
            verdict += f": {data['passing']} of {data['checks']} checks pass"
        self._say(f"  {verdict}")
        for question in data["open"]:
            self._say(f"    ✗ {question}")

    def _warned(self, data: dict[str, Any]) -> None:
        self._say(f"  note: {data['message']}")

    def _stopped(self, data: dict[str, Any]) -> None:
        self._say(f"\nStopped after {data['rounds']} rounds: {data['reason']}")
        if data["passing"] is not None:
            self._say(f"The best picture passes {data['passing']} of {data['checks']} checks.")

    def _say(self, line: str) -> None:
        """A line of its own, over what a bar left behind."""
        clear = "\r\033[K" if self._live else ""
        print(f"{clear}{line}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
