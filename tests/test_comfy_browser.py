"""What a person sees: the shipped workflows in ComfyUI's own frontend, in Debian's Chromium."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

from scripts.comfy import Client, Server

from .comfy_fixtures import ARTIFACTS, LOOPS, MERGES, drawn

pytestmark = [pytest.mark.comfy, pytest.mark.browser, pytest.mark.xdist_group("comfy")]

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
LAST = {"clvr_closed_loop": "CLVR Closed Loop", "clvr_step_by_step": "CLVR Finish"}
LOAD = """async ([workflow, name]) => {
    await app.loadGraphData(workflow, true, true, name);
    document.querySelector('button[aria-label="Close"], .p-message-close-button')?.click();
    app.extensionManager.setting.set('Comfy.Minimap.Visible', false);
    app.canvas.setDirty(true, true);
}"""
UNKNOWN = """() => app.graph.nodes
    .filter(n => n.has_errors || !(n.type in LiteGraph.registered_node_types))
    .map(n => n.type)"""
RUN = """() => new Promise((resolve, reject) => {
    const failed = event => reject(new Error(event.detail.exception_message ?? event.type));
    app.api.addEventListener('execution_success', () => resolve(true), {once: true});
    app.api.addEventListener('execution_error', failed, {once: true});
    app.queuePrompt(0, 1).catch(reject);
})"""
PICTURES = """() => app.graph.nodes
    .filter(n => n.imgs?.length && n.imgs.every(i => i.complete && i.naturalWidth >= 64))
    .map(n => n.title)"""


@pytest.fixture(scope="module")
def page(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if CHROMIUM is None and not os.environ.get("CI"):
        pytest.skip("NO CHROMIUM: the browser tests did not run. Install it: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    Client(server.address).post("settings", {"Comfy.TutorialCompleted": True})
    ARTIFACTS.mkdir(exist_ok=True)
    profile = tmp_path_factory.mktemp("profile")
    with sync_playwright() as playwright:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=CHROMIUM, args=FLAGS, viewport={"width": 2200, "height": 1200}
        )
        opened = context.new_page()
        opened.set_default_timeout(120_000)
        opened.goto(server.url)
        opened.wait_for_function(READY)
        yield opened
        context.close()


@pytest.mark.parametrize("name", LOOPS)
def test_a_shipped_workflow_opens_without_a_missing_node_runs_and_shows_images(page, name):
    workflow = drawn(name)
    page.evaluate(LOAD, [workflow, name])
    page.wait_for_function(f"() => app.graph.nodes.length === {len(workflow['nodes'])}")
    assert page.evaluate(UNKNOWN) == []
    page.screenshot(path=ARTIFACTS / f"{name}-opened.png")
    assert page.evaluate(RUN)
    page.wait_for_function(f"() => ({PICTURES})().length >= 2")
    page.wait_for_timeout(1000)
    page.screenshot(path=ARTIFACTS / f"{name}-done.png")
    assert {"Contact sheet", LAST[name]} <= set(page.evaluate(PICTURES))


@pytest.mark.parametrize("name", MERGES)
def test_a_merge_template_opens_without_a_missing_node(page, name):
    workflow = drawn(name)
    page.evaluate(LOAD, [workflow, name])
    page.wait_for_function(f"() => app.graph.nodes.length === {len(workflow['nodes'])}")
    assert page.evaluate(UNKNOWN) == []
    page.screenshot(path=ARTIFACTS / f"{name}-opened.png")
