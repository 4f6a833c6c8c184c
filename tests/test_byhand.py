"""A person steps in: other plans, other candidates, further checks, earlier canvases; and resume repeats it."""

from __future__ import annotations

import dataclasses

import pytest

from clvr import answers, byhand, events, journal, loop
from clvr.answers import Question
from clvr.budget import Budget
from clvr.errors import FormatError
from clvr.events import Answer, Judged, Planned
from clvr.journal import Header, Journal
from clvr.loop import Ports, Settings
from clvr.trajectory import Candidate, Check, Decision, Goal, Trajectory

from .engine_fixtures import SIZE, STEP_CHECK, FakeController, FakeGenerator, FakeVerifier, draw, stop

GOAL = Goal("a bright grey")
BRIGHTER = Check("c5", "Is the picture brighter than 250?")


def ports(greys, script=()):
    return Ports(FakeController(list(script)), FakeGenerator(list(greys)), FakeVerifier())


def told(answers_by_event):
    """A listener that answers the n-th event of a kind: {(Judged, 1): Answer(…)}; and all that it heard."""
    heard, counts = [], {}

    def listen(event):
        heard.append(event)
        kind = type(event)
        counts[kind] = counts.get(kind, -1) + 1
        return answers_by_event.get((kind, counts[kind]))

    return listen, heard


def run(greys, by_hand, script=(), **budget):
    listen, heard = told(by_hand)
    state = loop.run(GOAL, [], ports(greys, script), Settings(Budget(**budget)), 0, listen)
    return state, heard


def names(heard, *kinds):
    return [type(e).__name__ for e in heard if isinstance(e, kinds)]


def test_another_candidate_is_chosen_and_becomes_the_canvas():
    state, _ = run([160, 60], {(Judged, 0): Answer(choose=1)}, steps=1, candidates=2)
    step = state.trajectory.steps[0]
    assert (step.chosen, step.accepted, step.hand) == (1, True, "kept")
    assert "candidate 2 was chosen by hand" in step.notes
    assert state.best.getpixel((0, 0)) == (60, 60, 60)


def test_what_the_user_kept_wins_over_better_scores_before_it_and_loses_to_better_ones_after():
    state, _ = run([160, 60, 110], {(Judged, 1): Answer(accept=True)}, steps=3)
    assert [state.trajectory.score(s) for s in state.trajectory.steps] == [0.75, 0.25, 0.5]
    assert state.trajectory.best.index == 2
    state, _ = run([160, 60], {(Judged, 1): Answer(accept=True)}, steps=2)
    assert state.trajectory.best.index == 1


def test_a_picture_that_the_user_rejects_is_neither_the_result_nor_a_reason_to_stop():
    state, _ = run([250, 160], {(Judged, 0): Answer(accept=False)}, steps=2)
    assert [s.accepted for s in state.trajectory.steps] == [False, True]
    assert state.trajectory.best.index == 1
    assert "2 steps" in state.trajectory.stop_reason


def test_a_check_added_to_a_verdict_is_judged_at_once_on_every_picture_and_asked_again():
    state, heard = run([60, 210, 252], {(Judged, 1): Answer(checks=(BRIGHTER,))})
    judged = [e for e in heard if isinstance(e, Judged)]
    assert [e.step for e in judged] == [0, 1, 1, 2]
    assert judged[2].candidates[0].active.outcome("c5") == "fail"
    assert state.trajectory.steps[0].winner.active.outcome("c5") == "fail"
    assert [state.trajectory.score(s) for s in state.trajectory.steps] == [0.2, 0.8, 1.0]
    assert state.trajectory.stop_reason == "every check of the goal passes"


def test_a_check_added_to_a_plan_is_judged_from_then_on():
    state, heard = run([210, 210], {(Planned, 0): Answer(checks=(BRIGHTER,))}, steps=2)
    assert state.trajectory.goal.checks[-1] == BRIGHTER
    assert [state.trajectory.score(s) for s in state.trajectory.steps] == [0.8, 0.8]
    assert names(heard, events.Amended) == ["Amended"]


def test_going_back_from_a_verdict_rolls_back_what_came_after_and_goes_on_from_there():
    script = [draw(), draw("b", "edit"), draw("c", "edit"), draw("d", "edit")]
    state, heard = run([60, 110, 160, 210], {(Judged, 2): Answer(back_to=0)}, script, steps=4)
    assert [s.accepted for s in state.trajectory.steps] == [True, False, False, True]
    assert [s.hand for s in state.trajectory.steps] == ["kept", "dropped", "dropped", ""]
    assert state.trajectory.steps[3].decision.references == ("IMG_GEN_0",)
    assert [e.step.index for e in heard if isinstance(e, events.RolledBack)] == [1, 2]


def test_going_back_from_a_plan_drops_it_and_plans_anew_and_its_cost_stays():
    script = [draw(), draw("b", "edit"), draw("c", "edit"), draw("d", "edit")]
    state, heard = run([60, 110, 160], {(Planned, 2): Answer(back_to=0)}, script, steps=3)
    assert [e.step for e in heard if isinstance(e, Planned)] == [0, 1, 2, 2]
    assert state.trajectory.steps[2].decision.instruction == "d"
    assert state.trajectory.steps[2].decision.references == ("IMG_GEN_0",)
    assert state.trajectory.closing.seconds["plan"] > 0


def test_going_back_to_what_is_not_there_is_refused():
    with pytest.raises(FormatError, match="no step 4"):
        run([60, 110], {(Judged, 1): Answer(back_to=4)}, steps=2)
    with pytest.raises(FormatError, match="no candidate 3"):
        run([60, 110], {(Judged, 0): Answer(choose=3)}, steps=1)


def test_stopping_at_a_verdict_settles_the_round_first():
    state, _ = run([110], {(Judged, 0): Answer(stop="enough")})
    assert (len(state.trajectory.steps), state.trajectory.stop_reason) == (1, "enough")


def settled(greys):
    state, _ = run(greys, {}, steps=len(greys))
    return dataclasses.replace(state, trajectory=dataclasses.replace(state.trajectory, stop_reason=""), stop="")


def test_a_settled_step_is_reconsidered():
    listen, heard = told({})
    state, _ = run([160, 60], {}, steps=1, candidates=2)
    pictures = dict(enumerate(FakeGenerator([160, 60]).draw(None, SIZE, (0, 1)).images))
    after = byhand.reconsider(state, Answer(choose=1, checks=(BRIGHTER,)), pictures, listen)
    assert after.trajectory.steps[0].chosen == 1
    assert after.album["IMG_GEN_0"].getpixel((0, 0)) == (60, 60, 60)
    assert after.trajectory.goal.checks[-1] == BRIGHTER
    assert names(heard, events.Amended, events.Settled) == ["Amended", "Settled"]
    assert byhand.reconsider(after, Answer(back_to=0), {}, listen).trajectory == after.trajectory


def test_going_back_twice_changes_nothing_more():
    trajectory = settled([60, 110, 160]).trajectory.back_to(1)
    assert trajectory.back_to(1) == trajectory
    assert (trajectory.canvas.index, trajectory.best.index) == (1, 1)


BY_HAND = {
    (Planned, 0): [Answer(checks=(Check("c6", "Is the picture brighter than 300?"),))],
    (Planned, 1): [Answer(decision=draw("by hand", "edit"))],
    (Judged, 1): [Answer(accept=False)],
    (Planned, 2): [Answer(back_to=0), Answer(decision=draw("again by hand", "edit"))],
    (Judged, 2): [Answer(checks=(BRIGHTER,)), Answer(choose=1)],
    (Judged, 3): [Answer(back_to=2)],
}


class Cut(Exception):
    """The process dies here."""


class Patient(FakeController):
    def decide(self, trajectory, images, brief=None):
        return draw(f"grey {len(trajectory.steps)}", "edit" if trajectory.steps else "generate")


def resumed_run(folder, dies_at):
    """A run with a person who says everything once; at the event `dies_at` the process dies, then it resumes."""
    given = Ports(Patient(), FakeGenerator(), FakeVerifier())
    settings = Settings(Budget(steps=4, candidates=2, patience=9), size=SIZE)
    to_say, heard = {key: list(said) for key, said in BY_HAND.items()}, []

    def person(event):
        waiting = isinstance(event, (Planned, Judged)) and to_say.get((type(event), event.step))
        return waiting.pop(0) if waiting else None

    def sitting(book, state):
        def listen(event):
            heard.append(event)
            answer = book.listen(event) or person(event)
            if len(heard) == dies_at:
                raise Cut
            return answer

        return loop.proceed(state, given, listen).trajectory

    with Journal.create(folder) as book:
        state = loop.start(GOAL, [], given.controller, settings, 5)
        book.begin(Header.of(state, SIZE))
        try:
            return sitting(book, state), heard
        except Cut:
            pass
    book, record = Journal.reopen(folder)
    with book:
        return sitting(book, loop.State(record.trajectory, record.album(), settings)), heard


def shape(trajectory):
    steps = [(s.decision.instruction, s.chosen, s.accepted, s.hand, s.decision.references) for s in trajectory.steps]
    return steps, trajectory.goal, [trajectory.score(s) for s in trajectory.steps], trajectory.best.index


def test_a_run_that_breaks_off_anywhere_and_is_resumed_repeats_what_the_user_changed(tmp_path):
    whole, heard = resumed_run(tmp_path / "whole", dies_at=-1)
    assert [s.hand for s in whole.steps] == ["kept", "dropped", "kept", "dropped"]
    asked = [n for n, e in enumerate(heard) if isinstance(e, (events.Answered, events.Drawn, events.Amended))]
    for cut in asked:
        resumed, _ = resumed_run(tmp_path / f"cut{cut}", dies_at=cut + 1)
        assert shape(resumed) == shape(whole), cut
        assert shape(journal.read(tmp_path / f"cut{cut}").trajectory) == shape(whole)


def test_recorded_answers_are_gone_once_their_round_is_complete(tmp_path):
    resumed_run(tmp_path / "run", dies_at=-1)
    assert journal.read(tmp_path / "run").answers == ()


PLAN = Question(Planned(0, Decision("edit", "Because.", "add a hat", ("IMG_GEN_0",), (STEP_CHECK,))), Trajectory(GOAL))
VERDICT = Question(Judged(2, (Candidate(1), Candidate(2)), 0, True), settled([60, 110]).trajectory)


def test_an_edited_instruction_drops_the_reasoning_and_the_checks_of_the_old_one():
    decision = answers.read({"action": "edit", "instruction": " add two hats "}, PLAN).decision
    assert (decision.instruction, decision.reasoning, decision.references) == ("add two hats", "", ("IMG_GEN_0",))
    assert "add two hats" in decision.expects[0].question
    assert answers.read({"action": "edit", "instruction": "add a hat"}, PLAN).decision == PLAN.event.decision


def test_an_instruction_in_the_place_of_a_stop_goes_on():
    question = Question(Planned(2, stop()), VERDICT.trajectory)
    assert answers.read({"action": "edit", "instruction": "more"}, question).decision.action == "edit"


def test_each_action_is_read():
    assert answers.read({"action": "approve"}, PLAN) == Answer()
    assert answers.read({"action": "choose", "candidate": 1}, VERDICT) == Answer(choose=1)
    assert answers.read({"action": "keep"}, VERDICT) == Answer(accept=True)
    assert answers.read({"action": "reject"}, VERDICT) == Answer(accept=False)
    assert answers.read({"action": "back", "step": 1}, VERDICT) == Answer(back_to=1)
    assert answers.read({"action": "stop"}, PLAN).stop
    (check,) = answers.read({"action": "check", "question": "Is there a hat?"}, VERDICT).checks
    assert check.id not in {c.id for c in VERDICT.trajectory.goal.checks}


@pytest.mark.parametrize(
    ("data", "question", "said"),
    [
        ({}, PLAN, "None cannot be answered"),
        ({"action": ["approve"]}, PLAN, "cannot be answered"),
        ({"action": "choose", "candidate": 0}, PLAN, "Possible are approve, edit, check, stop"),
        ({"action": "edit", "instruction": "x"}, VERDICT, "cannot be answered"),
        ({"action": "back", "step": 0}, PLAN, "cannot be answered"),
        ({"action": "back", "step": 2}, VERDICT, "from 0 to 1"),
        ({"action": "back", "step": True}, VERDICT, "from 0 to 1"),
        ({"action": "back", "step": "1"}, VERDICT, "from 0 to 1"),
        ({"action": "choose"}, VERDICT, "from 0 to 1"),
        ({"action": "choose", "candidate": -1}, VERDICT, "from 0 to 1"),
        ({"action": "edit"}, PLAN, "'instruction' should be text"),
        ({"action": "edit", "instruction": "  "}, PLAN, "'instruction' should be text"),
        ({"action": "check", "question": "x" * 5000}, PLAN, "'question' should be text"),
        ({"action": "approve", "candidate": 1}, VERDICT, "takes no candidate"),
    ],
)
def test_what_cannot_be_meant_is_refused(data, question, said):
    with pytest.raises(FormatError, match=said):
        answers.read(data, question)


def test_checks_gather_until_a_plan_is_approved():
    first, second = Answer(checks=(BRIGHTER,)), Answer(decision=draw("x"))
    assert answers.merged(first, second) == Answer(decision=draw("x"), checks=(BRIGHTER,))
    assert answers.merged(second, first) == answers.merged(first, second)
