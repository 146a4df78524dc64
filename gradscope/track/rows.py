"""A checkpoint as a row: what is kept of its analysis."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from gradscope.errors import GradscopeError, InputError
from gradscope.gate.budgets import Check, MetricBudget, judge_budget
from gradscope.gate.metrics import metric
from gradscope.gate.places import BudgetPlace
from gradscope.report.analysis import Analysis
from gradscope.report.chains import Chain
from gradscope.report.numbers import json_number
from gradscope.report.row_training import training_numbers
from gradscope.rows.journal import Row


def row_of(
    analysis: Analysis,
    budgets: Sequence[MetricBudget],
    light: bool,
    places: Mapping[str, BudgetPlace] = MappingProxyType({}),
) -> Row:
    """What a row keeps of an analysis: medians over its sequences; what is not finite is None.

    places : {metric of a budget: where it stands}.
    """
    full = analysis.full
    found: Row = {
        "log10_norm": json_number(full.log10_norm.median),
        "log10_norm_error": json_number(full.log10_norm_error),
        "rate": json_number(full.rate.median),
        "horizon": full.horizon.median,
        "steps": full.steps,
        "sequences": len(full.spectra),
        "log10_largest_gain": json_number(full.log10_largest_gain.median),
        "verdict": analysis.verdict.level,
        "notes": list(analysis.verdict.notes),
    }
    found |= full.told_unmeasured
    found["by_lag"] = _curve(full)
    if light:
        found["converged"] = bool(full.log10_norm_error < CONVERGED)
    if analysis.shares:
        found["shares"] = {name: json_number(share) for name, share in analysis.mean_shares.items()}
    if any(one.gates for one in (analysis, *analysis.layers)):
        found["saturated"] = metric(analysis, "saturated").median
    found |= training_numbers(analysis)
    if budgets:
        found["checks"] = [told_check(_judged(analysis, one), places.get(one.metric)) for one in budgets]
    return found


# Lags of a row's curve, at most: as many as a picture of training tells apart.
_LAGS = 24


def _curve(full: Chain) -> dict[str, list[Any]]:
    """The gain at a few lags by equal factors, medians; null where it is zero, or lost, which is said."""
    known = full.lags
    some = np.unique(np.searchsorted(known, np.geomspace(1, known[-1], _LAGS).round()))
    norms = full.median_by_lag[some]
    told = {"lag": known[some].tolist(), "log10_norm": [json_number(float(norm)) for norm in norms]}
    lost = np.intersect1d(full.lost_lags, known[some]).tolist()
    return told | ({"lost": lost} if lost else {})


# Decades that passes and rounding may still move the gain of a light probe by, where it is called converged.
CONVERGED = 1e-6


def row_of_error(error: GradscopeError) -> Row:
    """Of a checkpoint that could not be measured."""
    nothing = dict.fromkeys(("log10_norm", "rate", "horizon", "verdict"))
    return {**nothing, "error": error.in_shell}


def told_check(check: Check, place: BudgetPlace | None) -> dict[str, Any]:
    """A budget as rows have it: with the line that it stands on."""
    if place is None:
        return check.to_row()
    return check.to_row() | {"file": Path(os.path.relpath(place.file)).as_posix(), "line": place.line}


def told_place(told: Mapping[str, Any]) -> BudgetPlace | None:
    """Where a budget stands that ``told_check`` has told of."""
    if not told.get("file"):
        return None
    return BudgetPlace(Path(told["file"]), (), None if told["line"] is None else int(told["line"]))


def _judged(analysis: Analysis, budget: MetricBudget) -> Check:
    name = str(analysis.problem.get("source") or "")
    try:
        return judge_budget(name, budget, metric(analysis, budget.metric))
    except InputError as error:
        return Check(name, budget, None, failure=error.in_shell)
