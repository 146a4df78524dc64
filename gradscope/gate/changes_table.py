"""A comparison as a table to be read: a line per chain that changed, and what else there is to know."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from rich.console import RenderableType

from gradscope.errors import shown
from gradscope.gate.checks_table import headline_text
from gradscope.gate.compare import Change, Comparison, change_line
from gradscope.report.page import bullet, fitted, page, prose, section
from gradscope.report.terminal import Terminal
from gradscope.report.views import Look

# What a narrow terminal can do without, first to go first.
_DISPENSABLE = ("largest gain", "share", "rate", "horizon", "log10 gain")
# Heading -> the quantity that stands under it.
_COLUMNS = {
    "log10 gain": "log10_norm",
    "horizon": "horizon",
    "share": "share",
    "rate": "rate",
    "largest gain": "log10_largest_gain",
}


def render_changes(comparison: Comparison, look: Look) -> str:
    """The whole table as text, with ANSI codes if the terminal has colours."""
    headline = prose(headline_text(comparison.headline))
    rest = () if look.verdict_only else _parts(comparison, look.terminal)
    return page([headline, *rest], look.terminal)


def _parts(comparison: Comparison, terminal: Terminal) -> Iterable[RenderableType]:
    yield from map(bullet, sentences(comparison))
    for title, columns in tables_of_changes(comparison).items():
        table = fitted(columns, terminal, folds="chain", dispensable=_DISPENSABLE, styles={})
        yield section(title, table)


def sentences(comparison: Comparison) -> list[str]:
    """What is allowed and what is not, what changed most, and what has to be known beside it."""
    judged = [change_line(change, one) for one, change, _ in comparison.judged()]
    gains = [one for one in comparison.changes if one.new.quantity == "log10_norm"]
    whole = [change_line(one) for one in gains if one.new.part is None and one.new.layer is None]
    parts = [one for one in gains if one.new.part is not None or one.new.layer is not None]
    most = max(parts, key=lambda one: abs(one.delta), default=None)
    told = [] if judged else whole
    return [*judged, *told, *([f"Most in {change_line(most)}"] if most else []), *comparison.notes()]


def tables_of_changes(comparison: Comparison) -> dict[str, dict[str, list[str]]]:
    """{heading of a table: its columns}: one for every analysis and layer, a row for every chain or gate."""
    rows: dict[str, dict[str, dict[str, Change]]] = {}
    for one in comparison.changes:
        new, gate = one.new, one.new.quantity == "saturated"
        words = (one.analysis, f"layer {new.layer}" if new.layer else "", "gates" if gate else "")
        title = ", ".join(map(shown, filter(None, words))) or "Chains"
        rows.setdefault(title, {}).setdefault(shown(new.part or "full"), {})[new.quantity] = one
    return {title: _columns(chains) for title, chains in rows.items()}


def _columns(chains: Mapping[str, Mapping[str, Change]]) -> dict[str, list[str]]:
    every = chains.values()
    columns = {
        "chain": list(chains),
        "decades": [_decades(each.get("log10_norm")) for each in every],
        **{head: [_old_and_new(each.get(name)) for each in every] for head, name in _COLUMNS.items()},
        "saturated": [_old_and_new(each.get("saturated")) for each in every],
    }
    return {head: cells for head, cells in columns.items() if set(cells) != {"-"}}


def _decades(change: Change | None) -> str:
    if change is None:
        return "-"
    if math.isfinite(change.delta):
        return f"{change.delta:+.3g}"
    return "to zero" if change.delta < 0 else "from zero"


def _old_and_new(change: Change | None) -> str:
    return "-" if change is None else f"{change.old.median:.4g} -> {change.new.median:.4g}"
