"""The page of a run, its contact sheet, and the final picture's metadata."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import warnings
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clvr import journal, report
from clvr.budget import Budget
from clvr.errors import RunFolderError
from clvr.journal import Header
from clvr.ports import Album
from clvr.report import RunInfo, contact_sheet, save_final, write_report
from clvr.report.figures import duration, percent
from clvr.report.markup import el
from clvr.trajectory import (
    Candidate,
    Check,
    CheckVerdict,
    Decision,
    Evidence,
    Goal,
    Step,
    Trajectory,
    Verdict,
)

from .report_fixtures import BLUE, CHECKS, GREEN, PROMPT, RED_A, RED_B, draw, example, info

ARTIFACTS = Path(__file__).parent / "artifacts"
VOID = {"meta", "img", "input", "br"}


class Page(HTMLParser):
    """Elements as (name, attributes), text inside them, and whether every element was closed in order."""

    def __init__(self, source):
        super().__init__(convert_charrefs=True)
        self.elements, self.words, self.style, self._open = [], [], "", []
        self.feed(source)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "style":
            self.style += data
        else:
            self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())

    def having(self, kind):
        return [a for _, a in self.elements if kind in (a.get("class") or "").split()]


def page_of(tmp_path, trajectory, images, settings=None):
    path = tmp_path / "report.html"
    write_report(trajectory, images, path, settings=settings)
    return Page(path.read_text("utf-8"))


def one_step(verdict, checks=CHECKS, **changes):
    step = Step(0, Decision("generate", "because", "a square"), (Candidate(1, None, verdict),), 0, True)
    return Trajectory(Goal("a square", 0, checks), (dataclasses.replace(step, **changes),))


def test_every_round_check_and_reason_is_on_the_page(tmp_path):
    trajectory, images = example()
    page = page_of(tmp_path, trajectory, images, info())
    assert PROMPT in page.text
    for step in trajectory.steps:
        assert step.decision.reasoning in page.text
        assert step.decision.instruction in page.text
        for check in step.decision.expects:
            assert check.question in page.text
        for candidate in step.candidates:
            assert f"Seed {candidate.seed}" in page.text or candidate.active is None
    rounds = [a["id"] for tag, a in page.elements if tag == "article"]
    assert rounds == ["round-1", "round-2", "round-3", "round-4"]
    judged = sum(c.active is not None for s in trajectory.steps for c in s.candidates)
    goal_rows = [a for a in page.having("check") if "-goal" in a["class"]]
    assert len(goal_rows) == judged * len(CHECKS)


def test_budget_stop_reason_cost_and_models_are_told(tmp_path):
    trajectory, images = example()
    text = page_of(tmp_path, trajectory, images, info()).text
    assert "every check of the goal passed" in text
    assert "4 of 8" in text
    assert "392 of 600" in text
    assert "14 of 40" in text
    assert "27.4 s" in text
    assert "All 6 checks passed" in text
    assert "built-in klein, 64 px" in text
    assert "draw 21.7 s" in text
    assert "The circles and the square were lost" in text


def test_a_round_tells_what_the_policy_asked_of_it(tmp_path):
    trajectory, images = example()
    page = page_of(tmp_path, trajectory, images, info())
    assert len(page.having("brief")) == 1
    told = page.text.split("The policy asked for ")[1]
    assert told.startswith(f"in other words {len(CHECKS)} {CHECKS[-1].question} The last edit")


def test_the_policy_and_the_preset_are_told(tmp_path):
    trajectory, images = example()
    named = dataclasses.replace(info(), budget=Budget.parse("balanced,nfe=600"))
    text = page_of(tmp_path, trajectory, images, named).text
    assert "Asked for: policy director, budget balanced, 2 candidates a round" in text
    assert "Policy director Seed 7" in text
    plain = page_of(tmp_path, trajectory, images, dataclasses.replace(info(), policy="")).text
    assert "Asked for: 3 candidates a round" in plain


def test_rolled_back_and_best_rounds_are_marked(tmp_path):
    page = page_of(tmp_path, *example())
    kinds = {a["id"]: a["class"].split() for tag, a in page.elements if tag == "article"}
    assert "rolled-back" in kinds["round-3"]
    assert "best" in kinds["round-4"]
    assert kinds["round-1"] == ["round"]
    assert "Rolled back" in page.text
    assert len(page.having("path")) == 3
    assert sum("back" in a["class"].split() for a in page.having("dot")) == 1


def test_an_unjudged_check_is_neither_passed_nor_failed(tmp_path):
    page = page_of(tmp_path, *example())
    unjudged = [a for a in page.having("check") if "unjudged" in a["class"].split()]
    assert len(unjudged) == 1
    assert "c1-goal5" in unjudged[0]["class"]
    assert "not judged" in page.text


def test_a_child_of_a_failed_check_is_shown_as_skipped_with_the_reason(tmp_path):
    page = page_of(tmp_path, *example())
    assert "Not asked, because check 4 does not hold." in page.text


def test_boxes_lie_where_the_evidence_says(tmp_path):
    page = page_of(tmp_path, *example())
    edges = {tuple(float(a[k].rstrip("%")) for k in ("x", "y", "width", "height")) for a in page.having("edge")}
    for x0, y0, x1, y1 in (RED_A, RED_B, BLUE, GREEN):
        wanted = (100 * x0, 100 * y0, 100 * (x1 - x0), 100 * (y1 - y0))
        assert any(edge == pytest.approx(wanted, abs=0.01) for edge in edges)


def test_boxes_outside_or_upside_down_stay_on_the_picture(tmp_path):
    seen = Verdict((CheckVerdict("square", "pass", None, (Evidence("vlm", "", ((1.5, 0.9, -0.2, 0.1),)),)),))
    page = page_of(tmp_path, one_step(seen), Album({"IMG_GEN_0": draw([])}))
    (edge,) = page.having("edge")
    assert [edge[k] for k in ("x", "y", "width", "height")] == ["0%", "10%", "100%", "80%"]


BREAKOUT = "</pre></style></title><script>alert(1)</script>"
HOSTILE = BREAKOUT + "<img src=x onerror='alert(2)'>\" onload=\"x $title &amp; \x00"


def hostile_run():
    check = Check(HOSTILE, "Q" + HOSTILE, parent=HOSTILE)
    verdict = Verdict((CheckVerdict(HOSTILE, "fail", 0.2, (Evidence("J" + HOSTILE, "N" + HOSTILE),), "W" + HOSTILE),))
    decision = Decision("edit", "R" + HOSTILE, "I" + HOSTILE, (), (check,), raw="D" + HOSTILE)
    step = Step(0, decision, (Candidate(1, verdict, verdict),), 0, False, notes=("M" + HOSTILE,))
    step = dataclasses.replace(step, cost=dataclasses.replace(step.cost, seconds={"P" + HOSTILE: 1.0}))
    return Trajectory(Goal("G" + HOSTILE, 0, (check,)), (step,), stop_reason="S" + HOSTILE)


def test_hostile_text_stays_text(tmp_path):
    settings = RunInfo(models={"L" + HOSTILE: "O" + HOSTILE})
    page = page_of(tmp_path, hostile_run(), Album({"IMG_GEN_0": draw([])}), settings)
    names = {tag for tag, _ in page.elements}
    assert "script" not in names
    assert not [k for _, a in page.elements for k in a if k.startswith("on") or k in ("style", "srcset")]
    shown = page.text
    for letter in "QJNWRIDMGSPO":
        assert letter + BREAKOUT in shown


@given(st.text(), st.text())
def test_any_text_survives_as_child_and_as_attribute(child, value):
    class Reader(HTMLParser):
        text, attribute = "", None

        def handle_starttag(self, tag, attrs):
            assert tag == "p"
            self.attribute = dict(attrs)["title"]

        def handle_data(self, data):
            self.text += data

    reader = Reader()
    reader.feed(el("p", child, title=value))
    reader.close()
    assert (reader.text, reader.attribute) == (child, value)


def test_an_attribute_name_cannot_smuggle_anything():
    with pytest.raises(ValueError, match="no attribute name"):
        el("p", **{"x onload=alert(1)": "y"})


def test_the_page_asks_for_nothing_but_itself(tmp_path):
    page = page_of(tmp_path, *example(), info())
    for _, attributes in page.elements:
        for key in ("src", "href", "action", "data", "poster"):
            assert attributes.get(key, "#").startswith(("#", "data:image/"))
    assert "url(" not in page.style
    assert "@import" not in page.style
    targets = {a["href"][1:] for tag, a in page.elements if tag == "a"}
    assert targets <= {a["id"] for _, a in page.elements if "id" in a}


def test_the_security_policy_allows_exactly_the_pages_style(tmp_path):
    page = page_of(tmp_path, *example())
    policy = next(a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(page.style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_every_picture_has_words_and_decodes_to_itself(tmp_path):
    trajectory, images = example()
    page = page_of(tmp_path, trajectory, images)
    pictures = [a for tag, a in page.elements if tag == "img"]
    assert all("alt" in a for a in pictures)
    final = next(a for a in pictures if a["alt"].startswith("Final picture"))
    with Image.open(_bytes(final["src"])) as stored:
        assert stored.convert("RGB").tobytes() == images["IMG_GEN_3"].tobytes()


def _bytes(uri):
    return io.BytesIO(base64.b64decode(uri.partition(",")[2]))


def test_a_runs_folder_holds_all_that_the_page_shows(tmp_path):
    trajectory, images = example()
    header = Header(trajectory.goal, trajectory.seed, (64, 64), info().budget, preparation=trajectory.preparation)
    journal.save(tmp_path / "run", header, trajectory, images)
    record = journal.read(tmp_path / "run")
    page_of(tmp_path, record.trajectory, record.pictures(), info())
    again = (tmp_path / "report.html").read_bytes()
    page_of(tmp_path, trajectory, images, info())
    assert again == (tmp_path / "report.html").read_bytes()
    assert contact_sheet(record.trajectory, record.pictures()).tobytes() == contact_sheet(*example()).tobytes()


def test_large_pictures_keep_the_page_small(tmp_path):
    trajectory, images = example((1024, 1024))
    noisy = Image.effect_noise((1024, 1024), 40).convert("RGB")
    write_report(trajectory, images.with_image("IMG_GEN_0", noisy), tmp_path / "r.html")
    assert (tmp_path / "r.html").stat().st_size < 3_000_000


def _no_steps():
    return Trajectory(Goal(PROMPT, 1, CHECKS), stop_reason="the VLM does not answer"), Album()


def _nothing_judged():
    return one_step(None), Album({"IMG_GEN_0": draw([])})


def _all_unjudged():
    return one_step(Verdict(tuple(CheckVerdict(c.id, "unjudged") for c in CHECKS))), Album({"IMG_GEN_0": draw([])})


def _no_checks():
    return one_step(Verdict(), checks=()), Album({"IMG_GEN_0": draw([])})


def _no_pictures():
    return example()[0], Album()


def _empty_words():
    step = Step(0, Decision("generate"), (Candidate(1),), 0, True)
    return Trajectory(Goal(""), (step,)), Album({"IMG_GEN_0": draw([])})


def _unfinished():
    return dataclasses.replace(example()[0], stop_reason=""), example()[1]


def _many():
    trajectory, images = example()
    steps = tuple(dataclasses.replace(trajectory.steps[i % 4], index=i) for i in range(24))
    return dataclasses.replace(trajectory, steps=steps), images


ODD_RUNS = [
    _no_steps,
    _nothing_judged,
    _all_unjudged,
    _no_checks,
    _no_pictures,
    _empty_words,
    _unfinished,
    _many,
]


@pytest.mark.parametrize("make", ODD_RUNS, ids=lambda f: f.__name__.strip("_"))
def test_odd_runs_have_a_page_and_a_sheet(tmp_path, make):
    trajectory, images = make()
    page = page_of(tmp_path, trajectory, images, info())
    assert len([t for t, _ in page.elements if t == "article"]) == len(trajectory.steps)
    assert contact_sheet(trajectory, images).mode == "RGB"


def test_what_is_missing_is_said(tmp_path):
    assert "No round was completed" in page_of(tmp_path, *_no_steps()).text
    assert "the VLM does not answer" in page_of(tmp_path, *_no_steps()).text
    assert "not asked of this picture" in page_of(tmp_path, *_nothing_judged()).text
    assert "This picture was not kept" in page_of(tmp_path, *_no_pictures()).text
    assert "has not ended" in page_of(tmp_path, *_unfinished()).text


def test_lone_surrogates_from_a_reply_do_not_stop_the_page(tmp_path):
    trajectory = dataclasses.replace(example()[0], stop_reason="broken \ud800 reply")
    assert "broken ? reply" in page_of(tmp_path, trajectory, example()[1]).text


def test_an_older_page_stays_when_the_new_one_cannot_be_written(tmp_path):
    (tmp_path / "taken").write_text("x")
    with pytest.raises(RunFolderError):
        write_report(*example(), tmp_path / "taken" / "report.html")
    assert (tmp_path / "taken").read_text() == "x"


@pytest.mark.parametrize(
    ("share", "shown"),
    [(None, "–"), (0.0, "0%"), (0.125, "13%"), (0.58, "58%"), (0.999, "99%"), (1.0, "100%")],
)
def test_only_a_full_score_reads_as_100_percent(share, shown):
    assert percent(share) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.42, "420 ms"), (3.14, "3.1 s"), (75, "1 min 15 s"), (3720, "1 h 2 min")]
)
def test_durations_are_short(seconds, shown):
    assert duration(seconds) == shown


def _luminance(color):
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _contrast(one, other):
    light, dark = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_text_colours_meet_wcag_aa(dark):
    style = (Path(report.__file__).parent / "style.css").read_text()
    light, _, rest = style.partition("@media (prefers-color-scheme: dark)")
    colors = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", light))
    if dark:
        colors |= dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6})", rest.partition("\n}")[0]))
    pairs = [(t, b) for t in ("ink", "soft", "accent", "pass", "fail") for b in ("paper", "card")]
    pairs += [("ink", "sunk"), ("soft", "sunk"), ("ink", "unjudged-bg")]
    pairs += [(name, f"{name}-bg") for name in ("pass", "fail", "unjudged", "skipped")]
    poor = {p: round(_contrast(colors[p[0]], colors[p[1]]), 2) for p in pairs}
    assert {p: c for p, c in poor.items() if c < 4.5} == {}


# The contact sheet


def test_small_pictures_are_enlarged_by_a_whole_factor():
    trajectory, images = example()
    sheet = contact_sheet(trajectory, images)
    big = images["IMG_GEN_1"].resize((256, 256), Image.Resampling.NEAREST)
    assert _contains(sheet, big)


def _contains(sheet, tile):
    """Whether `tile` lies in `sheet` on some row of tiles."""
    wanted, step = tile.tobytes(), 4
    corners = ((x, y) for y in range(0, sheet.height - tile.height + 1, step) for x in range(40, sheet.width, 284))
    return any(sheet.crop((x, y, x + tile.width, y + tile.height)).tobytes() == wanted for x, y in corners)


def test_large_pictures_are_reduced_and_keep_their_shape():
    sheet = contact_sheet(*example((1024, 512)))
    assert sheet.width == 2 * 40 + 5 * 384 + 4 * 28
    assert sheet.height < 2 * 192 + 64 + 200


def test_final_and_rolled_back_tiles_are_framed_in_their_colours():
    colors = {c for _, c in contact_sheet(*example()).getcolors(1 << 20)}
    assert (0x12, 0x72, 0x4A) in colors
    assert (0xB9, 0x31, 0x18) in colors
    accepted = dataclasses.replace(example()[0], steps=example()[0].steps[:2])
    assert (0xB9, 0x31, 0x18) not in {c for _, c in contact_sheet(accepted, example()[1]).getcolors(1 << 20)}


@pytest.mark.parametrize("prompt", ["word " * 300, "x" * 2000, "", "line\nbreak\ttab"])
def test_long_prompts_wrap_within_the_sheet(prompt):
    trajectory, images = example()
    trajectory = dataclasses.replace(trajectory, goal=dataclasses.replace(trajectory.goal, prompt=prompt))
    sheet = contact_sheet(trajectory, images)
    edge = sheet.crop((sheet.width - 30, 0, sheet.width, 280))
    assert edge.getcolors() == [(30 * 280, (0xF5, 0xF4, 0xF0))]
    assert sheet.height < 800


# The final picture

GRAPH = {
    "prompt": json.dumps({"1": {"class_type": "CLVRClosedLoop", "é": "漢"}}),
    "workflow": json.dumps({"nodes": []}),
}


def _saved(tmp_path, **arguments):
    path = tmp_path / "final.png"
    save_final(draw([]), path, **arguments)
    with Image.open(path) as image:
        image.load()
        return image


def _digital_source(image):
    tree = ElementTree.fromstring(image.info["XML:com.adobe.xmp"].strip())
    return tree.find(".//{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}DigitalSourceType").text


def test_comfyui_chunks_survive_as_they_were(tmp_path):
    graph = {**GRAPH, "extra": '{"漢": "é"}'}
    image = _saved(tmp_path, prompt_metadata=graph, trajectory=example()[0])
    assert {k: image.info[k] for k in graph} == graph


def test_the_summary_says_how_the_picture_was_made(tmp_path):
    image = _saved(tmp_path, trajectory=example()[0], models={"generator": "klein"})
    told = json.loads(image.info["clvr"])
    assert told["prompt"] == PROMPT
    assert (told["seed"], told["steps"], told["best"], told["score"]) == (7, 4, 3, 1.0)
    assert told["models"] == {"generator": "klein"}


@pytest.mark.parametrize(
    ("references", "kind"), [(0, "trainedAlgorithmicMedia"), (2, "compositeWithTrainedAlgorithmicMedia")]
)
def test_iptc_says_that_a_model_made_the_picture(tmp_path, references, kind):
    image = _saved(tmp_path, trajectory=Trajectory(Goal(PROMPT, references)))
    assert _digital_source(image) == f"http://cv.iptc.org/newscodes/digitalsourcetype/{kind}"


def test_xmp_lies_in_the_chunk_that_readers_look_for(tmp_path):
    _saved(tmp_path)
    data = (tmp_path / "final.png").read_bytes()
    assert data.count(b"iTXtXML:com.adobe.xmp\x00\x00\x00\x00\x00<?xpacket") == 1


def test_pixels_are_kept(tmp_path):
    assert _saved(tmp_path, prompt_metadata=GRAPH).tobytes() == draw([]).tobytes()


# In a browser


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    if chromium is None:
        if os.environ.get("CI"):
            pytest.fail("Chromium is not installed: apt-get install chromium")
        warnings.warn("CHROMIUM IS MISSING: nobody looked at the report. apt-get install chromium", stacklevel=1)
        pytest.skip("chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api")
    flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=flags)
        yield opened
        opened.close()


def _opened(browser, path, width, height, scheme):
    page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=scheme)
    page.complaints = []
    page.on("console", lambda message: page.complaints.append(message.text))
    page.on("request", lambda r: None if r.url.startswith(("file:", "data:")) else page.complaints.append(r.url))
    page.goto(path.as_uri())
    return page


SIZES = [(360, 740), (1280, 900)]


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_the_page_fits_the_screen(browser, tmp_path, width, height, scheme):
    write_report(*example(), tmp_path / "report.html", settings=info())
    page = _opened(browser, tmp_path / "report.html", width, height, scheme)
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"report-{width}-{scheme}.png", full_page=True)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    assert page.complaints == []
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("make", [*ODD_RUNS, hostile_run], ids=lambda f: f.__name__.strip("_"))
def test_odd_runs_fit_a_phone(browser, tmp_path, make):
    made = make()
    trajectory, images = made if isinstance(made, tuple) else (made, Album())
    write_report(trajectory, images, tmp_path / "report.html", settings=info())
    page = _opened(browser, tmp_path / "report.html", 360, 740, "light")
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    assert page.complaints == []
    page.close()


@pytest.mark.browser
@pytest.mark.parametrize("size", [(64, 64), (320, 200), (96, 160)])
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_boxes_cover_their_share_of_the_picture(browser, tmp_path, size, width, height):
    trajectory, images = example(size)
    write_report(trajectory, images, tmp_path / "report.html")
    page = _opened(browser, tmp_path / "report.html", width, height, "light")
    picture = page.locator("#round-3 .frame img").bounding_box()
    box = page.locator("#round-3 .box.c0-goal3 .edge").bounding_box()
    assert picture["width"] / picture["height"] == pytest.approx(size[0] / size[1], rel=0.01)
    places = (box["x"] - picture["x"], box["y"] - picture["y"], box["width"], box["height"])
    shares = [p / picture[side] for p, side in zip(places, ("width", "height") * 2, strict=True)]
    x0, y0, x1, y1 = GREEN
    assert shares == pytest.approx((x0, y0, x1 - x0, y1 - y0), abs=0.015)
    page.close()


@pytest.mark.browser
def test_pointing_at_a_check_shows_its_boxes_and_no_others(browser, tmp_path):
    write_report(*example(), tmp_path / "report.html")
    page = _opened(browser, tmp_path / "report.html", 1280, 900, "light")
    page.emulate_media(reduced_motion="reduce")
    page.locator("#round-2 .check.c1-goal2 summary").hover()
    opacity = "e => getComputedStyle(e).opacity"
    assert page.locator("#round-2 .box.c1-goal2").evaluate(opacity) == "1"
    assert page.locator("#round-2 .box.c1-goal0").first.evaluate(opacity) == "0"
    assert page.locator("#round-2 .box.c1-goal2 .tag").is_visible()
    page.close()


@pytest.mark.browser
def test_another_candidate_can_be_looked_at(browser, tmp_path):
    write_report(*example(), tmp_path / "report.html")
    page = _opened(browser, tmp_path / "report.html", 360, 740, "dark")
    assert page.locator("#round-2 figure.candidate-1").is_visible()
    page.locator("#round-2 .pick").nth(2).click()
    assert page.locator("#round-2 figure.candidate-2").is_visible()
    assert page.locator("#round-2 .checks .candidate-2").is_visible()
    assert not page.locator("#round-2 figure.candidate-1").is_visible()
    page.close()
