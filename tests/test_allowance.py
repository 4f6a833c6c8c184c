"""What a budget allows inside of one call to a port, where that makes several requests."""

from __future__ import annotations

import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clvr import allowance
from clvr.budget import Budget
from clvr.errors import ReplyError, VLMTimeoutError
from clvr.ports import Album
from clvr.trajectory import Check, Cost, Goal, Usage
from clvr.vlm import VLMController, VLMVerifier
from clvr.vlm.chat import Reply

BAD = "I would rather not."
EACH = Usage(1, 7, 3)
PICTURE = Image.new("RGB", (8, 8))
CHECKS = tuple(Check(f"c{i}", f"Is it {i}?") for i in range(6))


@dataclass
class ScriptedClient:
    """Answers in order, the last one for ever; an error in the script is raised."""

    script: list
    name: str = "scripted"
    asked: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def chat(self, messages, schema=None, logprobs=False):
        with self.lock:
            reply = self.script[min(self.asked, len(self.script) - 1)]
            self.asked += 1
        if isinstance(reply, Exception):
            raise reply
        return Reply(reply, EACH)


def judged(script, budget, spent=None, batch=1):
    """A judge in batches under a budget: its verdict, what was granted, and the requests that were made."""
    client = ScriptedClient(script)
    with allowance.grant(budget, spent or Cost()) as granted:
        verdict = VLMVerifier(client, batch).judge(PICTURE, CHECKS)
    return verdict, granted, client.asked


def test_outside_of_a_grant_nothing_is_refused():
    assert not allowance.refused()
    allowance.answered(EACH)
    assert len(VLMVerifier(ScriptedClient([BAD]), 1).judge(PICTURE, CHECKS).results) == len(CHECKS)


@pytest.mark.parametrize("budget", [Budget(vlm_calls=3), Budget(tokens=30), Budget(tokens=21)])
def test_a_judge_in_batches_asks_no_further_once_the_budget_is_used(budget):
    verdict, granted, asked = judged([BAD], budget)
    assert asked == 3
    assert granted.usage == verdict.usage == Usage(3, 21, 9)
    assert [r.check for r in verdict.results] == [c.id for c in CHECKS]
    assert all(r.outcome == "unjudged" for r in verdict.results)
    assert "is used" in verdict.results[-1].evidence[0].note


def test_what_the_run_spent_before_counts():
    _, _, asked = judged([BAD], Budget(vlm_calls=5), Cost(usage=Usage(4)))
    assert asked == 1
    _, _, asked = judged([BAD], Budget(seconds=5), Cost(seconds={"draw": 5.0}))
    assert asked == 0


def test_time_that_runs_out_between_two_batches_ends_the_judging(monkeypatch):
    clock = iter(range(99))
    monkeypatch.setattr(allowance, "perf_counter", lambda: next(clock))
    with allowance.grant(Budget(seconds=3.5), Cost()):
        client = ScriptedClient([BAD])
        VLMVerifier(client, 1).judge(PICTURE, CHECKS)
    assert client.asked == 3  # after 1, 2 and 3 seconds


def test_a_reply_that_would_be_repaired_beyond_the_budget_is_not():
    client = ScriptedClient([BAD])
    with allowance.grant(Budget(vlm_calls=1), Cost()), pytest.raises(ReplyError) as caught:
        VLMController(client).checklist(Goal("a cat"), Album())
    assert client.asked == 1
    assert "budget of 1 VLM calls is used" in caught.value.thing
    assert "twice" not in caught.value.thing


def test_a_repair_that_fails_is_counted_with_the_reply_before_it():
    verdict, granted, asked = judged([BAD, VLMTimeoutError("It hangs.")], Budget(vlm_calls=2), batch=6)
    assert asked == verdict.usage.calls == granted.usage.calls == 2
    assert "It hangs." in verdict.results[0].evidence[0].note


@given(st.integers(1, 9), st.integers(2, 6))
def test_judges_that_are_asked_at_once_share_what_is_left(limit, members):
    client = ScriptedClient([BAD])
    with allowance.grant(Budget(vlm_calls=limit), Cost()), ThreadPoolExecutor(members) as pool:
        contexts = [contextvars.copy_context() for _ in range(members)]
        judges = [VLMVerifier(client, 2) for _ in range(members)]
        calls = [pool.submit(c.run, j.judge, PICTURE, CHECKS) for c, j in zip(contexts, judges, strict=True)]
        spent = sum(call.result().usage.calls for call in calls)
    assert client.asked == spent == min(limit, members * 6)
