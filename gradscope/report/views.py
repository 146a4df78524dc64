"""Output formats: what renders a result in each, imported when it is asked for."""

from __future__ import annotations

import html
import importlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from gradscope.errors import InputError
from gradscope.report.terminal import Terminal, terminal_for

_JUDGED = ("Analysis", "Checks", "Comparison", "Track")
# Format -> class of the result -> the module:function (result, look) -> text that renders it.
# A new format is a module beside these and a row here; --format then offers it.
FORMATS: Mapping[str, Mapping[str, str]] = {
    "table": {
        "Analysis": "gradscope.report.table:render_table",
        "Checks": "gradscope.gate.checks_table:render_checks",
        "Comparison": "gradscope.gate.changes_table:render_changes",
        "Inspection": "gradscope.report.inspection_table:render_contents",
        "Suggestions": "gradscope.advise.suggestion_table:render_suggestions",
        "Repaired": "gradscope.advise.repair_table:render_repaired",
        "Track": "gradscope.track.track_formats:track_table",
        "Sweep": "gradscope.grid.phase_table:render_sweep",
    },
    "html": {
        "Analysis": "gradscope.report.html_page:render_html",
        "Checks": "gradscope.gate.html:checks_html",
        "Comparison": "gradscope.gate.html:changes_html",
        "Sweep": "gradscope.grid.phase_table:html_of",
        "Track": "gradscope.track.track_formats:track_html",
    },
    "json": {
        "Analysis": "gradscope.report.json:render_json",
        "Checks": "gradscope.report.json:told_json",
        "Comparison": "gradscope.report.json:told_json",
        "Inspection": "gradscope.report.json:told_json",
        "Repaired": "gradscope.report.json:told_json",
        "Suggestions": "gradscope.report.json:told_json",
        "Track": "gradscope.report.json:told_json",
        "Sweep": "gradscope.report.json:told_json",
    },
    "jsonl": {
        **dict.fromkeys(("Analysis", "Checks", "Comparison"), "gradscope.report.rows:render_jsonl"),
        "Track": "gradscope.track.track_formats:track_jsonl",
        "Sweep": "gradscope.grid.phase_table:jsonl_of",
    },
    "csv": {
        **dict.fromkeys(("Analysis", "Checks", "Comparison", "Sweep"), "gradscope.report.rows:render_csv"),
        "Track": "gradscope.track.track_formats:track_csv",
    },
    "markdown": {
        "Analysis": "gradscope.report.markdown:render_markdown",
        "Checks": "gradscope.gate.markdown:checks_markdown",
        "Comparison": "gradscope.gate.markdown:changes_markdown",
        "Track": "gradscope.track.track_formats:track_markdown",
        "Sweep": "gradscope.grid.phase_table:markdown_of",
    },
    "github": dict.fromkeys(_JUDGED, "gradscope.gate.github:render_github"),
    "junit": dict.fromkeys(_JUDGED, "gradscope.gate.junit:render_junit"),
    "bmf": dict.fromkeys(("Analysis", "Checks", "Track"), "gradscope.gate.trends:render_bmf"),
    "benchmark": dict.fromkeys(("Analysis", "Checks", "Track"), "gradscope.gate.trends:render_benchmark"),
}

# (format, class) -> the command that shows it, where no row above does.
_ELSEWHERE: Mapping[tuple[str, str], str] = {
    ("html", "Suggestions"): "gradscope report with --suggest, which has them on the page of the analysis",
    ("html", "Inspection"): "gradscope report of the file, whose page has its layers",
}

# Columns of a table in a notebook.
_NOTEBOOK = 100
# What a format needs that gradscope does not: library -> the extra that brings it.
LIBRARIES: Mapping[str, Mapping[str, str]] = {"junit": {"junitparser": "ci"}}


@dataclass(frozen=True)
class Look:
    """How a result is to be shown.

    verdict_only : of an analysis the one line; all_lags : every lag, not a thousand of them at most.
    every_layer : of several layers all of each, not of the worst alone.
    embed_data : of a page the JSON in it; origin : what else it says of where the result came from.
    """

    terminal: Terminal
    verdict_only: bool = False
    all_lags: bool = False
    every_layer: bool = False
    embed_data: bool = False
    origin: Mapping[str, str] = field(default_factory=dict)


class Told(Protocol):
    """A result, which JSON tells as one object."""

    def to_dict(self) -> dict[str, Any]:
        """That object."""


def check_format(name: str, kind: str) -> None:
    """Raise InputError where the format is not for a result of this class, or lacks its library."""
    if kind not in FORMATS[name]:
        others = [other for other, known in FORMATS.items() if kind in known]
        article = "an " if kind[0] in "AI" else "a "
        what = f"{'' if kind.endswith('s') else article}{kind.lower()}"
        other = f", or {_ELSEWHERE[name, kind]}" if (name, kind) in _ELSEWHERE else ""
        raise InputError(f"format {name} does not show {what}: choose {' or '.join(others)}{other}")
    for library, extra in LIBRARIES.get(name, {}).items():
        if importlib.util.find_spec(library) is None:
            raise InputError(f"format {name} needs {library}: pip install 'gradscope[{extra}]'")


def render(result: Told, name: str, look: Look) -> str:
    """A result in the format ``name``; raises InputError where the format is not for such a result."""
    kind = type(result).__name__
    check_format(name, kind)
    module, _, function = FORMATS[name][kind].partition(":")
    renderer: Callable[[Told, Look], str] = getattr(importlib.import_module(module), function)
    return renderer(result, look)


def printed(result: Told) -> str:
    """The table as ``print`` shows it."""
    return render(result, "table", Look(terminal_for("never", to_file=False))).rstrip("\n")


def in_notebook(result: Told) -> str:
    """The table as notebooks show it."""
    text = render(result, "table", Look(Terminal(_NOTEBOOK)))
    return f'<pre style="line-height: 1.2">{html.escape(text)}</pre>'
