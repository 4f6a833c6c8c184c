"""What a VLM may answer: schemas for the server, tolerant reading, contract objects or a ReplyError.

A server's promise to keep to a JSON schema is never trusted: every reply is read and checked here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator, Sequence
from typing import Annotated, Any, Literal, TypeVar, get_args

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from ..checklist import MOST, tidy
from ..errors import ReplyError
from ..trajectory import Action, Box, Check, CheckKind, CheckVerdict, Decision, Evidence, Outcome

MAX_CHECKS = 64
LONGEST = 200_000
"""Characters of a reply that are read; anything longer is refused."""
_EFFORT = 4_000_000
"""Characters that may be scanned in vain while looking for JSON, so that nonsense cannot take seconds."""
_ATTEMPT = 1000
"""What a failed attempt costs besides, in characters."""

Answer = Literal["yes", "no", "unknown"]
_OUTCOMES: dict[Answer, Outcome] = {"yes": "pass", "no": "fail", "unknown": "unjudged"}
_ANSWERS: dict[Outcome, Answer] = {"pass": "yes", "fail": "no", "unjudged": "unknown", "skipped": "unknown"}

_THINKING = re.compile(r"<(/?)(?:think|thinking|thought|reasoning)>|\[(/?)THINK\]", re.IGNORECASE)
_TRAILING_COMMA = re.compile(r'"(?:[^"\\]|\\.)*"|,(?=\s*[}\]])', re.DOTALL)
_LABEL = re.compile(r"IMG_(GEN|REF)_([0-9]{1,6})(?![0-9])", re.IGNORECASE)


def _kind(value: object) -> object:
    known = isinstance(value, str) and value.strip().lower() in get_args(CheckKind)
    return str(value).strip().lower() if known else "other"


def _parent(value: object) -> object:
    return None if isinstance(value, str) and value.strip().lower() in ("", "none", "null") else value


def _answer(value: object) -> object:
    """Only a plain yes or no counts; whatever hedges is unknown."""
    word = str(value).strip().lower().rstrip(".!")
    return {"yes": "yes", "true": "yes", "no": "no", "false": "no"}.get(word, "unknown")


def _probability(value: object) -> object:
    if isinstance(value, str):
        text, percent = value.strip().removesuffix("%"), value.strip().endswith("%")
        try:
            value = float(text) / (100 if percent else 1)
        except ValueError:
            return None
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1 else None


Probability = Annotated[float | None, BeforeValidator(_probability)]
"""From 0 to 1, also read from text or per cent; anything else is None."""


def listed(value: object) -> object:
    """A list of a lone value, an empty one of nothing: models forget brackets."""
    if value is None:
        return []
    return value if isinstance(value, list) else [value]


def _boxes(value: object) -> object:
    """Boxes in thousandths; a single one may come without its outer list. What is no box is left out."""
    rows = value if isinstance(value, list) else []
    rows = [rows] if len(rows) == 4 and not any(isinstance(r, list) for r in rows) else rows
    return [row for row in rows if _is_box(row)]


def _is_box(row: object) -> bool:
    if not isinstance(row, list) or len(row) != 4:
        return False
    if not all(isinstance(n, (int, float)) and not isinstance(n, bool) and 0 <= n <= 1000 for n in row):
        return False
    return row[0] < row[2] and row[1] < row[3]


def _checks(value: object) -> object:
    return (
        [{"question": item} if isinstance(item, str) else item for item in value] if isinstance(value, list) else value
    )


class ReplyModel(BaseModel):
    """Base of what a model may answer: unknown fields are ignored, texts trimmed, NaN refused."""

    model_config = ConfigDict(
        extra="ignore", allow_inf_nan=False, coerce_numbers_to_str=True, str_strip_whitespace=True
    )


class CheckReply(ReplyModel):
    id: str = ""
    question: Annotated[str, Field(min_length=1)]
    kind: Annotated[CheckKind, BeforeValidator(_kind)] = "other"
    parent: Annotated[str | None, BeforeValidator(_parent)] = None
    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0


class ChecklistReply(ReplyModel):
    checks: Annotated[list[CheckReply], Field(min_length=1, max_length=MAX_CHECKS), BeforeValidator(_checks)]

    @model_validator(mode="before")
    @classmethod
    def _bare_list(cls, value: object) -> object:
        return {"checks": value} if isinstance(value, list) else value


class PartReply(ReplyModel):
    of: str
    question: Annotated[str, Field(min_length=1)]
    kind: Annotated[CheckKind, BeforeValidator(_kind)] = "other"


class SplitReply(ReplyModel):
    parts: Annotated[list[PartReply], Field(min_length=1, max_length=4 * MAX_CHECKS)]

    @model_validator(mode="before")
    @classmethod
    def _bare_list(cls, value: object) -> object:
        return {"parts": value} if isinstance(value, list) else value


class DecisionReply(ReplyModel):
    reasoning: str = ""
    action: Annotated[Action, BeforeValidator(lambda v: v.strip().lower() if isinstance(v, str) else v)]
    instruction: Annotated[str, BeforeValidator(lambda v: "" if v is None else v)] = ""
    references: Annotated[list[str], BeforeValidator(listed)] = Field(default_factory=list)
    expects: Annotated[
        list[CheckReply], Field(max_length=MAX_CHECKS), BeforeValidator(_checks), BeforeValidator(listed)
    ] = Field(default_factory=list)


class ResultReply(ReplyModel):
    check: Annotated[str, Field(validation_alias=AliasChoices("check", "id"))]
    reason: Annotated[str, BeforeValidator(lambda v: "" if v is None else v)] = ""
    answer: Annotated[Answer, BeforeValidator(_answer)]
    probability: Probability = None
    boxes: Annotated[list[Box], BeforeValidator(_boxes)] = Field(default_factory=list)


class JudgementReply(ReplyModel):
    results: Annotated[list[ResultReply], Field(min_length=1)]

    @model_validator(mode="before")
    @classmethod
    def _bare_list(cls, value: object) -> object:
        return {"results": value} if isinstance(value, list) else value


def parse_checklist(text: str) -> tuple[Check, ...]:
    """A reply to the checklist prompt as checks, as they were said: ids may lack or repeat, parents be anything.
    `checklist.tidy` makes them sound. Raises ReplyError."""
    return _said(read(text, ChecklistReply).checks)


def parse_split(text: str, ids: Collection[str]) -> dict[str, tuple[Check, ...]]:
    """A reply to the split prompt: the parts of each of these questions that was answered, without ids. Raises
    ReplyError where none was."""
    parts: dict[str, tuple[Check, ...]] = {}
    for reply in read(text, SplitReply).parts:
        if reply.of in ids:
            parts[reply.of] = (*parts.get(reply.of, ()), Check("", reply.question, reply.kind))
    if not parts:
        raise ReplyError("None of the parts names a question that was asked.", f"The ids are {', '.join(ids)}.")
    return parts


def parse_decision(text: str, labels: Collection[str], default: Sequence[str] = (), may_stop: bool = True) -> Decision:
    """A reply to plan.v1 as a decision. `labels` are the images there are; `default` is what an edit without
    references starts from. Raises ReplyError, also for an image that does not exist."""
    reply = read(text, DecisionReply)
    references = tuple(dict.fromkeys(_label(r, labels) for r in reply.references))
    if reply.action != "stop" and not reply.instruction:
        raise ReplyError(f"The action is {reply.action}, but the instruction is empty.", "Say what to draw.")
    if reply.action == "stop" and not may_stop:
        raise ReplyError("Nothing has been drawn yet, so the action cannot be stop.", "Use generate.")
    if reply.action == "edit" and not references:
        references = tuple(default)
        if not references:
            raise ReplyError("There is no image to edit.", "Use generate.")
    expects = tidy(_said(reply.expects)).checks
    return Decision(reply.action, reply.reasoning, reply.instruction, references, expects, raw=text)


def parse_judgement(text: str, checks: Sequence[Check], judge: str) -> tuple[CheckVerdict, ...]:
    """A reply to judge.v1 as one verdict for each check, in their order. A check that was not answered, or
    answered with both yes and no, is unjudged. Raises ReplyError where no known check was answered."""
    found: dict[str, list[ResultReply]] = {c.id: [] for c in checks}
    for result in read(text, JudgementReply).results:
        if result.check in found:
            found[result.check].append(result)
    if checks and not any(found.values()):
        known = ", ".join(found)
        raise ReplyError("None of the results names a check that was asked.", f"The ids are {known}.")
    return tuple(_verdict(check, found[check.id], judge, text) for check in checks)


def _verdict(check: Check, results: Sequence[ResultReply], judge: str, raw: str) -> CheckVerdict:
    answers = {r.answer for r in results}
    if len(answers) != 1:
        note = f"answered {' and '.join(sorted(answers))}" if answers else "not answered"
        return CheckVerdict(check.id, "unjudged", None, (Evidence(judge, note),), raw)
    last = results[-1]
    boxes = tuple(_fractions(b) for r in results for b in r.boxes)
    probability = last.probability if _consistent(last.answer, last.probability) else None
    return CheckVerdict(check.id, _OUTCOMES[last.answer], probability, (Evidence(judge, last.reason, boxes),), raw)


def _consistent(answer: Answer, probability: float | None) -> bool:
    """A model that says no with 0.9 meant its confidence, not P(yes): such a number is not kept."""
    if probability is None:
        return False
    return answer == "unknown" or (probability >= 0.5) == (answer == "yes") or probability == 0.5


def _fractions(box: Box) -> Box:
    """Thousandths to fractions; a box within [0, 1] already is one."""
    scale = 1.0 if max(box) <= 1 else 1000.0
    return (box[0] / scale, box[1] / scale, box[2] / scale, box[3] / scale)


def _said(replies: Sequence[CheckReply]) -> tuple[Check, ...]:
    return tuple(Check(r.id, r.question, r.kind, r.parent, r.weight) for r in replies)


def _label(text: str, labels: Collection[str]) -> str:
    match = _LABEL.search(text)
    label = f"IMG_{match[1].upper()}_{int(match[2])}" if match else text
    if label not in labels:
        there = ", ".join(f"<{name}>" for name in labels) or "none yet"
        raise ReplyError(f"There is no image '{label:.40}'.", f"The images are: {there}.")
    return label


M = TypeVar("M", bound=ReplyModel)


def read(text: str, model: type[M]) -> M:
    """The last JSON value in the reply that fits the model. Raises ReplyError."""
    if len(text) > LONGEST:
        raise ReplyError(f"The reply has {len(text)} characters.", f"Answer with fewer than {LONGEST}.")
    answer = _without_thinking(text)
    if not answer.strip():
        raise ReplyError(
            "The reply is empty." if not text.strip() else "The reply has thinking only and no answer.",
            "Answer with one JSON object.",
        )
    problem = ""
    for source in dict.fromkeys((answer, _TRAILING_COMMA.sub(_keep_string, answer))):
        for value in reversed(list(_json_values(source))):
            try:
                return model.model_validate(value)
            except ValidationError as error:
                problem = problem or (_summary(error) if _holds_objects(value) else "")
    why = _why_no_json(answer)
    # What is found inside a reply that was cut off would be judged as if it were the reply.
    problem = why if not problem or "cut off" in why else problem
    raise ReplyError(problem, "Answer with one JSON object of the form described.")


def _holds_objects(value: object) -> bool:
    """Whether the value may have been meant as a reply; prose holds lists as well, like [1]."""
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(v, dict) for v in value))


def _without_thinking(text: str) -> str:
    """The reply without its thinking blocks. An unclosed block reaches to the end; a closing tag without its
    opening one (the chat template wrote it) ends a block that began with the reply."""
    if _whole(text) is not None:
        return text
    kept: list[str] = []
    start, thinking = 0, False
    for tag in _THINKING.finditer(text):
        closing = bool(tag[1] or tag[2])
        if closing and not thinking:
            kept.clear()
        elif not closing and not thinking:
            kept.append(text[start : tag.start()])
        start, thinking = tag.end(), not closing
    return "".join(kept if thinking else [*kept, text[start:]])


def _whole(text: str) -> Any:  # noqa: ANN401
    """The reply as JSON where it is nothing but an object or a list."""
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, (dict, list)) else None


def _json_values(text: str) -> Iterator[Any]:
    """Every outermost JSON object or list in the text, in order."""
    decoder = json.JSONDecoder(strict=False)
    at, effort = 0, 0
    while (start := _next_start(text, at)) >= 0 and effort < _EFFORT:
        try:
            value, at = decoder.raw_decode(text, start)
            yield value
        except json.JSONDecodeError as error:
            at, effort = start + 1, effort + error.pos - start + _ATTEMPT
        except (ValueError, RecursionError):  # a number of thousands of digits; brackets nested without end
            at, effort = start + 1, effort + 10 * _ATTEMPT


def _next_start(text: str, at: int) -> int:
    match = _START.search(text, at)
    return match.start() if match else -1


_START = re.compile(r"[{\[]")


def _keep_string(match: re.Match[str]) -> str:
    return match[0] if match[0].startswith('"') else ""


def _summary(error: ValidationError) -> str:
    """The first three problems, with their places and without the values."""
    problems = [f"{'.'.join(map(str, e['loc'])) or 'reply'}: {e['msg']}" for e in error.errors()[:3]]
    return "The JSON does not fit: " + "; ".join(problems) + "."


def _why_no_json(text: str) -> str:
    start = text.find("{")
    if start < 0:
        return "The reply holds no JSON object."
    try:
        json.JSONDecoder(strict=False).raw_decode(text, start)
    except json.JSONDecodeError as error:
        cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated")
        state = "cut off" if cut else "malformed"
        return f"The JSON is {state}: {error.msg} at character {error.pos - start}."
    except (ValueError, RecursionError):
        return "The JSON cannot be read."
    return "The JSON does not fit."


def dump_checklist(checks: Sequence[Check]) -> str:
    """Checks as the reply that `parse_checklist` reads."""
    return _json({"checks": [{**_check(c), "weight": _plain(c.weight)} for c in checks]})


def dump_decision(decision: Decision) -> str:
    """A decision as the reply that `parse_decision` reads; also how a VLM sees its own earlier turns."""
    return _json(
        {
            "reasoning": decision.reasoning,
            "action": decision.action,
            "instruction": decision.instruction,
            "references": [f"<{label}>" for label in decision.references],
            "expects": [_check(c) for c in decision.expects],
        }
    )


def dump_judgement(results: Sequence[CheckVerdict]) -> str:
    """Verdicts as the reply that `parse_judgement` reads."""
    return _json({"results": [_result(r) for r in results]})


def _result(verdict: CheckVerdict) -> dict[str, Any]:
    return {
        "check": verdict.check,
        "reason": " ".join(e.note for e in verdict.evidence if e.note),
        "answer": _ANSWERS[verdict.outcome],
        "probability": verdict.probability,
        "boxes": [[round(n * 1000, 3) for n in box] for e in verdict.evidence for box in e.boxes],
    }


def _check(check: Check) -> dict[str, Any]:
    plain = {"id": check.id, "question": check.question, "kind": check.kind, "parent": check.parent}
    return plain if check.weight == 1 else {**plain, "weight": _plain(check.weight)}


def _plain(number: float) -> float:
    return int(number) if number == int(number) else number


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def checklist_schema() -> dict[str, Any]:
    return object_schema(checks=array_schema(_GOAL_CHECK, minItems=1, maxItems=MOST))


def split_schema(ids: Collection[str]) -> dict[str, Any]:
    part = object_schema(of={"type": "string", "enum": list(ids)}, question={"type": "string"}, kind=_KIND)
    return object_schema(parts=array_schema(part, minItems=1, maxItems=4 * len(ids)))


def decision_schema(labels: Collection[str], may_stop: bool = True) -> dict[str, Any]:
    """`labels` are the images that may be referred to; without any, there is nothing to edit."""
    names = [f"<{label}>" for label in labels]
    references = (
        array_schema({"type": "string", "enum": names}) if names else array_schema({"type": "string"}, maxItems=0)
    )
    return object_schema(
        reasoning={"type": "string"},
        action={"type": "string", "enum": ["generate", *(["edit"] * bool(names)), *(["stop"] * may_stop)]},
        instruction={"type": "string"},
        references=references,
        expects=array_schema(_CHECK, maxItems=6),
    )


def judgement_schema(checks: Sequence[Check]) -> dict[str, Any]:
    result = object_schema(
        check={"type": "string", "enum": [c.id for c in checks]},
        reason={"type": "string"},
        answer={"type": "string", "enum": list(get_args(Answer))},
        probability={"type": ["number", "null"]},
        boxes=array_schema(array_schema({"type": "number"}, minItems=4, maxItems=4), maxItems=8),
    )
    return object_schema(results=array_schema(result, minItems=len(checks), maxItems=len(checks)))


def object_schema(**properties: dict[str, Any]) -> dict[str, Any]:
    """An object whose fields are all required, in this order: what strict servers ask for."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def array_schema(items: dict[str, Any], **limits: int) -> dict[str, Any]:
    return {"type": "array", "items": items, **limits}


_KIND = {"type": "string", "enum": list(get_args(CheckKind))}
_CHECK = object_schema(
    id={"type": "string"},
    question={"type": "string"},
    kind=_KIND,
    parent={"type": ["string", "null"]},
)
_GOAL_CHECK = object_schema(**_CHECK["properties"], weight={"type": "number"})
