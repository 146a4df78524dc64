"""The analyses of a plan, run one after another, and every budget held against what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gradscope.errors import ExitCode, InputError, counted, listed, shown
from gradscope.gate.baseline import Entry, entry_of
from gradscope.gate.budgets import Check, MetricBudget, judge_budget
from gradscope.gate.compare import differences, distance, in_words
from gradscope.gate.config import PlannedRun
from gradscope.gate.findings import Finding, Measure
from gradscope.gate.metrics import Metric, least, metric
from gradscope.gate.places import BudgetPlace
from gradscope.report.analysis import Analysis
from gradscope.version import __version__

SCHEMA = "gradscope/checks/1"


@dataclass(frozen=True)
class Checked:
    """What became of the budgets of one analysis.

    failure : why it could not be run, None where it was; entry : what was measured, for a baseline; notes :
    on the baseline; idle : whether it has no budget and was not run.
    """

    name: str
    checks: tuple[Check, ...] = ()
    failure: str | None = None
    entry: Entry | None = None
    notes: tuple[str, ...] = ()
    idle: bool = False


@dataclass(frozen=True)
class Checks:
    """What became of every budget.

    analyses : in the order of the file; places : {(analysis, metric): where its budget stands}.
    """

    analyses: tuple[Checked, ...]
    places: Mapping[tuple[str, str], BudgetPlace] = field(default_factory=dict)

    @property
    def checks(self) -> tuple[Check, ...]:
        """Of every budget."""
        return tuple(check for one in self.analyses for check in one.checks)

    @property
    def failures(self) -> dict[str, str]:
        """{analysis: why it could not be run}."""
        return {one.name: one.failure for one in self.analyses if one.failure is not None}

    @property
    def idle(self) -> list[str]:
        """Analyses without any budget, which were not run."""
        return [one.name for one in self.analyses if one.idle]

    @property
    def entries(self) -> dict[str, Entry]:
        """What was measured, for a baseline."""
        return {one.name: one.entry for one in self.analyses if one.entry is not None}

    @property
    def notes(self) -> list[str]:
        """On the baseline."""
        return [note for one in self.analyses for note in one.notes]

    @property
    def _ran(self) -> list[Checked]:
        return [one for one in self.analyses if not one.idle and one.failure is None]

    @property
    def broken(self) -> list[Check]:
        """Budgets that were measured, are on, and are not kept."""
        return [one for one in self.checks if one.outcome in ("error", "warning")]

    @property
    def unmeasured(self) -> list[Check]:
        """Budgets that are on, and could not be measured."""
        return [one for one in self.checks if one.outcome == "unmeasured"]

    @property
    def exit_code(self) -> int:
        """1 where an error budget is broken, else 2 where something could not be measured, else 0."""
        errors = [one for one in self.checks if one.outcome == "error"]
        return ExitCode.judged(broken=errors, lost=self.failures or self.unmeasured or not self._ran)

    @property
    def headline(self) -> str:
        """All of it in one line."""
        on = [one for one in self.checks if one.budget.severity != "off"]
        errors = sum(one.outcome == "error" for one in on)
        warnings = sum(one.outcome == "warning" for one in on)
        word = "FAILED" if errors else ("PASSED" if self.exit_code == ExitCode.OK else "NOT MEASURED")
        parts = [f"{sum(one.outcome == 'kept' for one in on)} of {counted(len(on), 'budget')} kept"]
        parts += [f"{errors} broken"] * bool(errors)
        parts += [f"{counted(warnings, 'warning')}"] * bool(warnings)
        parts += [f"{len(self.unmeasured)} not measured"] * bool(self.unmeasured)
        analyses = len(self._ran) + len(self.failures)
        return f"{word}: {', '.join(parts)}, {counted(analyses, 'analysis', 'analyses')}"

    def remarks(self) -> list[str]:
        """Sentences on what is not kept, what is not certain, what was not run, and what to do about it."""
        on = [one for one in self.checks if one.budget.severity != "off"]
        said = [check_line(one) for one in on if one.outcome in ("error", "warning") or one.open]
        said += [
            why if why.startswith(f"{name}: ") else f"{shown(name)}: {why}"
            for name, why in self.failures.items()
        ]
        said += [check_line(one) for one in self.unmeasured if one.analysis not in self.failures]
        said += [f"{listed(self.idle)}: not run, has no budget"] * bool(self.idle)
        return [*said, *self.notes]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object ``gradscope/checks/1``: plain Python, no NaN."""
        return {
            "schema": SCHEMA,
            "gradscope": __version__,
            "checks": self.rows(),
            "failures": [{"analysis": name, "reason": why} for name, why in self.failures.items()],
            "not_run": self.idle,
            "notes": self.notes,
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
                one.outcome,
                check_line(one),
                self.places.get((one.analysis, one.budget.metric)),
                one.numbers,
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


def check_line(check: Check) -> str:
    """What became of a budget, with the analysis that it is of."""
    return f"{shown(check.analysis)}: {check.sentence}"


# -- running -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Checking:
    """How the analyses of a plan are run, and what their budgets are held against.

    analyze : runs one, of arguments of ``gradscope.analyze``; count : how many analyses there are; baseline :
    what changes are counted from; lacking : what is said of a change that cannot be; whole : measure all of
    each, not only what its budgets are about, and also what has none.
    """

    analyze: Callable[..., Analysis]
    count: int
    baseline: Mapping[str, Entry] | None = None
    lacking: str = "the baseline lacks it"
    whole: bool = False

    def __call__(
        self, planned: PlannedRun, begun: Callable[[int], Mapping[str, Any]] = lambda run: {}
    ) -> Checked:
        """Run one and hold its budgets against it.

        begun : called before the run of every seed with its number, returns further arguments of ``analyze``.
        """
        name = planned.name
        if not planned.budgets and not self.whole:
            return Checked(name, idle=True)
        settings = {**({} if self.whole else _no_more(planned)), **planned.settings}
        try:
            analyses = [
                self.analyze(**{**settings, "seed": seed, **begun(run)})
                for run, seed in enumerate(planned.seeds)
            ]
        except InputError as error:
            why = error.in_shell if planned.in_shell else str(error)
            lost = tuple(Check(name, one, None, failure=why) for one in planned.budgets)
            return Checked(name, lost, failure=why)
        new = entry_of(analyses)
        old = self.old(name)
        # Where a baseline is to be written, and there is none yet, changes count from that.
        counted_from = new if self.whole and self.baseline is None else old
        checks = [_check(name, one, analyses, counted_from, self.lacking) for one in planned.budgets]
        changes = any(one.of_change for one in planned.budgets)
        return Checked(
            name, tuple(checks), entry=new, notes=_other(name, old, new) if old and changes else ()
        )

    def old(self, name: str) -> Entry | None:
        """The analysis of this name in the baseline; where each has only one, that."""
        if not self.baseline:
            return None
        if len(self.baseline) == self.count == 1:
            return next(iter(self.baseline.values()))
        return self.baseline.get(name)


def places_of(plan: Iterable[PlannedRun]) -> dict[tuple[str, str], BudgetPlace]:
    """Where the budgets of a plan stand."""
    return {(one.name, name): place for one in plan for name, place in one.places.items()}


def _no_more(planned: PlannedRun) -> dict[str, Any]:
    """What has no more measured than the budgets are about; a sensitivity is asked of all."""
    if planned.settings.get("sensitivity"):
        return {}
    return {"only": least([one.measured for one in planned.budgets])}


def _other(name: str, old: Entry, new: Entry) -> tuple[str, ...]:
    found = differences(old, new)
    return (f"{shown(name)}: the baseline is of another problem or maker: {in_words(found)}.",) * bool(found)


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
