"""What to do next about a verdict, in a line or two that cost nothing."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from gradscope.errors import counted
from gradscope.problem.inputs import KINDS

# Paths by which a cell holds its state, and the bias of the gate on each.
_HOLDING = {"carousel": "b_f", "carry": "b_z"}
# Where so much of a gate is saturated, by inputs or weights, its bias is not what decides.
_DRIVEN = 0.5
_NEAR = "The gain is nearer to a threshold than its error: take it as being there"
# Settings that make a gain more exact: as they are then, and how to ask for that.
_EXACT = {"accuracy": ("full", "--accuracy full"), "dtype": ("float64", "--dtype float64")}


def carousel_bias(horizon: int, gain: float) -> float:
    """The forget bias b with sigmoid(b)^horizon = gain: -ln(expm1(ln(1 / gain) / horizon))."""
    return -math.log(math.expm1(-math.log(gain) / horizon))


def next_steps(
    problem: Mapping[str, Any],
    level: str,
    tau: float,
    chains: Collection[str],
    rate: float | None,
    *,
    gates: Mapping[str, Mapping[str, Any]] = {},
    tried: bool = False,
    rms: bool = True,
) -> Iterator[str]:
    """Sentences for a verdict, to a vanishing threshold tau.

    problem : as JSON tells it; chains : the names of those that were measured; rate : in nats per step;
    gates : as JSON tells them; tried : whether settings of knobs stand there already; rms : whether the rms
    gain does, of all values.
    """
    if problem.get("cell") is None:
        yield from _of_jacobians(level, rate)
        return
    if problem.get("source", "initialised") != "initialised" and problem.get("inputs") in KINDS:
        yield "Its own data may say something else: give --inputs x.npy, of shape (T, d) or (B, T, d)."
    if level == "vanishing" and tau < 1:
        for path, bias in _HOLDING.items():
            gate = gates.get(bias.removeprefix("b_"), {})
            if path in chains and gate.get("saturated", 0.0) < _DRIVEN:
                yield (
                    f"The {path} alone keeps a gain of {tau:g} over {counted(problem['steps'], 'step')} from "
                    f"{bias} = {carousel_bias(problem['steps'], tau):.2f} on."
                )
    if level == "stable":
        of_loss = "" if "readout" in problem or "adjoint" in problem else ", --readout how much of your loss'"
        said = "the rms gain says" if rms else f"{_every_value(problem)} says (rms gain)"
        yield f"Some gradient arrives: {said} how much of any does{of_loss}."
    elif level == "undecided" and _finite(rate):
        ways = [way for name, (best, way) in _EXACT.items() if problem.get(name, best) != best]
        ways += [_every_value(problem)] if problem.get("top") is not None else []
        yield f"{_NEAR}, or have it more exactly ({', '.join(ways)})." if ways else f"{_NEAR}."
    elif level != "undecided" and not tried:
        yield (
            "gradscope suggest, with the same options, finds the setting of each knob that makes it stable, "
            "and verifies it."
        )


def _of_jacobians(level: str, rate: float | None) -> Iterator[str]:
    """Of bare Jacobians there is nothing to set, but what they are of may be asked."""
    if level in ("vanishing", "exploding"):
        if rate is not None and _finite(rate):
            yield f"Every Jacobian times {math.exp(-rate):.6g} would make the gain over all steps 1."
        yield (
            "gradscope analyze of the cell or checkpoint that these Jacobians are of tells which path "
            "carries the gradient; gradscope suggest finds settings that make it stable."
        )
    elif level == "stable":
        yield "Some gradient arrives over these steps: Jacobians of more steps tell how far it reaches."
    elif _finite(rate):
        yield f"{_NEAR}, or have it more exactly (Jacobians in float64, --top left out)."


def _every_value(problem: Mapping[str, Any]) -> str:
    """What asks for all singular values, which nothing less than paths and all values takes."""
    only = problem.get("only")
    return f"--top all without --only {only}" if only in ("verdict", "gain") else "--top all"


def _finite(rate: float | None) -> bool:
    return rate is not None and math.isfinite(rate)
