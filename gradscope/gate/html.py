"""Checks and comparisons as one HTML page, to be kept beside the run that made them."""

from __future__ import annotations

from collections.abc import Sequence

from gradscope.errors import shown
from gradscope.gate.changes_table import sentences, tables_of_changes
from gradscope.gate.checks import Checks
from gradscope.gate.checks_table import next_said, table_of_checks
from gradscope.gate.compare import Comparison
from gradscope.report.html_page import document
from gradscope.report.html_text import listing, origin_section, table, titled
from gradscope.report.html_words import explained
from gradscope.report.pictures.svg import element, escaped
from gradscope.report.views import Look

# The first word of a headline -> the level whose colour it has.
_COLOURS = {"PASSED": "stable", "UNCHANGED": "stable", "CHANGED": "undecided"}
_TERMS = ("gain", "rate", "horizon")
# Rows of one table, and tables: a page stays below 300 KB.
_ROWS, _TABLES = 400, 60


def checks_html(checks: Checks, look: Look) -> str:
    """The headline, what is not kept and what to do, and a table of budgets for every analysis."""
    names = list(dict.fromkeys(one.analysis for one in checks.checks))
    tables = {
        shown(name): table_of_checks([one for one in checks.checks if one.analysis == name]) for name in names
    }
    next_ = [next_said(checks)] if checks.broken else []
    return _page(checks.headline, checks.remarks(), next_, tables, look)


def changes_html(comparison: Comparison, look: Look) -> str:
    """The headline, what is to be known, and a table of changes for every analysis and layer."""
    return _page(comparison.headline, sentences(comparison), [], tables_of_changes(comparison), look)


def _page(
    headline: str,
    said: Sequence[str],
    next_: Sequence[str],
    tables: dict[str, dict[str, list[str]]],
    look: Look,
) -> str:
    word, _, rest = headline.partition(": ")
    level = _COLOURS.get(word, "exploding")
    verdict = element("span", escaped(word), class_=f"level {level}")
    parts = [element("h1", verdict, escaped(f": {rest}")), listing(said)]
    if next_:
        parts += [titled("Next"), listing(next_)]
    room = _ROWS
    for title, columns in [*tables.items()][:_TABLES]:
        rows = [*zip(*columns.values(), strict=True)]
        kept, room = rows[:room], max(0, room - len(rows))
        more = f", the first {len(kept)} of {len(rows)}" if len(kept) < len(rows) else ""
        if kept:
            parts.append(table(f"{title}{more}", [*columns], kept))
    parts += [explained(_TERMS), origin_section(look.origin)]
    return document(headline, headline, parts)
