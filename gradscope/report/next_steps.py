"""What to do next about a verdict, in a line or two that cost nothing."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator

# Paths by which a cell holds its state, and the bias of the gate on each.
_HOLDING = {"carousel": "b_f", "carry": "b_z"}


def carousel_bias(horizon: int, gain: float) -> float:
    """The forget bias b with sigmoid(b)^horizon = gain: -ln(expm1(ln(1 / gain) / horizon))."""
    return -math.log(math.expm1(-math.log(gain) / horizon))


def next_steps(
    level: str, steps: int, tau: float, chains: Collection[str], *, tried: bool = False
) -> Iterator[str]:
    """Sentences for a cell's verdict, to a vanishing threshold tau, if it vanishes or explodes.

    chains : the names of those that were measured; tried : whether settings of knobs stand there already.
    """
    if level not in ("vanishing", "exploding"):
        return
    if level == "vanishing" and tau < 1:
        for path, bias in _HOLDING.items():
            if path in chains:
                yield (
                    f"The {path} alone keeps a gain of {tau:g} over {steps} steps from {bias} = "
                    f"{carousel_bias(steps, tau):.2f} on."
                )
    if tried:
        return
    yield (
        "gradscope suggest, with the same options, finds the setting of each knob that makes it stable, and "
        "verifies it."
    )
