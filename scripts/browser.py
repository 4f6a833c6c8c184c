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
RUN = """async () => {
    const get = async path => (await app.api.fetchApi(path)).json();
    const before = await get('/history');
    await app.queuePrompt(0, 1);
    for (let seconds = 0; seconds < 300; seconds += 0.2) {
        const {queue_running, queue_pending} = await get('/queue');
        if (!queue_running.length && !queue_pending.length) {
            const ended = Object.entries(await get('/history')).filter(([id]) => !(id in before));
            const failed = ended.find(([, one]) => one.status.status_str !== 'success');
            if (failed || !ended.length) throw new Error(JSON.stringify(failed ?? 'it was refused').slice(0, 2000));
            return true;
        }
        await new Promise(done => setTimeout(done, 200));
    }
    throw new Error('It did not end within 300 s.');
}"""
"""Queue the workflow and wait for its end. It asks the server: an event that a busy browser missed never comes."""


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
