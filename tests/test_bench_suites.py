"""Prompt files as suites: what is asked of an image, where it lies, and what is said of a file that is wrong."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clvr.bench import questions, reading
from clvr.bench.geneval import geneval, genevalpp
from clvr.bench.questions import Wanted
from clvr.bench.registry import FOLDER, NAMES, SHIPPED, open_suite
from clvr.bench.suite import spread
from clvr.errors import ClvrError, FormatError, MissingFileError, SettingError
from clvr.shapes.sampler import held_back
from clvr.shapes.verifier import MeasuringVerifier
from clvr.vlm import templates


def asked(item):
    return [(c.question, c.kind, c.parent) for c in item.checks]


def by_prompt(suite, prompt):
    return next(item for item in suite.items if item.prompt == prompt)


def write(path, *rows):
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    return path


def row(**changes):
    return {"tag": "two_object", "include": [{"class": "cow", "count": 1}], "prompt": "a cow"} | changes


@pytest.mark.parametrize(
    ("name", "count"), [("geneval", 553), ("geneval++", 280), ("imaginebench", 270), ("ocr", 1018)]
)
def test_the_shipped_prompts_are_complete(name, count):
    suite = open_suite(name)
    assert (
        len(suite.items) == len({item.id for item in suite.items}) == len({item.image for item in suite.items}) == count
    )
    assert all(bool(item.checks) != bool(item.rubrics) for item in suite.items)


@pytest.mark.parametrize("name", ["builtin", "geneval", "geneval++", "ocr"])
def test_check_ids_are_unique_and_parents_come_first(name):
    for item in open_suite(name).items:
        ids = [c.id for c in item.checks]
        assert len(set(ids)) == len(ids)
        assert all(c.parent is None or ids.index(c.parent) < i for i, c in enumerate(item.checks))


def test_geneval_asks_for_what_its_metadata_includes():
    suite = open_suite("geneval")
    assert asked(by_prompt(suite, "a photo of a bench")) == [("Is there a bench?", "object", None)]
    assert asked(by_prompt(suite, "a photo of two clocks")) == [
        ("Is there a clock?", "object", None),
        ("Are there exactly 2 clocks?", "count", "clock"),
    ]
    assert asked(by_prompt(suite, "a photo of a dog right of a teddy bear")) == [
        ("Is there a teddy bear?", "object", None),
        ("Is there a dog?", "object", None),
        ("Is the dog to the right of the teddy bear?", "position", "dog"),
    ]
    assert asked(by_prompt(suite, "a photo of a purple wine glass and a black apple")) == [
        ("Is there a wine glass?", "object", None),
        ("Is the wine glass purple?", "color", "wine-glass"),
        ("Is there an apple?", "object", None),
        ("Is the apple black?", "color", "apple"),
    ]


def test_genevalpp_asks_for_exact_numbers_regions_sizes_and_one_natural_picture():
    item = by_prompt(open_suite("geneval++"), "A photo of three clocks on the left and one cats on the right")
    assert [q for q, _, _ in asked(item)[:-1]] == [
        "Is there a clock?",
        "Are there exactly 3 clocks?",
        "Are the clocks in the left part of the image?",
        "Is there a cat?",
        "Is there exactly 1 cat?",
        "Is the cat in the right part of the image?",
    ]
    assert item.checks[-1].id == "natural"
    sized = by_prompt(
        open_suite("geneval++"), "A photo of a larger bench on the above and a smaller spoon on the below"
    )
    assert ("Is the bench drawn larger than the spoon?", "size", "bench") in asked(sized)


def test_a_count_without_an_upper_limit_is_a_minimum():
    assert questions.checks([Wanted("knife", 3)])[1].question == "Are there at least 3 knives?"


@pytest.mark.parametrize(
    ("noun", "one", "many"),
    [
        ("umbrella", "an umbrella", "umbrellas"),
        ("bus", "a bus", "buses"),
        ("couch", "a couch", "couches"),
        ("person", "a person", "people"),
        ("scissors", "a pair of scissors", "scissors"),
        ("toothbrush", "a toothbrush", "toothbrushes"),
    ],
)
def test_nouns_are_said_as_a_person_would(noun, one, many):
    assert (questions.a(noun), questions.plural(noun)) == (one, many)


def test_the_same_class_twice_gets_two_ids():
    made = questions.checks([Wanted("car", color="red"), Wanted("car", color="blue")])
    assert [c.id for c in made] == ["car", "car-color", "car~2", "car~2-color"]


def test_images_lie_where_the_official_scorers_look():
    assert open_suite("geneval").items[7].image == "00007/samples/0000.png"
    first = open_suite("geneval").items[0]
    assert json.loads(first.beside["00000/metadata.jsonl"])["include"] == [{"class": "bench", "count": 1}]
    assert open_suite("geneval++").items[0].image == "1.jpg"
    assert open_suite("imaginebench").items[0].image == "1.png"


def test_the_built_in_suite_is_always_the_same_held_back_and_can_be_measured():
    items = open_suite("builtin").items
    assert items == open_suite("builtin").items
    assert all(held_back(item.prompt) for item in items)
    from PIL import Image

    verdict = MeasuringVerifier().judge(Image.new("RGB", (64, 64), "white"), items[-1].checks)
    assert all(r.outcome != "unjudged" for r in verdict.results)


def test_a_limit_takes_from_every_task_and_a_higher_one_only_adds():
    suite = open_suite("geneval")
    six, ten = (spread(suite.items, suite.tag, n) for n in (6, 10))
    assert len({item.tags["task"] for item in six}) == 6
    assert ten[:6] == six
    assert len(spread(suite.items, suite.tag, 10**6)) == 553


@pytest.mark.parametrize("name", templates.VERSIONS)
def test_every_prompt_of_a_judge_is_there(name):
    assert len(templates.text(name)) > 20


WISE = {
    "Prompt": "a round pastry",
    "Explanation": "mooncakes",
    "Category": "time",
    "Subcategory": "x",
    "prompt_id": 401,
}


def test_wise_reads_a_folder_without_rewritten_and_merged_copies(tmp_path):
    for name, number in (("a.json", 401), ("a_rewrite.json", 401), ("merge.json", 401), ("b.json", 12)):
        (tmp_path / name).write_text(json.dumps([WISE | {"prompt_id": number}]))
    suite = open_suite("wise", tmp_path)
    assert [(i.id, i.image, i.tags["category"], i.explanation) for i in suite.items] == [
        ("12", "12.png", "time", "mooncakes"),
        ("401", "401.png", "time", "mooncakes"),
    ]
    assert [c.highest for c in suite.items[0].rubrics[0].criteria] == [2, 2, 2]
    assert [c.highest for c in open_suite("wise-verified", tmp_path / "b.json").items[0].rubrics[0].criteria] == [1]


def test_wise_refuses_two_releases_in_one_folder(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([WISE]))
    (tmp_path / "a_verified.json").write_text(json.dumps([WISE | {"prompt_id": 1}]))
    with pytest.raises(FormatError, match=r"two releases.*a_verified.json and a.json"):
        open_suite("wise", tmp_path)


def test_prism_takes_the_tracks_that_are_there_and_asks_each_its_own(tmp_path):
    write(tmp_path / "style.jsonl", {"prompt": "a field, in oil"}, {"prompt": "a fox, in ink"})
    write(tmp_path / "entity.jsonl", {"prompt": "the Eiffel Tower"})
    items = open_suite("prism", tmp_path).items
    assert [i.image for i in items] == ["entity/0.png", "style/0.png", "style/1.png"]
    assert [r.prompt for r in items[1].rubrics] == ["rate_prism_style", "rate_prism_aesthetic"]


def test_prompts_that_are_not_shipped_are_asked_for(tmp_path):
    for name in ("wise", "wise-verified", "prism"):
        with pytest.raises(MissingFileError, match="--prompts"):
            open_suite(name)
    with pytest.raises(MissingFileError, match=r"imagination\.jsonl"):
        open_suite("prism", tmp_path)
    with pytest.raises(MissingFileError, match="--prompts"):
        open_suite("wise", tmp_path)
    with pytest.raises(MissingFileError, match=r"geneval\.jsonl.*benchmarks/prompts"):
        open_suite("geneval", tmp_path)
    with pytest.raises(SettingError, match="geneval"):
        open_suite("genevall")


def test_a_shipped_suite_can_be_read_from_a_file_of_the_user(tmp_path):
    path = write(tmp_path / "mine.jsonl", row())
    assert [i.prompt for i in open_suite("geneval", path).items] == ["a cow"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2 is no JSON"),
        ("[" * 100_000, "line 2 is no JSON"),
        ("3", "line 2 is no JSON object"),
        (json.dumps({"tag": "two_object"}), "line 2: 'prompt' is missing"),
        (json.dumps(row(prompt=" ")), "line 2: 'prompt' should be a text"),
        (json.dumps(row(prompt="x" * 30_000)), "line 2: 'prompt' has 30000 characters"),
        (json.dumps(row(prompt="\ud800")), "line 2: 'prompt' holds half a character"),
        (json.dumps(row(tag="three_object")), "line 2: 'tag' is 'three_object', which is none of single_object"),
        (json.dumps(row(include=[])), "line 2: 'include' is empty"),
        (json.dumps(row(include={"class": "cow"})), "line 2: 'include' should be a list"),
        (json.dumps(row(include=[{"class": "cow"}])), r"line 2, include\[0\]: 'count' is missing"),
        (json.dumps(row(include=[{"class": "cow", "count": True}])), r"include\[0\]: 'count' should be a whole number"),
        (
            json.dumps(row(include=[{"class": "cow", "count": 10**9}])),
            r"include\[0\]: 'count' should be a whole number",
        ),
        (json.dumps(row(include=[{"class": "cow", "count": 1, "color": "teal"}])), "'color' is 'teal'"),
        (json.dumps(row(include=[{"class": "cow", "count": 1, "position": ["above", 0]}])), "'position' should be"),
        (json.dumps(row(include=[{"class": "cow", "count": 1, "position": "above"}])), "'position' should be"),
        (json.dumps(row(exclude=[{"class": "dog", "count": 2}])), "'exclude' names 'dog'"),
        (json.dumps(row(exclude=[{"class": "cow", "count": 5}])), "'exclude' forbids 5"),
    ],
)
def test_a_wrong_line_is_named_with_file_line_and_remedy(tmp_path, line, said):
    path = tmp_path / "odd.jsonl"
    path.write_text(json.dumps(row()) + "\n" + line + "\n")
    with pytest.raises(FormatError, match=said) as caught:
        geneval(path)
    assert str(path) in str(caught.value)
    assert caught.value.remedy


def test_what_is_no_prompt_file_is_said_to_be_none(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "caf\xe9"}')
    (tmp_path / "object.json").write_text("{}")
    for read, name, said in (
        (genevalpp, "empty.jsonl", "holds no prompt"),
        (genevalpp, "latin.jsonl", "not UTF-8"),
        (lambda p: open_suite("wise", p), "object.json", "no list of prompts"),
        (lambda p: open_suite("ocr", p), "plain.txt", "line 1 quotes no text"),
    ):
        (tmp_path / "plain.txt").write_text("a sign that says hello")
        with pytest.raises(FormatError, match=said):
            read(tmp_path / name)


def test_an_id_that_comes_twice_is_refused(tmp_path):
    one = {"id": 3, "instruction": "a blue cow", "note": "blue", "type": "COLOR"}
    with pytest.raises(FormatError, match=r"line 2: the id 3 is already that of .* line 1"):
        open_suite("imaginebench", write(tmp_path / "twice.jsonl", one, one))


@given(text=st.text(max_size=300))
def test_no_text_makes_reading_fail_in_another_way(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(text, "utf-8", errors="replace")
    for read in (geneval, genevalpp, lambda p: reading.table(p, "x"), lambda p: open_suite("ocr", p)):
        with contextlib.suppress(ClvrError):
            read(path)


def test_every_suite_has_a_name_and_the_shipped_ones_their_licence():
    assert set(SHIPPED) < set(NAMES)
    told = (FOLDER / "README.md").read_text("utf-8")
    assert all(f"| {file} |" in told for file, _ in SHIPPED.values())
