"""The data engine over VLMs alone: one plans, verifies and narrates, two judge; and its command line."""

from __future__ import annotations

import json

import pytest

from clvr.trajectory import Usage
from clvr.vlm import Reply, VLMController, VLMVerifier, templates
from clvr.vlm.compare import VLMComparer
from training.data.__main__ import main
from training.data.candidates import Prompt
from training.data.folder import Folder
from training.data.machine import Cast
from training.data.narrative import VLMNarrator
from training.data.records import read
from training.data.work import Crew, Making
from training.templates import text

from .data_fixtures import CONFIG
from .engine_fixtures import FakeGenerator

CHECK = '{"id": "bright", "question": "Is it bright?", "kind": "other", "parent": null}'
DECISIONS = [
    '{"reasoning": "Nothing yet.", "action": "generate", "instruction": "a grey", "references": [], "expects": [%s]}',
    '{"reasoning": "Too dark.", "action": "edit", "instruction": "brighten it", "references": ["<IMG_GEN_0>"], '
    '"expects": [%s]}',
    '{"reasoning": "Done.", "action": "stop", "instruction": "", "references": [], "expects": []}',
]


class Scripted:
    """Answers each of clvr's prompts as its schema asks. `better` is what it says of two pictures."""

    def __init__(self, name="vlm", better="brightness"):
        self.name = name
        self.better = better
        self.planned = 0

    def chat(self, messages, schema=None, logprobs=False):
        asked = messages[0].parts[0]
        known = {
            templates.text("checklist"): lambda: f'{{"checks": [{CHECK}]}}',
            templates.text("plan"): self._plan,
            templates.text("judge"): lambda: '{"results": [{"check": "bright", "reason": "", "answer": "yes"}]}',
            templates.text("compare"): lambda: self._compare(messages),
            text("narrate.v1"): lambda: json.dumps({"thoughts": ["I begin.", "I brighten <IMG_GEN_0>.", "It is."]}),
        }
        return Reply(known[asked](), Usage(1, 10, 5))

    def _plan(self):
        self.planned += 1
        reply = DECISIONS[min(self.planned, 3) - 1]
        return reply % CHECK if "%s" in reply else reply

    def _compare(self, messages):
        shown = [part for part in messages[1].parts if not isinstance(part, str)]
        levels = [image.getpixel((0, 0))[0] for image in shown]
        if self.better != "brightness":
            return f'{{"reason": "so", "better": "{self.better}"}}'
        return f'{{"reason": "it is brighter", "better": "{"first" if levels[0] > levels[1] else "second"}"}}'


def made(second=None):
    client = Scripted()
    judges = (VLMComparer(Scripted("judge one")), VLMComparer(second or Scripted("judge two")))
    cast = Cast(VLMController(client), FakeGenerator([90, 240, 30]), VLMVerifier(client), judges)
    return Making(CONFIG, Crew(cast, VLMNarrator(client)), Prompt("a bright grey", "a test"), True).made()


def test_a_trajectory_of_vlms_is_kept_and_told_in_the_narrators_words(tmp_path):
    result = made()
    assert not result.outcome.gate
    with Folder(tmp_path, CONFIG) as folder:
        folder.keep(result)
        folder.export([result.outcome], 10)
    (record,) = read(tmp_path)
    assert record.steps[1].context == "a bright grey\nI begin. a grey <IMG_GEN_0>\nI brighten <IMG_GEN_0>. brighten it"
    assert [vote.note for vote in record.provenance.votes] == ["it is brighter"] * 2
    assert record.provenance.narrator == "vlm (narrate.v1)"
    assert result.outcome.spent.usage.calls >= 4 + 3 + 2 * 2 * 2
    assert result.outcome.spent.nfe == 3 * 2


def test_one_judge_who_is_not_convinced_is_enough_to_leave_a_trajectory_out():
    outcome = made(Scripted("judge two", better="first")).outcome
    assert outcome.gate == "baseline"
    assert outcome.reason.endswith("judge two (compare.v1): tie")
    assert made(Scripted("judge two", better="unknown")).outcome.gate == "baseline"


@pytest.mark.parametrize(
    ("recipe", "problem"),
    [
        ("promts: {world: 2}", "unknown fields: promts"),
        ("prompts: {world: two}", "prompts.world should be int"),
        ("cast: {judges: [scores]}", "names fewer than two"),
        ("cast: {narrator: vlm}", "tells no stories"),
        ("rules: {rounds: 0}", "rules.rounds is 0"),
        ("run: {devices: []}", "Nobody would work"),
        ("{run: {threads: 2}, cast: {vlm: 'transformers:x'}}", "one call at a time"),
        ("{run: {threads: 2}, cast: {batch: 8}}", "cast.batch draws on one device"),
        ("prompts: {world: 0}", "There are no prompts"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused_in_words(recipe, problem, tmp_path, capsys):
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe)
    assert main(["--recipe", str(file), "--out", str(tmp_path / "out")]) == 2
    assert problem in capsys.readouterr().err


def test_prompts_that_nobody_can_plan_leave_reports_and_no_dataset(tmp_path, capsys):
    recipe, prompts = tmp_path / "recipe.yaml", tmp_path / "prompts.txt"
    recipe.write_text("dedup: {against: []}\n")
    prompts.write_text("a tiger\na bear\nA tiger\n")
    out = tmp_path / "out"
    assert main(["--recipe", str(recipe), "--out", str(out), "--prompts", str(prompts), "--threads", "2"]) == 0
    said = capsys.readouterr()
    assert "3 candidates, 1 of them copies: 2 prompts" in said.err
    assert "checklist" in said.out
    assert "0 of 3" in said.out
    assert (out / "sheet.html").exists()
    assert json.loads((out / "dropped.jsonl").read_text())["kind"] == "twice, exact"
