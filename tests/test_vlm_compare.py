"""A VLM that compares two images: both orders, probabilities, failures."""

from __future__ import annotations

import json
import math

import pytest

from clvr.errors import VLMError, VLMSetupError
from clvr.trajectory import Check, Goal, Usage
from clvr.vlm import Reply, TokenLogprob
from clvr.vlm.certainty import chosen
from clvr.vlm.compare import VLMComparer

from .test_vlm_agents import Scripted, picture

GOAL = Goal("a red dog", checks=(Check("red", "Is the dog red?"),))
RED, BLUE = picture("red"), picture("blue")


def said(better, probability=None, reason="because"):
    return json.dumps({"reason": reason, "better": better, "probability": probability})


def compare(*replies):
    client = Scripted(list(replies))
    return VLMComparer(client).prefer(RED, BLUE, GOAL, (picture("green"),)), client


@pytest.mark.parametrize(
    ("forth", "back", "first"),
    [
        (said("first"), said("second"), 1.0),
        (said("second"), said("first"), 0.0),
        (said("first", 0.9), said("second", 0.3), 0.8),
        (said("first"), said("first"), 0.5),
        (said("second", 0.1), said("second", 0.4), 0.5),
        (said("first"), said("tie"), 0.5),
        (said("tie"), said("tie"), 0.5),
        (said("unknown"), said("second"), None),
        (said("first"), said("who knows"), None),
        (said("first", 0.2), said("second"), 1.0),
    ],
)
def test_an_answer_counts_as_far_as_it_does_not_change_with_the_order(forth, back, first):
    preference, _ = compare(forth, back)
    assert preference.first == (first if first is None else pytest.approx(first))
    assert preference.usage == Usage(2, 20, 10)
    assert preference.raw == f"{forth}\n\n{back}"


def test_both_orders_are_shown_with_goal_checks_and_references():
    _, client = compare(said("first"), said("second"))
    shown = [[p for p in talk[1].parts if not isinstance(p, str)] for talk in client.talks]
    assert [[image.getpixel((0, 0)) for image in images] for images in shown] == [
        [(0, 128, 0), (255, 0, 0), (0, 0, 255)],
        [(0, 128, 0), (0, 0, 255), (255, 0, 0)],
    ]
    words = "\n".join(p for p in client.talks[0][1].parts if isinstance(p, str))
    assert "Goal: a red dog" in words
    assert "- Is the dog red?" in words


def test_the_reason_and_a_change_with_the_order_are_evidence():
    preference, _ = compare(said("first", reason="Only the first is red."), said("first"))
    assert preference.evidence[0].note == "The answer changes with the order. Only the first is red."


def marked(better, share):
    """A reply whose answer's token has P(first) / (P(first) + P(second)) = share."""
    text = said(better)
    at = text.index(f'"{better}"') + 1
    tokens = [text[:at], better[:3], text[at + 3 :]]
    top = {"first"[:3]: math.log(share / 2), "second"[:3]: math.log((1 - share) / 2), "tie": math.log(0.5)}
    marks = tuple(TokenLogprob(t, top if i == 1 else {t: 0.0}) for i, t in enumerate(tokens))
    return Reply(text, Usage(1), logprobs=marks)


def test_measured_probabilities_count():
    preference, _ = compare(marked("first", 0.8), marked("second", 0.1))
    assert preference.first == pytest.approx(0.85)


def test_tokens_of_a_thinking_block_do_not_disturb():
    reply = marked("second", 0.3)
    assert reply.logprobs is not None
    thought = TokenLogprob("<think>better: first</think>\n", {})
    assert chosen(reply.text, (thought, *reply.logprobs), "better", "first", "second") == pytest.approx(0.3)
    assert chosen("something else", reply.logprobs, "better", "first", "second") is None


def test_a_reply_is_repaired_once():
    preference, _ = compare("nonsense", said("first"), said("second"))
    assert preference.first == 1.0
    assert preference.usage.calls == 3


def test_a_failed_call_is_unjudged():
    preference, _ = compare(said("first"), VLMError("The server burnt."))
    assert preference.first is None
    assert preference.evidence[0].note == "The server burnt."
    assert preference.usage.calls == 2
    assert compare("nonsense", "nonsense")[0].first is None


def test_a_wrong_name_raises_before_the_first_answer_only():
    with pytest.raises(VLMSetupError):
        compare(VLMSetupError("No such model."))
    assert compare(said("first"), VLMSetupError("Gone."))[0].first is None
