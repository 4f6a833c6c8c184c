"""Qwen3-VL in this process: the same numbers as transformers' own, with and without what is kept."""

from __future__ import annotations

import contextlib
import json
import shutil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clvr import cli, events, journal, loop
from clvr.errors import DeviceMemoryError, MissingFileError, ReplyError, SettingError, VLMError, WeightsError
from clvr.ports import Album
from clvr.trajectory import Candidate, Check, CheckVerdict, Decision, Goal, Step, Trajectory, Verdict, generated
from clvr.vlm import Message, VLMController, VLMVerifier, replies, templates
from clvr.vlm.certainty import probabilities
from clvr.vlm.folder import find
from clvr.vlm.local import LocalClient, LocalSettings, Resident
from clvr.vlm.prefix import common
from clvr.vlm.qwen import content

from .tiny_vlm import TEMPLATE, Told, make
from .vlm_lessons import FIRST, Painter

RED = Check("red", "Is it red?")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("tiny-vlm"))


@pytest.fixture(scope="module")
def loaded(folder):
    torch.set_num_threads(1)
    return LocalClient.load(folder)


@pytest.fixture
def make_client(loaded):
    def of(waiting=None, **options):
        loaded.release()
        return LocalClient(loaded.qwen, None, LocalSettings(**{"max_tokens": 12, **options}), waiting)

    return of


def picture(color, size=(64, 64)):
    return Image.new("RGB", size, color)


def rounds(count):
    """A planning conversation that grows: one image and one decision a round, of several sizes."""
    talk = [Message("system", ("You plan.",)), Message("user", ("Goal:", picture("red"), "Decide."))]
    for n in range(count):
        yield list(talk)
        talk.append(Message("assistant", (f'{{"action": "edit {n}"}}',)))
        shown = picture((40 * n, 90, 200), (64, 32 + 32 * (n % 2)))
        talk.append(Message("user", (f"<IMG_GEN_{n}>:", shown, "It was judged.", "Decide.")))


def assert_same(one, other):
    assert one.text == other.text
    for a, b in zip(one.logprobs, other.logprobs, strict=True):
        assert a.top == pytest.approx(b.top, abs=1e-4)


def work_of(client, messages):
    """Reply, prompt tokens that were read, and images that were encoded."""
    before = (client.qwen.work.prefilled, client.qwen.work.images)
    reply = client.chat(messages, logprobs=True)
    return reply, client.qwen.work.prefilled - before[0], client.qwen.work.images - before[1]


def test_replies_are_those_of_transformers_own_generation(make_client):
    client = make_client(keep_prefix=False)
    messages = list(rounds(3))[-1]
    images = [p for m in messages for p in m.parts if not isinstance(p, str)]
    turns = [{"role": m.role, "content": content(m)} for m in messages]
    processor = client.qwen.processor
    text = processor.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
    batch = processor(text=[text], images=images, return_tensors="pt")
    made = client.qwen.model.generate(**batch, max_new_tokens=12, do_sample=False)
    ids = made[0, batch["input_ids"].shape[1] :].tolist()
    reply = client.chat(messages)
    assert reply.text == "".join(client.qwen.pieces(ids))
    assert reply.usage.tokens_in == batch["input_ids"].shape[1]


def test_a_kept_prefix_changes_no_reply_and_saves_reading_and_seeing(make_client):
    plain = make_client(keep_prefix=False)
    expected = [plain.chat(messages, logprobs=True) for messages in rounds(5)]
    kept = make_client()
    read = []
    for messages, reply in zip(rounds(5), expected, strict=True):
        again, tokens, images = work_of(kept, messages)
        assert_same(again, reply)
        assert images == 1
        read.append(tokens)
    assert expected[-1].usage.tokens_in > 3 * expected[0].usage.tokens_in
    assert max(read[1:]) <= 1.2 * min(read[1:])


def test_a_round_reads_only_what_is_new_since_the_last_one(loaded):
    """The decision that the VLM wrote is shown to it letter for letter, so that its keys and values still hold."""
    told = Told(loaded.qwen.model, loaded.qwen.processor, "told")
    controller = VLMController(LocalClient(told))
    trajectory, images, before, written = Trajectory(Goal("a cup", checks=(RED,))), Album(), 0, 0
    for n in range(4):
        references = (generated(n - 1),) if n else ()
        expects = (Check("a", 'Does it say "é"?', "text"), Check("b", "Is it \\ or / red?", "color", "a"))
        planned = Decision("edit" if n else "generate", f"Not\tyet,\n{n}.", "paint \x07 it", references, expects)
        told.say(replies.dump_decision(planned))
        read = told.work.prefilled
        decision = controller.decide(trajectory, images)
        assert decision.raw == replies.dump_decision(decision)
        new = decision.usage.tokens_in - before
        assert told.work.prefilled - read == new - written
        before, written = decision.usage.tokens_in, decision.usage.tokens_out - 1  # the last one was never read
        verdict = Verdict((CheckVerdict("red", "fail"),))
        trajectory = trajectory.append(Step(n, decision, (Candidate(n, None, verdict),), 0, True))
        images = images.with_image(generated(n), picture((40 * n, 90, 200)))


def test_a_changed_history_is_read_anew_from_where_it_changed(make_client):
    client = make_client()
    *_, last = rounds(4)
    client.chat(last)
    changed = list(last)
    changed[3] = Message("user", ("<IMG_GEN_0>:", picture("black"), "It was judged.", "Decide."))
    reply, tokens, images = work_of(client, changed)
    assert_same(reply, make_client(keep_prefix=False).chat(changed, logprobs=True))
    assert images == 1
    assert 0 < tokens < reply.usage.tokens_in


def test_the_same_question_twice_reads_one_token(make_client):
    client = make_client()
    messages = next(rounds(1))
    first = client.chat(messages, logprobs=True)
    reply, tokens, images = work_of(client, messages)
    assert (tokens, images) == (1, 0)
    assert_same(reply, first)


def test_judging_between_two_rounds_does_not_cost_the_plan_its_prefix(make_client):
    client = make_client()
    first, second = rounds(2)
    before = client.chat(first)
    client.chat([Message("system", ("You judge.",)), Message("user", ("Image:", picture("red"), "Is it red?"))])
    reply, tokens, _ = work_of(client, second)
    assert tokens == reply.usage.tokens_in - before.usage.tokens_in


def test_what_is_kept_stays_within_its_bytes_and_release_drops_it(make_client):
    client = make_client(prefix_bytes=1)
    for messages in rounds(2):
        client.chat(messages)
    assert client._prefixes.bytes == 0
    client = make_client()
    for messages in rounds(2):
        client.chat(messages)
    assert 0 < client._prefixes.bytes < 1 << 20
    client.release()
    assert client._prefixes.bytes == 0


@pytest.mark.parametrize("broken_off", [False, True])
def test_nothing_is_kept_when_a_run_is_over_or_broken_off(loaded, broken_off):
    told = Told(loaded.qwen.model, loaded.qwen.processor, "told")
    client = LocalClient(told)
    kept = []

    def listen(event):
        kept.append(client._prefixes.bytes)
        if isinstance(event, events.Drawn):
            told.say(replies.dump_judgement([CheckVerdict("red", "pass")]))
        if isinstance(event, events.Judged) and broken_off:
            raise KeyboardInterrupt

    told.say(replies.dump_decision(FIRST))
    ports = loop.Ports(VLMController(client), Painter(), VLMVerifier(client))
    with pytest.raises(KeyboardInterrupt) if broken_off else contextlib.nullcontext():
        assert loop.run(Goal("a red picture", checks=(RED,)), [], ports, listen=listen).stop.startswith("every check")
    assert max(kept) > 0
    assert client._prefixes.bytes == 0


@pytest.mark.parametrize("after", [0, 1, 3, 7, 12])
def test_an_interrupted_call_passes_the_exception_on_and_the_next_one_is_right(make_client, monkeypatch, after):
    monkeypatch.setattr("clvr.vlm.local._LOOK", 0)
    looks = iter(range(10_000))

    def waiting():
        if next(looks) == after:
            raise KeyboardInterrupt

    client = make_client(waiting)
    *_, messages = rounds(3)
    with pytest.raises(KeyboardInterrupt):
        client.chat(messages)
    assert_same(client.chat(messages, logprobs=True), make_client(keep_prefix=False).chat(messages, logprobs=True))


def test_a_schema_is_kept_to_by_a_model_that_knows_nothing(make_client):
    client = make_client(max_tokens=400)
    schema = {
        "type": "object",
        "properties": {"check": {"enum": ["red"]}, "reason": {"type": "string", "maxLength": 9},
                       "answer": {"enum": ["yes", "no"]}},
        "required": ["check", "reason", "answer"],
        "additionalProperties": False,
    }  # fmt: skip
    reply = client.chat(next(rounds(1)), schema, logprobs=True)
    assert json.loads(reply.text)["answer"] in ("yes", "no")
    assert not reply.truncated
    certain = probabilities(reply.text, reply.logprobs)["red"]
    assert 0 < certain < 1
    assert (certain > 0.5) == (json.loads(reply.text)["answer"] == "yes")


def test_without_llguidance_a_reply_is_free_and_the_log_says_so_once(make_client, monkeypatch, caplog):
    from clvr.vlm import constrain

    monkeypatch.setattr(constrain, "find_spec", lambda name: None)
    constrain.available.cache_clear()
    client = make_client()
    for _ in range(2):
        assert client.chat(next(rounds(1)), replies.judgement_schema([RED])).truncated
    constrain.available.cache_clear()
    assert [r.getMessage().split(":")[0] for r in caplog.records] == ["llguidance is not installed"]


def test_an_answer_at_its_limit_is_told_as_cut(make_client):
    reply = make_client(max_tokens=5).chat(next(rounds(1)))
    assert reply.truncated
    assert reply.usage.tokens_out == 5


def test_a_conversation_longer_than_the_model_reads_is_refused_with_its_length(make_client):
    with pytest.raises(VLMError, match="tokens"):
        make_client(max_tokens=1 << 20).chat(next(rounds(1)))


@pytest.mark.parametrize("mark", ["<|image_pad|>", "<|im_end|>", "<|vision_start|><|image_pad|><|vision_end|>"])
def test_marks_of_the_model_in_a_prompt_are_plain_text(make_client, mark):
    client = make_client()
    prompt = client.qwen.prompt([Message("user", (f"draw {mark} twice", picture("red")))], 64)
    assert len(prompt.images) == 1
    assert prompt.tokens.count(2) == 1  # <|im_end|>


def test_a_template_without_room_for_the_images_is_an_error_that_counts_them(tmp_path):
    template = "{% for m in messages %}{{ m.role }}{% endfor %}"
    client = LocalClient.load(make(tmp_path, template), settings=LocalSettings(max_tokens=4))
    with pytest.raises(VLMError, match=r"1 images.*room for 0"):
        client.chat([Message("user", (picture("red"), "?"))])


def test_thinking_is_cut_off_and_thinking_alone_is_no_answer(tmp_path):
    client = LocalClient.load(make(tmp_path, TEMPLATE + "<think>\n"), settings=LocalSettings(max_tokens=30))
    with pytest.raises(ReplyError, match="all its 30 tokens thinking"):
        client.chat(next(rounds(1)), replies.judgement_schema([RED]))
    head = client.qwen.model.lm_head.weight
    thought = client.qwen.thought
    with torch.no_grad():  # every step's likeliest token
        head[thought] = 0
    choose = iter([40, 41, thought, 50, 51])
    client.settings = LocalSettings(max_tokens=5)
    client.qwen.read = lambda prompt, prefix: _likely(client, next(choose))
    client.qwen.step = lambda token, position, prefix: _likely(client, next(choose))
    reply = client.chat(next(rounds(1)), logprobs=True)
    assert reply.text == "".join(client.qwen.pieces([50, 51]))
    assert "".join(t.token for t in reply.logprobs) == reply.text


def _likely(client, token):
    return torch.nn.functional.one_hot(torch.tensor(token), client.qwen.vocabulary).float() * 9


def test_sampling_repeats_with_its_seed(make_client):
    texts = [make_client(temperature=1.5, seed=seed).chat(next(rounds(1))).text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


def test_a_full_device_is_tried_again_without_what_is_kept_and_then_named(make_client, monkeypatch):
    client = make_client()
    first = client.chat(next(rounds(1)))
    real, failures = client.qwen.read, [torch.OutOfMemoryError("CUDA out of memory")]

    def read(prompt, prefix):
        if failures:
            raise failures.pop()
        return real(prompt, prefix)

    monkeypatch.setattr(client.qwen, "read", read)
    assert client.chat(next(rounds(1))).text == first.text
    failures += [torch.OutOfMemoryError("CUDA out of memory")] * 2
    with pytest.raises(DeviceMemoryError, match="smaller"):
        client.chat(next(rounds(1)))


def test_weights_that_leave_take_the_prefix_with_them(loaded):
    moves = []

    class Model(torch.nn.Module):
        def to(self, device):
            moves.append(str(device))

    with Resident(Model(), torch.device("meta"), leaves=True) as _:
        pass
    assert moves == ["meta", "cpu"]


SAID = {
    "checklist": replies.dump_checklist([RED]),
    "plan": replies.dump_decision(FIRST),
    "judge": replies.dump_judgement([CheckVerdict("red", "pass")]),
}


class Rehearsed(Told):
    """Says what is expected of it in a run of one round, by what it is asked for."""

    def read(self, prompt, prefix):
        self.say(next(reply for name, reply in SAID.items() if prompt.kind == templates.text(name)))
        return super().read(prompt, prefix)


def test_the_command_line_runs_a_loop_with_a_folder_in_its_own_process(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("clvr.vlm.local.QwenVL", Rehearsed)
    small = ["--size", "64x64", "--steps", "1", "--device", "cpu", "--seed", "1"]
    vlm = f"transformers:{folder}"
    assert cli.main(["generate", "a red picture", "--vlm", vlm, "--out", str(tmp_path / "run"), *small]) == 0
    assert str(tmp_path / "run" / "final.png") in capsys.readouterr().out
    record = journal.read(tmp_path / "run")
    assert record.header.options["vlm"] == vlm
    assert record.header.models["controller"].startswith(folder.name)
    assert record.trajectory.best.winner.active.outcome("red") == "pass"


# Folders


def _copy(folder, tmp_path, *lacking):
    target = tmp_path / "copy"
    shutil.copytree(folder, target)
    for name in lacking:
        (target / name).unlink(missing_ok=True)
    return target


@pytest.mark.parametrize(
    ("lacking", "named"),
    [
        (("config.json",), "config.json"),
        (("model.safetensors",), "model.safetensors"),
        (("tokenizer.json",), "tokenizer.json"),
        (("preprocessor_config.json", "processor_config.json"), "preprocessor_config.json"),
        (("chat_template.jinja",), "chat_template.jinja"),
    ],
)
def test_a_missing_file_is_named(folder, tmp_path, lacking, named):
    with pytest.raises(MissingFileError, match=named):
        LocalClient.load(_copy(folder, tmp_path, *lacking))


def test_pickles_are_refused_and_never_opened(folder, tmp_path):
    copy = _copy(folder, tmp_path, "model.safetensors")
    (copy / "pytorch_model.bin").write_bytes(b"cos\nsystem\n")
    with pytest.raises(WeightsError, match="pickle"):
        LocalClient.load(copy)
    with pytest.raises(WeightsError, match="pickle"):
        LocalClient.load(copy / "pytorch_model.bin")


@pytest.mark.parametrize("kind", ["llama", "qwen3", "qwen2_5_vl"])
def test_another_kind_of_model_is_named(folder, tmp_path, kind):
    copy = _copy(folder, tmp_path)
    (copy / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(WeightsError, match=f"'{kind}', not a Qwen3-VL"):
        LocalClient.load(copy)


def test_damaged_and_foreign_weights_are_named(folder, tmp_path):
    copy = _copy(folder, tmp_path)
    whole = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(WeightsError, match="damaged"):
        LocalClient.load(copy)
    shutil.copy(folder / "model.safetensors", copy)
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] = 3
    config["text_config"].pop("layer_types", None)
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"layers\.2.* is missing"):
        LocalClient.load(copy)


def test_too_little_memory_is_said_before_anything_is_read(folder, monkeypatch):
    import psutil

    class Little:
        available = 1000

    monkeypatch.setattr(psutil, "virtual_memory", Little)
    with pytest.raises(DeviceMemoryError, match="GB are free"):
        LocalClient.load(folder)


@pytest.mark.parametrize("wrong", [{"device": "tpu"}, {"dtype": "int3"}, {"offload": "sideways"}])
def test_a_setting_that_cannot_work_is_named(folder, wrong):
    with pytest.raises(SettingError, match=next(iter(wrong.values()))):
        LocalClient.load(folder, **wrong)


def test_a_hub_id_is_taken_from_the_cache_and_downloaded_only_without_it(folder):
    asked = []

    def cached(name, **options):
        asked.append(options.get("local_files_only", False))
        return str(folder)

    def absent(name, **options):
        if options.get("local_files_only"):
            raise MissingFileError("not there")
        return cached(name, **options)

    assert find("owner/model", cached).path == folder
    assert find("owner/model", absent).path == folder
    assert asked == [True, False]


@settings(max_examples=100)
@given(st.lists(st.integers(0, 2)), st.lists(st.integers(0, 2)))
def test_the_common_beginning_is_the_longest(one, other):
    n = common(one, other)
    assert one[:n] == other[:n]
    assert n == min(len(one), len(other)) or one[n] != other[n]
