"""Sets of prompts: targeted trimming, sparse tiers, results by tier, and what a VLM counts."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clvr import probe
from clvr.errors import FormatError, GrammarError, MissingFileError, ReplyError
from clvr.probe import Parts, Shot, results
from clvr.probe.stratify import GrammarReader, Scheme, simpler, stratify, trim
from clvr.shapes.language import parse
from clvr.shapes.sampler import prompt as sample
from clvr.vlm.complexity import PromptReader

from .test_vlm_agents import Scripted

READER = GrammarReader()
LONG = "a photo of two large red circles and a green square above the circles and no black shapes"


def prompts(count, seed=0, category="complex"):
    rng = random.Random(seed)
    return [sample(category, rng)[0] for _ in range(count)]


def test_side_conditions_go_first_and_things_last():
    first, second, *_, last = list(simpler(parse(LONG)))
    assert first.absent == ()
    assert second.relations == ()
    assert (last.groups[0].count, last.groups[1].count) == (1, 1)


@settings(max_examples=60)
@given(st.integers(0, 10_000))
def test_every_simpler_prompt_is_a_prompt_of_the_world_with_less_to_it(seed):
    (text,) = prompts(1, seed)
    for shorter in READER.simpler(text):
        assert probe.complexity(READER.count(shorter)) < probe.complexity(READER.count(text))


@settings(max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_trimming_ends_in_the_tier_that_was_asked_for_or_nowhere(seed, goal):
    scheme = Scheme((8.0, 14.0, 22.0), (4, 16))
    (text,) = prompts(1, seed)
    start = scheme.sample(text, READER.count(text))
    found = trim(start, goal, READER, scheme)
    if found is not None:
        assert found.tier == goal
        assert scheme.fits(found)
        assert found.parts == READER.count(found.prompt)
    else:
        assert start.tier != goal or not scheme.fits(start)


def test_what_lies_in_its_tier_is_left_as_it_is():
    scheme = Scheme((8.0,))
    start = scheme.sample("a circle", READER.count("a circle"))
    assert trim(start, 1, READER, scheme) is start
    assert trim(start, 2, READER, scheme) is None


def test_sparse_tiers_are_filled_from_harder_prompts():
    given = prompts(30)
    plain = stratify(given, READER, 5, (5, 14))
    filled = stratify(given, READER, 5, (5, 14), per_tier=6)
    sizes = [[sum(s.tier == t for s in samples) for t in range(1, 6)] for samples in (plain, filled)]
    assert sum(sizes[1]) > sum(sizes[0])
    assert all(after >= min(before, 6) for before, after in zip(*sizes, strict=True))
    assert min(sizes[1][:3]) >= 6
    assert all(5 <= s.parts.words <= 14 for s in filled)
    assert len({s.prompt for s in filled}) == len(filled)
    assert {s.source for s in filled if s.source} <= set(given)
    assert [s.complexity for s in filled] == sorted(s.complexity for s in filled)


def test_without_limits_every_prompt_is_kept_in_its_quantile():
    given = prompts(40, 3)
    samples = stratify(given, READER, 4)
    assert {s.prompt for s in samples} == set(given)
    by_score = {s.prompt: s.tier for s in samples}
    scores = [probe.complexity(READER.count(p)) for p in given]
    assert [by_score[p] for p in given] == probe.tiers(scores, 4)


GRAPH = {
    "entities": [
        {"name": "cat", "count": 2, "attributes": ["black", "sleeping", "black"]},
        {"name": "sofa", "count": None, "attributes": None},
    ],
    "relations": [{"subject": "cat", "relation": "on", "object": "sofa"}],
    "constraints": [{"kind": "Style", "what": "watercolour"}, {"kind": "mood", "what": "calm"}],
}


def test_a_vlm_s_graph_is_counted_by_instances():
    client = Scripted([json.dumps(GRAPH)])
    reader = PromptReader(client)
    parts = reader.count("two sleeping black cats on a sofa, calm watercolour")
    assert parts == Parts(entities=3, attributes=4, relations=1, words=9, style=1, other=1)
    assert reader.usage.calls == 1
    assert "Request: two sleeping" in client.talks[0][1].parts[0]
    assert client.schemas[0]["required"] == ["entities", "relations", "constraints"]


def test_an_unusable_graph_is_repaired_once_and_then_an_error():
    good = Scripted(["no idea", json.dumps(GRAPH)])
    assert PromptReader(good).count("cats").entities == 3
    bad = Scripted([json.dumps({"entities": []}), json.dumps({"entities": [{"name": "cat", "count": -1}]})])
    with pytest.raises(ReplyError, match="'cats', twice"):
        PromptReader(bad).count("cats")


def test_a_vlm_shortens_a_prompt_or_says_that_nothing_is_left():
    replies = [{"removed": "x", "request": text} for text in ("a cat", "a much longer request than before", "")]
    reader = PromptReader(Scripted([json.dumps(reply) for reply in replies]))
    assert [list(reader.simpler("a black cat")) for _ in replies] == [["a cat"], [], []]


def test_a_set_is_filled_by_a_vlm_too():
    counts = {"a b c d e f": 9, "a b c d e": 6, "a b c d": 4, "a b": 2}

    class Words:
        def count(self, prompt):
            return Parts(relations=counts[prompt])

        def simpler(self, prompt):
            yield from [p for p in counts if len(p) < len(prompt)][:1]

    samples = stratify(["a b", "a b c d e f"], Words(), 2, per_tier=2)
    assert [(s.prompt, s.tier, s.source) for s in samples] == [
        ("a b", 1, ""),
        ("a b c d", 1, "a b c d e f"),
        ("a b c d e f", 2, ""),
    ]


def lines(path, *rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def test_results_are_read_with_a_number_with_parts_or_by_the_grammar(tmp_path):
    parts = Parts(entities=2, words=3)
    path = lines(
        tmp_path / "r.jsonl",
        {"prompt": "a", "complexity": 7, "passed": True, "recall": 1, "seed": 3},
        "",
        {"prompt": "b", "parts": parts.to_dict(), "passed": False, "recall": None},
        {"prompt": "a red circle", "passed": True},
    )
    found = results.read(path)
    grammar = probe.complexity(READER.count("a red circle"))
    assert found == [
        Shot("a", 7.0, True, 1),
        Shot("b", probe.complexity(parts), False, None),
        Shot("a red circle", grammar, True, None),
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ("[1]", "line 2 names no prompt"),
        ({"passed": True}, "line 2 names no prompt"),
        ({"prompt": "a circle", "passed": 1}, "passed is 1"),
        ({"prompt": "a circle", "passed": True, "recall": 1.5}, "recall is 1.5"),
        ({"prompt": "a circle", "passed": True, "recall": float("nan")}, "recall is nan"),
        ({"prompt": "a circle", "passed": True, "complexity": "9"}, "complexity is '9'"),
        ({"prompt": "a circle", "passed": True, "complexity": float("inf")}, "complexity is inf"),
        ({"prompt": "a circle", "passed": True, "parts": {"cats": 1}}, "parts are not as expected"),
        ({"prompt": "a cat", "passed": True}, "no complexity, and its prompt is none of the built-in world"),
    ],
)
def test_a_bad_line_is_named(tmp_path, row, said):
    path = lines(tmp_path / "r.jsonl", {"prompt": "a circle", "passed": True}, row)
    with pytest.raises(FormatError, match=said) as caught:
        results.read(path)
    assert "line 2" in str(caught.value)


def test_a_missing_or_empty_file_of_results_is_named(tmp_path):
    with pytest.raises(MissingFileError):
        results.read(tmp_path / "none.jsonl")
    with pytest.raises(FormatError, match="holds no result"):
        results.read(lines(tmp_path / "empty.jsonl"))


def test_models_are_compared_over_the_same_tiers():
    easy = [Shot(f"e{n}", float(n), True, 1.0) for n in range(10)]
    hard = [Shot(f"h{n}", 10.0 + n, n % 2 == 0, 0.5) for n in range(10)]
    both, only = results.compare({"both": [*easy, *hard], "hard": hard}, 2)
    assert [tier.tier for tier in both.tiers] == [1, 2]
    assert [tier.tier for tier in only.tiers] == [2]
    assert both.tiers[1] == only.tiers[0]
    assert both.area == pytest.approx((14.5 - 4.5) * (1.0 + 0.5) / 2)
    assert both.recall_area == pytest.approx(10 * 0.75)
    assert only.area == 0


def test_a_prompt_outside_the_grammar_is_no_prompt_of_the_grammar_reader():
    with pytest.raises(GrammarError):
        READER.count("a cat")
