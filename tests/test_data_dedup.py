"""No training prompt is an evaluation prompt, nearly one, or there twice."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clvr.errors import FormatError, MissingFileError, SettingError
from clvr.shapes.sampler import held_back
from training.data.candidates import Prompt, evaluation, gather
from training.data.config import DedupConfig, PromptConfig
from training.data.dedup import Index, deduplicate, jaccard, normal, shingles

words = st.lists(st.sampled_from(["a", "red", "blue", "cat", "dog", "under", "two"]), max_size=7).map(" ".join)
NOTHING = DedupConfig(against=())


def prompts(*texts):
    return [Prompt(text, f"line {n}") for n, text in enumerate(texts)]


def kinds(texts, config=NOTHING, world=False):
    _, dropped = deduplicate(prompts(*texts), config, world)
    return [(d.prompt.text, d.kind) for d in dropped]


@given(st.lists(words, max_size=12), words, st.floats(0.05, 1))
@settings(max_examples=300, deadline=None)
def test_the_search_finds_just_what_comparing_with_every_text_finds(texts, text, threshold):
    common = Counter(gram for t in [*texts, text] for gram in shingles(t))
    index = Index(threshold, common)
    for number, other in enumerate(texts):
        index.add(str(number), other)
    best = max((jaccard(shingles(text), shingles(other)) for other in texts), default=0.0)
    found = index.nearest(text)
    assert (found is not None) == (bool(texts) and best >= threshold)
    assert found is None or found[0] == best


@given(words)
def test_likeness_is_1_for_the_same_words_however_they_are_written(text):
    assert jaccard(shingles(text), shingles(f"  {text.upper()}! ")) == 1
    assert normal(f"{text.upper()}.") == normal(text)


def test_a_copy_of_an_evaluation_prompt_is_dropped_however_it_is_written(tmp_path):
    tests = tmp_path / "tests.txt"
    tests.write_text("a photo of a bench\na cow left of a bench on a sunny day in the hills\n")
    found, dropped = deduplicate(
        prompts(
            "A photo of a bench.",
            "a cow left of a bench on a sunny day in the valley",
            "a photo of a lamp",
        ),
        DedupConfig(against=(str(tests),), near=0.6),
        world=False,
    )
    assert [p.text for p in found] == ["a photo of a lamp"]
    exact, near = dropped
    assert (exact.kind, exact.place) == ("evaluation, exact", "tests.txt:1")
    assert (near.kind, near.place) == ("evaluation, near", "tests.txt:2")
    assert 0.6 <= near.similarity < 1
    assert near.like.endswith("in the hills")


def test_of_equal_candidates_the_first_stays():
    assert kinds(["a cat on a mat", "a dog", "A cat on a mat!"]) == [("A cat on a mat!", "twice, exact")]
    near = DedupConfig(against=(), near_own=0.5)
    assert kinds(["a cat on a red mat", "a cat on a blue mat"]) == []
    assert kinds(["a cat on a big red mat", "a cat on a big blue mat"], DedupConfig(against=(), near_own=0.3)) != []
    assert kinds(["a cat", "a cat and"], near) == []


def test_every_shipped_suite_is_an_evaluation_set_of_its_own_prompts():
    for name, least in (("geneval", 500), ("geneval++", 270), ("imaginebench", 260), ("ocr", 1000), ("builtin", 390)):
        texts = [text for _, text in evaluation(name)]
        assert len(texts) > least
        config = DedupConfig(against=(name,))
        kept, dropped = deduplicate(prompts(*texts[:40]), config, world=False)
        assert not kept
        assert {d.kind for d in dropped} == {"evaluation, exact"}


def test_the_built_in_world_keeps_its_held_back_tenth_for_evaluation():
    made = gather(PromptConfig(world=60), 0)
    assert len({p.text for p in made}) == 60
    assert not any(held_back(p.text) for p in made)
    held = next(f"a photo of {n} red circles" for n in range(2, 200) if held_back(f"a photo of {n} red circles"))
    assert kinds([held], world=True) == [(held, "held back")]


def test_prompts_come_from_text_and_from_json_lines(tmp_path):
    plain, lines = tmp_path / "a.txt", tmp_path / "b.jsonl"
    plain.write_text("one\n\ntwo\n")
    lines.write_text(json.dumps({"caption": "three", "tag": "style"}) + "\n")
    found = gather(PromptConfig(files=(str(plain),)), 0)
    found += gather(PromptConfig(files=(str(lines),), key="caption"), 0)
    assert [(p.text, p.source, p.tag) for p in found] == [
        ("one", "a.txt:1", ""), ("two", "a.txt:3", ""), ("three", "b.jsonl:1", "style"),
    ]  # fmt: skip
    assert len({p.id for p in found}) == 3


def test_mistakes_in_prompts_are_named(tmp_path):
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": 3}\n')
    with pytest.raises(FormatError, match=r"bad.jsonl line 1: 'prompt' should be a text"):
        gather(PromptConfig(files=(str(bad),)), 0)
    with pytest.raises(MissingFileError, match="There is no"):
        gather(PromptConfig(files=(str(tmp_path / "none.txt"),)), 0)
    with pytest.raises(SettingError, match="no prompts 'lions'"):
        gather(PromptConfig(world=1, categories={"lions": 1}), 0)
    with pytest.raises(SettingError, match="There are no prompts"):
        gather(PromptConfig(), 0)
    with pytest.raises(SettingError, match=r"dedup.near is 1.5"):
        DedupConfig(near=1.5)
    with pytest.raises(MissingFileError, match="not shipped"):
        list(evaluation("wise"))
