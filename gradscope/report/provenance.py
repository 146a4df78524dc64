"""What was analysed, as JSON tells it."""

from __future__ import annotations

from typing import Any

from gradscope.problem.layers import Problems
from gradscope.problem.problem import Problem

# What a layer has of its own, of several that are analysed together.
_OWN = ("hidden", "input_size", "layer", "direction")


def described(problem: Problem, backend: str) -> dict[str, Any]:
    """One problem; what was not given is not there."""
    system, origin = problem.system, problem.origin
    said = {
        "cell": system.cell.name,
        "hidden": system.hidden,
        "input_size": system.input_size,
        "steps": system.steps,
        "batch": system.batch,
        "init": origin.init,
        "gain": origin.gain,
        "biases": dict(origin.biases),
        "seed": origin.seed,
        "dtype": system.dtype,
        "accuracy": problem.accuracy,
        "cut": list(problem.cut),
        "view": problem.view,
        "top": problem.top,
        "inputs": origin.inputs,
    }
    of_layer = {"layer": origin.layer, "direction": system.direction if origin.layer is not None else None}
    given = {
        "embedding": origin.embedding,
        "initial_state": origin.initial_state,
        "lengths": list(system.lengths) if system.lengths else None,
        "source": origin.source,
        **of_layer,
        **_loss(problem),
    }
    return said | {name: value for name, value in given.items() if value is not None} | {"backend": backend}


def described_together(problems: Problems, backend: str) -> dict[str, Any]:
    """Several layers: what they have in common."""
    first = described(problems.layers[0], backend)
    cells = dict.fromkeys(problem.system.cell.name for problem in problems.layers)
    cut = dict.fromkeys(path for stack in problems.stacks for path in stack.problem.cut)
    loss = _loss(problems.joint) if problems.joint else {}
    common = {name: value for name, value in first.items() if name not in _OWN}
    common |= {name: value for name, value in loss.items() if value is not None}
    return common | {"cell": ", ".join(cells), "cut": list(cut)}


def _loss(problem: Problem) -> dict[str, str | None]:
    origin = problem.origin
    return {"readout": origin.readout, "readout_at": origin.readout_at, "adjoint": origin.adjoint}
