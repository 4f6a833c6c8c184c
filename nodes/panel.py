"""What the panel in the browser, or a script, asks of the server: runs, their pictures, answers to a pause."""

from __future__ import annotations

import asyncio
import io
import json
import mimetypes
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web
from server import PromptServer

from ..clvr.errors import ClvrError, FormatError, MissingFileError

if TYPE_CHECKING:
    from ..clvr.journal import Record
    from .board import Entry

LISTED = 100
"""Runs in the list."""
LARGEST_BODY = 64 * 1024
LARGEST_JOURNAL = 64 * 1024 * 1024
SANDBOX = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"
THUMBS = (128, 256, 512, 1024)

_last_request = float("-inf")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Refused(Exception):
    """An answer that says why, with its HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def register() -> None:
    """Add the routes. ComfyUI makes a twin under /api of each."""
    routes = PromptServer.instance.routes
    routes.get("/clvr/runs")(_told(_runs))
    routes.get("/clvr/runs/{run:.+}")(_told(_run))
    routes.get("/clvr/image")(_told(_image))
    routes.get("/clvr/report")(_told(_report))
    routes.post("/clvr/answer")(_told(_answer))


def watched(now: float, lately: float) -> bool:
    """Whether a browser is connected, or something asked for a run within the last `lately` seconds."""
    return bool(PromptServer.instance.sockets) or now - _last_request <= lately


def _told(handler: Handler) -> Handler:
    """A handler whose mistakes are told as JSON with a message."""

    async def handle(request: web.Request) -> web.StreamResponse:
        global _last_request
        _last_request = time.monotonic()
        try:
            return await handler(request)
        except Refused as error:
            return web.json_response({"error": str(error)}, status=error.status)
        except MissingFileError as error:
            return web.json_response({"error": str(error)}, status=404)
        except ClvrError as error:
            return web.json_response({"error": str(error)}, status=400)

    return handle


async def _runs(request: web.Request) -> web.StreamResponse:
    from . import board

    entries = board.entries()
    live = [entry.brief() for entry in entries]
    known = {told["id"] for told in live} | {board.folder_name(e.folder) for e in entries if e.folder}
    kept = await asyncio.to_thread(_kept, known)
    return web.json_response({"runs": [*live, *kept]})


async def _run(request: web.Request) -> web.StreamResponse:
    name = request.match_info["run"]
    entry = _entry(name)
    if entry:
        folder, told = entry.folder, entry.json()
    else:
        record = await asyncio.to_thread(_record, name)
        folder, told = record.folder, _past(name, record)
    report = folder is not None and (folder / "report.html").is_file()
    return web.json_response({**told, "report": report, "folder": name if folder else None})


async def _image(request: web.Request) -> web.StreamResponse:
    """The picture of a label such as IMG_GEN_0/1 or IMG_REF_0, no larger than `size` a side where that is given."""
    name, label = _asked(request, "run"), _asked(request, "label")
    size = request.query.get("size", "")
    if size and (not size.isdecimal() or int(size) not in THUMBS):
        raise Refused(400, f"'size' is one of {', '.join(map(str, THUMBS))}.")
    data, kind = await asyncio.to_thread(_picture, name, label, int(size or 0))
    return web.Response(body=data, content_type=kind, headers={"Cache-Control": "no-cache"})


async def _report(request: web.Request) -> web.StreamResponse:
    folder = _folder(_asked(request, "run"))
    path = folder / "report.html"
    if not path.is_file() or not path.resolve().is_relative_to(folder):
        raise Refused(404, "This run has no report yet.")
    return web.FileResponse(path, headers={"Content-Security-Policy": SANDBOX, "X-Content-Type-Options": "nosniff"})


async def _answer(request: web.Request) -> web.StreamResponse:
    data = await _body(request)
    name = data.pop("run", None)
    entry = _entry(name) if isinstance(name, str) else None
    if entry is None:
        raise Refused(404, f"No run {name!r:.200} was started in this session.")
    if entry.waiting:
        entry.waiting.give(data)
    elif data == {"action": "stop"} and entry.running:
        entry.stopping = True
    else:
        raise Refused(409, "The run does not wait for an answer." + (" It can be stopped." if entry.running else ""))
    return web.json_response({"run": entry.id, "paused": entry.waiting is not None})


async def _body(request: web.Request) -> dict[str, Any]:
    """A JSON object of at most LARGEST_BODY bytes. The content type keeps other sites' forms out."""
    if request.content_type != "application/json":
        raise Refused(400, "Send JSON, with the header Content-Type: application/json.")
    body = await request.content.read(LARGEST_BODY + 1)
    while len(body) <= LARGEST_BODY and not request.content.at_eof():
        body += await request.content.read(LARGEST_BODY + 1 - len(body))
    if len(body) > LARGEST_BODY:
        raise Refused(400, f"The body is larger than {LARGEST_BODY} bytes.")
    try:
        data = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise Refused(400, f"The body is no JSON: {error}") from None
    if not isinstance(data, dict):
        raise Refused(400, 'The body should be an object like {"run": "clvr/run_00001", "action": "approve"}.')
    return data


def _entry(name: str) -> Entry | None:
    from . import board

    return board.find(name)


def _asked(request: web.Request, name: str) -> str:
    if not request.query.get(name):
        raise Refused(400, f"'{name}' is missing in the address.")
    return request.query[name]


def _folder(name: str) -> Path:
    """A run's folder, one of this session or a kept one. Raises MissingFileError."""
    from .records import known_folder

    entry = _entry(name)
    if entry:
        if entry.folder is None:
            raise Refused(404, "This run lies in no folder yet.")
        return entry.folder
    if "\0" in name:
        raise Refused(400, "A run's name has no such character.")
    return known_folder(name)


def _record(name: str) -> Record:
    folder = _folder(name)
    try:
        stat = (folder / "journal.jsonl").stat()
    except OSError:
        raise Refused(404, "This run has not begun yet.") from None
    if stat.st_size > LARGEST_JOURNAL:
        raise FormatError(f"The journal in {folder} is larger than {LARGEST_JOURNAL} bytes.")
    return _read(folder, stat.st_mtime_ns)


@lru_cache(maxsize=8)
def _read(folder: Path, changed: int) -> Record:
    from ..clvr import journal

    return journal.read(folder)


def _past(name: str, record: Record) -> dict[str, Any]:
    from ..clvr.report.watch import Watch

    return {
        "id": name,
        "node": "",
        "prompt_id": "",
        "running": False,
        "paused": None,
        **Watch.of(record).json(),
    }


def _picture(name: str, label: str, size: int) -> tuple[bytes, str]:
    """Bytes and type of a picture. Raises Refused where there is none."""
    from ..clvr.images import png_bytes

    entry = _entry(name)
    image = entry.watch.images.get(label) if entry else None
    if image is not None:
        return (_small(image, size), "image/webp") if size else (png_bytes(image), "image/png")
    record = _record(name)
    path = record.paths().get(label)
    found = (record.folder / path).resolve() if path else None
    if found is None or not found.is_file() or not found.is_relative_to(record.folder.resolve()):
        raise Refused(404, f"The run has no picture {label!r:.80}.")
    if size:
        from ..clvr.images import load_image

        return _small(load_image(found), size), "image/webp"
    return found.read_bytes(), mimetypes.guess_type(found.name)[0] or "application/octet-stream"


def _small(image: Any, size: int) -> bytes:  # noqa: ANN401
    """WebP of at most `size` pixels a side, lossless where nothing had to be scaled."""
    smaller = image.copy()
    smaller.thumbnail((size, size))
    data = io.BytesIO()
    smaller.save(data, "WEBP", lossless=smaller.size == image.size and max(image.size) <= 256, quality=88)
    return data.getvalue()


def _kept(known: set[str]) -> list[dict[str, Any]]:
    """The runs in ComfyUI's output folder, the newest first, those in `known` left out."""
    from .board import folder_name
    from .records import newest

    listed = []
    for when, folder in newest():
        name = folder_name(folder)
        if name not in known and len(listed) < LISTED:
            listed.append({"id": name, "when": when, "running": False, "paused": False, **_brief(name)})
    return listed


def _brief(name: str) -> dict[str, Any]:
    from ..clvr.report.watch import brief

    try:
        return brief(_record(name).trajectory)
    except ClvrError as error:
        return {"prompt": "", "rounds": 0, "score": None, "best": None, "stop": str(error), "damaged": True}
