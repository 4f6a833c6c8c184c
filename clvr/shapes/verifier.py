"""A verifier that measures: every check of the built-in world judged from pixels, with evidence."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from ..trajectory import Check, CheckVerdict, Evidence, Outcome, Verdict
from .checks import read_query
from .found import Found, to_scene
from .measure import measure, measure_batch

NAME = "measuring verifier"


class MeasuringVerifier:
    """`ports.Verifier`. Judges the questions that `checks` writes; any other question is unjudged."""

    @property
    def name(self) -> str:
        return NAME

    def judge(self, image: Image.Image, checks: Sequence[Check], references: Sequence[Image.Image] = ()) -> Verdict:
        """The first reference is the picture that was edited."""
        before = measure(references[0]) if references else None
        return judge_found(measure(image), checks, before)


def judge_found(found: Sequence[Found], checks: Sequence[Check], before: Sequence[Found] | None = None) -> Verdict:
    """The verdict on what was seen: for many pictures measured at once."""
    return Verdict(tuple(_result(check, found, before) for check in checks))


def _result(check: Check, found: Sequence[Found], before: Sequence[Found] | None) -> CheckVerdict:
    query = read_query(check.question)
    if query is None:
        note = "This question is none that can be measured."
        return CheckVerdict(check.id, "unjudged", evidence=(Evidence(NAME, note),))
    answer = query.answer(found, before)
    outcome: Outcome = "unjudged" if answer.holds is None else "pass" if answer.holds else "fail"
    return CheckVerdict(check.id, outcome, evidence=(Evidence(NAME, answer.note, answer.boxes),))


__all__ = ["Found", "MeasuringVerifier", "judge_found", "measure", "measure_batch", "to_scene"]
