"""Numbers for charts over builds: Bencher's metric format, and the list of github-action-benchmark."""

from __future__ import annotations

import json
import math
from typing import Any

from gradscope.errors import shown
from gradscope.gate.findings import Charted, measures
from gradscope.report.analysis import Analysis
from gradscope.report.views import Look


def render_bmf(result: Analysis | Charted, look: Look) -> str:
    """https://bencher.dev/docs/reference/bencher-metric-format: {suite: {metric: value and its bounds}}.

    What is not finite no chart can show: it is left out.
    """
    told: dict[str, dict[str, Any]] = {}
    for one in measures(result):
        if math.isfinite(one.value):
            bounds = {"lower_value": one.lowest, "upper_value": one.highest}
            finite = {name: bound for name, bound in bounds.items() if math.isfinite(bound)}
            told.setdefault(shown(one.suite), {})[shown(one.name)] = {"value": one.value, **finite}
    return json.dumps(told, allow_nan=False, indent=1) + "\n"


def render_benchmark(result: Analysis | Charted, look: Look) -> str:
    """https://github.com/benchmark-action/github-action-benchmark: name, unit, value, range of each."""
    told = [
        {
            "name": f"{shown(one.suite)}: {shown(one.name)}",
            "unit": one.unit or "1",
            "value": one.value,
            "range": f"{one.lowest:.6g} .. {one.highest:.6g}",
            "extra": f"{one.count} sequence{'s' * (one.count != 1)}",
        }
        for one in measures(result)
        if math.isfinite(one.value)
    ]
    return json.dumps(told, allow_nan=False, indent=1) + "\n"
