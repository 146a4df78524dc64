"""What to do next about a verdict, in a line or two that cost nothing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradscope.report.analysis import Analysis

# Paths by which a cell holds its state, and the bias of the gate on each.
_HOLDING = {"carousel": "b_f", "carry": "b_z"}


def carousel_bias(horizon: int, gain: float) -> float:
    """The forget bias b with sigmoid(b)^horizon = gain: -ln(expm1(ln(1 / gain) / horizon))."""
    return -math.log(math.expm1(-math.log(gain) / horizon))


def next_steps(analysis: Analysis) -> Iterator[str]:
    """Sentences for a network that vanishes or explodes; of bare Jacobians there is nothing to set."""
    level = analysis.verdict.level
    if analysis.problem.get("cell") is None or level not in ("vanishing", "exploding"):
        return
    tau, steps = analysis.policy.vanishing_below, analysis.full.steps
    if level == "vanishing" and tau < 1:
        for path, bias in _HOLDING.items():
            if any(chain.name == path for chain in analysis.chains):
                yield (
                    f"The {path} alone keeps a gain of {tau:g} over {steps} steps from {bias} = "
                    f"{carousel_bias(steps, tau):.2f} on."
                )
    yield (
        "gradscope suggest, with the same options, finds the setting of each knob that makes it stable, and "
        "verifies it."
    )
