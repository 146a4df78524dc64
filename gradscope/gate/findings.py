"""What any result says to systems that gate builds and draw trends: findings, and measures over time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from gradscope.errors import shown
from gradscope.gate.budgets import Outcome
from gradscope.gate.metrics import all_metrics
from gradscope.gate.places import BudgetPlace
from gradscope.report.analysis import Analysis
from gradscope.report.table import headline


@dataclass(frozen=True)
class Finding:
    """One thing that is well or is not.

    suite : what it belongs to, an analysis or a layer; name : of the metric; message : the line that says it;
    place : where its limit stands; numbers : that go with it, by their names.
    """

    suite: str
    name: str
    outcome: Outcome
    message: str
    place: BudgetPlace | None = None
    numbers: Mapping[str, float | str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Measure:
    """A number to be followed from build to build."""

    suite: str
    name: str
    value: float
    lowest: float
    highest: float
    unit: str = ""
    count: int = 1


class Judged(Protocol):
    """A result that was held against limits."""

    @property
    def headline(self) -> str:
        """All of it in one line."""

    def findings(self) -> list[Finding]:
        """Of every limit."""


class Charted(Protocol):
    """A result with numbers that are worth following."""

    def measures(self) -> list[Measure]:
        """Them."""


def title(result: Analysis | Judged) -> str:
    """A result in one line."""
    return headline(result) if isinstance(result, Analysis) else result.headline


def findings(result: Analysis | Judged) -> list[Finding]:
    """Of an analysis its verdict and those of its layers: errors are what --fail-on matched."""
    if not isinstance(result, Analysis):
        return result.findings()
    matched = {one.layer for one in result.verdict.matched}
    return [
        Finding(
            suite_of(result),
            f"verdict of {layer}" if layer else "verdict",
            "error" if layer in matched else "kept",
            f"{headline(part)}. {part.verdict.reasons[0]}",
            numbers={"log10_norm": part.full.log10_norm.median, "horizon": part.full.horizon.median},
        )
        for layer, part in result.parts
    ]


def measures(result: Analysis | Charted) -> list[Measure]:
    """Of an analysis every metric."""
    if not isinstance(result, Analysis):
        return result.measures()
    return [
        Measure(suite_of(result), one.name, one.median, one.lowest, one.highest, one.unit, len(one.values))
        for one in all_metrics(result)
    ]


def suite_of(analysis: Analysis) -> str:
    """What an analysis is called where it has no name: its file, or its cell."""
    source = analysis.problem["source"]
    return shown(analysis.problem["cell"] if source == "initialised" else source)
