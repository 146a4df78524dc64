"""What became of all checkpoints, for formats that tell of it as a whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradscope.errors import ExitCode, InputError, counted, reason
from gradscope.gate.budgets import Check, Outcome
from gradscope.gate.findings import Finding, Measure
from gradscope.gate.metrics import QUANTITIES
from gradscope.gate.places import BudgetPlace
from gradscope.report.gain_words import gain_in
from gradscope.report.row_training import COLUMNS, value_of
from gradscope.rows.journal import Row, failed
from gradscope.track.rows import told_place
from gradscope.version import __version__

SCHEMA = "gradscope/tracked/1"
_MEASURES = ("log10_norm", "rate", "horizon", "log10_largest_gain", "saturated")


@dataclass(frozen=True)
class Track:
    """Rows of checkpoints.

    fail_on : verdicts that are errors; light : whether gain and horizon alone were measured; training : the
    columns that they have besides, see ``report.row_training``.
    """

    rows: tuple[Row, ...] = ()
    fail_on: tuple[str, ...] = ()
    light: bool = False
    training: tuple[str, ...] = ()

    def of(self, rows: Sequence[Row]) -> Track:
        """The same of these rows."""
        return replace(self, rows=tuple(rows))

    @property
    def subject(self) -> str:
        """How many there are."""
        return f"{len(self.rows)} checkpoint{'s' * (len(self.rows) != 1)}"

    def having(self, outcome: Outcome) -> list[str]:
        """The checkpoints of which something became this."""
        return list(dict.fromkeys(one.suite for one in self.findings() if one.outcome == outcome))

    def ended(self) -> dict[str, list[str]]:
        """{what became of some: their names}, of all that fails."""
        unread = [row["checkpoint"] for row in self.rows if failed(row)]
        return {
            "not read": unread,
            "not measured": [name for name in self.having("unmeasured") if name not in unread],
            "beyond a limit": [
                row["checkpoint"]
                for row in self.rows
                if any(one.outcome == "error" for one in checks_in(row))
            ],
            "--fail-on matched": [
                row["checkpoint"] for row in self.rows if row.get("verdict") in self.fail_on
            ],
        }

    @property
    def exit_code(self) -> int:
        """1 where a limit is broken, else 2 where something, or all, could not be measured, else 0."""
        return ExitCode.judged(broken=self.having("error"), lost=self.having("unmeasured") or not self.rows)

    @property
    def headline(self) -> str:
        """All of it in one line."""
        errors, lost = len(self.having("error")), len(self.having("unmeasured"))
        word = "FAILED" if errors else "NOT MEASURED" if lost or not self.rows else "PASSED"
        parts = [self.subject]
        parts += [f"{errors} beyond a limit"] * bool(errors) + [f"{lost} not measured"] * bool(lost)
        return f"{word}: {', '.join(parts)}"

    def to_dict(self) -> dict[str, Any]:
        """The JSON object ``gradscope/tracked/1``."""
        return {"schema": SCHEMA, "gradscope": __version__, "rows": list(self.rows)}

    def findings(self) -> list[Finding]:
        """Of every checkpoint its budgets and its verdict."""
        return [one for row in self.rows for one in self._findings(row)]

    def _findings(self, row: Row) -> list[Finding]:
        name = row["checkpoint"]
        if failed(row):
            return [Finding(name, "verdict", "unmeasured", f"{name}: {row['error']}")]
        level = str(row.get("verdict"))
        horizon = "" if row.get("horizon") is None else f", horizon {row['horizon']:g}"
        steps = f" of {counted(row['steps'], 'step')}" if row.get("steps") else ""
        said = f"{name}: {level}: gain {gain_in(row)}{horizon}{steps}"
        numbers = {one: row.get(one) for one in ("log10_norm", "rate", "horizon")}
        outcome: Outcome = "error" if level in self.fail_on else "kept"
        verdict = Finding(name, "verdict", outcome, said, numbers=numbers)
        return [*(_finding(name, one, place) for one, place in _checks(row)), verdict]

    def measures(self) -> list[Measure]:
        """The numbers of every checkpoint."""
        return [
            Measure(row["checkpoint"], name, value, value, value, QUANTITIES[name].unit, _sequences(row))
            for row in self.rows
            for name, value in _numbers(row).items()
            if not failed(row) and isinstance(value, int | float)
        ]


def _numbers(row: Row) -> dict[str, Any]:
    """What of a row is a metric."""
    training = {name: value_of(row, name) for name in COLUMNS if name in QUANTITIES}
    return {name: row.get(name) for name in _MEASURES} | training


def _sequences(row: Row) -> int:
    return int(row.get("sequences") or 1)


def checks_in(row: Row) -> list[Check]:
    """What became of the budgets of a row; raises InputError where it is damaged."""
    return [check for check, _ in _checks(row)]


def _checks(row: Row) -> list[tuple[Check, BudgetPlace | None]]:
    try:
        return [(Check.of_row(told), told_place(told)) for told in row.get("checks") or ()]
    except Exception as error:  # a stranger's row may be anything
        raise InputError(f"row of {row['checkpoint']}: damaged checks ({reason(error)})") from error


def _finding(name: str, check: Check, place: BudgetPlace | None) -> Finding:
    message = f"{name}: {check.sentence}"
    return Finding(name, check.budget.metric, check.outcome, message, place, check.numbers)
