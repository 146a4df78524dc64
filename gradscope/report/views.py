"""Output formats: what renders a result in each, imported when it is asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gradscope.errors import InputError
from gradscope.report.terminal import Terminal

if TYPE_CHECKING:
    from gradscope.report.json import Told

# Format -> class of the result -> the module:function (result, look) -> text that renders it.
# A new format is a module beside these and a row here; --format then offers it.
FORMATS: Mapping[str, Mapping[str, str]] = {
    "table": {
        "Analysis": "gradscope.report.table:render_table",
        "Inspection": "gradscope.report.inspection_table:render_contents",
        "Suggestions": "gradscope.advise.suggestion_table:render_suggestions",
        "Repaired": "gradscope.advise.repair_table:render_repaired",
    },
    "html": {
        "Analysis": "gradscope.report.html_page:render_html",
    },
    "json": {
        "Analysis": "gradscope.report.json:render_json",
        "Inspection": "gradscope.report.json:told_json",
        "Suggestions": "gradscope.report.json:told_json",
        "Repaired": "gradscope.report.json:told_json",
    },
}


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


def render(result: Told, name: str, look: Look) -> str:
    """A result in the format ``name``; raises InputError where the format is not for such a result."""
    renderers, kind = FORMATS[name], type(result).__name__
    if kind not in renderers:
        others = [other for other, known in FORMATS.items() if kind in known]
        raise InputError(f"format {name} does not show an {kind.lower()}: choose {' or '.join(others)}")
    module, _, function = renderers[kind].partition(":")
    renderer: Callable[[Told, Look], str] = getattr(importlib.import_module(module), function)
    return renderer(result, look)
