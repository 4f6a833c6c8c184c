"""Reading as evidence: real text, drawn with a real font, read by the real engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clvr.errors import HostError, SettingError
from clvr.judges import ocr, spelling
from clvr.judges.ocr import Line, OCRVerifier, asked
from clvr.judges.spelling import distance, missing_words, nearest, quoted, similarity
from clvr.trajectory import Check

from .judges_fixtures import sign

BOX = (0.1, 0.1, 0.9, 0.3)
short = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), max_size=12)


def check(text, kind="text"):
    return Check("sign", f'Does the sign say "{text}"?', kind)


@pytest.fixture(scope="module")
def reader():
    return OCRVerifier()


@pytest.mark.parametrize(
    ("lines", "wanted", "outcome"),
    [
        (("COFFEE",), "Coffee", "pass"),
        (("COFEE",), "Coffee", "fail"),
        (("TWO RED", "APPLES & Co."), "two red apples", "pass"),
        (("TWO RED", "APPLES & Co."), "apples red", "fail"),
        ((), "anything", "unjudged"),
        (("OPENING HOURS",), "OPEN", "unjudged"),
    ],
)
def test_drawn_text_is_read(reader, lines, wanted, outcome):
    assert reader.judge(sign(*lines), [check(wanted)]).outcome("sign") == outcome


def test_the_evidence_quotes_what_was_read_and_points_at_it(reader):
    result = reader.judge(sign("COFEE"), [check("COFFEE")]).results[0]
    (evidence,) = result.evidence
    assert evidence.judge == "OCR"
    assert evidence.note == "Read “COFEE” where “COFFEE” is wanted (similarity 0.83)."
    ((x0, y0, x1, y1),) = evidence.boxes
    assert 0.02 < x0 < 0.06 < 0.4 < x1 < 0.5
    assert 0.1 < y0 < 0.2 < 0.27 < y1 < 0.35
    assert result.raw.endswith(" COFEE")


def test_what_is_too_blurred_to_read_is_not_denied(reader):
    assert reader.judge(sign("COFFEE", "HOUSE", blur=8), [check("COFFEE HOUSE")]).outcome("sign") == "unjudged"


def test_only_quoted_text_is_looked_for(reader):
    others = [
        Check("a", "Is the sign readable?", "text"),
        check("COFFEE", "object"),
        Check("b", 'Is the word "COFFEE" missing?', "text"),
    ]
    verdict = reader.judge(sign("COFFEE"), others)
    assert [(r.outcome, r.evidence) for r in verdict.results] == [("unjudged", ())] * 3


def find(lines, wanted, match="exact", **settings):
    return OCRVerifier(match, **settings)._find(wanted, [Line(text, sure, BOX) for text, sure in lines])


@pytest.mark.parametrize(
    ("match", "lines", "wanted", "outcome"),
    [
        ("exact", [("Grand Opening", 0.99)], "grand opening!", "pass"),
        ("exact", [("TWORED", 0.99)], "two red", "pass"),
        ("exact", [("HAPY DAYS", 0.99)], "happy days", "fail"),
        ("similar", [("HAPY DAYS", 0.99)], "happy days", "pass"),
        ("similar", [("HAY DAYS", 0.99)], "happy days", "fail"),
        ("words", [("DAYS", 0.99), ("HAPPY", 0.99)], "happy days", "pass"),
        ("exact", [("DAYS", 0.99), ("HAPPY", 0.99)], "happy days", "fail"),
        ("words", [("HAPPY", 0.99)], "happy happy", "fail"),
        ("exact", [("HAPY DAYS", 0.6)], "happy days", "unjudged"),
        ("exact", [("HAPPY DAYS", 0.6)], "happy days", "pass"),
        ("exact", [("HAPY DAYS", 0.99), ("~~", 0.2)], "happy days", "unjudged"),
        ("exact", [("今日は晴れ", 0.99)], "今日は晴れ", "pass"),
        ("words", [("晴れ今日は", 0.99)], "今日は晴れ", "pass"),
        ("exact", [("...", 0.9)], "x", "unjudged"),
    ],
)
def test_matching(match, lines, wanted, outcome):
    assert find(lines, wanted, match).outcome == outcome


def test_the_similarity_is_a_setting():
    assert find([("HAY DAYS", 0.99)], "happy days", "similar", similarity=0.75).outcome == "pass"


def test_every_quoted_text_must_be_there(reader):
    both = Check("both", 'Do the signs say "TEA" and "COFFEE"?', "text")
    assert reader.judge(sign("TEA", "COFFEE"), [both]).outcome("both") == "pass"
    assert reader.judge(sign("TEA", "MILK"), [both]).outcome("both") == "fail"


@pytest.mark.parametrize(
    ("question", "texts"),
    [
        ('Does it say "OPEN"?', ("OPEN",)),
        ("Does it say “OPEN 24/7” and 'Bob's'?", ("OPEN 24/7", "Bob's")),
        ("Does the sign read 「営業中」?", ("営業中",)),
        ("Is the girl's dog's name on it?", ()),
        ('Is it "..."?', ()),
        ("Says «Bonjour»?", ("Bonjour",)),
        ("Says \"it's a 'nice' day\"?", ("it's a 'nice' day",)),
    ],
)
def test_quotation_marks_of_many_kinds(question, texts):
    assert quoted(question) == texts
    assert asked(Check("c", question, "text")) == texts


@given(short, short, short)
def test_the_edit_distance_is_one(a, b, c):
    assert (distance(a, b) == 0) == (a == b)
    assert distance(a, b) == distance(b, a) <= max(len(a), len(b))
    assert distance(a, c) <= distance(a, b) + distance(b, c)
    assert 0 <= similarity(a, b) <= 1


@given(st.lists(st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True), min_size=1, max_size=8), st.data())
def test_every_run_of_words_is_found_in_the_lines_that_hold_it(words, data):
    start = data.draw(st.integers(0, len(words) - 1))
    end = data.draw(st.integers(start + 1, len(words)))
    found = nearest(" ".join(words[start:end]), words)
    assert found is not None
    assert found.similarity == 1
    assert spelling.letters(found.text) == "".join(words[start:end])
    assert missing_words(" ".join(reversed(words[start:end])), words) == []


def test_without_rapidocr_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(ocr, "find_spec", lambda name: None)
    with pytest.raises(HostError, match=r"comfyui-clvr\[ocr\]"):
        OCRVerifier()


def test_an_unknown_match_is_refused():
    with pytest.raises(SettingError, match="exact, similar, words"):
        OCRVerifier("fuzzy")
