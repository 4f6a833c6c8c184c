"""The arithmetic of scores against cases worked out by hand, and what a judge's replies become."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clvr.bench import imagine, prism, wise
from clvr.bench.judging import CheckJudge, RatingJudge, correct, in_question_order
from clvr.bench.registry import open_suite
from clvr.bench.results import Result
from clvr.bench.scores import mean, summarise, weighted
from clvr.bench.suite import CORRECT, Item, Measure, Suite
from clvr.errors import ReplyError, VLMError, VLMSetupError
from clvr.intervals import Z, wilson
from clvr.trajectory import Check, CheckVerdict, Verdict
from clvr.vlm.rating import Criterion, Rubric, VLMRater, parse, schema

from .vlm_fixtures import complaint, completion, serving

GREY = Image.new("RGB", (16, 16), (90, 90, 90))


def result(name, tag, image="i.png", **values):
    return Result(name, name, name, {"task": tag}, image, values)


def suite(*tags, measures=(CORRECT,), **more):
    items = tuple(Item(str(i), "p", {"task": tag}, f"{i}.png") for i, tag in enumerate(tags))
    return Suite("s", "S", items, "task", measures, **more)


def test_imaginebench_weighs_the_lesser_of_fantasy_and_identity():
    assert imagine.score({"fantasy": 9, "identity": 6, "aesthetic": 8})["score"] == pytest.approx(6.4)
    assert imagine.score({"fantasy": 9, "identity": None, "aesthetic": 8})["score"] is None


def test_wise_weighs_consistency_realism_and_aesthetic():
    assert wise.wiscore({"consistency": 2, "realism": 1, "aesthetic": 0})["wiscore"] == pytest.approx(0.8)
    assert wise.wiscore({"consistency": 2, "realism": 2, "aesthetic": 2})["wiscore"] == pytest.approx(1.0)
    assert sum(wise.LEGACY.values()) == pytest.approx(1)
    assert sum(wise.VERIFIED.values()) == pytest.approx(1)


def test_prism_tells_percent():
    assert prism.percent({"alignment": 8, "aesthetic": 5}) == {"alignment": 80, "aesthetic": 50, "average": 65}
    assert prism.percent({"alignment": 8, "aesthetic": None}) == {"alignment": 80, "aesthetic": None, "average": None}


def test_both_overalls_of_imaginebench_are_named_and_differ_by_multi_object():
    whole = open_suite("imaginebench")
    score = {"Attribute shift": 9.0, "Hybridization": 6.0, "Spatiotemporal": 3.0, "Multi-Object": 1.0}
    results = [Result(i.id, i.id, "", i.tags, i.image, {"score": score[i.tags["group"]]}) for i in whole.items]
    found = {e.name: e for e in summarise(whole, results).scores}
    official = found["overall as the official script computes it (without Multi-Object)"]
    assert (official.value, official.n) == (pytest.approx((3 * 9 + 2 * 6 + 2 * 3) / 7), 210)
    both = found["overall with Multi-Object"]
    assert (both.value, both.n) == (pytest.approx((3 * 9 + 2 * 6 + 2 * 3 + 2 * 1) / 9), 270)
    assert found["score, macro average over type"].value == pytest.approx((3 * 9 + 2 * 6 + 2 * 3 + 1) / 8)
    assert found["score, micro average over images"].value == pytest.approx((90 * 9 + 60 * 6 + 60 * 3 + 60 * 1) / 270)


def test_micro_counts_images_macro_counts_tasks_and_the_unjudged_count_in_neither():
    results = [
        result("1", "a", correct=1.0),
        result("2", "a", correct=1.0),
        result("3", "a", correct=0.0),
        result("4", "b", correct=0.0),
        result("5", "b", correct=None),
        result("6", "b", image=""),
    ]
    summary = summarise(suite(*"aaabbb"), results)
    micro, macro = summary.scores
    assert (micro.name, micro.value, micro.n) == ("correct, micro average over images", 0.5, 4)
    assert (micro.low, micro.high, micro.interval) == (*wilson(2, 4), "Wilson")
    assert macro.name == "correct, macro average over task"
    assert macro.value == pytest.approx((2 / 3 + 0) / 2)
    assert (summary.judged, summary.unjudged, summary.missing, summary.images) == (4, 1, 1, 5)
    assert [(g.value, g.images, g.unjudged, g.missing) for g in summary.groups] == [("a", 3, 0, 0), ("b", 2, 1, 1)]


def test_the_interval_of_a_weighted_mean_adds_the_groups_variances():
    measure = Measure("m", "", highest=10)
    estimate = weighted(measure, {"a": [4.0, 6.0], "b": [1.0, 1.0, 4.0]}, {"a": 3.0, "b": 1.0}, "o")
    assert estimate.value == pytest.approx(0.75 * 5 + 0.25 * 2)
    spread = Z * math.sqrt(0.75**2 * 2 / 2 + 0.25**2 * 3 / 3)
    assert (estimate.low, estimate.high) == (pytest.approx(4.25 - spread), pytest.approx(4.25 + spread))


def test_a_group_without_an_image_is_named_and_one_image_has_no_interval():
    measure = Measure("m", "", highest=10)
    estimate = weighted(measure, {"a": [4.0]}, {"a": 3.0, "b": 1.0}, "o")
    assert (estimate.value, estimate.low, estimate.lacking) == (4.0, None, ("b",))
    assert weighted(measure, {}, {"a": 1.0}, "o").value is None
    assert mean(measure, [], "m").value is None
    assert mean(measure, [result("1", "a", m=3.0)], "m").low is None


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 1.0, None])), max_size=30))
def test_scores_lie_within_their_intervals_and_intervals_within_the_range(rows):
    results = [result(str(i), tag, correct=value) for i, (tag, value) in enumerate(rows)]
    summary = summarise(suite(*[tag for tag, _ in rows]), results)
    assert summary.judged + summary.unjudged == summary.images == len(rows)
    for estimate in (*summary.scores, *(e for g in summary.groups for e in g.estimates)):
        if estimate.low is not None:
            assert 0 <= estimate.low <= estimate.value + 1e-9
            assert estimate.value - 1e-9 <= estimate.high <= 1


CHECKS = (Check("a", "Is there a cow?"), Check("b", "Is the cow red?", "color", "a"), Check("c", "Is it a photo?"))


@pytest.mark.parametrize(
    ("outcomes", "value"),
    [
        ("pass pass pass", 1.0),
        ("pass fail pass", 0.0),
        ("fail pass pass", 0.0),
        ("pass unjudged pass", None),
        ("pass unjudged fail", 0.0),
        ("unjudged unjudged unjudged", None),
    ],
)
def test_an_image_is_correct_wrong_or_not_judged(outcomes, value):
    verdict = Verdict(tuple(CheckVerdict(c.id, o) for c, o in zip(CHECKS, outcomes.split(), strict=True)))
    assert correct(verdict, CHECKS) == value


def test_a_child_of_a_failed_check_is_shown_as_skipped():
    verdict = Verdict((CheckVerdict("a", "fail"), CheckVerdict("b", "pass"), CheckVerdict("c", "pass")))
    assert [r.outcome for r in in_question_order(verdict, CHECKS)] == ["fail", "skipped", "pass"]


class Down:
    name = "down"

    def __init__(self, error):
        self.error = error

    def judge(self, image, checks, references=()):
        raise self.error


def test_a_judge_that_fails_leaves_all_unjudged_and_one_that_cannot_be_asked_raises():
    item = Item("1", "p", {"task": "a"}, "1.png", CHECKS)
    judged = CheckJudge(Down(VLMError("It broke."))).judge(GREY, item)
    assert judged.values == {"correct": None, "checks": None}
    with pytest.raises(VLMSetupError):
        CheckJudge(Down(VLMSetupError("No such model."))).judge(GREY, item)


CRITERIA = (Criterion("fantasy"), Criterion("identity"), Criterion("aesthetic", 2))
RUBRIC = Rubric("rate_imagine", CRITERIA)
GOOD = {
    "fantasy": {"reason": "blue", "score": 9},
    "identity": {"score": 7},
    "aesthetic": {"reason": "fine", "score": 2},
}


@pytest.mark.parametrize(
    ("given_score", "kept"),
    [
        *((9, 9.0), (9.0, 9.0), ("9", 9.0), (0, 0.0), (10, 10.0)),
        *((v, None) for v in (11, -1, 7.5, None, True, "nine", [9], 10**400)),
    ],
)
def test_only_a_whole_score_in_range_counts(given_score, kept):
    scores, _ = parse(json.dumps({**GOOD, "fantasy": {"score": given_score}}), CRITERIA)
    assert scores == {"fantasy": kept, "identity": 7.0, "aesthetic": 2.0}


def test_a_bare_number_is_a_score_and_a_reply_without_any_is_refused():
    assert parse('{"fantasy": 3, "identity": 4, "aesthetic": 1}', CRITERIA)[0]["fantasy"] == 3
    with pytest.raises(ReplyError, match="fantasy from 0 to 10"):
        parse('{"fantasy": 30, "identity": null, "aesthetic": 9}', CRITERIA)
    with pytest.raises(ReplyError):
        parse('{"fantasy": 3}', CRITERIA)


@given(st.text(max_size=200))
def test_no_reply_makes_parsing_fail_in_another_way(text):
    with pytest.raises(ReplyError):
        parse(text, CRITERIA)


def test_the_schema_asks_for_the_reason_before_the_score():
    assert list(schema(CRITERIA)["properties"]["fantasy"]["properties"]) == ["reason", "score"]


def rated(*answers):
    with serving(*answers) as server:
        rating = VLMRater(server.client()).rate(GREY, RUBRIC, "a blue cow", "It is blue.")
        return rating, server.chats


def test_a_rating_shows_the_image_and_tells_prompt_and_meaning():
    rating, chats = rated(completion(json.dumps(GOOD)))
    assert rating.scores == {"fantasy": 9, "identity": 7, "aesthetic": 2}
    assert rating.reasons["fantasy"] == "blue"
    assert rating.usage.calls == 1
    told = json.dumps(chats[0]["messages"])
    assert "a blue cow" in told
    assert "It is blue." in told
    assert "data:image" in told


def test_a_bad_reply_is_asked_again_and_then_unjudged():
    rating, chats = rated(completion("I like it"), completion(json.dumps(GOOD)))
    assert (rating.scores["fantasy"], rating.usage.calls, len(chats)) == (9, 2, 2)
    rating, _ = rated(completion("I like it"))
    assert set(rating.scores.values()) == {None}
    assert "no JSON" in rating.reasons["fantasy"]


def test_a_server_that_fails_leaves_it_unjudged_and_a_refused_key_raises():
    rating, _ = rated(complaint(500, "out of memory"))
    assert set(rating.scores.values()) == {None}
    assert "out of memory" in rating.reasons["identity"]
    with pytest.raises(VLMSetupError):
        rated(complaint(401, "bad key"))


def test_a_suite_combines_the_scores_of_its_rubrics():
    whole = open_suite("imaginebench")
    scores = {"fantasy": 8, "identity": 5, "aesthetic": 10}
    with serving(completion(json.dumps(scores))) as server:
        judged = RatingJudge(VLMRater(server.client()), whole).judge(GREY, whole.items[0])
    assert judged.values == {**scores, "score": pytest.approx(6.0)}
