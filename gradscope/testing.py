"""Gradient flow as an assertion, for a project's own tests: what fails shows the table."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, get_args

from gradscope.api import analyze
from gradscope.checkpoints.live import Live
from gradscope.checkpoints.live_models import read_live
from gradscope.errors import InputError, did_you_mean, quoted
from gradscope.gate.budgets import Check, MetricBudget, judge_budget
from gradscope.gate.metrics import least, metric
from gradscope.report.analysis import Analysis
from gradscope.settings import Level


def assert_gradient_flow(
    subject: Any = None,
    /,
    *,
    verdict: Level | Collection[Level] | None = None,
    max: Mapping[str, float] | None = None,  # noqa: A002
    min: Mapping[str, float] | None = None,  # noqa: A002
    **options: Any,
) -> Analysis:
    """Raise AssertionError, with the table, unless the gradient flows as it is to.

    Parameters
    ----------
    subject : Analysis, path, model, optional
        What is looked at: an Analysis as it is; a checkpoint's file, what ``gradscope.from_torch`` and its
        like return, or a model of PyTorch, Keras, Flax or Equinox itself. Without it a cell that the options
        name.
    verdict : {"vanishing", "stable", "exploding", "undecided"}, or several, optional
        What the verdict may be; "stable" where neither it nor a limit is given.
    max, min : {metric: float}, optional
        Limits on metrics by the names that ``gradscope check`` knows, such as ``{"log10_norm": 3}``
        (decades), ``{"horizon.carousel": 100}`` (steps), ``{"share.R_o": 0.5}``. Of a batch the median
        counts.
    options
        Any of ``gradscope.analyze``. No more is measured than the limits need, unless ``only`` says so.

    Returns
    -------
    Analysis
        What was measured.

    Raises
    ------
    AssertionError
        Where the verdict is another, or a limit is not kept.
    InputError
        For what cannot be analysed, and for metrics that there are not.
    """
    __tracebackhide__ = True
    budgets = [MetricBudget(name, max=limit) for name, limit in (max or {}).items()]
    budgets += [MetricBudget(name, min=limit) for name, limit in (min or {}).items()]
    levels = _levels(verdict, "stable" if not budgets else None)
    analysis = _analysis(subject, [one.metric for one in budgets], options)
    checks = [_check(analysis, budget) for budget in budgets]
    wrong = [one.sentence for one in checks if not one.passed]
    if levels and analysis.verdict.level not in levels:
        wrong.insert(0, f"the verdict is {analysis.verdict.level}, expected {' or '.join(levels)}")
    if wrong:
        raise AssertionError("\n".join([*wrong, "", str(analysis)]))
    return analysis


def _levels(verdict: Level | Collection[Level] | None, default: Level | None) -> list[str]:
    """The verdicts that are right; none where none is asked for."""
    given = [verdict] if isinstance(verdict, str) else list(verdict or ([default] if default else []))
    for level in given:
        if level not in (known := get_args(Level)):
            hint = did_you_mean(str(level), known) or f", expected one of {', '.join(known)}"
            raise InputError(f"verdict is {quoted(level)}{hint}")
    return [str(level) for level in given]


def _analysis(subject: Any, metrics: list[str], options: dict[str, Any]) -> Analysis:
    if isinstance(subject, Analysis):
        if options:
            raise InputError(f"{', '.join(options)}: given beside an Analysis, which is measured already")
        return subject
    if "only" not in options:
        needs = least(metrics)
        options = {**options, "only": "gain" if needs == "verdict" else needs}  # its lags are shown
    if subject is None:
        return analyze(**options)
    if not isinstance(subject, str | Path | Live):
        subject = read_live("assert_gradient_flow", subject, None)
    return analyze(checkpoint=subject, **options)


def _check(analysis: Analysis, budget: MetricBudget) -> Check:
    return judge_budget("", budget, metric(analysis, budget.metric))
