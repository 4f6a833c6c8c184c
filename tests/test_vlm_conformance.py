"""One table of behaviours for the three ways to a VLM: a real server, transformers in this process, and ComfyUI's
CLIP. All three run the same tiny Qwen3-VL, which has learned to plan and to judge one colour."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time

import pytest

from clvr import errors, loop
from clvr.ports import Album
from clvr.trajectory import Candidate, Step, Trajectory, Verdict
from clvr.vlm import Message, VLMController, VLMVerifier, replies
from clvr.vlm.wire import Pictures, message_body
from scripts.comfy import ComfyError

from .tiny_vlm import Lesson, teach
from .vlm_lessons import FIRST, GOAL, RED, Painter, Recorder, judged, lessons, picture
from .vlm_subjects import KINDS, Interrupted, NoQwenError

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vlm_conformance")]

SILENT = [Message("user", ("Say nothing.",))]
THINKING = [Message("user", ("Think about it first.",))]
ANSWER = '{"red": "so"}'


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("taught")
    more = [Lesson(SILENT, ""), Lesson(THINKING, f"<think>hm</think>{ANSWER}")]
    assert teach(folder, [*lessons(), *more], steps=400) < 0.4
    return folder


@pytest.fixture(scope="module", params=[pytest.param(k, marks=[pytest.mark.comfy] * (k == "clip")) for k in KINDS])
def subject(request, folder):
    with opened(request.param, folder) as made:
        yield made


@contextlib.contextmanager
def opened(kind, folder):
    try:
        made = KINDS[kind](folder)
    except ComfyError as error:
        if os.environ.get("CI") and not isinstance(error, NoQwenError):
            raise
        pytest.skip(str(error))
    yield made
    made.close()


def test_a_history_with_images_in_order_gives_the_decision_that_fits_it(subject):
    goal = dataclasses.replace(GOAL, checks=(RED,))
    assert VLMController(subject.client()).decide(Trajectory(goal), Album()).instruction == FIRST.instruction
    verdict = Verdict(replies.parse_judgement(judged("no"), [RED], "any"))
    after = Trajectory(goal).append(Step(0, FIRST, (Candidate(1, None, verdict),), 0, True))
    decision = VLMController(subject.client()).decide(after, Album({"IMG_GEN_0": picture("blue")}))
    assert (decision.action, decision.instruction, decision.references) == ("edit", "make it red", ("IMG_GEN_0",))
    assert decision.usage.calls == 1
    assert decision.usage.tokens_in > 100
    assert decision.usage.tokens_out <= 2


def test_what_it_sees_decides_the_verdict(subject):
    verifier = VLMVerifier(subject.client())
    seen = [verifier.judge(picture(color), [RED]).outcome("red") for color in ("red", "blue", "red")]
    assert seen == ["pass", "fail", "pass"]


def test_a_verdict_has_a_measured_probability_where_the_client_can_measure(subject):
    verifier = VLMVerifier(subject.client(), logprobs=True)
    certain = [verifier.judge(picture(color), [RED]).results[0].probability for color in ("red", "blue")]
    if subject.measures:
        assert 0.5 < certain[0] <= 1
        assert 0 <= certain[1] < 0.5
    else:
        assert certain == [None, None]


@pytest.mark.parametrize("mark", ["<|image_pad|>", "<|im_end|>", "<|vision_start|><|image_pad|><|vision_end|>"])
def test_a_mark_of_the_chat_format_in_a_text_shifts_no_image(subject, mark):
    messages = [Message("user", (f"Is {mark} red?", picture("red")))]
    with contextlib.suppress(errors.ReplyError):  # it was never taught what to say
        assert subject.client(max_tokens=4).chat(messages).usage.calls == 1


def test_an_answer_at_its_limit_is_told_as_cut(subject):
    goal = dataclasses.replace(GOAL, checks=(RED,))
    recorder = Recorder("")
    with contextlib.suppress(errors.ReplyError):
        VLMController(recorder).decide(Trajectory(goal), Album())
    cut, whole = (subject.client(max_tokens=n).chat(recorder.messages) for n in (1, 12))
    assert (cut.truncated, whole.truncated) == (True, False)
    assert cut.usage.tokens_out == 1


def test_an_empty_answer_is_an_error(subject):
    with subject.silent() as client, pytest.raises(errors.ReplyError, match="empty"):
        client.chat(SILENT)


def test_thinking_comes_before_the_answer_or_not_at_all(subject):
    text = subject.client().chat(THINKING).text
    assert text.split("</think>")[-1] == ANSWER


def test_nonsense_leaves_the_check_unjudged_with_what_was_said(subject):
    other = dataclasses.replace(RED, question="Does the cat wear a hat?", id="cat")
    verdict = VLMVerifier(subject.client()).judge(picture("green"), [other])
    assert verdict.outcome("cat") == "unjudged"
    assert verdict.usage.calls == 2


def test_an_interrupt_ends_the_call_within_a_second_and_the_next_one_is_right(subject):
    VLMVerifier(subject.client()).judge(picture("red"), [RED])  # whatever is slow at first has happened
    started = time.monotonic()
    with pytest.raises(Interrupted):
        subject.interrupting().chat(SILENT)
    assert time.monotonic() - started < 1
    assert VLMVerifier(subject.client()).judge(picture("red"), [RED]).outcome("red") == "pass"


def test_two_runs_in_a_row_are_the_same(subject):
    client = subject.client()
    states = [loop.run(GOAL, [], loop.Ports(VLMController(client), Painter(), VLMVerifier(client))) for _ in range(2)]
    runs = [state.trajectory for state in states]
    told = [[(s.decision.action, s.decision.references, run.score(s)) for s in run.steps] for run in runs]
    assert told[0] == told[1] == [("generate", (), 0.0), ("edit", ("IMG_GEN_0",), 1.0)]
    assert runs[0].goal.checks == (RED,)
    assert runs[0].cost.usage == runs[1].cost.usage
    assert runs[0].cost.usage.calls == 5
    assert states[0].best.getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.comfy
def test_a_clip_that_is_no_qwen3_vl_is_named(folder):
    with opened("clip", folder) as clip:
        said = clip.ask({"op": "refusals"})
    assert said.keys() == {"klein tokenizer", "no vision"}
    assert all("no Qwen3-VL that sees" in text and "flux2" in text for text in said.values())
    assert "KleinTokenizer" in said["klein tokenizer"]


def test_the_taught_folder_is_asked_as_the_template_renders(folder):
    """The CLIP's rendering is that of the model's own chat template."""
    from clvr.vlm.encoder import rendered
    from clvr.vlm.local import LocalClient

    qwen = LocalClient.load(folder).qwen
    recorded = [lesson.messages for lesson in lessons()]
    for messages in recorded:
        turns = [message_body(m, Pictures(64)) for m in messages]
        own = qwen.processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        assert rendered(messages)[0] == own
