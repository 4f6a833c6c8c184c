from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clvr.budget import Budget
from clvr.errors import BudgetError
from clvr.trajectory import Cost, Usage

limits = st.none() | st.integers(1, 10**6)
budgets = st.builds(
    Budget,
    steps=st.integers(1, 99),
    candidates=st.integers(1, 9),
    nfe=limits,
    seconds=st.none() | st.integers(1, 10**4).map(float),
    vlm_calls=limits,
    verify_every=st.integers(1, 9),
    threshold=st.sampled_from([0.25, 0.5, 0.9, 1.0]),
    patience=st.integers(1, 9),
)


@given(budgets.filter(lambda b: (b.nfe or 0) < 10**6 and (b.vlm_calls or 0) < 10**6))
def test_what_a_budget_describes_parses_back(budget):
    assert Budget.parse(budget.describe()) == budget


@given(st.text(max_size=40))
def test_any_text_is_a_budget_or_a_budget_error(text):
    with contextlib.suppress(BudgetError):
        assert Budget.parse(text).steps >= 1


@pytest.mark.parametrize(
    "text",
    ["steps=0", "candidates=0", "nfe=0", "seconds=0", "seconds=-1", "seconds=inf", "seconds=nan",
     "vlm_calls=0", "verify_every=0", "threshold=0", "threshold=1.1", "patience=0",
     "steps=none", "steps=1.5", "steps", "=3", "rounds=3", "steps=eight"],
)  # fmt: skip
def test_a_budget_of_nothing_or_nonsense_is_refused_with_a_remedy(text):
    with pytest.raises(BudgetError) as caught:
        Budget.parse(text)
    assert caught.value.remedy


def test_parsing_changes_only_what_is_named():
    base = Budget(steps=3, nfe=100)
    assert Budget.parse("seconds=9", base) == Budget(steps=3, nfe=100, seconds=9.0)
    assert Budget.parse("nfe=none", base) == Budget(steps=3)


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(steps=2), "2 steps"),
        (Budget(nfe=50), "50 function evaluations"),
        (Budget(seconds=9), "9 seconds"),
        (Budget(vlm_calls=4), "4 VLM calls"),
        (Budget(steps=3, nfe=51, seconds=9.5, vlm_calls=5), ""),
    ],
)
def test_each_limit_says_when_it_is_used(budget, said):
    reason = budget.exhausted(Cost(50, usage=Usage(calls=4)), steps=2, elapsed=9.0)
    assert said in reason
    assert bool(reason) == bool(said)
