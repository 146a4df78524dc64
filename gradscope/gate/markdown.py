"""Checks and comparisons as GitHub's Markdown."""

from __future__ import annotations

from gradscope.errors import shown
from gradscope.gate.changes_table import sentences, tables_of_changes
from gradscope.gate.checks import Checks
from gradscope.gate.checks_table import table_of_checks
from gradscope.gate.compare import Comparison
from gradscope.report.markdown import as_markdown, bullets, markdown_table, sections
from gradscope.report.views import Look


def checks_markdown(checks: Checks, look: Look) -> str:
    """The headline, what is not kept, and a line per budget."""
    names = {"analysis": [shown(one.analysis) for one in checks.checks]}
    table = markdown_table(names | table_of_checks(checks.checks)) if checks.checks else ""
    return sections(
        _first(checks.headline), *(() if look.verdict_only else (bullets(checks.remarks()), table))
    )


def changes_markdown(comparison: Comparison, look: Look) -> str:
    """The headline, what is to be known, and a line per chain that changed."""
    tables = [
        part
        for title, columns in tables_of_changes(comparison).items()
        for part in (f"### {as_markdown(title)}\n", markdown_table(columns))
    ]
    rest = () if look.verdict_only else (bullets(sentences(comparison)), *tables)
    return sections(_first(comparison.headline), *rest)


def _first(headline: str) -> str:
    word, _, rest = headline.partition(": ")
    return f"**{word}**: {as_markdown(rest)}\n"
