"""Findings as annotations of GitHub Actions, and the summary of a step within its limit.

Of each kind a step may have ten annotations, and a summary of more than 1024 KiB is dropped whole:
https://docs.github.com/actions/reference/workflows-and-actions/workflow-commands.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from gradscope.errors import shown
from gradscope.gate.findings import Finding, Judged, findings, title
from gradscope.report.analysis import Analysis
from gradscope.report.views import Look

_MOST = 10
_SUMMARY_BYTES = 1_000_000
_KINDS = {"error": "error", "unmeasured": "error", "warning": "warning"}
_CUT = "\n\n(cut here: GitHub shows no summary above a megabyte)\n"


def render_github(result: Analysis | Judged, look: Look) -> str:
    """The headline, then an annotation for whatever is not kept, at the line of its budget."""
    lines = [shown(title(result))]
    told = [(_KINDS[one.outcome], one) for one in findings(result) if one.outcome in _KINDS]
    count, shown_of = Counter(kind for kind, _ in told), Counter[str]()
    for kind, one in told:
        shown_of[kind] += 1
        if shown_of[kind] < _MOST or count[kind] <= _MOST:
            lines.append(_annotation(kind, one))
        elif shown_of[kind] == _MOST:
            more = f"and {count[kind] - _MOST + 1} more: GitHub shows {_MOST} of a kind, the summary has all"
            lines.append(f"::{kind} title=gradscope::{more}")
    return "\n".join(lines) + "\n"


def _annotation(kind: str, one: Finding) -> str:
    where = {}
    if one.place is not None and one.place.line is not None:
        where = {"file": _in_repository(one.place.file), "line": str(one.place.line)}
    told = {**where, "title": f"gradscope: {one.suite}: {one.name}"}
    properties = ",".join(f"{name}={_property(shown(value))}" for name, value in told.items())
    return f"::{kind} {properties}::{_data(shown(one.message))}"


def _in_repository(file: Path) -> str:
    root = os.environ.get("GITHUB_WORKSPACE") or Path.cwd()
    return Path(os.path.relpath(file, root)).as_posix()


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def cut_summary(text: str, already: int) -> str:
    """As much of a Markdown text as a summary can take that has so many bytes already."""
    room = _SUMMARY_BYTES - already
    if len(text.encode()) <= room:
        return text
    kept = text.encode()[: max(0, room - len(_CUT.encode()))].decode("utf-8", "ignore")
    return kept[: kept.rfind("\n") + 1] + _CUT if kept else ""  # no half line of a table
