"""A budget: the limits that a metric is to keep, and what is found where it is measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gradscope.errors import InputError, counted, nearest_or_all, quoted, shown
from gradscope.gate.metrics import Metric, check_name

Severity = Literal["off", "warn", "error"]
Aggregation = Literal["median", "optimistic", "pessimistic"]
# kept : all is well; warning, error : a limit is broken; off : not looked at; unmeasured : could not be.
Outcome = Literal["kept", "warning", "error", "off", "unmeasured"]
# A budget on how far a metric is from that of a baseline, in its own unit, up or down.
CHANGE = "change."


@dataclass(frozen=True)
class MetricBudget:
    """Limits of one metric.

    metric : its name, or change.NAME; min, max : what it is to keep, None is no limit; severity : whether it
    fails (error), warns or is off; aggregation : which of the sequences and seeds decides: the median, the
    one furthest within the limits, or the one furthest beyond them.
    """

    metric: str
    min: float | None = None
    max: float | None = None
    severity: Severity = "error"
    aggregation: Aggregation = "median"

    def __post_init__(self) -> None:
        check_name(self.measured)
        for name, limit in (("min", self.min), ("max", self.max)):
            if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int | float)):
                raise InputError(f"{self._called}: {name} is {quoted(limit)}, expected a number")
            if limit is not None and math.isnan(limit):
                raise InputError(f"{self._called}: {name} is no number")
        for name, choices in (("severity", get_args(Severity)), ("aggregation", get_args(Aggregation))):
            if (value := getattr(self, name)) not in choices:
                raise InputError(
                    f"{self._called}: {name} is {quoted(value)}, expected {' or '.join(choices)}"
                )
        if self.min is None and self.max is None:
            raise InputError(f"{self._called}: has no limit, give min or max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise InputError(f"{self._called}: min {self.min:g} is above max {self.max:g}")
        if self.of_change and self.max is None:
            raise InputError(f"{self._called}: a change has no sign, give max")

    @property
    def of_change(self) -> bool:
        """Whether it is about the distance from a baseline."""
        return self.metric.startswith(CHANGE)

    @property
    def measured(self) -> str:
        """The name of the metric that has to be known for it."""
        return self.metric.removeprefix(CHANGE)

    @property
    def limits(self) -> str:
        """``max 3``, ``min 1``, ``1 .. 3``."""
        if self.min is None:
            return f"max {self.max:g}"
        return f"min {self.min:g}" if self.max is None else f"{self.min:g} .. {self.max:g}"

    @property
    def _called(self) -> str:
        return f"budget {shown(self.metric)}"

    @classmethod
    def of(cls, metric: str, told: Any, aggregation: Aggregation = "median") -> MetricBudget:
        """From what a file tells of it, such as {"max": 3}; raises InputError for what it does not know."""
        if not isinstance(told, Mapping):
            raise InputError(f"budget {shown(metric)} is {quoted(told)}, expected such as {{max = 3}}")
        known = ("min", "max", "severity", "aggregation")
        for key in told:
            if key not in known:
                raise InputError(
                    f"budget {shown(metric)}: unknown key {quoted(key)}{nearest_or_all(key, known)}"
                )
        return cls(metric, **{"aggregation": aggregation, **told})


def budgets_of(minima: Iterable[str], maxima: Iterable[str]) -> tuple[MetricBudget, ...]:
    """From such as ``log10_norm=3`` of --min and --max, one for each metric; raises InputError."""
    limits: dict[str, dict[str, float]] = {}
    for option, texts in (("min", minima), ("max", maxima)):
        for text in texts:
            metric, number = _limit(text, option)
            if option in limits.setdefault(metric, {}):
                raise InputError(f"--{option} {shown(text)}: {shown(metric)} has a {option} already")
            limits[metric][option] = number
    return tuple(MetricBudget(metric, each.get("min"), each.get("max")) for metric, each in limits.items())


def _limit(text: str, option: str) -> tuple[str, float]:
    name, equals, number = text.partition("=")
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not equals or math.isnan(value):
        raise InputError(f"--{option} is {quoted(text)}, expected METRIC=NUMBER such as log10_norm=3")
    return name.strip(), value


@dataclass(frozen=True)
class Check:
    """What became of a budget.

    value : what decided, of sequences and seeds, None where it could not be measured, for the reason in
    ``failure``; lowest, highest : of them all; count : how many they are; unit : of all of these.
    """

    analysis: str
    budget: MetricBudget
    value: float | None
    error: float | None = None
    lowest: float | None = None
    highest: float | None = None
    count: int = 1
    unit: str = ""
    failure: str | None = None

    @property
    def margin(self) -> float | None:
        """How far within the limits it is, in its unit; negative beyond them."""
        if self.value is None or math.isnan(self.value):
            return None
        return min(_margins(self.budget, self.value))

    @property
    def passed(self) -> bool:
        """Whether the limits are kept, whatever the severity; what is not known keeps none."""
        return self.margin is not None and self.margin >= 0

    @property
    def failed(self) -> bool:
        """Whether it fails the build."""
        return not self.passed and self.budget.severity == "error"

    @property
    def open(self) -> str | None:
        """Why it might as well have ended otherwise; None where that is certain."""
        margin = self.margin
        if margin is None or self.value is None:
            return None
        if self.error and abs(margin) <= self.error:
            return "the limit is within the estimated error"
        if self.lowest is None or self.highest is None:
            return None
        inside = [min(_margins(self.budget, one)) >= 0 for one in (self.lowest, self.highest)]
        if self.count > 1 and not all(one == self.passed for one in inside):
            return "the limit is within the spread"
        return None

    @property
    def spread(self) -> float | None:
        """From the lowest to the highest of sequences and seeds, 0 of a single one; None where not finite."""
        if self.lowest is None or self.highest is None:
            return None
        width = self.highest - self.lowest
        return width if math.isfinite(width) else (0.0 if self.lowest == self.highest else None)

    @property
    def outcome(self) -> Outcome:
        """What became of it, in a word."""
        if self.budget.severity == "off":
            return "off"
        if self.failure is not None:
            return "unmeasured"
        if self.passed:
            return "kept"
        return "error" if self.budget.severity == "error" else "warning"

    @property
    def sentence(self) -> str:
        """The metric with its value, its limit and its margin: what every view says of it."""
        budget, text = self.budget, shown(self.budget.metric)
        if self.value is None:
            return f"{text} not measured: {self.failure}"
        if self.margin is None:
            return f"{text} is not defined: no gradient gets through"
        text += f" is {self.value:.6g} {self.unit}".rstrip()
        if self.passed:
            text += f", within {budget.limits} by {self.margin:.3g}"
        else:
            above = budget.max is not None and self.value > budget.max
            limit = f"above max {budget.max:g}" if above else f"below min {budget.min:g}"
            text += f", {limit} by {-self.margin:.3g}"
        over = f"over {counted(self.count, 'sequence')}"
        spread = f"; {self.lowest:.4g} to {self.highest:.4g} {over}" if self.count > 1 else ""
        return f"{text}{spread}" + (f"; {self.open}" if self.open else "")

    @property
    def numbers(self) -> dict[str, float | str | None]:
        """What goes with the sentence where a format has room for numbers."""
        return {
            "value": self.value,
            "min": self.budget.min,
            "max": self.budget.max,
            "margin": self.margin,
            "error": self.error,
            "spread": self.spread,
        }

    def to_dict(self) -> dict[str, Any]:
        """As JSON tells it: what is not finite is None."""
        return {
            "analysis": self.analysis,
            "metric": self.budget.metric,
            "value": finite(self.value),
            "min": finite(self.budget.min),
            "max": finite(self.budget.max),
            "severity": self.budget.severity,
            "passed": self.passed,
            "error": finite(self.error),
            "spread": self.spread,
            "lowest": finite(self.lowest),
            "highest": finite(self.highest),
            "sequences": self.count,
            "aggregation": self.budget.aggregation,
            "unit": self.unit,
            "margin": finite(self.margin),
            "open": self.open,
            "failure": self.failure,
        }

    def to_row(self) -> dict[str, Any]:
        """As ``to_dict``, but what is not finite is its name: of it nothing is lost."""
        exact = {name: getattr(self, name) for name in _NUMBERS}
        exact |= {"min": self.budget.min, "max": self.budget.max}
        odd = {name: str(one) for name, one in exact.items() if one is not None and not math.isfinite(one)}
        return self.to_dict() | odd

    @classmethod
    def of_row(cls, told: Mapping[str, Any]) -> Check:
        """From what ``to_row`` has told; raises KeyError, TypeError, ValueError for what it has not."""
        asked: dict[str, Any] = {name: _exact(told[name]) for name in ("min", "max")}
        asked |= {name: told[name] for name in ("severity", "aggregation")}
        numbers: dict[str, Any] = {name: _exact(told[name]) for name in _NUMBERS}
        if (numbers["value"] is None) is (told["failure"] is None) or (
            numbers["value"] is not None and None in (numbers["lowest"], numbers["highest"])
        ):
            raise ValueError("a value without its spread, or without a reason why there is none")
        return cls(
            str(told["analysis"]),
            MetricBudget(str(told["metric"]), **asked),
            **numbers,
            count=int(told["sequences"]),
            unit=str(told["unit"]),
            failure=None if told["failure"] is None else str(told["failure"]),
        )


_NUMBERS = ("value", "error", "lowest", "highest")


def _exact(told: Any) -> float | None:
    """A number of a row, or the name of one that JSON does not know; raises ValueError for anything else."""
    if told is None or (isinstance(told, int | float) and not isinstance(told, bool)):
        return told
    if told in ("inf", "-inf", "nan"):
        return float(told)
    raise ValueError(f"{quoted(told)} is no number")


def judge_budget(analysis: str, budget: MetricBudget, metric: Metric) -> Check:
    """Hold a metric against its budget; analysis : what it is of, by its name."""
    return Check(
        analysis,
        budget,
        _decisive(budget, metric),
        metric.error,
        metric.lowest,
        metric.highest,
        len(metric.values),
        metric.unit,
    )


def _decisive(budget: MetricBudget, metric: Metric) -> float:
    """The value that is held against the limits."""
    if budget.aggregation == "median":
        return metric.median

    def margin(value: float) -> float:
        return min(_margins(budget, value))

    return (max if budget.aggregation == "optimistic" else min)(metric.values, key=margin)


def _margins(budget: MetricBudget, value: float) -> list[float]:
    """Distances to the limits that there are; equal infinities are at the limit."""
    below = [] if budget.max is None else [_distance(value, budget.max)]
    above = [] if budget.min is None else [_distance(budget.min, value)]
    return below + above


def _distance(low: float, high: float) -> float:
    return 0.0 if low == high else high - low


def finite(value: float | None) -> float | None:
    """A number as JSON knows it."""
    return value if value is not None and math.isfinite(value) else None
