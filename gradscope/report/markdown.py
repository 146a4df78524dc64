"""A result as GitHub's Markdown: for a summary, an issue, a notebook."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from gradscope.errors import shown
from gradscope.report.analysis import Analysis
from gradscope.report.table import headline, table_of_chains, table_of_layers
from gradscope.report.views import Look

# What Markdown or HTML would take for its own; a backslash before any of them is never seen.
_OWN = re.compile(r"([\\`*_{}\[\]<>()#+!|~&:$])")


def as_markdown(text: object) -> str:
    """Text as it is to be read, on one line."""
    return _OWN.sub(r"\\\1", shown(text))


def markdown_table(columns: Mapping[str, Sequence[str]]) -> str:
    """A table of {heading: cells}, all of them plain text; the first column stands to the left."""
    rule = [":--", *["--:"] * (len(columns) - 1)]
    lines = [
        map(as_markdown, columns),
        rule,
        *(map(as_markdown, row) for row in zip(*columns.values(), strict=True)),
    ]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def bullets(sentences: Iterable[str]) -> str:
    """A list of sentences of plain text."""
    return "".join(f"- {as_markdown(one)}\n" for one in sentences)


def sections(*parts: str) -> str:
    """The parts that there are, an empty line between."""
    return "\n".join(part for part in parts if part)


def render_markdown(analysis: Analysis, look: Look) -> str:
    """The verdict and its reasons, the layers and the chains."""
    level, _, rest = headline(analysis).partition(": ")
    first = f"**{level}**: {as_markdown(rest)}\n"
    if look.verdict_only:
        return first
    said = bullets((*analysis.verdict.reasons, *analysis.verdict.notes))
    layers = markdown_table(table_of_layers(analysis)) if analysis.layers else ""
    return sections(first, said, layers, markdown_table(table_of_chains(analysis)))
