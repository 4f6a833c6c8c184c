"""A checklist as text: what it looks like, what comes back, and what is said of mistakes."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clvr.checklist import GUIDE, parse_text, to_text
from clvr.checklist.text import EXAMPLE, KINDS
from clvr.errors import FormatError
from clvr.shapes import sampler
from clvr.shapes.checks import checklist
from clvr.trajectory import Check

APPLES = (
    Check("apples", "Are there red apples?", "object"),
    Check("exactly-3-red-apples", "Are there exactly 3 red apples?", "count", "apples", 2),
    Check("sign", 'Does the sign say "a: [b] (if c)"?', "text"),
)
TEXT = """\
apples: [object] Are there red apples?
[count x2] Are there exactly 3 red apples? (if apples)
sign: [text] Does the sign say "a: [b] (if c)"?
"""


def test_a_check_is_a_line_to_read():
    assert to_text(APPLES) == TEXT
    assert parse_text(TEXT) == APPLES


def test_what_a_person_may_leave_out():
    text = "\ufeff# mine\r\n\r\n  Is there a dog?\r\n[x0.5] Is it day?\r\n[COLOR] Is the dog brown?   (if dog)\r\n"
    assert parse_text(text) == (
        Check("dog", "Is there a dog?"),
        Check("it-day", "Is it day?", weight=0.5),
        Check("dog-brown", "Is the dog brown?", "color", "dog"),
    )


def test_the_same_question_twice_gets_two_ids():
    assert [c.id for c in parse_text("Is it red?\nit-red: Is it big?\nIs it red?")] == [
        "it-red-2",
        "it-red",
        "it-red-3",
    ]


@pytest.mark.parametrize("text", ["", " \n\t", "# nothing\n", GUIDE])
def test_a_text_without_checks_is_no_checklist(text):
    assert parse_text(text) == ()


def test_the_guide_stands_above_a_checklist_and_its_example_can_be_read():
    assert parse_text(GUIDE + TEXT) == APPLES
    assert parse_text(f"apples: Are there apples?\n{EXAMPLE}")[1].weight == 2


WRONG = {
    "[colour] Is it red?": "Line 1 of the checklist: 'colour' in [colour] is neither a kind nor a weight. "
    "Did you mean 'color'? Kinds are object, count",
    "[text x0] Is it red?": "a weight of 0 cannot be used. Give one above 0",
    "[x1.2.3] Is it red?": "a weight is written x2",
    "a: Is it red?\n\na: Is it big?": "Line 3 of the checklist: 'a' is the id of line 1 already. Give each",
    "apples: Are there apples?\nIs it red? (if aples)": "Line 2 of the checklist: no check has the id 'aples'. "
    "Did you mean 'apples'",
    "Is it red? (if the sun shines)": "'(if the sun shines)' does not name a check. Write (if id)",
    "a: Is it red? (if b)\nb: Is it big? (if a)": "Line 1 of the checklist: 'a' needs 'b', which needs 'a'",
    "a: Is it red? (if a)": "'a' needs 'a'",
    "# x\n[color]": "Line 2 of the checklist: there is no question. Write for example: [count x2]",
}


@pytest.mark.parametrize(("text", "message"), WRONG.items(), ids=WRONG)
def test_a_mistake_is_told_with_its_line_and_a_remedy(text, message):
    with pytest.raises(FormatError) as error:
        parse_text(text)
    assert message in str(error.value)


def read_or_refused(text):
    try:
        return parse_text(text)
    except FormatError as error:
        return error


names = st.text(min_size=1, max_size=6) | st.sampled_from(["a", "b", "#a", "is it", "a:b", '"', "dog"])
questions = st.one_of(
    st.text(min_size=1),
    st.text(alphabet='[]()if:x2 #"\\\nab', min_size=1),
    st.sampled_from(["Is there a dog?", "[count] Is it?", "a: is it?", "Is it? (if a)", '"Is it?"', "\r\n", " x "]),
)


@st.composite
def checklists(draw):
    """Any ids and questions there can be, and parents without a circle."""
    found: list[Check] = []
    for name in draw(st.lists(names, unique=True, max_size=6)):
        parent = draw(st.none() | st.sampled_from([c.id for c in found])) if found else None
        weight = draw(st.floats(0, exclude_min=True, allow_infinity=False) | st.sampled_from([1.0, 2.0]))
        found.append(Check(name, draw(questions), draw(st.sampled_from(KINDS)), parent, weight))
    return tuple(draw(st.permutations(found)))


@settings(deadline=None, max_examples=100)
@given(checklists())
def test_every_checklist_comes_back_as_it_was(checks):
    assert parse_text(GUIDE + to_text(checks)) == checks


@settings(deadline=None, max_examples=100)
@given(st.text() | st.text(alphabet='[]()if:x2 #"\\\nab'))
def test_whatever_is_typed_is_read_or_refused_with_its_line(text):
    outcome = read_or_refused(text)
    if isinstance(outcome, FormatError):
        assert str(outcome).startswith("Line ")
        assert outcome.remedy
    else:
        assert parse_text(to_text(outcome)) == outcome


def test_exact_checklists_come_back_and_look_plain():
    rng = random.Random(0)
    for n in range(100):
        exact = checklist(sampler.prompt(sampler.CATEGORIES[n % 7], rng)[1])
        text = to_text(exact)
        assert parse_text(text) == exact
        assert '"' not in text
