"""Analyses that are held to budgets as work of several processes, and what became of them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gradscope.errors import InputError, reason, shown
from gradscope.gate.baseline import entry_from, entry_told
from gradscope.gate.budgets import Check
from gradscope.gate.checks import Checked, Checking, Checks
from gradscope.gate.config import PlannedRun
from gradscope.rows.journal import Row, failed
from gradscope.rows.keys import key_of, told_settings
from gradscope.track.rows import told_check, told_place


@dataclass(frozen=True)
class HeldAnalysis:
    """An analysis to be held to its budgets (``rows.following.Piece``)."""

    planned: PlannedRun
    checking: Checking
    begun: Callable[[int], Mapping[str, Any]]

    @property
    def name(self) -> str:
        """Of the analysis."""
        return self.planned.name

    def key(self) -> str:
        """Of its options, its budgets, and what changes are counted from."""
        one, old = self.planned, self.checking.old(self.name)
        changes = any(budget.of_change for budget in one.budgets)
        return key_of(
            {
                "analysis": one.name,
                "settings": told_settings(one.settings),
                "seeds": one.seeds,
                "budgets": [vars(budget) for budget in one.budgets],
                "baseline": entry_told(old) if old and changes else None,
                "whole": self.checking.whole,
            }
        )

    def measure(self) -> Row:
        """What became of its budgets, and where they stand."""
        checked = self.checking(self.planned, self.begun)
        row: Row = {
            "checks": [told_check(one, self.planned.places.get(one.budget.metric)) for one in checked.checks],
            "notes": list(checked.notes),
            "idle": checked.idle,
        }
        if self.checking.whole and checked.entry:
            row["measured"] = entry_told(checked.entry)
        return row | ({"error": checked.failure} if checked.failure is not None else {})

    def unmeasured(self, error: InputError) -> Row:
        """As of an analysis that could not be run."""
        lost = [Check(self.name, one, None, failure=str(error)) for one in self.planned.budgets]
        return {"checks": [one.to_row() for one in lost], "notes": [], "idle": False, "error": str(error)}


def checks_of(rows: Iterable[Row]) -> Checks:
    """Of all rows together; raises InputError for those that are damaged."""
    analyses, places = [], {}
    for row in rows:
        try:
            analyses.append(_checked(row))
            for one in row["checks"]:
                if place := told_place(one):
                    places[row["analysis"], one["metric"]] = place
        except Exception as error:  # a stranger's row may be anything
            raise InputError(f"row of {shown(row['analysis'])}: damaged ({reason(error)})") from error
    return Checks(tuple(analyses), places)


def _checked(row: Row) -> Checked:
    told = row.get("measured")
    return Checked(
        str(row["analysis"]),
        tuple(Check.of_row(one) for one in row["checks"]),
        row["error"] if failed(row) else None,
        entry_from(told, str(row["gradscope"])) if told else None,
        tuple(map(str, row["notes"])),
        bool(row["idle"]),
    )
