"""Reading what a VLM answers: a corpus of bad replies, and properties."""

from __future__ import annotations

import contextlib
import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clvr.checklist import tidy
from clvr.errors import ReplyError
from clvr.trajectory import Check, CheckVerdict, Decision, Evidence
from clvr.vlm import replies, templates
from clvr.vlm.certainty import probabilities
from clvr.vlm.chat import TokenLogprob

LABELS = ("IMG_REF_0", "IMG_GEN_0", "IMG_GEN_1")
CHECKS = (Check("dog", "Is there a dog?", "object"), Check("red", "Is it red?", "color", "dog"))
EDIT = '{"reasoning": "r", "action": "edit", "instruction": "i", "references": ["<IMG_GEN_1>"], "expects": []}'
YES_NO = '{"results": [{"check": "dog", "answer": "yes"}, {"check": "red", "answer": "no"}]}'

READABLE = {
    "plain": EDIT,
    "thinking": f"<think>Perhaps {{stop}}? No.</think>\n{EDIT}",
    "thinking with a draft in it": f'<think>{{"action": "stop"}}</think>{EDIT}',
    "only the closing tag": f'I could say {{"action": "stop"}}, but\n</think>\n\n{EDIT}',
    "thinking after the answer, unclosed": f'{EDIT}\n<think>or {{"action": "stop"}}',
    "bracketed thinking": f"[THINK]hm[/THINK]{EDIT}",
    "code fence": f"```json\n{EDIT}\n```",
    "prose around": f"Sure! Here is [my] decision {{as asked}}:\n{EDIT}\nI hope {{this}} helps.",
    "byte order mark": f"\ufeff{EDIT}",
    "trailing comma in a list": EDIT.replace('"<IMG_GEN_1>"]', '"<IMG_GEN_1>",]'),
    "trailing comma in an object": EDIT.replace("[]}", "[] ,\n}"),
    "label without brackets": EDIT.replace("<IMG_GEN_1>", "IMG_GEN_1"),
    "label in lower case": EDIT.replace("IMG_GEN_1", "img_gen_01"),
    "one label, no list": EDIT.replace('["<IMG_GEN_1>"]', '"<IMG_GEN_1>"'),
    "the same label twice": EDIT.replace('["<IMG_GEN_1>"]', '["IMG_GEN_1", "<IMG_GEN_1>"]'),
    "action in capitals": EDIT.replace('"edit"', '" EDIT "'),
    "no references, so the canvas": EDIT.replace('["<IMG_GEN_1>"]', "[]"),
    "null references": EDIT.replace('["<IMG_GEN_1>"]', "null"),
    "no expects": EDIT.replace(', "expects": []', ""),
    "null expects": EDIT.replace('"expects": []', '"expects": null'),
    "further fields": EDIT.replace("{", '{"confidence": 1e999, "x": NaN, ', 1),
    "raw line break in a string": EDIT.replace('"r"', '" r\n"'),
    "two answers, the last one counts": f'{{"action": "stop"}}\n{EDIT}',
}

UNREADABLE = {
    "empty": ("", "empty"),
    "white space": (" \n\t ", "empty"),
    "thinking alone": ("<think>What a picture.</think>", "thinking only"),
    "thinking that never ended": (f"<think>Maybe {EDIT}", "thinking only"),
    "prose": ("The cup is red and I would stop here.", "no JSON object"),
    "cut off in a string": (EDIT[:40], "cut off"),
    "cut off after a value": (EDIT[:-1], "cut off"),
    "single quotes": (EDIT.replace('"', "'"), "malformed"),
    "another object": ('{"checks": []}', "action: Field required"),
    "unknown action": (EDIT.replace('"edit"', '"paint"'), "action: Input should be"),
    "action is a number": (EDIT.replace('"edit"', "3"), "action: Input should be"),
    "reasoning is a list": (EDIT.replace('"r"', '["r"]'), "reasoning: Input should be a valid string"),
    "an image that is not there": (
        EDIT.replace("GEN_1", "GEN_7"),
        "The images are: <IMG_REF_0>, <IMG_GEN_0>",
    ),
    "an image without a label": (EDIT.replace("<IMG_GEN_1>", "the second one"), "no image 'the second one'"),
    "an index of many digits": (EDIT.replace("GEN_1", "GEN_" + "9" * 5000), "no image"),
    "nothing to draw": (EDIT.replace('"i"', '" "'), "instruction is empty"),
    "null": ("null", "no JSON object"),
    "a list": ("[1, 2]", "no JSON object"),
    "a lone surrogate": (EDIT.replace('"r"', '"\\ud800"'), "reasoning"),
    "a number of 5000 digits": ('{"action": ' + "1" * 5000 + "}", "cannot be read"),
    "brackets without end": ('{"a":' * 30_000, "cannot be read"),
    "far too long": ("{" * 300_000, "300000 characters"),
    "a page": ("<!DOCTYPE html><html><style>a {color: red}</style></html>", "JSON is malformed"),
}


@pytest.mark.parametrize("text", READABLE.values(), ids=READABLE)
def test_a_decision_is_read_from(text):
    decision = replies.parse_decision(text, LABELS, ("IMG_GEN_1",))
    assert decision == Decision("edit", "r", "i", ("IMG_GEN_1",), raw=text)


@pytest.mark.parametrize(("text", "reason"), UNREADABLE.values(), ids=UNREADABLE)
def test_no_decision_is_read_from(text, reason):
    with pytest.raises(ReplyError, match=reason.replace("(", r"\(")):
        replies.parse_decision(text, LABELS, ("IMG_GEN_1",))


@pytest.mark.parametrize(
    "text", ["[" * 199_999, '["' * 99_999, '{"a":[' * 33_000, "[" * 1000 + "1," * 99_000, "<think>" * 28_000]
)
def test_nonsense_is_refused_within_two_seconds(text):
    began = time.process_time()
    with pytest.raises(ReplyError):
        replies.parse_decision(text, LABELS)
    assert time.process_time() - began < 2


def test_the_first_decision_cannot_stop_nor_edit_without_an_image():
    with pytest.raises(ReplyError, match="Nothing has been drawn"):
        replies.parse_decision('{"action": "stop"}', (), may_stop=False)
    with pytest.raises(ReplyError, match="no image to edit"):
        replies.parse_decision('{"action": "edit", "instruction": "i"}', ())
    schema = replies.decision_schema((), may_stop=False)["properties"]
    assert schema["action"]["enum"] == ["generate"]
    assert schema["references"]["maxItems"] == 0


CHECKLISTS = {
    "in order, with a parent": (replies.dump_checklist(CHECKS), CHECKS),
    "a bare list": (json.dumps(json.loads(replies.dump_checklist(CHECKS))["checks"]), CHECKS),
    "questions alone": ('{"checks": ["Is there a dog?"]}', (Check("dog", "Is there a dog?"),)),
    "numbers as ids": ('{"checks": [{"id": 1, "question": "q"}]}', (Check("1", "q"),)),
    "an unknown kind": ('{"checks": [{"id": "a", "question": "q", "kind": "smell"}]}', (Check("a", "q"),)),
    "a kind in capitals": ('[{"id": "a", "question": "q", "kind": "Count"}]', (Check("a", "q", "count"),)),
    "a parent that is not there": ('[{"id": "a", "question": "q", "parent": "b"}]', (Check("a", "q"),)),
    "a parent named none": ('[{"id": "a", "question": "q", "parent": "None"}]', (Check("a", "q"),)),
    "its own parent": ('[{"id": "a", "question": "q", "parent": "a"}]', (Check("a", "q"),)),
    "parents in a circle": (
        '[{"id": "a", "question": "p", "parent": "b"}, {"id": "b", "question": "q", "parent": "a"}]',
        (Check("a", "p"), Check("b", "q", parent="a")),
    ),
    "the same check twice": (
        '[{"id": "a", "question": "q"}, {"id": "a", "question": "q"}]',
        (Check("a", "q"),),
    ),
    "one id for two questions": (
        '[{"id": "a", "question": "p"}, {"id": "a", "question": "q"}]',
        (Check("a", "p"), Check("a-2", "q")),
    ),
}


@pytest.mark.parametrize(("text", "checks"), CHECKLISTS.values(), ids=CHECKLISTS)
def test_a_checklist_is_read_from(text, checks):
    assert tidy(replies.parse_checklist(text)).checks == checks


@pytest.mark.parametrize("text", ['{"checks": []}', "[]", '{"checks": {}}', '{"checks": [{"id": "a"}]}', '["",""]'])
def test_a_checklist_without_a_question_is_refused(text):
    with pytest.raises(ReplyError):
        replies.parse_checklist(text)


SPLITS = {
    "in order": ('{"parts": [{"of": "a", "question": "p"}, {"of": "a", "question": "q", "kind": "text"}]}', ["p", "q"]),
    "a bare list": ('[{"of": "a", "question": "p"}]', ["p"]),
    "with parts of what was not asked": ('[{"of": "z", "question": "p"}, {"of": "a", "question": "q"}]', ["q"]),
}


@pytest.mark.parametrize(("text", "questions"), SPLITS.values(), ids=SPLITS)
def test_the_parts_of_a_question_are_read_from(text, questions):
    assert [part.question for part in replies.parse_split(text, ["a", "b"])["a"]] == questions


@pytest.mark.parametrize("text", ['{"parts": []}', '[{"of": "z", "question": "p"}]', '[{"of": "a", "question": ""}]'])
def test_parts_of_nothing_that_was_asked_are_refused(text):
    with pytest.raises(ReplyError):
        replies.parse_split(text, ["a"])


def test_too_many_checks_are_refused():
    with pytest.raises(ReplyError, match="at most 64"):
        replies.parse_checklist(json.dumps({"checks": [f"q{i}" for i in range(65)]}))


def outcomes(text):
    return {r.check: r.outcome for r in replies.parse_judgement(text, CHECKS, "judge")}


def answered(answer):
    return json.dumps({"results": [{"check": "dog", "answer": answer}, {"check": "red", "answer": "yes"}]})


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("yes", "pass"),
        ("No.", "fail"),
        (" YES! ", "pass"),
        (True, "pass"),
        (False, "fail"),
        ("unknown", "unjudged"),
        ("yes and no", "unjudged"),
        ("probably", "unjudged"),
        ("", "unjudged"),
        (None, "unjudged"),
        (1, "unjudged"),
        ([], "unjudged"),
        ({"yes": "no"}, "unjudged"),
    ],
)
def test_only_a_plain_yes_or_no_is_a_verdict(answer, outcome):
    assert outcomes(answered(answer)) == {"dog": outcome, "red": "pass"}


def test_a_check_without_an_answer_or_with_two_is_unjudged():
    answers = [("dog", "yes"), ("dog", "no"), ("x", "no")]
    both = json.dumps({"results": [{"check": c, "answer": a} for c, a in answers]})
    results = replies.parse_judgement(both, CHECKS, "judge")
    assert [(r.check, r.outcome, r.evidence[0].note) for r in results] == [
        ("dog", "unjudged", "answered no and yes"),
        ("red", "unjudged", "not answered"),
    ]
    assert all(r.raw == both for r in results)


def test_answers_to_other_questions_are_no_judgement():
    with pytest.raises(ReplyError, match="The ids are dog, red"):
        outcomes('{"results": [{"check": "cat", "answer": "yes"}]}')


@pytest.mark.parametrize(
    ("value", "probability"),
    [
        (0.9, 0.9),
        ("0.75", 0.75),
        ("90%", 0.9),
        (1.5, None),
        (-1, None),
        ("high", None),
        (True, None),
        (None, None),
        (0.2, None),
    ],
)
def test_a_probability_counts_where_it_is_one_and_agrees_with_the_answer(value, probability):
    text = json.dumps({"results": [{"check": "dog", "answer": "yes", "probability": value}]})
    assert replies.parse_judgement(text, CHECKS, "judge")[0].probability == probability


@pytest.mark.parametrize(
    ("boxes", "expected"),
    [
        ([[100, 200, 500, 1000]], ((0.1, 0.2, 0.5, 1.0),)),
        ([100, 200, 500, 1000], ((0.1, 0.2, 0.5, 1.0),)),
        ([[0.1, 0.2, 0.5, 1.0]], ((0.1, 0.2, 0.5, 1.0),)),
        ([[500, 200, 100, 1000], [0, 0, 2000, 1], ["a", 0, 1, 1], [1, 2], None], ()),
        ("everywhere", ()),
        (None, ()),
    ],
)
def test_boxes_are_thousandths_and_what_is_no_box_is_left_out(boxes, expected):
    text = json.dumps({"results": [{"check": "dog", "answer": "yes", "boxes": boxes}]})
    assert replies.parse_judgement(text, CHECKS, "judge")[0].evidence[0].boxes == expected


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["checks", "id", "action"]), inner),
)
documents = st.one_of(
    st.text(),
    json_values.map(json.dumps),
    st.text(alphabet='{}[]",:<>/think\\ \n0'),
    st.sampled_from([EDIT, YES_NO]).flatmap(lambda t: st.integers(0, len(t)).map(lambda n: t[:n])),
    st.fixed_dictionaries({"action": json_values, "references": json_values, "expects": json_values}).map(json.dumps),
    st.fixed_dictionaries(
        {
            "results": st.lists(
                st.fixed_dictionaries({"check": st.just("dog"), "answer": json_values, "boxes": json_values})
            )
        }
    ).map(json.dumps),
)


@settings(deadline=None)
@given(documents)
def test_arbitrary_text_is_read_or_refused_with_a_reply_error(text):
    parsers = [
        replies.parse_checklist,
        lambda t: replies.parse_decision(t, LABELS, ("IMG_GEN_1",)),
        lambda t: replies.parse_judgement(t, CHECKS, "judge"),
    ]
    for parse in parsers:
        with contextlib.suppress(ReplyError):
            parse(text)


words = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).map(str.strip).filter(bool)
names = st.text("abcdefghijk_0123456789", min_size=1, max_size=6).filter(lambda n: n != "none")
checklists = st.dictionaries(names, words, min_size=1, max_size=5).flatmap(
    lambda table: st.tuples(
        *(
            st.builds(
                Check,
                st.just(name),
                st.just(question),
                st.sampled_from(["object", "count", "text", "other"]),
                st.none() | st.sampled_from([*list(table)[:i], None]),
                st.sampled_from([1.0, 0.5, 3.0]),
            )
            for i, (name, question) in enumerate(table.items())
        )
    )
)
decisions = st.builds(
    Decision,
    action=st.sampled_from(["generate", "edit"]),
    reasoning=words,
    instruction=words,
    references=st.lists(st.sampled_from(LABELS), min_size=1, unique=True).map(tuple),
    expects=checklists.map(lambda checks: tidy(checks).checks),
)
wrappings = st.sampled_from(["{}", "```json\n{}\n```", "<think>so</think>\n{}", "Here:\n{}\nDone."])


@settings(deadline=None)
@given(checklists)
def test_checklists_survive_the_round_trip(checks):
    assert replies.parse_checklist(replies.dump_checklist(checks)) == checks


@settings(deadline=None)
@given(decisions)
def test_decisions_survive_the_round_trip(decision):
    text = replies.dump_decision(decision)
    assert replies.parse_decision(text, LABELS) == Decision(
        decision.action,
        decision.reasoning,
        decision.instruction,
        decision.references,
        decision.expects,
        raw=text,
    )


thousandths = st.integers(2, 999)
boxes = st.tuples(thousandths, thousandths).flatmap(
    lambda low: st.tuples(st.integers(low[0] + 1, 1000), st.integers(low[1] + 1, 1000)).map(
        lambda high: tuple(n / 1000 for n in (*low, *high))
    )
)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(["pass", "fail", "unjudged"]), st.booleans(), words, st.lists(boxes, max_size=3)),
        min_size=1,
        max_size=4,
    )
)
def test_judgements_survive_the_round_trip(rows):
    checks = [Check(f"c{i}", "q") for i in range(len(rows))]
    sure = {"pass": 0.9, "fail": 0.1, "unjudged": 0.5}
    results = [
        CheckVerdict(c.id, o, sure[o] if known else None, (Evidence("judge", note, tuple(b)),))
        for c, (o, known, note, b) in zip(checks, rows, strict=True)
    ]
    text = replies.dump_judgement(results)
    read = replies.parse_judgement(text, checks, "judge")
    assert [(r.check, r.outcome, r.probability, r.evidence) for r in read] == [
        (r.check, r.outcome, r.probability, r.evidence) for r in results
    ]


@settings(deadline=None)
@given(st.text('{}[]"\\,:ab \n'), wrappings)
def test_wrapping_changes_nothing(reasoning, wrapping):
    plain = replies.dump_decision(Decision("generate", f"a{reasoning}b", "i"))
    read = replies.parse_decision(wrapping.replace("{}", plain), LABELS)
    assert read.reasoning == f"a{reasoning}b"


def test_schemas_ask_for_the_fields_that_are_read():
    assert set(replies.decision_schema(LABELS)["properties"]) == set(replies.DecisionReply.model_fields)
    result = replies.judgement_schema(CHECKS)["properties"]["results"]["items"]
    assert set(result["properties"]) == set(replies.ResultReply.model_fields)
    check = replies.checklist_schema()["properties"]["checks"]["items"]
    assert set(check["properties"]) == set(replies.CheckReply.model_fields)
    expected = replies.decision_schema(LABELS)["properties"]["expects"]["items"]
    assert set(expected["properties"]) == set(replies.CheckReply.model_fields) - {"weight"}
    part = replies.split_schema(["dog"])["properties"]["parts"]["items"]
    assert set(part["properties"]) == set(replies.PartReply.model_fields)
    for schema in (replies.decision_schema(LABELS), result, check, expected, part):
        assert schema["required"] == list(schema["properties"])
        assert schema["additionalProperties"] is False


@pytest.mark.parametrize("name", templates.VERSIONS)
def test_every_prompt_is_a_file_of_its_own(name):
    assert len(templates.text(name)) > 100


@pytest.mark.parametrize(
    ("name", "parse"),
    [
        ("checklist", replies.parse_checklist),
        ("split", lambda t: replies.parse_split(t, ["dog_and_cat"])),
        ("plan", lambda t: replies.parse_decision(t, LABELS)),
        ("judge", lambda t: replies.parse_judgement(t, CHECKS[:1], "judge")),
    ],
)
def test_the_example_in_each_prompt_is_a_valid_reply(name, parse):
    parse(templates.text(name))


def test_the_repair_prompt_quotes_the_error_as_it_is():
    assert "$5 {x} is wrong" in templates.repair("$5 {x} is wrong")


def test_certainty_is_read_from_the_answer_tokens():
    pieces = [
        '{"results": [{"check": "dog", "answer": "',
        "yes",
        '"}, {"check": "red", "reason": "a',
        " no",
        '", "answer": "',
        "no",
        '"}]}',
    ]
    tops = {1: {"yes": -0.1, "no": -2.4, "un": -5.0}, 5: {"no": -0.01, "Yes": -4.6}}
    logprobs = [TokenLogprob(p, tops.get(i, {p: 0.0})) for i, p in enumerate(pieces)]
    found = probabilities("".join(pieces), logprobs)
    assert found["dog"] == pytest.approx(0.909, abs=0.001)
    assert found["red"] == pytest.approx(0.0101, abs=0.001)
    assert probabilities("something else", logprobs) == {}
    assert probabilities("", None) == {}
