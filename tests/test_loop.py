from __future__ import annotations

import dataclasses

import pytest
from PIL import Image

from clvr import events, loop
from clvr.budget import Budget
from clvr.errors import FormatError, ReplyError, VLMError
from clvr.events import Answer, Drawn
from clvr.loop import Ports, Settings, State
from clvr.ports import Preference
from clvr.trajectory import Decision, Goal, Usage, referenced

from .engine_fixtures import CHECKS, SIZE, FakeController, FakeGenerator, FakeVerifier, draw, stop

GOAL = Goal("a bright grey")


def ports(greys=(), script=(), usage=None, **verifier):
    controller = FakeController(list(script), usage=usage or Usage())
    return Ports(controller, FakeGenerator(list(greys)), FakeVerifier(**verifier))


def run(given, budget=None, references=(), seed=0, listen=events.ignore):
    return loop.run(GOAL, list(references), given, Settings(budget or Budget()), seed, listen)


def scores(state):
    return [state.trajectory.score(step) for step in state.trajectory.steps]


def listen_to(kind, answer=None, at=0):
    """A listener that answers the `at`-th event of a kind, and the list of all that it heard."""
    heard, seen = [], []

    def listen(event):
        heard.append(event)
        if isinstance(event, kind):
            seen.append(event)
            return answer if len(seen) == at + 1 else None
        return None

    return listen, heard


def names(heard):
    return [type(event).__name__ for event in heard]


def test_the_loop_stops_as_soon_as_every_check_passes():
    state = run(ports([100, 160, 250]))
    assert scores(state) == [0.5, 0.75, 1.0]
    assert state.trajectory.stop_reason == "every check of the goal passes"


def test_a_lower_threshold_stops_earlier():
    state = run(ports([100, 160, 250]), Budget(threshold=0.7))
    assert scores(state) == [0.5, 0.75]
    assert state.trajectory.stop_reason == "the score of 0.75 reaches the 0.7 that was asked for"


def test_the_result_is_the_best_step_and_not_the_last():
    state = run(ports([100, 160, 30, 20, 10]), Budget(steps=5))
    assert state.trajectory.best.index == 1
    assert state.best.getpixel((0, 0)) == (160, 160, 160)
    assert [s.accepted for s in state.trajectory.steps] == [True, True, False, False, False]
    assert "5 steps" in state.trajectory.stop_reason


def test_after_a_rollback_the_next_edit_starts_from_the_canvas():
    given = ports([160, 30, 160], [draw(), draw("more", "edit"), draw("again", "edit")])
    state = run(given, Budget(steps=3))
    assert [s.decision.references for s in state.trajectory.steps] == [(), ("IMG_GEN_0",), ("IMG_GEN_0",)]
    assert given.generator.contexts[2].text == "a bright grey\nI want a grey. <IMG_GEN_0>\nI want again."
    assert any("r_1" in note for note in state.trajectory.steps[2].notes)


def test_patience_counts_steps_that_did_not_raise_the_best_score():
    state = run(ports([100, 160, 160, 110, 120, 130]), Budget(patience=3))
    assert len(state.trajectory.steps) == 5
    assert "3 steps in a row" in state.trajectory.stop_reason


def test_an_unjudged_check_does_not_let_the_goal_count_as_reached():
    state = run(ports([250] * 9, blind=("c3",)), Budget(steps=3))
    assert scores(state) == [1.0, 1.0, 1.0]
    assert "3 steps" in state.trajectory.stop_reason


def test_the_controller_may_stop():
    state = run(ports([100], [draw(), stop("Good enough.")]))
    assert len(state.trajectory.steps) == 1
    assert state.trajectory.stop_reason == "the controller stopped: Good enough."


def test_the_first_decision_must_draw_and_gets_one_more_try():
    state = run(ports([250], [stop(), draw()]))
    assert len(state.trajectory.steps) == 1
    given = ports([250], [stop()])
    with pytest.raises(ReplyError, match="before anything was drawn"):
        run(given)
    assert given.controller.asked == 2


def test_what_was_changed_in_the_checklist_is_told_and_stays_with_the_first_step():
    class Tidying(FakeController):
        def checklist(self, goal, images):
            return dataclasses.replace(super().checklist(goal, images), notes=("two became one",))

    heard = []
    state = run(dataclasses.replace(ports([1, 2, 10]), controller=Tidying()), listen=heard.append)
    assert [e.message for e in heard if isinstance(e, events.Warned)].count("two became one") == 1
    assert ["two became one" in step.notes for step in state.trajectory.steps[:3]] == [True, False, False]


def test_the_checklist_is_made_once_or_brought_along():
    mine = dataclasses.replace(GOAL, checks=CHECKS[:1])
    listen, heard = listen_to(events.Checklisted)
    state = loop.run(mine, [], ports([60]), listen=listen)
    assert state.trajectory.goal.checks == CHECKS[:1]
    assert "Checklisted" not in names(heard)
    assert run(ports([250])).trajectory.goal.checks == CHECKS


def test_references_that_do_not_exist_are_dropped_with_a_note():
    given = ports([250], [draw(references=("IMG_GEN_7", "IMG_REF_0", "IMG_REF_0"))])
    state = run(given, references=[Image.new("RGBA", SIZE)])
    step = state.trajectory.steps[0]
    assert step.decision.references == ("IMG_REF_0",)
    assert any("IMG_GEN_7" in note for note in step.notes)
    assert [image.mode for _, image in given.generator.contexts[0].images] == ["RGB"]


@pytest.mark.parametrize(
    ("references", "action", "labels"), [(0, "generate", ()), (2, "edit", (referenced(0), referenced(1)))]
)
def test_an_edit_of_nothing_takes_the_users_images_or_becomes_a_generation(references, action, labels):
    state = run(ports([250], [draw(action="edit")]), references=[Image.new("RGB", SIZE)] * references)
    step = state.trajectory.steps[0]
    assert (step.decision.action, step.decision.references) == (action, labels)
    assert step.notes


def test_a_decision_without_an_instruction_gets_one():
    given = ports([250], [Decision("generate")])
    assert run(given).trajectory.steps[0].decision.instruction == GOAL.prompt


@pytest.mark.parametrize(
    ("nfe", "drawn", "spent"),
    [(12, [3, 3], 12), (11, [3, 2, 1], 12), (7, [3, 1], 8), (1, [1], 2), (None, [3] * 3, 18)],
)
def test_candidates_are_limited_to_what_the_function_evaluations_can_pay(nfe, drawn, spent):
    state = run(ports([10] * 99), Budget(steps=3, candidates=3, nfe=nfe))
    assert [len(s.candidates) for s in state.trajectory.steps] == drawn
    assert state.trajectory.cost.nfe == spent


def test_the_best_candidate_stands_for_the_step():
    state = run(ports([60, 250, 160]), Budget(candidates=3))
    assert state.trajectory.steps[0].chosen == 1
    assert state.best.getpixel((0, 0)) == (250,) * 3


@pytest.mark.parametrize(("every", "judged"), [(1, [1, 1, 1, 1, 1]), (2, [0, 1, 0, 1, 1]), (9, [0, 0, 0, 0, 1])])
def test_the_goal_is_verified_each_nth_step_and_in_the_last(every, judged):
    state = run(ports([100] * 5), Budget(steps=5, verify_every=every, patience=9))
    assert [s.winner.active is not None for s in state.trajectory.steps] == [bool(j) for j in judged]


def test_a_step_that_uses_the_function_evaluations_up_is_verified_as_the_last():
    state = run(ports([100] * 5), Budget(nfe=4, verify_every=9))
    assert [s.winner.active is not None for s in state.trajectory.steps] == [False, True]


def test_a_canvas_that_was_never_verified_is_verified_when_the_controller_stops():
    listen, heard = listen_to(events.Settled)
    state = run(ports([250], [draw(), stop()]), Budget(verify_every=9), listen=listen)
    assert scores(state) == [1.0]
    late = [e for e in heard if isinstance(e, events.Settled)][-1]
    assert (late.step, late.images) == (state.trajectory.steps[0], ())


def test_the_verifier_sees_the_step_s_sources_and_the_goal_s_references():
    given = ports([100, 250], [draw(), draw("more", "edit", ("IMG_GEN_0", "IMG_REF_0"))])
    run(given, references=[Image.new("RGB", SIZE)])
    assert [(ids, n) for _, ids, n in given.verifier.judged] == [
        (("c1", "c2", "c3", "c4"), 1),
        (("e1",), 0),
        (("c1", "c2", "c3", "c4"), 1),
        (("e1",), 2),
    ]


def test_a_broken_judge_leaves_verdicts_unjudged_with_a_note():
    state = run(ports([100] * 9, broken=True), Budget(steps=2))
    step = state.trajectory.steps[0]
    assert step.winner.active.outcome("c1") == "unjudged"
    assert step.accepted
    assert any("The judge is down" in note for note in step.notes)
    assert state.best is not None


def test_a_judge_that_never_answers_runs_out_of_patience():
    state = run(ports([100] * 9, broken=True), Budget(patience=3))
    assert len(state.trajectory.steps) == 3


def test_a_controller_that_fails_ends_the_run_with_the_best_image_so_far():
    listen, heard = listen_to(events.Stopped)
    state = run(ports([100], [draw(), VLMError("The server is gone.")]), listen=listen)
    assert state.best is not None
    assert "The server is gone." in state.trajectory.stop_reason
    assert heard[-1].resumable
    with pytest.raises(VLMError):
        run(ports([100], [VLMError("The server is gone.")]))


def test_vlm_calls_are_not_passed():
    usage = Usage(calls=1)
    decision = dataclasses.replace(draw(expects=()), usage=usage)
    listen, _ = listen_to(events.Started)
    given = Ports(FakeController([decision], usage=usage), FakeGenerator([10] * 99), FakeVerifier(usage=usage))
    for limit, steps in ((3, 1), (4, 1), (5, 2), (7, 3)):
        state = run(given, Budget(vlm_calls=limit, patience=9), listen=listen)
        assert state.trajectory.cost.usage.calls == limit
        assert len(state.trajectory.steps) == steps
        assert state.trajectory.steps[-1].winner.active is not None
        assert f"{limit} VLM calls" in state.trajectory.stop_reason


def test_the_first_drawing_is_made_even_when_the_vlm_calls_are_used_up():
    usage = Usage(calls=1)
    given = Ports(FakeController(usage=usage), FakeGenerator([10]), FakeVerifier(usage=usage))
    state = run(given, Budget(vlm_calls=1))
    assert len(state.trajectory.steps) == 1
    assert any("VLM calls is used" in note for note in state.trajectory.steps[0].notes)


def test_time_that_is_up_after_a_drawing_leaves_it_unjudged(monkeypatch):
    clock = iter(range(0, 10_000, 7))
    monkeypatch.setattr(loop, "perf_counter", lambda: next(clock))
    given = ports([10] * 9)
    state = run(given, Budget(seconds=10, candidates=2))
    (step,) = state.trajectory.steps
    assert not given.verifier.judged
    assert any("not judged: the budget of 10 seconds" in note for note in step.notes)
    assert "10 seconds" in state.trajectory.stop_reason
    assert state.best is not None


def test_cost_is_recorded_by_phase():
    state = run(ports([100, 250]), Budget(candidates=2))
    for step in state.trajectory.steps:
        assert set(step.cost.seconds) == {"plan", "draw", "verify"}
        assert step.cost.nfe == 4
    assert state.trajectory.preparation.seconds["plan"] >= 0


def test_the_same_seed_gives_the_same_trajectory_and_another_one_another():
    def plain(seed):
        trajectory = run(ports(blind=("c4",)), Budget(steps=3), seed=seed).trajectory
        steps = [dataclasses.replace(s, cost=loop.Cost()) for s in trajectory.steps]
        return steps, trajectory.stop_reason

    assert plain(1) == plain(1)
    assert plain(1) != plain(2)


def test_candidate_seeds_differ_and_stay_exact_in_javascript():
    seeds = {loop.candidate_seed(run, step, k) for run in range(9) for step in range(9) for k in range(9)}
    assert len(seeds) == 9**3
    assert max(seeds) < 2**53


def test_events_come_in_order():
    listen, heard = listen_to(events.Started)
    run(ports([160, 30, 250], [draw(), draw("b", "edit"), draw("c", "edit")]), Budget(steps=3), listen=listen)
    told = [n for n in names(heard) if n != "Warned"]
    one = ["Planned", "Drawing", "Drawing", "Drawn", "Judged", "Settled"]
    assert told == ["Started", "Checklisted", *one, *one, "RolledBack", *one, "Stopped"]


def test_a_listener_may_replace_the_decision():
    listen, _ = listen_to(events.Planned, Answer(decision=draw("my own", references=("IMG_GEN_9",))))
    step = run(ports([250]), listen=listen).trajectory.steps[0]
    assert step.decision.instruction == "my own"
    assert step.decision.references == ()
    assert any("by hand" in note for note in step.notes)


def test_a_listener_may_roll_back_and_approve():
    listen, _ = listen_to(events.Judged, Answer(accept=False), at=1)
    state = run(ports([60, 120]), Budget(steps=2), listen=listen)
    assert [s.accepted for s in state.trajectory.steps] == [True, False]
    listen, _ = listen_to(events.Judged, Answer(accept=True), at=1)
    state = run(ports([120, 60]), Budget(steps=2), listen=listen)
    assert [s.accepted for s in state.trajectory.steps] == [True, True]
    assert "approved by hand" in state.trajectory.steps[1].notes


@pytest.mark.parametrize(
    ("kind", "at", "steps"),
    [(events.Planned, 1, 1), (events.Drawing, 2, 1), (events.Drawn, 1, 2), (events.Judged, 1, 2),
     (events.Settled, 1, 2), (events.Started, 0, 0), (events.Drawing, 0, 0)],
)  # fmt: skip
def test_a_listener_may_stop_at_any_time_and_what_is_drawn_is_settled(kind, at, steps):
    listen, heard = listen_to(kind, Answer(stop="enough"), at)
    state = run(ports([10] * 99), listen=listen)
    assert len(state.trajectory.steps) == steps
    assert state.trajectory.stop_reason == "enough"
    assert isinstance(heard[-1], events.Stopped)
    assert (state.best is None) == (steps == 0)


def test_what_a_listener_raises_passes_through():
    def listen(event):
        if isinstance(event, events.Drawing):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(ports([10]), listen=listen)


def test_phases_laid_out_in_a_row_give_the_same_trajectory_as_the_loop():
    whole = run(ports([100, 160, 250])).trajectory
    given = ports([100, 160, 250])
    state = loop.start(GOAL, [], given.controller)
    for _ in range(6):
        state = loop.plan(state, given.controller)
        state = loop.draw(state, given.generator)
        state = loop.verify(state, given.verifier)
    row = loop.finish(state).trajectory
    assert row.stop_reason == whole.stop_reason
    assert [s.candidates for s in row.steps] == [s.candidates for s in whole.steps]


def test_a_run_taken_up_in_the_middle_ends_like_the_whole():
    whole = run(ports(blind=("c4",)), Budget(steps=4), seed=3)
    first = run(ports(blind=("c4",)), Budget(steps=2), seed=3)
    halfway = dataclasses.replace(first.trajectory, stop_reason="")
    state = State(halfway, first.album, Settings(Budget(steps=4)))
    rest = loop.proceed(state, ports(blind=("c4",)))
    assert [s.candidates for s in rest.trajectory.steps] == [s.candidates for s in whole.trajectory.steps]


def test_what_a_generator_leaves_out_is_noted_and_told():
    class Forgetful(FakeGenerator):
        def draw(self, context, size, seeds, on_step=None):
            return dataclasses.replace(super().draw(context, size, seeds, on_step), notes=("left out r_0",))

    listen, heard = listen_to(events.Warned)
    state = run(Ports(FakeController(), Forgetful([250]), FakeVerifier()), listen=listen)
    assert "left out r_0" in state.trajectory.steps[0].notes
    assert events.Warned("left out r_0") in heard


def test_planning_twice_keeps_the_first_plan():
    given = ports([250])
    state = loop.plan(loop.start(GOAL, [], given.controller), given.controller)
    assert loop.plan(state, given.controller) is state


def test_a_finished_run_is_left_as_it_is():
    state = run(ports([250]))
    listen, heard = listen_to(events.Stopped)
    assert loop.proceed(state, ports(), listen) is state
    assert not heard


def test_the_size_is_the_settings_or_the_generators():
    given = ports([250, 250])
    loop.run(GOAL, [], given, Settings(size=(32, 48)))
    run(given)
    assert given.generator.sizes == [(32, 48), SIZE]


def test_an_unknown_policy_is_refused_before_anything_is_asked():
    given = ports([250])
    with pytest.raises(FormatError, match="magic"):
        loop.run(GOAL, [], given, Settings(policy="magic"))


def in_batches(greys, **budget):
    given = ports(greys)
    told = []
    state = run(given, Budget(steps=1, **budget), listen=told.append)
    return state, given, [event for event in told if isinstance(event, Drawn)]


def test_candidates_are_drawn_in_batches_until_one_passes():
    state, given, drawn = in_batches([0, 0, 0, 120, 9, 9], candidates=6, batch=2)
    step = state.trajectory.steps[0]
    assert [(event.first, len(event.seeds)) for event in drawn] == [(0, 2), (2, 2)]
    assert (len(step.candidates), step.chosen) == (4, 3)
    assert state.trajectory.cost.nfe == given.generator.nfe(4)


def test_a_candidate_that_satisfies_the_goal_saves_the_others():
    state, _, drawn = in_batches([255, 0, 0, 0], candidates=4, batch=1)
    assert len(drawn) == len(state.trajectory.steps[0].candidates) == 1


def test_where_none_passes_every_candidate_is_drawn_and_the_best_chosen():
    state, _, _ = in_batches([0, 0, 0], candidates=3, batch=1)
    assert len(state.trajectory.steps[0].candidates) == 3


def test_batches_give_the_candidates_that_one_draw_gives():
    whole, _, _ = in_batches([], candidates=4)
    parts, _, _ = in_batches([], candidates=4, batch=1)
    seeds = [[c.seed for c in s.trajectory.steps[0].candidates] for s in (whole, parts)]
    assert seeds[1] == seeds[0][: len(seeds[1])]


def test_a_batch_is_not_begun_once_the_evaluations_are_used():
    state, _, drawn = in_batches([0, 0, 0, 0], candidates=4, batch=1, nfe=4)
    assert len(drawn) == 2
    assert state.trajectory.cost.nfe == 4


def test_a_stop_between_two_batches_settles_what_is_drawn():
    given = ports([0, 0, 0])

    def listen(event):
        return Answer(stop="enough") if isinstance(event, Drawn) else None

    state = loop.run(GOAL, [], given, Settings(Budget(candidates=3, batch=1)), 0, listen)
    assert (len(state.trajectory.steps), len(state.trajectory.steps[0].candidates)) == (1, 1)
    assert state.trajectory.stop_reason == "enough"


class Scripted:
    """A verifier that also compares, and prefers what it is told to."""

    name = "scripted"

    def __init__(self, verifier, first):
        self.judge, self.comparer = verifier.judge, self
        self.first, self.asked = first, 0

    def prefer(self, first, second, goal, references=()):
        self.asked += 1
        return Preference(self.first, Usage(calls=2))


def compared(first, greys, **budget):
    given = ports(greys)
    comparer = Scripted(given.verifier, first)
    given = dataclasses.replace(given, verifier=comparer)
    return loop.run(GOAL, [], given, Settings(Budget(**budget))).trajectory, comparer


def test_candidates_that_the_verdicts_leave_even_are_compared_pair_by_pair():
    for first, chosen in ((0.9, 2), (0.5, 0), (0.1, 0), (None, 0)):
        trajectory, comparer = compared(first, [60, 60, 60], steps=1, candidates=3)
        assert (trajectory.steps[0].chosen, comparer.asked) == (chosen, 2)
        assert trajectory.cost.usage.calls == 4


def test_candidates_with_different_verdicts_are_not_compared():
    trajectory, comparer = compared(0.9, [60, 120], steps=1, candidates=2)
    assert (trajectory.steps[0].chosen, comparer.asked) == (1, 0)


def test_at_the_same_score_the_side_by_side_decides_whether_the_canvas_stays():
    trajectory, _ = compared(0.1, [60, 60], steps=2)
    assert [step.accepted for step in trajectory.steps] == [True, False]
    assert "side by side" in " ".join(trajectory.steps[1].notes)
    assert trajectory.best.index == 0
    trajectory, _ = compared(0.9, [60, 60], steps=2)
    assert [step.accepted for step in trajectory.steps] == [True, True]
