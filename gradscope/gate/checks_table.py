"""Checks as a table to be read: a line per budget, then what is not kept and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from rich.console import RenderableType
from rich.text import Text

from gradscope.errors import shown
from gradscope.gate.budgets import Check
from gradscope.gate.checks import Checks
from gradscope.report.page import bullet, fitted, page, prose, section
from gradscope.report.terminal import Terminal
from gradscope.report.views import Look

# As those of verdicts (report/table.py), with a contrast of at least 4 on black and on white.
OUTCOMES = {
    "kept": "bold color(28)",
    "warning": "bold color(130)",
    "BROKEN": "bold color(161)",
    "unmeasured": "bold color(161)",
    "off": "dim",
}
WORDS = {"error": "BROKEN"}
# What a narrow terminal can do without, first to go first.
_DISPENSABLE = ("spread", "error", "unit", "margin", "limit")


def render_checks(checks: Checks, look: Look) -> str:
    """The whole table as text, with ANSI codes if the terminal has colours."""
    parts = [_headline(checks)] if look.verdict_only else _parts(checks, look.terminal)
    return page(parts, look.terminal)


def headline_text(line: str) -> Text:
    """A headline whose first word has the colour of what it says."""
    word, _, rest = line.partition(": ")
    style = OUTCOMES[{"PASSED": "kept", "UNCHANGED": "kept", "CHANGED": "warning"}.get(word, "BROKEN")]
    return Text.assemble((word, style), ": ", rest)


def _headline(checks: Checks) -> RenderableType:
    return prose(headline_text(checks.headline))


def _parts(checks: Checks, terminal: Terminal) -> Iterable[RenderableType]:
    yield _headline(checks)
    yield from map(bullet, checks.remarks())
    for analysis in dict.fromkeys(one.analysis for one in checks.checks):
        columns = table_of_checks([one for one in checks.checks if one.analysis == analysis])
        table = fitted(columns, terminal, folds="budget", dispensable=_DISPENSABLE, styles=OUTCOMES)
        yield section(shown(analysis), table)
    if checks.broken:
        yield prose(Text(f"\n{next_said(checks)}", style="dim"))


def next_said(checks: Checks) -> str:
    """What to do about what is broken."""
    return f"{_NEXT}{_UPDATES if checks.places else ''}."


_NEXT = "gradscope analyze with the same options shows where"
_UPDATES = "; if the change is meant, gradscope check --update-budgets writes limits that hold"


def table_of_checks(every: Sequence[Check]) -> dict[str, list[str]]:
    """Heading and cells of every column; the spread is left out where every value is alone."""
    columns = {
        "budget": [shown(one.budget.metric) for one in every],
        "value": [_number(one.value) for one in every],
        "limit": [one.budget.limits for one in every],
        "margin": ["-" if one.margin is None else f"{one.margin:+.3g}" for one in every],
        "unit": [one.unit or "-" for one in every],
        "error": [_error(one.error) for one in every],
    }
    if any(one.count > 1 for one in every):
        columns["spread"] = [_spread(one) for one in every]
    return columns | {"verdict": [WORDS.get(one.outcome, one.outcome) for one in every]}


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.6g}"


def _error(error: float | None) -> str:
    return "-" if error is None else f"{error:.0e}" if error else "0"


def _spread(check: Check) -> str:
    if check.count == 1 or check.lowest is None or check.highest is None:
        return "-"
    return f"{check.lowest:.4g} .. {check.highest:.4g}"
