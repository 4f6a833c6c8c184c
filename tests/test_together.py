"""Independent calls made at the same time: their order, their budget, and how they end."""

from __future__ import annotations

import json
import threading
import time

import pytest
from PIL import Image

from clvr.budget import Budget
from clvr.errors import VLMConnectionError
from clvr.judging import Bench
from clvr.together import look, together
from clvr.trajectory import Check, Cost
from clvr.vlm import OpenAIClient, VLMVerifier

from .vlm_fixtures import FAST, Sent, completion, serving

RED = Check("red", "Is it red?")


class Stopped(BaseException):
    pass


class Meeting:
    """A server that answers nobody before `wanted` requests are there at the same time, or a second has passed."""

    def __init__(self, wanted):
        self._wanted = threading.Barrier(wanted)
        self.met = 0

    def __call__(self, body):
        try:
            self._wanted.wait(1)
            self.met += 1
        except threading.BrokenBarrierError:
            pass
        width = len(body["messages"][-1]["content"][1]["image_url"]["url"])
        answer = "yes" if width > 200 else "no"
        return completion(json.dumps({"results": [{"check": "red", "answer": answer}]}))


def jobs(*sizes):
    return [(Image.effect_noise((size, size), 50), [RED], []) for size in sizes]


def bench(server, at_once, **limits):
    verifier = VLMVerifier(OpenAIClient(server.url, "tiny", settings=FAST), at_once=at_once)
    return Bench(verifier, Budget(**limits), Cost())


def test_results_come_in_the_order_of_the_calls():
    late = threading.Event()
    calls = [lambda: late.wait(5) and "first", lambda: late.set() or "second"]
    assert together(calls, 2) == ["first", "second"]
    assert together([lambda: 1, lambda: 2], 1) == [1, 2]


def test_what_one_call_raises_ends_the_others_and_passes_through():
    looked = threading.Event()

    def waits():
        looked.set()
        while True:
            look()
            time.sleep(0.01)

    def fails():
        looked.wait(5)
        raise Stopped

    with pytest.raises(Stopped):
        together([waits, fails, waits], 3)


def test_pictures_are_judged_at_the_same_time_each_with_its_own_verdict():
    meeting = Meeting(4)
    with serving(meeting) as server:
        judged = bench(server, 4).judge_each(jobs(4, 64, 4, 64))
    assert meeting.met == 4
    assert [verdict.outcome("red") for verdict in judged] == ["fail", "pass", "fail", "pass"]


def test_one_after_the_other_no_two_requests_meet():
    meeting = Meeting(2)
    with serving(meeting) as server:
        judged = bench(server, 1).judge_each(jobs(4, 64))
    assert meeting.met == 0
    assert [verdict.outcome("red") for verdict in judged] == ["fail", "pass"]


def test_calls_at_the_same_time_keep_to_the_budget_s_calls():
    with serving(Meeting(1)) as server:
        made = bench(server, 4, vlm_calls=3)
        judged = made.judge_each(jobs(4, 4, 4, 4))
        assert len(server.chats) == 3
    assert sorted(verdict.outcome("red") for verdict in judged) == ["fail", "fail", "fail", "unjudged"]
    assert made.cost.usage.calls == 3


def test_a_judge_that_fails_for_one_picture_leaves_the_others_judged():
    answers = [completion(json.dumps({"results": [{"check": "red", "answer": "yes"}]})), Sent(400, "too long")]
    with serving(*answers) as server:
        outcomes = [v.outcome("red") for v in bench(server, 2).judge_each(jobs(4, 4))]
    assert sorted(outcomes) == ["pass", "unjudged"]


@pytest.mark.parametrize("by_listener", [True, False])
def test_an_interrupt_ends_all_of_them_within_a_second(by_listener):
    """ComfyUI tells one thread of an interrupt, and no other; without a listener it reaches one call alone."""
    told = []

    def waiting():
        if len(server.chats) == 3 and not told:
            told.append(time.monotonic())
            raise Stopped

    def breaks():
        while len(server.chats) < 2:
            time.sleep(0.01)
        told.append(time.monotonic())
        raise Stopped

    with serving(Sent(after=20)) as server:
        client = OpenAIClient(server.url, "tiny", settings=FAST, waiting=waiting if by_listener else None)
        verifier = VLMVerifier(client)
        asked = [lambda job=job: verifier.judge(*job) for job in jobs(4, 8, 16)]
        with pytest.raises(Stopped):
            together(asked if by_listener else [*asked[:2], breaks], 3)
        assert time.monotonic() - told[0] < 1


def test_a_server_that_is_not_there_is_said_once_for_all():
    client = OpenAIClient("127.0.0.1:9", "tiny", settings=FAST)
    with pytest.raises(VLMConnectionError):
        together([lambda job=job: VLMVerifier(client).judge(*job) for job in jobs(4, 4)], 2)
