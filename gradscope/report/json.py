"""A result as strict JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from gradscope.report.views import Look, Told

if TYPE_CHECKING:
    from gradscope.report.analysis import Analysis


def render_json(analysis: Analysis, look: Look) -> str:
    """One object and a newline; every float to its last digit, no NaN, no Infinity."""
    return strict(analysis.to_dict(all_lags=look.all_lags))


def told_json(result: Told, look: Look) -> str:
    """The same of a result that has no lags: what is in a checkpoint, suggestions."""
    return strict(result.to_dict())


def strict(told: dict[str, Any]) -> str:
    """A JSON object as text."""
    return json.dumps(told, allow_nan=False) + "\n"
