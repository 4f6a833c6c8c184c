"""What a person sees: the shipped workflows in ComfyUI's own frontend, in Debian's Chromium."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from scripts.browser import CHROMIUM, READY, RUN, frontend
from scripts.comfy import ROOT, Server

from .comfy_fixtures import ARTIFACTS, KLEIN, LOOPS, MERGES, MORE_LOOPS, drawn

pytestmark = [pytest.mark.comfy, pytest.mark.browser, pytest.mark.xdist_group("comfy")]

BUILTIN = (*LOOPS, *MORE_LOOPS)
LOAD = """async ([workflow, name]) => {
    await app.loadGraphData(workflow, true, true, name);
    document.querySelector('button[aria-label="Close"], .p-message-close-button')?.click();
    app.extensionManager.setting.set('Comfy.Minimap.Visible', false);
    app.canvas.setDirty(true, true);
}"""
HURRY = """() => app.graph.nodes.flatMap(n => n.widgets ?? []).forEach(w => {
    w.value = {drawing_steps: 4, rounds: 2, pause_seconds: 0.1}[w.name] ?? w.value;
})"""
UNKNOWN = """() => app.graph.nodes
    .filter(n => n.has_errors || !(n.type in LiteGraph.registered_node_types))
    .map(n => n.type)"""
PICTURES = """() => app.graph.nodes
    .filter(n => n.imgs?.length && n.imgs.every(i => i.complete && i.naturalWidth >= 64))
    .map(n => n.title)"""


@pytest.fixture(scope="module")
def page(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    if CHROMIUM is None and not os.environ.get("CI"):
        pytest.skip("NO CHROMIUM: the browser tests did not run. Install it: apt-get install chromium")
    ARTIFACTS.mkdir(exist_ok=True)
    with frontend(server, tmp_path_factory.mktemp("profile")) as shown:
        yield shown


def opened(page, name):
    """A shipped workflow in the frontend; the kinds of nodes that it lacks or finds wrong."""
    workflow = drawn(name)
    page.evaluate(LOAD, [workflow, name])
    page.wait_for_function(f"() => app.graph.nodes.length === {len(workflow['nodes'])}")
    page.screenshot(path=ARTIFACTS / f"{name}-opened.png")
    return page.evaluate(UNKNOWN)


@pytest.mark.parametrize("name", BUILTIN)
def test_a_workflow_of_the_built_in_models_opens_without_a_missing_node_runs_and_shows_images(page, name):
    assert opened(page, name) == []
    page.evaluate(HURRY)
    assert page.evaluate(RUN)
    page.wait_for_function(f"() => {{ const s = ({PICTURES})(); return s.includes('Contact sheet') && s.length > 1; }}")
    page.screenshot(path=ARTIFACTS / f"{name}-done.png")
    assert page.get_by_text("CLVR waits for you").count() <= 1
    assert {"CLVR Closed Loop", "CLVR Finish"} & set(page.evaluate(PICTURES))


@pytest.mark.parametrize("name", [*KLEIN, *MERGES])
def test_a_workflow_of_other_models_opens_without_a_missing_node(page, name):
    assert opened(page, name) == []


PANEL = ".clvr"
OPEN = "([workflow, name]) => app.loadGraphData(workflow, true, true, name)"
QUEUE = "() => app.queuePrompt(0, 1)"
SET = """([folder, pause, seed, steps]) => {
    const widgets = kind => app.graph.nodes.find(n => n.type === kind).widgets;
    const set = (kind, values) => widgets(kind).forEach(w => { w.value = values[w.name] ?? w.value; });
    set('CLVRClosedLoop', {folder, pause, seed, pause_seconds: 300});
    set('CLVRThinkingBudget', {rounds: 4, candidates: 2});
    set('CLVRGeneratorBuiltin', {drawing_steps: steps});
}"""
SHOW = """([width, palette]) => {
    document.querySelector('#clvr-shot')?.remove();
    app.extensionManager.setting.set('Comfy.ColorPalette', palette);
    const frame = document.createElement('div');
    frame.id = 'clvr-shot';
    frame.style = `position:fixed;inset:0 auto auto 0;z-index:99999;width:${width}px;background:var(--comfy-menu-bg)`;
    const copy = document.querySelector('.clvr').cloneNode(true);
    copy.style.height = 'auto';
    copy.querySelectorAll('[type=radio]').forEach(e => { e.name += '-copy'; });
    copy.querySelectorAll('textarea').forEach(e => { e.value = document.querySelector('.clvr textarea').value; });
    frame.append(copy);
    document.body.append(frame);
}"""


@pytest.fixture
def panel(page, request):
    """The closed-loop template, opened, with the CLVR tab beside it."""
    workflow = drawn("clvr_closed_loop")
    page.evaluate("() => app.graph.nodes.forEach(n => { n.old = true; })")
    page.evaluate(OPEN, [workflow, request.node.name])
    count = len(workflow["nodes"])
    page.wait_for_function(f"() => app.graph.nodes.length === {count} && !app.graph.nodes.some(n => n.old)")
    yield with_panel(page)
    page.evaluate("() => app.api.interrupt()")  # a run that a failed test has left


def with_panel(page):
    """The CLVR tab, opened where it is not. A new workflow may mount the sidebar anew, and a second click closes it."""
    for _ in range(3):
        page.wait_for_timeout(300)
        if page.locator(PANEL).is_visible():
            break
        page.locator(".clvr-tab-button").click()
    page.locator(PANEL).wait_for()
    return page.locator(PANEL)


def reloaded(page):
    page.reload()
    page.wait_for_function(READY)
    return with_panel(page)


def started(page, panel, folder, pause, seed=4, steps=4):
    """A run that was queued, as soon as the panel shows it."""
    page.evaluate(SET, [folder, pause, seed, steps])
    page.evaluate(QUEUE)
    panel.locator(".state.running, .state.waiting").first.wait_for()


def shoot(page, name):
    """The panel, narrow and wide, on a light and a dark page."""
    page.set_viewport_size({"width": 2200, "height": 3000})
    for palette in ("light", "dark"):
        for width in (320, 600):
            page.evaluate(SHOW, [width, palette])
            page.wait_for_timeout(400)
            page.locator("#clvr-shot").screenshot(path=ARTIFACTS / f"panel-{name}-{width}-{palette}.png")
    page.evaluate("() => document.querySelector('#clvr-shot').remove()")
    page.set_viewport_size({"width": 2200, "height": 1200})


def wide_enough(panel):
    return panel.evaluate("e => e.scrollWidth <= e.clientWidth")


def test_the_panel_shows_a_run_as_it_happens_and_its_report(page, panel, server):
    started(page, panel, "browser/shown", "never")
    panel.locator(".state.done").wait_for()
    assert panel.locator(".round").count() >= 1
    assert panel.locator(".round .mark.pass").count() >= 1
    assert panel.locator(".round .reasoning p").first.text_content()
    assert panel.locator(".round .pick").count() == 2 * panel.locator(".round").count()
    assert panel.locator("svg.chart circle.dot").count() == panel.locator(".round").count() > 1
    assert panel.get_by_text(re.compile(r"of 4, \d left")).is_visible()
    assert wide_enough(panel)
    face = panel.locator(".check details > summary").first
    face.focus()
    page.keyboard.press("Enter")
    assert panel.locator(".check details[open] .evidence").first.is_visible()
    href = panel.get_by_role("link", name="Open the report").get_attribute("href")
    assert b"CLVR" in page.request.get(server.url.rstrip("/") + href).body()
    page.wait_for_timeout(500)
    page.screenshot(path=ARTIFACTS / "panel-page.png")
    shoot(page, "done")


def test_a_person_steps_in_reloads_the_page_and_finds_the_same_run(page, panel):
    started(page, panel, "browser/person", "both")
    panel.get_by_role("heading", name="Waiting for you: the plan").wait_for()
    assert panel.get_by_text(re.compile("^Estimate: .+")).is_visible()
    panel.get_by_label("Add a check").fill("Is there a <b>yellow</b> star?")
    panel.get_by_label("Add a check").press("Enter")
    panel.get_by_text("Added: Is there a <b>yellow</b> star?").wait_for()
    shoot(page, "plan")
    reloaded(page)
    panel.get_by_label("Instruction").fill("Draw a green circle.")
    panel.get_by_role("button", name="Use my instruction").click()
    panel.get_by_role("heading", name="Waiting for you: the picture").wait_for()
    assert panel.get_by_text("Draw a green circle.").first.is_visible()
    assert panel.locator("b", has_text="yellow").count() == 0
    shoot(page, "picture")
    chosen = panel.locator(".pause .picks input:checked")
    chosen.focus()
    page.keyboard.press("ArrowRight")
    panel.get_by_role("button", name="Use candidate").click()
    for _ in range(2):
        panel.get_by_role("heading", name="Waiting for you: the plan").wait_for()
        panel.get_by_role("button", name="Approve").click()
        panel.get_by_role("heading", name="Waiting for you: the picture").wait_for()
        if panel.get_by_role("button", name="Go back").count() and panel.locator(".steps .round").count() >= 2:
            break
        panel.get_by_role("button", name="Approve").click()
    panel.get_by_label("Go back to").select_option("0")
    panel.get_by_role("button", name="Go back").click()
    panel.get_by_role("heading", name="Waiting for you: the plan").wait_for()
    assert panel.locator(".steps .round.dropped").count() == 2
    shoot(page, "back")
    panel.locator(".pause").get_by_role("button", name="Stop and keep").click()
    panel.locator(".state.done").wait_for()
    assert panel.get_by_text("Stopped: stopped by hand").is_visible()


def test_a_reload_while_it_draws_comes_back_to_the_run_which_is_then_stopped(page, panel):
    started(page, panel, "browser/reloaded", "never", steps=100)
    reloaded(page)
    panel.locator(".state.running").wait_for()
    panel.locator("progress").wait_for()
    panel.get_by_role("button", name="Stop and keep").click()
    panel.locator(".state.done, .state.cut").wait_for()
    assert panel.get_by_text("Stopped: stopped by hand").is_visible()


def test_a_round_is_rolled_back_by_hand(page, panel):
    started(page, panel, "browser/rejected", "after judging")
    panel.get_by_role("button", name="Roll back this round").click()
    panel.locator(".steps .round.dropped").wait_for()
    panel.get_by_role("heading", name="Round 2").first.wait_for()
    panel.locator(".pause").get_by_role("button", name="Stop and keep").click()
    panel.locator(".state.done, .state.cut").wait_for()


def test_past_runs_are_listed_and_opened_with_the_keyboard(page, panel):
    for seed in (5, 6):
        started(page, panel, "browser/past", "never", seed)
        panel.locator(".state.done").wait_for()
    panel.get_by_role("button", name="All runs").click()
    entries = panel.locator(".entry")
    entries.first.wait_for()
    assert entries.count() >= 2
    shoot(page, "list")
    entries.first.focus()
    page.keyboard.press("ArrowDown")
    assert entries.nth(1).evaluate("e => e === document.activeElement")
    page.keyboard.press("Enter")
    panel.locator(".round").first.wait_for()
    assert panel.locator(".state").is_visible()


def test_the_panel_asks_no_other_host(page, panel):
    others: list[str] = []
    host = page.url.split("/")[2]
    page.on("request", lambda r: others.append(r.url) if r.url.startswith("http") and host not in r.url else None)
    started(page, panel, "browser/hosts", "never", seed=9)
    panel.locator(".state.done").wait_for()
    assert others == []


WORDS = "() => import('/extensions/comfyui-clvr/panel/words.js').then(m => m.WORDS)"
ENGLISH = """panel => {
    const texts = document.createTreeWalker(panel, NodeFilter.SHOW_TEXT), said = [];
    while (texts.nextNode()) {
        if (!texts.currentNode.parentElement.closest('[dir=auto]')) said.push(texts.currentNode.data);
    }
    for (const element of panel.querySelectorAll('*')) {
        for (const name of ['aria-label', 'title', 'alt', 'placeholder']) said.push(element.getAttribute(name) ?? '');
    }
    return said.filter(text => /[a-z]{2}/.test(text));
}"""


def test_every_language_has_every_word_with_the_same_values(page):
    words = page.evaluate(WORDS)
    assert sorted(words) == ["en", "ja", "zh"]
    source = (ROOT / "web" / "panel" / "words.js").read_text("utf-8")
    written = re.findall(r'^    "?([\w. -]+)"?:', source, re.MULTILINE)
    assert Counter(written) == dict.fromkeys(words["en"], len(words))  # a second one would hide the first
    for language in ("zh", "ja"):
        assert list(words[language]) == list(words["en"])
        for key, text in words["en"].items():
            assert set(re.findall(r"{\w+}", words[language][key])) == set(re.findall(r"{\w+}", text)), (language, key)


@pytest.fixture(params=["zh", "ja"])
def language(page, request):
    """The frontend in another language."""
    for name in (request.param, "en"):
        page.evaluate("name => app.extensionManager.setting.set('Comfy.Locale', name)", name)
        page.wait_for_timeout(1000)  # it asks for the nodes again, and opens the workflow anew
        if name != "en":
            yield name


def test_the_panel_speaks_the_frontend_s_language(page, language, panel):
    words = page.evaluate(WORDS)[language]

    def heard(heading):
        panel.get_by_role("heading", name=heading).first.wait_for()
        assert panel.evaluate(ENGLISH) == []

    assert panel.get_attribute("lang") == language
    started(page, panel, f"browser/{language}", "both")
    heard(words["ask.plan"])
    panel.get_by_role("button", name=words["approve"]).dispatch_event("click")
    heard(words["ask.picture"])
    shoot(page, f"picture-{language}")
    panel.get_by_role("button", name=words["stop"]).first.dispatch_event("click")
    panel.locator(".state.done, .state.cut").wait_for()
    assert panel.evaluate(ENGLISH) == []
    shoot(page, f"done-{language}")
    panel.get_by_role("button", name=words["runs.all"]).dispatch_event("click")
    heard(words["runs"])


LIST = """() => {
    app.graph.clear();
    const nodes = ['CLVRControllerBuiltin', 'CLVRChecklist'].map(kind => LiteGraph.createNode(kind));
    nodes.forEach((node, i) => { node.pos = [60 + 360 * i, 160]; app.graph.add(node); });
    nodes[0].connect(0, nodes[1], 0);
}"""
MADE = "() => app.graph.nodes.find(n => n.type === 'CLVRChecklist').widgets.find(w => w.name === 'made')?.value"
SAVED = "() => app.graph.serialize().nodes.find(n => n.type === 'CLVRChecklist').widgets_values"


def test_the_made_checklist_is_shown_in_its_node_and_not_saved_with_the_workflow(page):
    page.evaluate(LIST)
    assert page.evaluate(RUN)
    page.wait_for_function(f"() => ({MADE})()?.includes('total: [count] Are there exactly 3 shapes?')")
    page.screenshot(path=ARTIFACTS / "checklist.png")
    assert page.evaluate(SAVED) == ["two red circles above a blue square"]
