"""Judges that combine others: panels, evidence beside a judge, scores as comparisons, faults on purpose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clvr.errors import SettingError, VLMConnectionError, VLMError, VLMSetupError
from clvr.judges import ComparerPanel, FaultyVerifier, Panel, ScoreComparer, Witnessed
from clvr.ports import Preference
from clvr.shapes.render import render
from clvr.shapes.scene import Item, Scene
from clvr.shapes.verifier import MeasuringVerifier
from clvr.trajectory import Check, Evidence, Goal, Usage

from .judges_fixtures import CHECKS, DOG, TWO, Says, everything, picture


def panel(*answers, agreement="majority", weights=()):
    members = [Says(f"judge {i}", everything(a)) for i, a in enumerate(answers)]
    return Panel(members, agreement, weights).judge(picture(), CHECKS)


@pytest.mark.parametrize(
    ("votes", "agreement", "outcome"),
    [
        ("yyn", "majority", "pass"),
        ("ynn", "majority", "fail"),
        ("yn", "majority", "unjudged"),
        ("y??", "majority", "pass"),
        ("yn?", "majority", "unjudged"),
        ("???", "majority", "unjudged"),
        ("yyy", "all", "pass"),
        ("nn?", "all", "fail"),
        ("yyn", "all", "unjudged"),
        ("y?", "all", "pass"),
    ],
)
def test_members_vote_and_a_tie_is_unjudged(votes, agreement, outcome):
    verdict = panel(*votes, agreement=agreement)
    assert {r.outcome for r in verdict.results} == {outcome}
    assert verdict.usage == Usage(len(votes), 10 * len(votes), 2 * len(votes))


def test_weights_decide_where_numbers_do_not():
    assert panel("y", "n", "n", agreement="weighted", weights=(3, 1, 1)).outcome("dog") == "pass"
    assert panel("y", "n", "n", agreement="weighted", weights=(2, 1, 1)).outcome("dog") == "unjudged"
    assert panel("y", "n", agreement="weighted", weights=(0, 1)).outcome("dog") == "fail"


@given(
    st.lists(st.tuples(st.sampled_from("yn?"), st.floats(0.1, 10)), min_size=1, max_size=6),
    st.sampled_from(["all", "majority", "weighted"]),
    st.randoms(),
)
def test_a_panel_treats_yes_and_no_alike_and_knows_no_order(members, agreement, rng):
    shuffled = rng.sample(members, len(members))
    swapped = [({"y": "n", "n": "y"}.get(a, a), w) for a, w in members]
    opposite = {"pass": "fail", "fail": "pass", "unjudged": "unjudged"}

    def outcome(votes):
        answers, weights = zip(*votes, strict=True)
        return panel(*answers, agreement=agreement, weights=weights).outcome("dog")

    assert outcome(shuffled) == outcome(members)
    assert outcome(swapped) == opposite[outcome(members)]


def test_the_probability_is_the_weighted_mean_of_those_that_were_given():
    verdict = panel(0.9, 0.3, "y", agreement="weighted", weights=(3, 1, 5))
    assert verdict.results[0].probability == pytest.approx((3 * 0.9 + 0.3) / 4)
    assert panel("y", "n").results[0].probability is None


def test_a_panel_keeps_everyone_s_evidence_and_words():
    result = panel("y", "y", "n").results[0]
    assert result.evidence[0] == Evidence("panel", "2 of 3 say yes, 1 no (majority)", says="pass")
    own = [(e.judge, e.says, e.overruled, bool(e.boxes)) for e in result.evidence[1:]]
    assert own == [
        ("judge 0", "pass", False, True),
        ("judge 1", "pass", False, True),
        ("judge 2", "fail", True, True),
    ]
    assert result.raw == "judge 0:\njudge 0 says y\n\njudge 1:\njudge 1 says y\n\njudge 2:\njudge 2 says n"


def test_a_member_that_fails_leaves_its_vote_out_and_says_so():
    members = [Says("good", everything("n")), Says("bad", VLMError("The server burnt.", "Buy another."))]
    verdict = Panel(members).judge(picture(), CHECKS)
    assert verdict.outcome("dog") == "fail"
    assert verdict.results[0].evidence[2] == Evidence("bad", "The server burnt. Buy another.", says="unjudged")
    assert verdict.usage.calls == 2


@pytest.mark.parametrize("mistake", [VLMSetupError("No such model."), VLMConnectionError("Nobody answers.")])
def test_only_before_its_first_answer_does_a_member_s_wrong_name_end_the_run(mistake):
    late = Says("late", everything("y"))
    jury = Panel([Says("good", everything("y")), late])
    jury.judge(picture(), CHECKS)
    late.answers = mistake
    assert jury.judge(picture(), CHECKS).outcome("dog") == "pass"
    with pytest.raises(type(mistake)):
        Panel([Says("good", everything("y")), Says("wrong", mistake)]).judge(picture(), CHECKS)


def test_members_can_be_asked_at_once():
    members = [Says(f"judge {i}", everything("y")) for i in range(3)]
    verdict = Panel(members, concurrent=True).judge(picture(), CHECKS)
    assert verdict == Panel(members).judge(picture(), CHECKS)
    with pytest.raises(VLMSetupError):
        Panel([*members, Says("wrong", VLMSetupError("No."))], concurrent=True).judge(picture(), CHECKS)


@pytest.mark.parametrize(
    ("members", "agreement", "weights"),
    [(0, "all", ()), (2, "most", ()), (2, "weighted", (1,)), (2, "weighted", (0, 0)), (2, "weighted", (-1, 2))],
)
def test_a_panel_that_cannot_vote_is_refused(members, agreement, weights):
    with pytest.raises(SettingError):
        Panel([Says("judge", {})] * members, agreement, weights)


def test_a_member_of_an_overruled_panel_may_be_right_in_the_end():
    inner = Panel([Says("a", everything("y")), Says("b", everything("y")), Says("c", everything("n"))])
    result = Witnessed(inner, [Says("ocr", {"sign": "n"})]).judge(picture(), CHECKS).results[2]
    lost = [(e.judge, e.overruled) for e in result.evidence]
    assert lost == [("ocr", False), ("panel", True), ("a", True), ("b", True), ("c", False)]


def test_panels_nest():
    inner = Panel([Says("a", everything("y")), Says("b", everything("y"))])
    result = Panel([inner, Says("c", everything("n")), Says("d", everything("y"))]).judge(picture(), CHECKS).results[0]
    assert result.outcome == "pass"
    assert [e.judge for e in result.evidence] == ["panel", "panel", "a", "b", "c", "d"]


# Evidence beside a judge


def test_a_witness_overrules_and_both_are_heard():
    judge, witness = Says("vlm", everything(0.9)), Says("ocr", {"sign": "n"})
    verdict = Witnessed(judge, [witness]).judge(picture(), CHECKS)
    sign = verdict.results[2]
    assert (sign.outcome, sign.probability) == ("fail", None)
    assert [(e.judge, e.says, e.overruled) for e in sign.evidence] == [("ocr", "fail", False), ("vlm", "pass", True)]
    assert sign.raw == "ocr:\nocr says n\n\nvlm:\nvlm says 0.9"
    assert (verdict.outcome("dog"), verdict.results[0].probability) == ("pass", 0.9)
    assert [e.judge for e in verdict.results[0].evidence] == ["vlm"]


def test_where_witnesses_contradict_each_other_the_judge_s_word_stands():
    witnesses = [Says("ocr", {"sign": "n"}), Says("detector", {"sign": "y"})]
    sign = Witnessed(Says("vlm", everything("y")), witnesses).judge(picture(), CHECKS).results[2]
    assert sign.outcome == "pass"
    assert [(e.judge, e.overruled) for e in sign.evidence] == [("vlm", False), ("ocr", True), ("detector", False)]


def test_a_witness_that_saw_nothing_is_mentioned_and_does_not_count():
    sign = Witnessed(Says("vlm", everything("y")), [Says("ocr", {"sign": "?"})]).judge(picture(), CHECKS).results[2]
    assert sign.outcome == "pass"
    assert [(e.judge, e.says) for e in sign.evidence] == [("vlm", "pass"), ("ocr", "unjudged")]


def test_a_witness_may_speak_where_the_judge_cannot():
    verdict = Witnessed(Says("vlm", everything("?")), [Says("ocr", {"sign": "y"})]).judge(picture(), CHECKS)
    assert [r.outcome for r in verdict.results] == ["unjudged", "unjudged", "pass"]


def test_a_judge_can_be_spared_what_is_decided():
    judge, witness = Says("vlm", everything("y")), Says("ocr", {"sign": "n", "dog": "?"})
    verdict = Witnessed(judge, [witness], spare=True).judge(picture(), CHECKS)
    assert judge.asked == [["dog", "two"]]
    assert [r.outcome for r in verdict.results] == ["pass", "pass", "fail"]
    witness.answers = everything("y")
    assert Witnessed(judge, [witness], spare=True).judge(picture(), CHECKS).usage.calls == 1
    assert len(judge.asked) == 1


def test_whoever_fails_says_nothing():
    broken = Says("vlm", VLMError("It burnt."))
    verdict = Witnessed(broken, [Says("ocr", {"sign": "n"})]).judge(picture(), CHECKS)
    assert [r.outcome for r in verdict.results] == ["unjudged", "unjudged", "fail"]
    with pytest.raises(VLMSetupError):
        Witnessed(Says("vlm", VLMSetupError("No such model.")), []).judge(picture(), CHECKS)


# Comparing by score


GOAL = Goal("two dogs and a sign", checks=CHECKS)


class ByColor:
    """Another verdict for each colour."""

    name = "by colour"

    def __init__(self, **answers):
        self.answers = answers

    def judge(self, image, checks, references=()):
        red, _, blue = image.getpixel((0, 0))
        key = "red" if red > blue else "blue"
        return Says(key, self.answers[key]).judge(image, checks)


@pytest.mark.parametrize(
    ("red", "blue", "first"),
    [
        ({"dog": "y", "two": "y"}, {"dog": "y", "two": "n"}, 1.0),
        ({"dog": "n", "two": "y"}, {"dog": "y", "two": "y"}, 0.0),
        ({"dog": "y", "two": "y"}, {"dog": "y", "two": "y"}, 0.5),
        ({"dog": "y", "two": "?"}, {"dog": "y", "two": "n"}, 0.5),
        ({"dog": "?"}, {"dog": "y"}, None),
    ],
)
def test_the_higher_score_on_what_both_were_judged_on_wins(red, blue, first):
    comparer = ScoreComparer(ByColor(red=red, blue=blue))
    assert comparer.prefer(picture("red"), picture("blue"), GOAL).first == first
    swapped = comparer.prefer(picture("blue"), picture("red"), GOAL).first
    assert swapped == (None if first is None else 1 - first)


def test_a_small_lead_is_a_tie_within_the_margin():
    red, blue = {"dog": "y", "two": "y", "sign": "y"}, {"dog": "y", "two": "y", "sign": "n"}
    verifier = ByColor(red=red, blue=blue)
    assert ScoreComparer(verifier, margin=0.3).prefer(picture("red"), picture("blue"), GOAL).first == 0.5
    assert ScoreComparer(verifier, margin=0.2).prefer(picture("red"), picture("blue"), GOAL).first == 1.0


def test_a_failed_call_is_no_preference():
    preference = ScoreComparer(Says("broken", VLMError("It burnt."))).prefer(picture(), picture("red"), GOAL)
    assert preference.first is None
    assert preference.usage.calls == 2


class Prefers:
    def __init__(self, first):
        self.name, self.first = f"prefers {first}", first

    def prefer(self, first, second, goal, references=()):
        if isinstance(self.first, Exception):
            raise self.first
        return Preference(self.first, Usage(1), (Evidence(self.name, "said"),), "raw")


def test_comparers_vote_by_their_probabilities():
    jury = ComparerPanel([Prefers(0.9), Prefers(0.1), Prefers(None), Prefers(VLMError("Burnt."))], (3, 1, 9, 9))
    preference = jury.prefer(picture(), picture(), GOAL)
    assert preference.first == pytest.approx(0.7)
    assert preference.usage.calls == 4
    assert [e.note for e in preference.evidence] == ["said", "said", "said", "Burnt."]
    assert ComparerPanel([Prefers(None)]).prefer(picture(), picture(), GOAL).first is None


# Faults on purpose


def shots(count=40):
    return [render(Scene((Item("circle", "red", "medium", (1, 2)),)), seed) for seed in range(count)]


QUESTIONS = (
    Check("yes", "Is there a red circle?", "object"),
    Check("no", "Is there a blue square?", "object"),
)


def test_the_world_s_own_checks_are_judged_without_faults():
    verdict = FaultyVerifier(MeasuringVerifier()).judge(shots(1)[0], QUESTIONS)
    assert [r.outcome for r in verdict.results] == ["pass", "fail"]


def errors(verifier):
    wrong = set()
    for index, shot in enumerate(shots()):
        try:
            verdict = verifier.judge(shot, QUESTIONS)
        except VLMError:
            wrong.add((index, "call"))
            continue
        for result, right in zip(verdict.results, ("pass", "fail"), strict=True):
            if result.outcome != right:
                wrong.add((index, result.check, result.outcome))
    return wrong


@pytest.mark.parametrize("fault", ["flip", "fail", "garbage"])
def test_faults_come_at_their_share_repeat_and_grow(fault):
    measuring = MeasuringVerifier()
    few = errors(FaultyVerifier(measuring, 7, **{fault: 0.2}))
    assert few == errors(FaultyVerifier(measuring, 7, **{fault: 0.2}))
    assert few != errors(FaultyVerifier(measuring, 8, **{fault: 0.2}))
    many = errors(FaultyVerifier(measuring, 7, **{fault: 0.6}))
    assert few < many
    asked = len(shots()) * (1 if fault == "fail" else 2)
    assert 0.05 < len(few) / asked < 0.4 < len(many) / asked < 0.8


def test_a_flip_turns_the_probability_and_hides_the_truth():
    judge = FaultyVerifier(Says("vlm", {"dog": 0.9, "two": "?"}), flip=1.0)
    dog, two = judge.judge(picture(), (DOG, TWO)).results
    assert (dog.outcome, dog.probability) == ("fail", pytest.approx(0.1))
    assert dog.evidence == (Evidence("vlm (flip 1)", "Flipped on purpose."),)
    assert two.outcome == "unjudged"


def test_garbage_costs_what_the_call_cost():
    verdict = FaultyVerifier(Says("vlm", everything("y")), garbage=1.0).judge(picture(), CHECKS)
    assert {r.outcome for r in verdict.results} == {"unjudged"}
    assert verdict.usage == Usage(1, 10, 2)


def test_a_share_outside_zero_to_one_is_refused():
    with pytest.raises(SettingError, match=r"flip=1\.5"):
        FaultyVerifier(MeasuringVerifier(), flip=1.5)
