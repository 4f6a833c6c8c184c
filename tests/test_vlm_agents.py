"""A VLM as controller and verifier: conversations, repairs, failures, and whole runs over HTTP."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from dataclasses import dataclass, field

import pytest
from PIL import Image

from clvr import loop
from clvr.budget import Budget
from clvr.errors import ReplyError, VLMConnectionError, VLMError, VLMSetupError, VLMTimeoutError
from clvr.ports import Album
from clvr.trajectory import (
    Candidate,
    Check,
    CheckVerdict,
    Decision,
    Evidence,
    Goal,
    Step,
    Trajectory,
    Usage,
    Verdict,
)
from clvr.vlm import OpenAIClient, Reply, TokenLogprob, VLMController, VLMVerifier, replies

from .engine_fixtures import FakeGenerator
from .vlm_fixtures import FAST, complaint, completion, serving

DOG = Check("dog", "Is there a dog?", "object")
RED = Check("red", "Is the dog red?", "color", "dog")
GENERATE = Decision("generate", "Nothing is there yet.", "a red dog", (), (DOG,))


def picture(color="blue"):
    return Image.new("RGB", (16, 16), color)


def judged(**answers):
    rows = [
        {"check": c, "reason": f"looks {a}", "answer": a, "probability": None, "boxes": []} for c, a in answers.items()
    ]
    return json.dumps({"results": rows})


@dataclass
class Scripted:
    """A client that gives its replies in order; an exception among them is raised."""

    replies: list
    name: str = "scripted"
    talks: list = field(default_factory=list)
    schemas: list = field(default_factory=list)

    def chat(self, messages, schema=None, logprobs=False):
        self.talks.append(messages)
        self.schemas.append(schema)
        reply = self.replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply if isinstance(reply, Reply) else Reply(reply, Usage(1, 10, 5))


def trajectory():
    """Two steps: a blue dog was accepted, a cat rolled back."""
    goal = Goal("a red dog like this", 1, (DOG, RED))
    note = (Evidence("judge", "It is blue."),)
    first = Verdict((CheckVerdict("dog", "pass"), CheckVerdict("red", "fail", None, note)))
    second = Verdict((CheckVerdict("dog", "fail"), CheckVerdict("red", "unjudged")))
    edit = Decision("edit", "It is blue.", "make it red", ("IMG_GEN_0",))
    album = Album({"IMG_REF_0": picture("red"), "IMG_GEN_0": picture("blue"), "IMG_GEN_1": picture("green")})
    passive = Verdict((CheckVerdict("dog", "pass"),))
    steps = (
        Step(0, GENERATE, (Candidate(1, passive, first),), 0, True),
        Step(1, edit, (Candidate(2, None, second),), 0, False),
    )
    return Trajectory(goal, steps), album


def transcript(messages):
    """Role and parts, images as their colour."""
    return [(m.role, *(p if isinstance(p, str) else p.getpixel((0, 0)) for p in m.parts)) for m in messages]


def test_the_checklist_is_asked_for_with_the_goal_and_its_references():
    client = Scripted([replies.dump_checklist((DOG, RED))])
    made = VLMController(client).checklist(Goal("a red dog", 1), Album({"IMG_REF_0": picture()}))
    assert made.checks == (DOG, RED)
    assert (made.usage, made.raw) == (Usage(1, 10, 5), replies.dump_checklist((DOG, RED)))
    assert transcript(client.talks[0])[1] == (
        "user",
        "Goal: a red dog",
        "<IMG_REF_0>:",
        (0, 0, 255),
        "Write the checklist.",
    )


HARD = Check("sofa", "Is there a dog and a cat on a sofa?", "object", weight=2.0)
PARTS = (
    '{"parts": [{"of": "sofa", "question": "Is there a dog on a sofa?", "kind": "position"}, '
    '{"of": "sofa", "question": "Is there a cat on a sofa?", "kind": "position"}]}'
)


def test_a_checklist_is_made_tidy_and_told_what_was_changed():
    client = Scripted([replies.dump_checklist((DOG, Check("again", "Is a dog there?", "object"), RED))])
    made = VLMController(client).checklist(Goal("a red dog"), Album())
    assert made.checks == (DOG, RED)
    assert made.notes == ("'Is a dog there?' asks the same as 'Is there a dog?': they are one check",)
    assert len(client.talks) == 1


def test_what_no_rule_can_take_apart_is_asked_once_more():
    client = Scripted([replies.dump_checklist((DOG, HARD)), PARTS])
    made = VLMController(client).checklist(Goal("a dog and a cat on a sofa"), Album())
    assert made.checks == (
        DOG,
        Check("dog-on-sofa", "Is there a dog on a sofa?", "position", weight=2.0),
        Check("cat-on-sofa", "Is there a cat on a sofa?", "position", weight=2.0),
    )
    assert made.notes == (
        "'Is there a dog and a cat on a sofa?' asks several things at once: it is now 'Is there a dog on a sofa?' "
        "and 'Is there a cat on a sofa?'",
    )
    assert (made.usage, made.raw.splitlines()[1]) == (Usage(2, 20, 10), PARTS)
    assert transcript(client.talks[1])[2] == ("assistant", replies.dump_checklist((DOG, HARD)))
    assert "- sofa: Is there a dog and a cat on a sofa?" in transcript(client.talks[1])[3][1]
    assert "dog:" not in transcript(client.talks[1])[3][1].splitlines()[1]
    assert client.schemas[1] == replies.split_schema(["sofa"])


@pytest.mark.parametrize("failures", [["no", "no"], [VLMTimeoutError("too slow")], ["no", VLMTimeoutError("slow")]])
def test_a_question_that_stays_compound_is_kept_and_told(failures):
    client = Scripted([replies.dump_checklist((DOG, HARD)), *failures])
    made = VLMController(client).checklist(Goal("a dog and a cat on a sofa"), Album())
    assert made.checks == (DOG, HARD)
    assert made.notes == ("'Is there a dog and a cat on a sofa?' asks several things at once, and is judged as one",)
    assert made.usage.calls == 1 + len(failures)


def test_the_planning_conversation_shows_every_turn_with_its_image_and_verdict_in_order():
    run, album = trajectory()
    client = Scripted([replies.dump_decision(Decision("edit", "r", "i", ("IMG_GEN_0",)))])
    VLMController(client).decide(run, album)
    system, opening, first, seen, second, again = transcript(client.talks[0])
    assert system[0] == "system"
    assert opening[:4] == ("user", "Goal: a red dog like this", "<IMG_REF_0>:", (255, 0, 0))
    assert "- red: Is the dog red?" in opening[4]
    assert first == ("assistant", replies.dump_decision(run.steps[0].decision))
    assert seen[1:3] == ("<IMG_GEN_0>:", (0, 0, 255))
    assert "This step's own checks: 1 of 1 hold." in seen[3]
    assert "The goal's checklist: 1 of 2 hold.\n- no: Is the dog red? (It is blue.)" in seen[3]
    assert seen[4] == "The canvas is <IMG_GEN_0>. Decide the next step."
    assert second[0] == "assistant"
    assert again[1:3] == ("<IMG_GEN_1>:", (0, 128, 0))
    assert "- no, since what it needs is missing: Is the dog red?" in again[3]
    assert "rolled back" in again[3]
    assert again[4] == "The canvas is <IMG_GEN_0>. Decide the next step."


def test_earlier_turns_of_the_conversation_stay_as_they_were():
    run, album = trajectory()
    talks = []
    for steps in ((), run.steps[:1], run.steps):
        client = Scripted([replies.dump_decision(GENERATE)])
        VLMController(client).decide(dataclasses.replace(run, steps=steps), album)
        talks.append(transcript(client.talks[0]))
    assert talks[1][: len(talks[0])] == talks[0]
    assert talks[2][: len(talks[1])] == talks[1]


def test_a_decision_carries_what_it_cost_and_the_raw_reply():
    run, album = trajectory()
    raw = f"<think>hm</think>{replies.dump_decision(GENERATE)}"
    decision = VLMController(Scripted([raw])).decide(run, album)
    assert decision == dataclasses.replace(GENERATE, usage=Usage(1, 10, 5), raw=raw)


def test_an_edit_without_references_starts_from_the_canvas_or_else_from_the_users_images():
    run, album = trajectory()
    bare = '{"reasoning": "r", "action": "edit", "instruction": "i", "references": [], "expects": []}'
    assert VLMController(Scripted([bare])).decide(run, album).references == ("IMG_GEN_0",)
    start = dataclasses.replace(run, steps=())
    references = Album({"IMG_REF_0": picture()})
    assert VLMController(Scripted([bare])).decide(start, references).references == ("IMG_REF_0",)


def test_a_bad_reply_is_repaired_once_with_its_error():
    run, album = trajectory()
    bad = replies.dump_decision(Decision("edit", "r", "i", ("IMG_GEN_9",)))
    client = Scripted([bad, replies.dump_decision(GENERATE)])
    decision = VLMController(client).decide(run, album)
    assert decision.usage == Usage(2, 20, 10)
    said, asked = transcript(client.talks[1])[-2:]
    assert said == ("assistant", bad)
    assert "There is no image 'IMG_GEN_9'. The images are: <IMG_REF_0>, <IMG_GEN_0>, <IMG_GEN_1>." in asked[1]


@pytest.mark.parametrize("first", ["I would draw a dog.", ReplyError("The model's reply is empty.")])
def test_two_bad_replies_end_the_planning_with_the_last_error(first):
    run, album = trajectory()
    with pytest.raises(ReplyError, match=r"no usable decision, twice: The JSON is cut off.*token limit.*larger model"):
        VLMController(Scripted([first, Reply('{"reasoning": "', truncated=True)])).decide(run, album)


def test_the_first_decision_that_stops_is_sent_back():
    client = Scripted(['{"action": "stop"}', replies.dump_decision(GENERATE)])
    assert VLMController(client).decide(Trajectory(Goal("g")), Album()).action == "generate"
    assert client.schemas[0]["properties"]["action"]["enum"] == ["generate"]


@pytest.mark.parametrize("error", [VLMTimeoutError("slow"), VLMConnectionError("down"), VLMSetupError("401")])
def test_a_controller_passes_on_what_its_client_raises(error):
    run, album = trajectory()
    with pytest.raises(type(error)):
        VLMController(Scripted([error])).decide(run, album)


def test_a_judgement_has_one_result_for_each_check_and_shows_the_references_first():
    client = Scripted([judged(red="no", cat="yes")])
    verdict = VLMVerifier(client).judge(picture("green"), (DOG, RED), [picture("red")])
    assert [(r.check, r.outcome) for r in verdict.results] == [("dog", "unjudged"), ("red", "fail")]
    assert verdict.usage == Usage(1, 10, 5)
    assert verdict.results[1].evidence == (Evidence("scripted", "looks no"),)
    asked = transcript(client.talks[0])[1]
    assert asked[1:5] == ("Reference image 0:", (255, 0, 0), "Image to judge:", (0, 128, 0))
    assert asked[5] == "Questions:\n- dog: Is there a dog?\n- red: Is the dog red?"


def test_nothing_is_asked_about_nothing():
    assert VLMVerifier(Scripted([])).judge(picture(), ()) == Verdict()


def test_checks_go_in_batches_and_a_failed_batch_leaves_the_others():
    checks = [Check(f"c{i}", "q") for i in range(5)]
    client = Scripted([judged(c0="yes", c1="no"), VLMTimeoutError("too slow"), judged(c4="yes")])
    verdict = VLMVerifier(client, batch=2).judge(picture(), checks)
    assert [r.outcome for r in verdict.results] == ["pass", "fail", "unjudged", "unjudged", "pass"]
    assert verdict.results[2].evidence[0].note == "too slow"
    assert verdict.usage.calls == 3


def test_a_judgement_that_cannot_be_read_twice_is_unjudged_and_kept():
    verdict = VLMVerifier(Scripted(["Looks great!", "Really, it does."])).judge(picture(), (DOG, RED))
    assert [r.outcome for r in verdict.results] == ["unjudged", "unjudged"]
    assert verdict.results[0].raw == "Really, it does."
    assert "no JSON object" in verdict.results[0].evidence[0].note
    assert verdict.usage == Usage(2, 20, 10)


@pytest.mark.parametrize("error", [VLMSetupError("unknown model"), VLMConnectionError("down")])
def test_a_broken_setup_raises_at_first_use_and_is_unjudged_later(error):
    verifier = VLMVerifier(Scripted([error, judged(dog="yes"), error]))
    with pytest.raises(type(error)):
        verifier.judge(picture(), (DOG,))
    assert verifier.judge(picture(), (DOG,)).outcome("dog") == "pass"
    assert verifier.judge(picture(), (DOG,)).outcome("dog") == "unjudged"


@pytest.mark.parametrize("error", [VLMTimeoutError("slow"), VLMError("failed (500)"), ReplyError("empty")])
def test_a_failed_call_is_unjudged_even_at_first_use(error):
    verdict = VLMVerifier(Scripted([error, error])).judge(picture(), (DOG,))
    assert verdict.outcome("dog") == "unjudged"
    assert verdict.usage.calls >= 1


def test_a_measured_probability_replaces_the_written_one():
    text = '{"results": [{"check": "dog", "answer": "yes", "probability": 0.6}]}'
    head, tail = text.split("yes")
    tokens = (TokenLogprob(head, {}), TokenLogprob("yes", {"yes": -0.1, "no": -2.4}), TokenLogprob(tail, {}))
    verdict = VLMVerifier(Scripted([Reply(text, logprobs=tokens)]), logprobs=True).judge(picture(), (DOG,))
    assert verdict.results[0].probability == pytest.approx(0.909, abs=0.001)


def test_names_tell_the_model_and_the_prompts():
    assert VLMController(Scripted([])).name == "scripted (checklist.v2, plan.v1)"
    assert VLMVerifier(Scripted([])).name == "scripted (judge.v1)"


def test_importing_the_package_loads_no_heavy_module():
    code = "import sys, clvr.vlm; sys.exit(any(m in sys.modules for m in ('torch', 'numpy', 'transformers')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def ports(client, *greys):
    return loop.Ports(VLMController(client), FakeGenerator(list(greys)), VLMVerifier(client))


def test_a_whole_run_over_http_ends_when_the_checklist_passes():
    goal_checks = replies.dump_checklist((DOG, RED))
    edit = Decision("edit", "It is not red.", "make it red", ("IMG_GEN_0",), (RED,))
    script = [
        completion(goal_checks),
        completion(f"<think>First the dog.</think>\n```json\n{replies.dump_decision(GENERATE)}\n```"),
        completion(judged(dog="yes", red="no")),
        completion(judged(dog="yes")),
        completion("I think that the dog should be red now."),
        completion(replies.dump_decision(edit)),
        completion(judged(dog="yes", red="yes")),
        completion(judged(red="yes")),
    ]
    with serving(*script) as server:
        state = loop.run(Goal("a red dog"), [], ports(server.client()))
    run = state.trajectory
    assert run.goal.checks == (DOG, RED)
    assert [s.decision.action for s in run.steps] == ["generate", "edit"]
    assert [run.score(s) for s in run.steps] == [0.5, 1.0]
    assert run.stop_reason == "every check of the goal passes"
    assert run.cost.usage == Usage(8, 56, 24)
    assert Trajectory.from_dict(json.loads(json.dumps(run.to_dict()))) == run


def test_a_judge_that_talks_nonsense_never_ends_a_run_as_a_success():
    script = [
        completion(replies.dump_checklist((DOG,))),
        completion(replies.dump_decision(GENERATE)),
        completion("nice!"),
    ]
    with serving(*script) as server:
        state = loop.run(Goal("a dog"), [], ports(server.client()), loop.Settings(Budget(steps=1)))
    assert state.trajectory.steps[0].winner.active.outcome("dog") == "unjudged"
    assert "budget of 1 steps" in state.trajectory.stop_reason


def test_a_vlm_that_dies_in_the_middle_leaves_what_was_drawn():
    script = [
        completion(replies.dump_checklist((DOG,))),
        completion(replies.dump_decision(GENERATE)),
        completion(judged(dog="no")),
        complaint(500, "out of memory"),
    ]
    with serving(*script) as server:
        state = loop.run(Goal("a dog"), [], ports(server.client()))
    assert len(state.trajectory.steps) == 1
    assert state.resumable
    assert "out of memory" in state.trajectory.stop_reason


def test_a_server_that_is_not_there_ends_a_run_before_it_begins():
    client = OpenAIClient("127.0.0.1:9", "tiny", settings=dataclasses.replace(FAST, retries=0))
    with pytest.raises(VLMConnectionError, match="Start one"):
        loop.run(Goal("a dog"), [], ports(client))
