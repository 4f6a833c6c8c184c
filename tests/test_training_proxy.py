"""Tasks, the proxy prompts that are distilled from them, and the rewards against those."""

from __future__ import annotations

import json
import random
from collections import Counter
from itertools import islice

import pytest
from PIL import Image

from clvr.context import Context, Turn
from clvr.errors import FormatError, GrammarError, ReplyError, SettingError, VLMSetupError, VLMTimeoutError
from clvr.ports import Proxy
from clvr.shapes.edits import apply
from clvr.shapes.found import to_scene
from clvr.shapes.language import parse_edit
from clvr.shapes.measure import measure
from clvr.shapes.render import render
from clvr.shapes.scene import Item, Scene
from training import rewards
from training.data import records
from training.proxy import (
    Cache,
    LastWords,
    Offline,
    ProxyReply,
    VLMTeacher,
    WorldTeacher,
    check,
    describe,
    extract,
    instruction,
)
from training.tasks import KINDS, Dataset, World, mixed, tasks

from . import sft_fixtures
from .test_vlm_agents import Scripted
from .vlm_fixtures import complaint, completion, serving

RED = Item("circle", "red", "medium", (0, 0))
BLUE = Item("square", "blue", "large", (2, 3))
GREEN = Item("cross", "green", "medium", (1, 1))
ONE, TWO = render(Scene((RED,))), render(Scene((RED, BLUE)))


def context(words="A blue square is missing. add a large blue square in row three column four", images=1):
    turns = (Turn(0, "Nothing is drawn yet. draw a red circle in row one column one", "IMG_GEN_0"), Turn(1, words))
    return Context("a red circle and a blue square", turns, (("IMG_GEN_0", ONE),)) if images else Context(
        "a red circle and a blue square", (Turn(0, words),)
    )  # fmt: skip


def reply(t2i="a scene", i2i="", ref_indices=()):
    return json.dumps({"t2i": t2i, "i2i": i2i, "ref_indices": list(ref_indices)})


# tasks


def test_new_pictures_and_edits_come_one_to_one_and_edits_of_all_steps_equally():
    made = Counter(task.kind for task in islice(mixed(World(), random.Random(0)), 800))
    assert made["t2i"] / 800 == pytest.approx(0.5, abs=0.05)
    for kind in KINDS[1:]:
        assert made[kind] / 800 == pytest.approx(0.125, abs=0.04)


@pytest.mark.parametrize("kind", KINDS)
def test_a_task_s_context_is_cut_after_its_reasoning_and_refers_to_what_was_drawn_before(kind):
    task = World().draw(kind, random.Random(4))
    assert task.kind == kind
    assert all(label in task.history for label in task.references)
    assert task.text.splitlines()[0] == task.context.goal
    assert task.text.count("<IMG_GEN_") == len(task.context.images)
    assert not task.text.endswith(">")


def test_the_same_seed_gives_the_same_tasks():
    first, again = ([t.text for t in islice(mixed(World(), random.Random(2)), 5)] for _ in range(2))
    assert first == again


def test_every_step_of_a_dataset_is_a_task_with_its_context_and_its_history(tmp_path):
    folder = sft_fixtures.write(tmp_path / "data", trajectories=6)
    records_ = list(records.read(folder))
    made = list(tasks(folder))
    steps = [(record, step) for record in records_ for step in record.steps]
    assert [task.text for task in made] == [step.context for _, step in steps]
    for task, (record, step) in zip(made, steps, strict=True):
        assert [p.tobytes() for p in task.pictures] == [record.image(i).tobytes() for i in step.references]
        assert len(task.context.images) == step.target
    assert Dataset(folder).kinds == ("t2i", "i2i 1", "i2i 2")


# teachers


def test_the_world_s_teacher_describes_the_whole_picture_and_orders_the_edit():
    proxy = WorldTeacher().proxy(context())
    assert proxy.t2i == "a red circle in row one column one and a large blue square in row three column four"
    assert proxy.i2i == "add a large blue square in row three column four"
    assert proxy.references == ("IMG_GEN_0",)


def test_the_world_s_teacher_describes_a_new_picture_and_orders_nothing():
    proxy = WorldTeacher().proxy(context("Nothing is drawn yet. draw a red circle in row one column one", 0))
    assert proxy == Proxy("a red circle in row one column one")


def test_what_the_teacher_orders_leads_to_what_it_describes():
    for task in islice(mixed(World(), random.Random(1)), 60):
        proxy = WorldTeacher().proxy(task.context)
        if proxy.references:
            source = to_scene(measure(task.history[proxy.references[0]]))
            assert describe(apply(source, parse_edit(proxy.i2i))) == proxy.t2i


def test_a_picture_of_nothing_known_is_refused():
    blurred = Image.new("RGB", (64, 64), (90, 140, 20))
    told = context()
    with pytest.raises(GrammarError, match="IMG_GEN_0 shows something"):
        WorldTeacher().proxy(Context(told.goal, told.turns, (("IMG_GEN_0", blurred),)))


def test_simple_rl_is_told_the_newest_words_and_the_newest_image_alone():
    words = "A blue square is missing. add a blue square"
    assert LastWords().proxy(context(words)) == Proxy(words, words, ("IMG_GEN_0",))
    assert LastWords().proxy(context(words, 0)) == Proxy(words)


@pytest.mark.parametrize(
    ("words", "order"),
    [
        ("add a red circle", "add a red circle"),
        ("The blue one should be red. recolor the blue cross to red.", "recolor the blue cross to red"),
        ("One. Two. move the cross to row one column two", "move the cross to row one column two"),
    ],
)
def test_the_instruction_is_the_last_sentence(words, order):
    assert instruction(words) == order


@pytest.mark.parametrize(
    ("said", "images", "problem"),
    [
        ({"t2i": "x", "i2i": "y", "ref_indices": [2]}, 2, "ref_indices names 2. Possible are 0 to 1."),
        ({"t2i": "x", "i2i": "y", "ref_indices": [-1]}, 2, "ref_indices names -1"),
        ({"t2i": "x", "i2i": "y", "ref_indices": [0]}, 0, "none: there is no picture yet"),
        ({"t2i": "x", "i2i": "y", "ref_indices": [1, 1]}, 2, "twice"),
        ({"t2i": "x", "i2i": "y", "ref_indices": []}, 2, "do not fit"),
        ({"t2i": "x", "i2i": "", "ref_indices": [0]}, 2, "do not fit"),
    ],
)
def test_indices_that_cannot_be_are_refused(said, images, problem):
    with pytest.raises(ReplyError, match=problem):
        check(ProxyReply(**said), images)


def test_a_vlm_is_shown_the_whole_history_and_asked_again_after_a_wrong_index():
    client = Scripted([reply("all", "add it", [3]), reply("all", "add it", [0])])
    proxy = VLMTeacher(client).proxy(context())
    assert (proxy.t2i, proxy.i2i, proxy.references, proxy.usage.calls) == ("all", "add it", ("IMG_GEN_0",), 2)
    parts = client.talks[0][1].parts
    assert ONE in parts
    assert "The user's goal: a red circle and a blue square" in parts
    assert parts[-1].startswith("The step to be judged: A blue square is missing.")


def test_a_vlm_that_never_answers_in_form_is_an_error_that_says_what_was_wrong():
    with pytest.raises(ReplyError, match=r"no usable proxy prompt, twice.*names 3"):
        VLMTeacher(Scripted([reply("all", "add it", [3])] * 2)).proxy(context())


def test_what_was_extracted_is_kept_and_found_by_what_was_asked(tmp_path):
    client = Scripted([reply("all", "add it", [0])])
    teacher = VLMTeacher(client)
    first = extract([context()], teacher, Cache(tmp_path, teacher.name))
    again = extract([context()], teacher, Cache(tmp_path, teacher.name))
    assert (first.made, first.kept, again.made, again.kept) == (1, 0, 0, 1)
    kept = Offline(tmp_path).proxy(context())
    assert (kept.t2i, kept.i2i, kept.references) == ("all", "add it", ("IMG_GEN_0",))


def test_a_step_without_a_usable_proxy_is_left_out_and_counted(tmp_path):
    client = Scripted(["nothing", "nothing", reply("all")])
    teacher = VLMTeacher(client)
    found = extract([context(), context("draw it anew", 0)], teacher, Cache(tmp_path, teacher.name))
    assert (found.made, found.failed) == (1, {"ReplyError": 1})
    assert "no usable proxy prompt" in found.first


@pytest.mark.parametrize("change", ["words", "pixels"])
def test_another_question_is_another_file(tmp_path, change):
    told = context()
    other = {
        "words": context("move the red circle to row one column two"),
        "pixels": Context(told.goal, told.turns, (("IMG_GEN_0", TWO),)),
    }[change]
    cache = Cache(tmp_path, "world")
    assert cache.path(told) != cache.path(other)


def test_two_teachers_do_not_share_a_folder(tmp_path):
    Cache(tmp_path, "one")
    with pytest.raises(SettingError, match="holds the proxies of one, not of two"):
        Cache(tmp_path, "two")


def test_a_damaged_file_of_the_cache_is_named(tmp_path):
    cache = Cache(tmp_path, "world")
    cache.put(context(), WorldTeacher().proxy(context()))
    path = cache.path(context())
    path.write_text('{"t2i": "x", "i2i": "y", "ref_indices": [7]}')
    with pytest.raises(FormatError, match=rf"{path.name} holds no proxy prompt.*Delete it"):
        Offline(tmp_path).proxy(context())


# rewards


def score(image, proxy, **settings):
    reward = rewards.ProxyReward(rewards.MeasuredScene(), rewards.MeasuredEdit(), **settings)
    return reward.score(image, proxy, {"IMG_GEN_0": ONE})


def test_a_right_picture_earns_everything_and_a_wrong_one_less():
    proxy = WorldTeacher().proxy(context())
    assert score(TWO, proxy) == 1
    assert 0 < score(ONE, proxy) < 1
    assert score(render(Scene((BLUE, GREEN))), proxy) < score(render(Scene((RED, BLUE, GREEN))), proxy) < 1


def test_eq_3_weighs_the_description_and_the_edit_by_halves_and_a_new_picture_by_the_description_alone():
    class Fixed:
        name = "fixed"

        def __init__(self, value):
            self.value = value

        def score(self, *_):
            return self.value

    reward = rewards.ProxyReward(Fixed(0.2), Fixed(0.8))
    assert reward.score(ONE, Proxy("x"), {}) == 0.2
    assert reward.score(ONE, Proxy("x", "y", ("IMG_GEN_0",)), {"IMG_GEN_0": ONE}) == pytest.approx(0.5)


def test_of_several_references_the_last_one_is_the_source():
    class Source:
        name = "source"

        def score(self, image, source, prompt):
            return float(source is TWO)

    reward = rewards.ProxyReward(rewards.MeasuredScene(), Source(), edit_share=1.0)
    proxy = Proxy("a red circle", "add a cross", ("IMG_GEN_0", "IMG_GEN_1"))
    assert reward.score(ONE, proxy, {"IMG_GEN_0": ONE, "IMG_GEN_1": TWO}) == 1
    with pytest.raises(FormatError, match="IMG_GEN_1, which the history lacks"):
        reward.score(ONE, proxy, {"IMG_GEN_0": ONE})


def test_an_unclear_picture_earns_nothing_for_what_cannot_be_told():
    prompt = "a red circle in row one column one"
    grey = Image.new("RGB", (64, 64), (128, 128, 128))
    assert rewards.MeasuredScene().score(ONE, prompt) == 1
    assert rewards.MeasuredScene().score(grey, prompt) == 0


def test_simple_rl_s_text_is_checked_for_what_it_names():
    words = LastWords().proxy(context()).t2i
    assert rewards.MeasuredScene().score(TWO, words) == 1
    assert rewards.MeasuredScene().score(render(Scene((BLUE, GREEN))), words) == 1
    assert rewards.MeasuredScene().score(ONE, words) == 0


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("It fits.\nFinal Score: 5", 1.0),
        ("Final Score: 1", 0.0),
        ("**Final Score:** **3**", 0.5),
        ("final score (1-5): 3.5/5", 0.625),
        ("Final Score: [4]", 0.75),
        ("Final Score: 4 out of 5.", 0.75),
        ("A first Final Score: 2, but no.\nFinal Score: 4.", 0.75),
        ("Alignment Score (1-5): 5\nCoherence Score (1-5): 3\nStyle Score (1-5): 1", 0.5),
        ("**Alignment**: 4.0\n**Coherence**: 4.0\n**Style**: 4.0", 0.75),
    ],
)
def test_a_general_score_is_read_from_what_reward_models_write(text, score):
    assert rewards.general_score(text) == pytest.approx(score)


@pytest.mark.parametrize(
    "text",
    [
        "", "4", "It is good.", "Final Score: good", "Final Score: N/A", "Final Score: 0", "Final Score: 5.5",
        "Final Score: -3", "Final Score: 45", "Final Score: 4-5", "Final Score: 3,5", "Final Score: 3.5.2",
        "Final Score:", "Alignment Score: 4\nStyle Score: 3", "Alignment Score: 4\nCoherence Score: 9\nStyle Score: 3",
    ],
)  # fmt: skip
def test_a_general_reply_without_a_score_is_refused(text):
    with pytest.raises(ReplyError):
        rewards.general_score(text)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ('{"reasoning": "done", "score": [25, 25]}', 1.0),
        ('{"reasoning": "nothing", "score": [0, 25]}', 0.5),
        ('```json\n{"reasoning": "half", "score": [12.5, 0],}\n```', 0.25),
    ],
)
def test_an_edit_score_is_the_mean_of_success_and_restraint(text, score):
    assert rewards.edit_score(text) == pytest.approx(score)


@pytest.mark.parametrize(
    "text",
    [
        "", "25", "[20, 20]", '{"score": 20}', '{"score": [20]}', '{"score": [1, 2, 3]}', '{"score": [26, 3]}',
        '{"score": [-1, 3]}', '{"score": ["good", 3]}', '{"score": [null, 3]}', '{"score": [NaN, 3]}',
        '{"score": [20, 2',
    ],
)  # fmt: skip
def test_an_edit_reply_without_two_scores_in_range_is_refused(text):
    with pytest.raises(ReplyError):
        rewards.edit_score(text)


def test_a_reward_server_is_sent_the_source_before_the_edited_image_and_then_the_instruction():
    with serving(completion('{"reasoning": "ok", "score": [20, 10]}')) as server:
        reward = rewards.UnifiedRewardEdit(server.client)
        assert reward.score(TWO, ONE, "add a $5 square") == pytest.approx(0.6)
    (parts,) = [message["content"] for message in server.chats[0]["messages"]]
    assert [part["type"] for part in parts] == ["image_url", "image_url", "text"]
    assert parts[0] != parts[1]
    assert "Editing instruction: add a $5 square" in parts[2]["text"]
    assert "response_format" not in server.chats[0]


def test_a_reply_without_a_score_is_asked_for_once_more():
    with serving(completion("Nice."), completion("Final Score: 4")) as server:
        assert rewards.UnifiedReward(server.client).score(ONE, "a circle") == 0.75
    assert "Final Score: 3.5" in json.dumps(server.chats[1]["messages"][-1])


def submitted(scorer, count=3):
    futures = [scorer.submit(ONE, Proxy("a circle"), {}) for _ in range(count)]
    try:
        return [f.result() for f in futures]
    finally:
        scorer.close()


def test_what_cannot_be_scored_is_dropped_and_counted_never_a_zero():
    with serving(completion("No idea.")) as server:
        reward = rewards.ProxyReward(rewards.UnifiedReward(server.client), rewards.MeasuredEdit())
        scorer = rewards.Scorer(reward, workers=2, tries=2)
        assert submitted(scorer) == [None] * 3
    assert scorer.failures == {"ReplyError": 3}
    assert len(server.chats) == 3 * 2 * 2  # two tries, each asked again once


def test_a_server_that_recovers_loses_nothing():
    with serving(complaint(500, "busy"), complaint(503, "busy"), completion("Final Score: 3")) as server:
        reward = rewards.ProxyReward(rewards.UnifiedReward(server.client), rewards.MeasuredEdit())
        assert submitted(rewards.Scorer(reward, workers=1), 1) == [0.5]


def test_a_refused_key_ends_the_run():
    with serving(complaint(401, "who are you")) as server:
        reward = rewards.ProxyReward(rewards.UnifiedReward(server.client), rewards.MeasuredEdit())
        with pytest.raises(VLMSetupError, match="asks for an API key"):
            submitted(rewards.Scorer(reward, workers=1), 1)


def test_a_timeout_is_tried_again():
    class Slow:
        name = "slow"
        calls = 0

        def score(self, image, prompt):
            self.calls += 1
            if self.calls < 3:
                raise VLMTimeoutError("It did not answer.")
            return 0.4

    scorer = rewards.Scorer(rewards.ProxyReward(Slow(), rewards.MeasuredEdit()), workers=1, tries=3)
    assert submitted(scorer, 1) == [0.4]
    assert not scorer.failures
