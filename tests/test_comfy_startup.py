"""What the pack adds to ComfyUI's start."""

from __future__ import annotations

import compileall
import json
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.comfy import ROOT, find

pytestmark = pytest.mark.comfy

HEAVY = {"diffusers", "transformers", "peft", "accelerate", "httpx", "llguidance", "onnxruntime", "rapidocr"}


@pytest.fixture(scope="module")
def start():
    """In a checkout that was compiled before."""
    for folder in ("clvr", "nodes"):
        compileall.compile_dir(ROOT / folder, quiet=1)
    worker = Path(__file__).with_name("startup_comfy_worker.py")
    done = subprocess.run([sys.executable, worker, find(), ROOT], capture_output=True, text=True, cwd=find())
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_importing_the_pack_takes_less_than_a_third_of_a_second(start):
    assert start["loaded"]
    assert start["nodes"] >= 26
    assert start["seconds"] < 0.3


def test_importing_the_pack_loads_no_heavy_library(start):
    assert not {name.split(".")[0] for name in start["modules"]} & HEAVY
