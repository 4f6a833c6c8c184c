"""Hypothesis strategies for the contract's objects."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from clvr.trajectory import (
    Candidate,
    Check,
    CheckVerdict,
    Cost,
    Decision,
    Evidence,
    Goal,
    Step,
    Trajectory,
    Usage,
    Verdict,
    generated,
)

few = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For whole trajectories, which take long to make up."""

texts = st.sampled_from(["<image>", "a <image> b", "<IMG_GEN_0>", "r\n\ns", ""]) | st.text(max_size=8)
ids = st.sampled_from(["a", "b", "c", "d"])
counts = st.integers(0, 10**6)
shares = st.floats(0, 1)
usages = st.builds(Usage, counts, counts, counts)
checks = st.builds(Check, ids, texts, st.sampled_from(["object", "count", "other"]), st.none() | ids, st.floats(0.1, 9))
checklists = st.lists(checks, max_size=2, unique_by=lambda c: c.id).map(tuple)
boxes = st.tuples(shares, shares, shares, shares)
evidence = st.builds(Evidence, texts, texts, st.lists(boxes, max_size=1).map(tuple))
results = st.builds(
    CheckVerdict,
    ids,
    st.sampled_from(["pass", "fail", "unjudged"]),
    st.none() | shares,
    st.lists(evidence, max_size=1).map(tuple),
    texts,
)
verdicts = st.builds(Verdict, st.lists(results, max_size=2, unique_by=lambda r: r.check).map(tuple), usages)
costs = st.builds(Cost, counts, st.dictionaries(st.sampled_from(["plan", "draw", "verify"]), st.floats(0, 1e6)), usages)
candidates = st.builds(Candidate, st.integers(0, 2**53), st.none() | verdicts, st.none() | verdicts)


@st.composite
def trajectories(draw, least=0):
    references = draw(st.integers(0, 2))
    goal = Goal(draw(texts), references, draw(checklists))
    steps: list[Step] = []
    for index in range(draw(st.integers(least, 3))):
        known = [*goal.labels(), *(generated(i) for i in range(index))]
        chosen = draw(st.lists(st.sampled_from(known), max_size=3, unique=True)) if known else []
        action = draw(st.sampled_from(["generate", "edit"]))
        decision = Decision(
            action, draw(texts), draw(texts), tuple(chosen), draw(checklists), draw(usages), draw(texts)
        )
        drawn = draw(st.lists(candidates, min_size=1, max_size=2).map(tuple))
        winner = draw(st.integers(0, len(drawn) - 1))
        notes = draw(st.lists(texts, max_size=1).map(tuple))
        steps.append(Step(index, decision, drawn, winner, draw(st.booleans()), draw(costs), notes))
    return Trajectory(goal, tuple(steps), draw(st.integers(0, 2**32)), draw(texts), draw(costs), draw(costs))
