"""Checklists: made tidy, kept where they are sound, restored where they were spoilt."""

from __future__ import annotations

import dataclasses
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clvr.checklist import MOST, tidy
from clvr.checklist.questions import kind_of, same, slug, split
from clvr.shapes import sampler
from clvr.shapes.checks import At, Count, Exists, Related, checklist, read_query
from clvr.shapes.measure import measure
from clvr.shapes.render import render
from clvr.shapes.scene import realise
from clvr.shapes.verifier import judge_found
from clvr.trajectory import Check

APART = {
    "Is there a red circle and a blue square?": ("Is there a red circle?", "Is there a blue square?"),
    "Are there two cats, a dog and one bird?": ("Are there two cats?", "Is there a dog?", "Is there one bird?"),
    "Are there exactly 2 red circles and 3 blue squares?": (
        "Are there exactly 2 red circles?",
        "Are there exactly 3 blue squares?",
    ),
    "Does the image show a dog as well as a cat?": ("Does the image show a dog?", "Does the image show a cat?"),
    "Is there a bottle & a cup?": ("Is there a bottle?", "Is there a cup?"),
    "Is there a black and white cat and a dog?": ("Is there a black and white cat?", "Is there a dog?"),
    "Is there no dog and no cat?": ("Is there no dog?", "Is there no cat?"),
    "Is there a dog and is the dog brown?": ("Is there a dog?", "Is the dog brown?"),
    "Is there a dog? Is the dog brown?": ("Is there a dog?", "Is the dog brown?"),
    "Is the dog big and brown?": ("Is the dog big?", "Is the dog brown?"),
    "Is the cat's bowl red and the dog's bowl blue?": ("Is the cat's bowl red?", "Is the dog's bowl blue?"),
}

ATOMIC = (
    "Is the sign red with the text 'A and B'?",
    "Does the sign say 'It's me and you'?",
    "Does it say “Salt & Pepper”?",
    "Is there a label (front and back)?",
    "Is the text 'A and B?",
    "Is there a black and white cat?",
    "Is the flag red, white and dark blue?",
    "Is the ball between the tree and the car?",
    "Is there a Dolce and Gabbana bag?",
    "Is there a dog or a cat?",
    "Is there no dog?",
    "Is the dog missing?",
    "Is there a large, red ball?",
    "Is there a dog? (brown)",
    "Gibt es einen Hund?",
    "",
)

TOO_HARD = (
    "Is there a dog and a cat on a sofa?",
    "Is there a dog and is it brown?",
    "Is there a man wearing a hat and a scarf?",
    "Are there no dogs and cats?",
    "Is there no dog and a cat?",
    "Isn't there a dog and a cat?",
    "Are apples and pears on the table?",
    "Is the man tall and wearing a hat?",
    "Is there a dog and a cat missing?",
    "Is there only a dog and a cat?",
    "Is there a picture of a dog and a cat?",
)


@pytest.mark.parametrize(("question", "parts"), APART.items(), ids=APART)
def test_a_question_that_surely_asks_several_things_is_taken_apart(question, parts):
    assert split(question) == parts


@pytest.mark.parametrize("question", ATOMIC)
def test_a_question_that_asks_one_thing_stays_as_it_is(question):
    assert split(question) == (question,)


@pytest.mark.parametrize("question", TOO_HARD)
def test_a_question_whose_parts_would_mean_something_else_is_left_to_the_vlm(question):
    assert split(question) is None


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Is there a red circle?", "is there the RED circle"),
        ("Is there a large red circle?", "Is a red large circle visible?"),
        ("Are there three dogs?", "Does the image show 3 dogs?"),
        ("Is there a grey dog?", "Can a gray dog be seen in the picture?"),
        ('Is the text "OPEN" there?', "Is there the text “OPEN”?"),
    ],
)
def test_two_ways_to_ask_the_same(first, second):
    assert same(first) == same(second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("Is the dog chasing the cat?", "Is the cat chasing the dog?"),
        ("Is there milk chocolate?", "Is there chocolate milk?"),
        ("Is there a red and blue flag?", "Is there a blue and red flag?"),
        ("Does it say 'Open'?", "Does it say 'OPEN'?"),
        ("Does it say C++?", "Does it say C?"),
        ("Is there a dog?", "Is there no dog?"),
        ("Is there a dog?", "Are there dogs?"),
        ("Is there 3.5?", "Is there 35?"),
        ("\ue000a", "\ue000b"),
    ],
)
def test_questions_that_may_ask_different_things_stay_apart(first, second):
    assert same(first) != same(second)


@pytest.mark.parametrize(
    ("part", "kind", "expected"),
    [
        ("Is there no dog?", "object", "absence"),
        ("Are there exactly 2 dogs?", "count", "count"),
        ("Is there a dog?", "count", "object"),
        ("Is the dog big?", "color", "size"),
        ("Is the dog brown?", "object", "color"),
        ("Is there a dog?", "object", "object"),
    ],
)
def test_a_part_has_a_kind_of_its_own(part, kind, expected):
    assert kind_of(part, kind) == expected


def test_a_duplicate_gives_its_weight_and_its_children_away():
    dog = Check("dog", "Is there a dog?", "object")
    again = Check("dog2", "is a dog visible", "other", weight=3)
    brown = Check("brown", "Is the dog brown?", "color", "dog2")
    done = tidy([dog, again, brown])
    assert done.checks == (dataclasses.replace(dog, weight=3), dataclasses.replace(brown, parent="dog"))
    assert done.notes == ("'is a dog visible' asks the same as 'Is there a dog?': they are one check",)


def test_children_of_a_compound_question_go_to_the_part_that_they_speak_of():
    both = Check("both", "Is there a dog and a cat?", "object", weight=2)
    brown, white = (
        Check("brown", "Is the dog brown?", "color", "both"),
        Check("w", "Is the cat white?", "color", "both"),
    )
    done = tidy([both, brown, white])
    assert done.checks == (
        Check("dog", "Is there a dog?", "object", weight=2),
        Check("cat", "Is there a cat?", "object", weight=2),
        dataclasses.replace(brown, parent="dog"),
        dataclasses.replace(white, parent="cat"),
    )
    assert done.notes == (
        "'Is there a dog and a cat?' asks several things at once: it is now 'Is there a dog?' and 'Is there a cat?'",
    )


def test_a_compound_question_beyond_the_rules_is_named_and_taken_apart_as_it_is_told():
    hard = Check("sofa", "Is there a dog and a cat on a sofa?", "object")
    first = tidy([hard])
    assert (first.checks, first.compound, first.notes) == ((hard,), (hard,), ())
    parts = [Check("", "Is there a dog on a sofa?", "position"), Check("", "Is there a cat on a sofa?", "position")]
    done = tidy(first.checks, {"sofa": parts})
    assert [(c.id, c.question, c.kind) for c in done.checks] == [
        ("dog-on-sofa", "Is there a dog on a sofa?", "position"),
        ("cat-on-sofa", "Is there a cat on a sofa?", "position"),
    ]
    assert not done.compound


def test_a_question_that_is_called_atomic_stays():
    hard = Check("sofa", "Is there a dog and a cat on a sofa?", "object")
    assert tidy([hard], {"sofa": [Check("", hard.question)]}).checks == (hard,)


def test_parents_that_cannot_be_are_dropped_and_told():
    lost, one = Check("a", "Is it red?", parent="zebra"), Check("b", "Is it big?", parent="c")
    two = Check("c", "Is it round?", parent="b")
    done = tidy([lost, one, two])
    assert [c.parent for c in done.checks] == [None, None, "b"]
    assert done.notes == (
        "'Is it red?' named a parent that does not exist, 'zebra': it has none now",
        "'Is it big?' depended on itself: it has no parent now",
    )


def test_of_too_many_checks_the_least_important_go_and_no_parent_before_its_children():
    root = Check("root", "Is there a dog?", weight=0.1)
    leaf = Check("leaf", "Is the dog brown?", parent="root", weight=9)
    rest = [Check(f"c{n}", f"Does it show thing number {n}?") for n in range(MOST)]
    done = tidy([*rest, root, leaf])
    assert len(done.checks) == MOST
    assert {"root", "leaf"} <= {c.id for c in done.checks}
    assert [c.id for c in done.checks][:22] == [c.id for c in rest[:22]]
    assert "left out: 'Does it show thing number 22?', 'Does it show thing number 23?'" in done.notes[0]


def test_ids_are_slugs_and_unique():
    done = tidy(
        [Check("Red Dog!", "p"), Check("", "Is there a tall man?"), Check("red-dog", "q"), Check("?", "犬はいますか")]
    )
    assert [c.id for c in done.checks] == ["red-dog", "tall-man", "red-dog-2", "犬はいますか"]
    assert slug("???") == "check"


questions = st.sampled_from([*APART, *ATOMIC, *TOO_HARD]) | st.text(max_size=20)
ids = st.sampled_from(["", "a", "b", "A b", "dog"]) | st.text(max_size=4)
weights = st.floats(0.01, 100)
kinds = st.sampled_from(["object", "count", "color", "other"])
lists = st.lists(st.builds(Check, ids, questions, kinds, st.none() | ids, weights), max_size=30)


@settings(deadline=None)
@given(lists)
def test_whatever_comes_in_a_sound_checklist_comes_out_and_stays_as_it_is(checks):
    done = tidy(checks)
    names = [c.id for c in done.checks]
    assert len(set(names)) == len(names) <= MOST
    assert all(c.parent is None or c.parent in names for c in done.checks)
    assert bool(done.checks) == bool(checks)
    again = tidy(done.checks)
    assert again.checks == done.checks
    assert not again.notes


def prompts(count, seed=0):
    rng = random.Random(seed)
    for index in range(count):
        yield sampler.prompt(sampler.CATEGORIES[index % len(sampler.CATEGORIES)], rng)


def test_exact_checklists_of_2000_prompts_stay_as_they_are():
    longest = 0
    for text, spec in prompts(2000):
        exact = checklist(spec)
        done = tidy(exact)
        assert (done.checks, done.notes, done.compound) == (exact, (), ()), text
        longest = max(longest, len(exact))
    assert longest <= MOST


def again(check, rng, name):
    """The same question in other words."""
    question = check.question
    ways = [question.upper(), question.rstrip("?"), f"  {question.replace(' a ', ' the ')} "]
    if question.startswith("Is there a "):
        ways += [f"Is {question[9:-1]} visible?", f"Does the image show {question[9:]}"]
    return Check(name, rng.choice(ways), rng.choice([check.kind, "other"]), check.parent, rng.choice([0.5, 1]))


def together(first, second, name):
    """Two questions as one."""
    a, b = first.question, second.question
    if a.startswith("Is there a ") and b.startswith("Is there a "):
        return Check(name, f"{a[:-1]} and {b[9:]}", "object")
    return Check(name, f"{a[:-1]} and {b[0].lower()}{b[1:]}", "other")


def spoilt(exact, rng):
    """The checklist with some checks asked twice, some asked together besides, and children under either."""
    checks = list(exact)
    for n in range(rng.randint(1, 3)):
        checks.insert(rng.randint(0, len(checks)), again(rng.choice(exact), rng, f"again{n}"))
    if len(exact) > 1:
        checks.insert(rng.randint(0, len(checks)), together(*rng.sample(exact, 2), "both"))
    twins = {c.id: [o.id for o in checks if same(o.question) == same(c.question)] for c in exact}
    return [dataclasses.replace(c, parent=rng.choice(twins[c.parent])) if c.parent else c for c in checks]


def test_duplicates_and_compounds_that_are_mixed_in_are_found_and_the_checklist_is_restored():
    rng = random.Random(1)
    for text, spec in prompts(500, 1):
        exact = checklist(spec)
        mixed = spoilt(exact, rng)
        originals = {c.id for c in exact}
        first = {}
        for check in mixed:
            first.setdefault(same(check.question), check.id)
        done = tidy(mixed)
        assert not done.compound, text
        by_question = {same(c.question): c for c in done.checks}
        assert by_question.keys() == {same(c.question) for c in exact}, text
        for check in exact:
            found = by_question[same(check.question)]
            assert found.weight == 1
            if first[same(check.question)] in originals:
                assert (found.id, found.question, found.kind) == (check.id, check.question, check.kind)
            parent = next((same(c.question) for c in done.checks if c.id == found.parent), None)
            assert parent == next((same(c.question) for c in exact if c.id == check.parent), None), text


def test_checks_asked_together_instead_of_each_on_its_own_are_restored():
    rng = random.Random(2)
    for text, spec in prompts(500, 2):
        exact = checklist(spec)
        roots = [c for c in exact if c.parent is None]
        if len(roots) < 2:
            continue
        gone = rng.sample(roots, 2)
        rest = [c for c in exact if c not in gone]
        adopted = [dataclasses.replace(c, parent="both") if c.parent in {g.id for g in gone} else c for c in rest]
        done = tidy([together(*gone, "both"), *adopted])
        assert {c.question for c in done.checks} == {c.question for c in exact}, text


def test_the_exact_checks_have_the_kind_of_what_they_ask_and_count_alike():
    for _, spec in prompts(300):
        for check in checklist(spec):
            query = read_query(check.question)
            assert check.weight == 1
            if isinstance(query, Count):
                assert check.kind == "count"
            elif isinstance(query, (At, Related)):
                assert check.kind == "position"
            elif isinstance(query, Exists):
                assert check.kind in ("object", "shape", "color", "size")
            else:
                assert check.kind == "absence"


def test_a_check_whose_parent_fails_fails_too_so_that_skipping_it_loses_nothing():
    rng, failed = random.Random(3), 0
    drawn = [measure(render(realise(spec, rng))) for _, spec in prompts(60, 3)]
    for _, spec in prompts(60, 4):
        exact = checklist(spec)
        by_id = {c.id: c for c in exact}
        for check in exact:
            assert check.parent is None or by_id[check.parent].parent is None
        for found in drawn:
            own = {r.check: r.outcome for r in judge_found(found, exact).results}
            for check in exact:
                if check.parent and own[check.parent] == "fail":
                    failed += 1
                    assert own[check.id] == "fail", (check, by_id[check.parent])
    assert failed > 1000
