"""Budgets: what they refuse, and what they find."""

import json
import math

import pytest

from gradscope import InputError
from gradscope.gate.budgets import MetricBudget, budgets_of, judge_budget
from gradscope.gate.metrics import Metric


def check(budget, *values, error=1e-9):
    return judge_budget("small", budget, Metric("log10_norm", None, None, values, error))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (3, "budget log10_norm is 3, expected such as {max = 3}"),
        ({}, "budget log10_norm: has no limit, give min or max"),
        ({"max": "3"}, "budget log10_norm: max is '3', expected a number"),
        ({"max": True}, "budget log10_norm: max is True, expected a number"),
        ({"max": math.nan}, "budget log10_norm: max is no number"),
        ({"min": 3, "max": 2}, "budget log10_norm: min 3 is above max 2"),
        ({"maxx": 3}, "budget log10_norm: unknown key 'maxx': did you mean max?"),
        ({"max": 3, "severity": "err"}, "severity is 'err', expected off or warn or error"),
        ({"max": 3, "aggregation": "mean"}, "aggregation is 'mean', expected median or optimistic or pessi"),
    ],
)
def test_what_is_no_budget_is_refused(told, said):
    with pytest.raises(InputError, match=said.replace("{", r"\{")):
        MetricBudget.of("log10_norm", told)


def test_of_no_metric_and_of_a_change():
    with pytest.raises(InputError, match=r"no metric 'log10norm': did you mean log10_norm\?"):
        MetricBudget("log10norm", max=1)
    with pytest.raises(InputError, match=r"change\.rate: a change has no sign, give max"):
        MetricBudget("change.rate", min=1)
    assert MetricBudget("change.horizon.R_o", max=1).measured == "horizon.R_o"


def test_on_the_command_line():
    assert budgets_of(["horizon.R_o=1e2", "rate=-1"], ["rate=2"]) == (
        MetricBudget("horizon.R_o", min=100.0),
        MetricBudget("rate", min=-1.0, max=2.0),
    )
    with pytest.raises(InputError, match="--max rate=2: rate has a max already"):
        budgets_of([], ["rate=1", "rate=2"])
    for text in ("log10_norm", "log10_norm=", "log10_norm=nan", "log10_norm=x"):
        with pytest.raises(InputError, match="expected METRIC=NUMBER such as log10_norm=3"):
            budgets_of([], [text])


@pytest.mark.parametrize(
    ("limits", "value", "margin"),
    [
        ({"max": 3}, 2.0, 1.0),
        ({"max": 3}, 3.0, 0.0),
        ({"max": 3}, 3.5, -0.5),
        ({"min": 1}, 0.5, -0.5),
        ({"min": 1, "max": 3}, 1.25, 0.25),
        ({"max": 3}, -math.inf, math.inf),
        ({"min": -3}, -math.inf, -math.inf),
        ({"min": -math.inf}, -math.inf, 0.0),
        ({"min": -3}, math.nan, None),
    ],
)
def test_margins(limits, value, margin):
    found = check(MetricBudget("log10_norm", **limits), value)
    assert (found.value, found.margin) == pytest.approx((value, margin), nan_ok=True)
    assert found.passed is (margin is not None and margin >= 0)
    assert found.failed is not found.passed
    json.dumps(found.to_dict(), allow_nan=False)


def test_severity():
    assert not check(MetricBudget("log10_norm", max=3, severity="warn"), 4.0).failed
    assert not check(MetricBudget("log10_norm", max=3, severity="off"), 4.0).failed


@pytest.mark.parametrize(
    ("aggregation", "limits", "value"),
    [
        ("median", {"max": 3}, 2.0),
        ("optimistic", {"max": 3}, 1.0),
        ("pessimistic", {"max": 3}, 5.0),
        ("optimistic", {"min": 3}, 5.0),
        ("pessimistic", {"min": 3}, 1.0),
        ("pessimistic", {"min": 0, "max": 6}, 1.0),
        ("optimistic", {"min": 0, "max": 6}, 2.0),
    ],
)
def test_which_of_several_decides(aggregation, limits, value):
    found = check(MetricBudget("log10_norm", aggregation=aggregation, **limits), 1.0, 5.0, 2.0)
    assert found.value == value
    assert (found.spread, found.lowest, found.highest, found.count) == (4.0, 1.0, 5.0, 3)


def test_what_might_have_ended_otherwise_says_so():
    budget = MetricBudget("log10_norm", max=3)
    assert check(budget, 2.9, error=0.2).open == "the limit is within the estimated error"
    assert check(budget, 3.1, error=0.2).open == "the limit is within the estimated error"
    assert check(budget, 2.9, error=0.01).open is None
    assert check(budget, 1.0, 2.0, 4.0).open == "the limit is within the spread"
    assert check(budget, 1.0, 4.0, 5.0).open == "the limit is within the spread"
    assert check(budget, 4.0, 5.0).open is None
    assert check(budget, -math.inf).open is None
