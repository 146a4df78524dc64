"""The analyses of a plan, run one after another, and every budget held against what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gradscope.errors import ExitCode, InputError, listed, shown
from gradscope.gate.baseline import Entry, entry_of
from gradscope.gate.budgets import Check, MetricBudget, judge_budget
from gradscope.gate.compare import differences, distance, in_words
from gradscope.gate.config import PlannedRun
from gradscope.gate.findings import Finding, Measure, Outcome
from gradscope.gate.metrics import Metric, least, metric
from gradscope.gate.places import BudgetPlace
from gradscope.report.analysis import Analysis
from gradscope.version import __version__

SCHEMA = "gradscope/checks/1"


@dataclass(frozen=True)
class Checks:
    """What became of every budget.

    checks : in the order of the file; failures : {analysis: why it could not be run}; idle : analyses without
    any budget, which were not run; entries : what was measured, for a baseline; notes : on the
    baseline; places : {(analysis, metric): where its budget stands}.
    """

    checks: tuple[Check, ...]
    failures: Mapping[str, str]
    idle: tuple[str, ...]
    entries: Mapping[str, Entry]
    notes: tuple[str, ...] = ()
    places: Mapping[tuple[str, str], BudgetPlace] = field(default_factory=dict)

    @property
    def broken(self) -> list[Check]:
        """Budgets that were measured, are on, and are not kept."""
        return [one for one in self.checks if outcome(one) in ("error", "warning")]

    @property
    def unmeasured(self) -> list[Check]:
        """Budgets that are on, and could not be measured."""
        return [one for one in self.checks if outcome(one) == "unmeasured"]

    @property
    def exit_code(self) -> int:
        """1 where an error budget is broken, 2 where something, or all, could not be measured, else 0."""
        if any(outcome(one) == "error" for one in self.checks):
            return ExitCode.FINDING
        done = self.entries and not (self.failures or self.unmeasured)
        return ExitCode.OK if done else ExitCode.USAGE

    @property
    def headline(self) -> str:
        """All of it in one line."""
        on = [one for one in self.checks if one.budget.severity != "off"]
        errors = sum(outcome(one) == "error" for one in on)
        warnings = sum(outcome(one) == "warning" for one in on)
        word = "FAILED" if errors else ("PASSED" if self.exit_code == ExitCode.OK else "NOT MEASURED")
        parts = [f"{sum(outcome(one) == 'kept' for one in on)} of {counted(len(on), 'budget')} kept"]
        parts += [f"{errors} broken"] * bool(errors)
        parts += [f"{counted(warnings, 'warning')}"] * bool(warnings)
        parts += [f"{len(self.unmeasured)} not measured"] * bool(self.unmeasured)
        analyses = len(self.entries) + len(self.failures)
        return f"{word}: {', '.join(parts)}, {counted(analyses, 'analysis', 'analyses')}"

    def remarks(self) -> list[str]:
        """Sentences on what is not kept, what is not certain, what was not run, and what to do about it."""
        on = [one for one in self.checks if one.budget.severity != "off"]
        said = [check_line(one) for one in on if outcome(one) in ("error", "warning") or one.open]
        said += [
            why if why.startswith(f"{name}: ") else f"{shown(name)}: {why}"
            for name, why in self.failures.items()
        ]
        said += [
            f"{shown(one.analysis)}: {shown(one.budget.metric)}: {one.failure}"
            for one in self.unmeasured
            if one.analysis not in self.failures
        ]
        said += [f"{listed(self.idle)}: not run, has no budget"] * bool(self.idle)
        return [*said, *self.notes]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object ``gradscope/checks/1``: plain Python, no NaN."""
        return {
            "schema": SCHEMA,
            "gradscope": __version__,
            "checks": self.rows(),
            "failures": [{"analysis": name, "reason": why} for name, why in self.failures.items()],
            "not_run": list(self.idle),
            "notes": list(self.notes),
        }

    def rows(self) -> list[dict[str, Any]]:
        """Every budget, as a row."""
        return [one.to_dict() for one in self.checks]

    def findings(self) -> list[Finding]:
        """Of every budget."""
        return [
            Finding(
                one.analysis,
                one.budget.metric,
                outcome(one),
                check_line(one),
                self.places.get((one.analysis, one.budget.metric)),
                {
                    "value": one.value,
                    "min": one.budget.min,
                    "max": one.budget.max,
                    "margin": one.margin,
                    "error": one.error,
                    "spread": one.spread,
                },
            )
            for one in self.checks
        ]

    def measures(self) -> list[Measure]:
        """The value of every budget that has one."""
        return [
            Measure(one.analysis, one.budget.metric, one.value, one.lowest, one.highest, one.unit, one.count)
            for one in self.checks
            if one.value is not None and one.lowest is not None and one.highest is not None
        ]


def outcome(check: Check) -> Outcome:
    """What became of a budget, in a word."""
    severity = check.budget.severity
    if severity == "off":
        return "off"
    if check.failure is not None:
        return "unmeasured"
    if check.passed:
        return "kept"
    return "error" if severity == "error" else "warning"


def counted(count: int, one: str, many: str = "") -> str:
    """``1 budget``, ``2 budgets``."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def check_line(check: Check) -> str:
    """A budget with its value, its limit and its margin, as a sentence."""
    budget, unit = check.budget, f" {check.unit}" if check.unit else ""
    text = f"{shown(check.analysis)}: {shown(budget.metric)}"
    if check.value is None:
        return f"{text} not measured: {check.failure}"
    if check.margin is None:
        return f"{text} is not defined: no gradient gets through"
    text += f" is {check.value:.6g}{unit}"
    if check.passed:
        text += f", within {limits(budget)} by {check.margin:.3g}"
    else:
        above = budget.max is not None and check.value > budget.max
        limit = f"above max {budget.max:g}" if above else f"below min {budget.min:g}"
        text += f", {limit} by {-check.margin:.3g}"
    spread = f"; {check.lowest:.4g} to {check.highest:.4g} over {check.count}" if check.count > 1 else ""
    return f"{text}{spread}" + (f"; {check.open}" if check.open else "")


def limits(budget: MetricBudget) -> str:
    """``max 3``, ``min 1``, ``1 .. 3``."""
    if budget.min is None:
        return f"max {budget.max:g}"
    return f"min {budget.min:g}" if budget.max is None else f"{budget.min:g} .. {budget.max:g}"


# -- running -------------------------------------------------------------------------------------------


def run_checks(
    plan: Sequence[PlannedRun],
    analyze: Callable[..., Analysis],
    *,
    baseline: Mapping[str, Entry] | None = None,
    lacking: str = "the baseline lacks it",
    whole: bool = False,
    begun: Callable[[str, int], Mapping[str, Any]] = lambda name, run: {},
) -> Checks:
    """Run the analyses and hold the budgets against them.

    analyze : runs one, of arguments of ``gradscope.analyze``; baseline : what changes are counted from;
    lacking : what is said of a change that cannot be; whole : measure all of each, not only what its budgets
    are about, and also what has none; begun : called before every run with the analysis and the number of the
    run, returns further arguments.
    """
    checks: list[Check] = []
    failures, entries, notes, idle = {}, {}, [], []
    run = 0
    for planned in plan:
        if not planned.budgets and not whole:
            idle.append(planned.name)
            run += len(planned.seeds)
            continue
        settings = {**({} if whole else _no_more(planned)), **planned.settings}
        analyses = []
        try:
            for seed in planned.seeds:
                more = begun(planned.name, run)
                analyses.append(analyze(**{**settings, "seed": seed, **more}))
                run += 1
        except InputError as error:
            why = error.in_shell if planned.in_shell else str(error)
            failures[planned.name] = why
            checks += [Check(planned.name, one, None, failure=why) for one in planned.budgets]
            run += len(planned.seeds) - len(analyses)
            continue
        entries[planned.name] = entry_of(analyses)
        # Where a baseline is to be written, and there is none yet, changes count from that.
        old = (
            entries[planned.name] if whole and baseline is None else _entry(baseline, planned.name, len(plan))
        )
        checks += [_check(planned.name, one, analyses, old, lacking) for one in planned.budgets]
        if old and any(one.of_change for one in planned.budgets):
            notes += _other(planned.name, old, entries[planned.name])
    places = {(one.name, name): place for one in plan for name, place in one.places.items()}
    return Checks(tuple(checks), failures, tuple(idle), entries, tuple(notes), places)


def _no_more(planned: PlannedRun) -> dict[str, Any]:
    """What has no more measured than the budgets are about; a sensitivity is asked of all."""
    if planned.settings.get("sensitivity"):
        return {}
    return {"only": least([one.measured for one in planned.budgets])}


def _entry(baseline: Mapping[str, Entry] | None, name: str, count: int) -> Entry | None:
    """The analysis of this name in a baseline; where each has only one, that."""
    if not baseline:
        return None
    return next(iter(baseline.values())) if len(baseline) == count == 1 else baseline.get(name)


def _other(name: str, old: Entry, new: Entry) -> list[str]:
    found = differences(old, new)
    return [f"{shown(name)}: the baseline is of another problem or maker: {in_words(found)}."] * bool(found)


def _check(
    name: str, budget: MetricBudget, analyses: Sequence[Analysis], old: Entry | None, lacking: str
) -> Check:
    try:
        found = Metric.pooled([metric(analysis, budget.measured) for analysis in analyses])
        if budget.of_change:
            found = _change(found, old, lacking)
    except InputError as error:
        return Check(name, budget, None, failure=str(error))
    return judge_budget(name, budget, found)


def _change(new: Metric, old: Entry | None, lacking: str) -> Metric:
    """How far it is from the baseline, up or down."""
    if old is None or new.name not in old.metrics:
        raise InputError(lacking)
    delta, error = distance(old.metrics[new.name], new)
    return replace(new, values=(math.fabs(delta),), error=error)
