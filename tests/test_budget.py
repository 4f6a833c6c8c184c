from __future__ import annotations

import contextlib
import dataclasses
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clvr.budget import PRESETS, Budget
from clvr.errors import BudgetError
from clvr.trajectory import Cost, Usage

limits = st.none() | st.integers(1, 10**6)
budgets = st.builds(
    Budget,
    steps=st.integers(1, 99),
    candidates=st.integers(1, 9),
    nfe=limits,
    seconds=st.none() | st.floats(1e-3, 1e6, allow_nan=False),
    vlm_calls=limits,
    tokens=limits,
    batch=limits,
    verify_every=st.integers(1, 9),
    threshold=st.floats(0, 1, exclude_min=True),
    patience=st.integers(1, 9),
)


@given(budgets)
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


@given(st.sampled_from(PRESETS), budgets, budgets)
def test_a_preset_then_changes(name, base, changes):
    assert Budget.parse(name, base) == Budget.preset(name)
    named = {key: value for key, value in dataclasses.asdict(changes).items() if value is not None}
    assert Budget.parse(f" {name} , {changes.describe()}") == dataclasses.replace(Budget.preset(name), **named)
    assert Budget.parse(f"{name},nfe=400") == dataclasses.replace(Budget.preset(name), nfe=400)


@pytest.mark.parametrize("text", ["quick", "nfe=4,fast", "fast,thorough", "fast=1", "Fast"])
def test_a_preset_stands_first_and_is_one_of_three(text):
    with pytest.raises(BudgetError) as caught:
        Budget.parse(text)
    assert all(name in caught.value.remedy for name in PRESETS)
    with pytest.raises(BudgetError, match="no budget 'quick'"):
        Budget.preset("quick")


def test_a_budget_knows_the_preset_that_it_was_made_from_whatever_else_limits_it():
    for name in PRESETS:
        assert Budget.preset(name).name == Budget.parse(f"{name},nfe=400,seconds=9,vlm_calls=3,tokens=9").name == name
        assert not Budget.parse(f"{name},patience=9").name
    assert not Budget().name


def test_each_preset_allows_at_least_what_the_one_before_it_does():
    def allowed(budget):
        at_once = min(budget.batch or budget.candidates, budget.candidates)
        limits = (budget.nfe, budget.seconds, budget.vlm_calls, budget.tokens)
        rounds = (budget.steps, budget.candidates, budget.steps * budget.candidates, budget.patience, at_once)
        return *rounds, budget.threshold, -budget.verify_every, *(float("inf") if n is None else n for n in limits)

    ranked = [allowed(Budget.preset(name)) for name in PRESETS]
    for less, more in itertools.pairwise(ranked):
        assert all(a <= b for a, b in zip(less, more, strict=True))
        assert less != more


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        (Budget(steps=2), "2 steps"),
        (Budget(nfe=50), "50 function evaluations"),
        (Budget(seconds=9), "9 seconds"),
        (Budget(vlm_calls=4), "4 VLM calls"),
        (Budget(tokens=30), "30 tokens"),
        (Budget(steps=3, nfe=51, seconds=9.5, vlm_calls=5, tokens=31), ""),
    ],
)
def test_each_limit_says_when_it_is_used(budget, said):
    reason = budget.exhausted(Cost(50, usage=Usage(4, 20, 10)), steps=2, elapsed=9.0)
    assert said in reason
    assert bool(reason) == bool(said)


def test_who_answers_without_a_vlm_is_bound_by_time_alone():
    spent = Cost(usage=Usage(4, 20, 10))
    assert not Budget(vlm_calls=1, tokens=1).used(spent, 9.0, asking=False)
    assert "9 seconds" in Budget(seconds=9).used(spent, 9.0, asking=False)
