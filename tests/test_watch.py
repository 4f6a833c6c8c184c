"""A run as plain data while it happens: complete at every event, of bounded size, the same as its journal's."""

from __future__ import annotations

import json

from clvr import events, journal, loop
from clvr.budget import Budget
from clvr.events import Answer, Planned
from clvr.journal import Header, Journal
from clvr.loop import Ports, Settings
from clvr.report.watch import TEXT, Watch, brief
from clvr.trajectory import Check, Decision, Goal

from .engine_fixtures import SIZE, FakeController, FakeGenerator, FakeVerifier, draw

GOAL = Goal("a bright grey")


def watched(script=(), greys=(60, 160), answer=None, budget=None, folder=None):
    """A run, what was seen of it at each event, and the watch."""
    watch, seen = Watch(), []
    ports = Ports(FakeController(list(script)), FakeGenerator(list(greys)), FakeVerifier())
    settings = Settings(budget or Budget(steps=2), size=SIZE)

    def listen(event):
        watch.listen(event)
        seen.append((type(event), json.loads(json.dumps(watch.json()))))
        return answer if isinstance(event, Planned) and event.step == 1 else None

    state = loop.start(GOAL, [], ports.controller, settings, 3, listen)
    if folder is None:
        return loop.proceed(state, ports, listen), seen, watch
    with Journal.create(folder) as book:
        book.begin(Header.of(state, SIZE))
        both = lambda event: book.listen(event) or listen(event)  # noqa: E731
        return loop.proceed(state, ports, both), seen, watch


def at(seen, kind, nth=0):
    return [told for found, told in seen if found is kind][nth]


def test_each_phase_of_a_round_is_told():
    _, seen, watch = watched()
    planned = at(seen, events.Planned)["round"]
    assert (planned["instruction"], planned["tactic"]) == ("a grey", "")
    assert (at(seen, events.Drawing, 1)["round"]["done"], at(seen, events.Drawing, 1)["round"]["of"]) == (2, 2)
    assert [c["image"] for c in at(seen, events.Drawn)["round"]["candidates"]] == ["IMG_GEN_0/0"]
    assert at(seen, events.Judged)["round"]["candidates"][0]["score"] == 0.25
    settled = at(seen, events.Settled)
    assert settled["round"] is None
    assert settled["steps"][0]["score"] == 0.25
    assert at(seen, events.Stopped)["stop"]
    assert set(watch.images) == {"IMG_GEN_0/0", "IMG_GEN_1/0"}
    watch.forget(1)
    assert set(watch.images) == {"IMG_GEN_0/0"}


def test_the_policy_s_tactic_is_told():
    ports = Ports(FakeController([]), FakeGenerator([60]), FakeVerifier())
    watch = Watch()
    loop.run(GOAL, [], ports, Settings(Budget(steps=1), "one-shot", SIZE), 3, watch.listen)
    assert watch.json()["steps"][0]["tactic"] == "one-shot"


def test_the_pictures_of_round_ten_are_not_those_of_round_one():
    watch = Watch()
    watch.images = {"IMG_GEN_1/0": None, "IMG_GEN_10/0": None}
    watch.forget(1)
    assert set(watch.images) == {"IMG_GEN_10/0"}


def test_what_the_user_changes_is_told_at_once():
    by_hand = Answer(decision=draw("by hand", "edit"), checks=(Check("hand1", "Is it grey?"),))
    _, seen, _ = watched(answer=by_hand)
    amended = at(seen, events.Amended)
    assert amended["checks"][-1] == {"id": "hand1", "question": "Is it grey?", "hand": True}
    assert at(seen, events.Drawing, 2)["round"]["instruction"] == "by hand"


def test_a_plan_that_is_dropped_is_gone():
    _, seen, _ = watched(answer=Answer(back_to=0, stop="enough"))
    assert at(seen, events.Answered)["round"] is None


def test_spent_and_left_of_the_budget():
    _, seen, _ = watched(budget=Budget(steps=2, nfe=100))
    rows = {row["name"]: (row["used"], row["limit"]) for row in at(seen, events.Stopped)["spent"]}
    assert rows["rounds"] == (2, 2)
    assert rows["evaluations"] == (4, 100)
    assert rows["VLM calls"] == (0, None)
    _, seen, _ = watched(budget=Budget(steps=2, tokens=500))
    assert {"name": "tokens", "used": 0, "limit": 500} in at(seen, events.Stopped)["spent"]


def test_texts_of_any_length_are_bounded():
    long = "x" * 100_000
    script = [Decision("generate", long, long, expects=(Check("e1", long),))]
    state, _, watch = watched(script)
    told = watch.json()
    assert max(len(told["steps"][0][name]) for name in ("reasoning", "instruction")) == TEXT
    assert len(json.dumps(told)) < 60_000
    assert len(json.dumps(brief(state.trajectory))) < 1000


def test_a_kept_run_is_told_as_it_was_at_its_end(tmp_path):
    _, _, watch = watched(folder=tmp_path / "run")
    then, now = watch.json(), Watch.of(journal.read(tmp_path / "run")).json()
    assert then | {"warnings": []} == now
