"""ComfyUI's frontend in Debian's Chromium, for tests and for pictures of what a person sees."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.comfy import Client, ComfyError, Server

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
READY = "() => window.app?.extensionManager && window.app.graph && LiteGraph.registered_node_types.CLVRClosedLoop"
RUN = """() => new Promise((resolve, reject) => {
    const failed = event => reject(new Error(event.detail.exception_message ?? event.type));
    app.api.addEventListener('execution_success', () => resolve(true), {once: true});
    app.api.addEventListener('execution_error', failed, {once: true});
    app.queuePrompt(0, 1).catch(reject);
})"""


@contextmanager
def frontend(server: Server, profile: Path, width: int = 2200, height: int = 1200) -> Iterator[Page]:
    """A page that shows the server's frontend. `profile`: an empty folder. Raises ComfyError without Chromium."""
    if CHROMIUM is None:
        raise ComfyError("There is no Chromium. Install it: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    Client(server.address).post("settings", {"Comfy.TutorialCompleted": True})
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=FLAGS, viewport={"width": width, "height": height}
        )
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.goto(server.url)
        page.wait_for_function(READY)
        yield page
        context.close()
