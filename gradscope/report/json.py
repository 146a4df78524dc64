"""An Analysis as strict JSON."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradscope.report.analysis import Analysis


def render_json(analysis: Analysis, *, all_lags: bool = False) -> str:
    """One object and a newline; every float to its last digit, no NaN, no Infinity."""
    text = json.dumps(analysis.to_dict(all_lags=all_lags), allow_nan=False)
    return text + "\n"
