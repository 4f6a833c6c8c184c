"""What is written is read back; what lies outside the grammar is refused with the nearest known thing."""

from __future__ import annotations

import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clvr.errors import GrammarError
from clvr.shapes import sampler
from clvr.shapes.edits import KINDS, Anchor, Edit, say
from clvr.shapes.language import EDIT_EXAMPLE, EXAMPLE, parse, parse_edit, read_noun
from clvr.shapes.phrases import noun_words, prompt_words
from clvr.shapes.scene import CELLS, COLORS, RELATIONS, SHAPES, SIZES, Group, Noun, Relation, Spec

NOUNS = st.builds(
    Noun,
    st.none() | st.sampled_from(SHAPES),
    st.none() | st.sampled_from(COLORS),
    st.none() | st.sampled_from(SIZES),
)
SEEDS = st.integers(0, 2**32)


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Groups whose descriptions all differ, so that 'the …' is never ambiguous; relations point back."""
    nouns = draw(st.lists(st.builds(Noun, st.sampled_from(SHAPES), st.sampled_from(COLORS)), min_size=1, max_size=5))
    nouns = list(dict.fromkeys(nouns))
    groups = tuple(Group(n, draw(st.integers(1, 3))) for n in nouns)
    relations = tuple(
        Relation(i, draw(st.sampled_from(RELATIONS)), draw(st.integers(0, i - 1)))
        for i in range(1, len(groups))
        if draw(st.booleans())
    )
    return Spec(groups, relations)


@settings(deadline=None)
@given(specs(), st.booleans())
def test_a_written_prompt_reads_back(spec: Spec, prefix: bool) -> None:
    assert parse(prompt_words(spec, prefix)) == spec


@settings(deadline=None)
@given(NOUNS, st.booleans())
def test_a_written_description_reads_back(noun: Noun, many: bool) -> None:
    assert read_noun(noun_words(noun, many)) == noun


@settings(deadline=None)
@given(SEEDS, st.sampled_from(sampler.CATEGORIES))
def test_a_sampled_prompt_reads_back(seed: int, category: str) -> None:
    text, spec = sampler.prompt(category, random.Random(seed))
    assert parse(text) == spec


@settings(deadline=None)
@given(SEEDS, st.sampled_from(KINDS), st.floats(0, 1))
def test_a_sampled_edit_reads_back(seed: int, kind: str, placed: float) -> None:
    edit = sampler.edit_sample(kind, random.Random(seed), placed=placed)[1]
    assert parse_edit(say(edit)) == edit


@settings(deadline=None)
@given(st.sampled_from(CELLS), NOUNS)
def test_a_place_reads_back(cell: tuple[int, int], noun: Noun) -> None:
    spec = Spec((Group(noun, 1, cell),))
    assert parse(prompt_words(spec)) == spec


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("An image of 2 Big red circles.", "two large red circles"),
        ("red large circle".join(("a ", "")), "a large red circle"),
        ("a red circle to the left of a green square", "a red circle left of a green square"),
        ("a red circle is on the right side of a cross", "a red circle right of a cross"),
        ("a red circle on top of a cross", "a red circle above a cross"),
        ("a red circle underneath a cross", "a red circle below a cross"),
        ("a red circle with a cross without black shapes", "a red circle and a cross and no black shapes"),
        ("a red-colored circle at row 2, column 3", "a red circle in row two column three"),
        (
            "a cross, two red circles, the circles are above the cross",
            "a cross and two red circles above the cross",
        ),
    ],
)
def test_other_ways_of_saying_it(text: str, same: str) -> None:
    assert parse(text) == parse(same)


def test_a_chain_ties_each_group_to_the_next() -> None:
    spec = parse("a red circle above a blue square left of a green cross")
    assert spec.relations == (Relation(0, "above", 1), Relation(1, "left of", 2))
    assert parse(prompt_words(spec)) == spec


@pytest.mark.parametrize(
    ("text", "edit"),
    [
        ("paint the circle blue", Edit("recolor", Noun("circle"), new=Noun(color="blue"))),
        ("change the colour of the circle to blue", Edit("recolor", Noun("circle"), new=Noun(color="blue"))),
        ("make the red circle big", Edit("resize", Noun("circle", "red"), new=Noun(size="large"))),
        ("turn the circle into a red cross", Edit("replace", Noun("circle"), new=Noun("cross", "red"))),
        ("delete the circle in row 1, column 2", Edit("remove", Noun("circle"), (0, 1))),
        (
            "put a cross under the circle",
            Edit("add", new=Noun("cross"), anchor=Anchor("below", Noun("circle"))),
        ),
    ],
)
def test_other_ways_of_asking_for_an_edit(text: str, edit: Edit) -> None:
    assert parse_edit(text) == edit


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a violet circle", "'purple'"),
        ("a red cricle", "'circle'"),
        ("a portrait of my aunt", "It knows circle, square"),
        ("a watercolour of a harbour", "It knows circle, square"),
        ("a red ball", "'circle'"),
        ("an astronaut on a horse", "circle, square, triangle, cross"),
        ("seven circles", "one to six"),
        ("red circles", "How many"),
        ("a circle above the square", "Mention it first"),
        (
            "a red circle and a blue circle and a cross above the circle",
            "'the red circle' and 'the blue circle'",
        ),
        ("a circle and no circles", "forbids"),
        ("a red blue circle", "two colors"),
        ("a circle above", "the end"),
        ("six circles and six crosses and six squares", "18 objects"),
        ("no circles", "no object"),
        ("", "empty"),
    ],
)
def test_outside_the_grammar_the_error_helps(text: str, told: str) -> None:
    with pytest.raises(GrammarError) as caught:
        parse(text)
    assert told in str(caught.value)
    assert EXAMPLE in caught.value.remedy
    assert "--model" in caught.value.remedy
    parse(EXAMPLE)


def test_an_instruction_outside_the_grammar_is_refused() -> None:
    parse_edit(EDIT_EXAMPLE)
    for text in (
        "remove a circle",
        "sing",
        "recolor the circle to large",
        "move the circle to row 9 column 1",
    ):
        with pytest.raises(GrammarError):
            parse_edit(text)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    for read in (parse, parse_edit):
        with contextlib.suppress(GrammarError):
            read(text)
