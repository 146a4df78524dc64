"""What was analysed, as JSON tells it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradscope.cells.factors import factors_in
from gradscope.errors import listed
from gradscope.problem.origin import Origin
from gradscope.problem.problem import Problem
from gradscope.problem.problems import Problems

# What a layer has of its own, of several that are analysed together.
_OWN = ("hidden", "input_size", "layer", "direction")


def described(problem: Problem, backend: str) -> dict[str, Any]:
    """One problem; what was not given is not there."""
    system, origin = problem.system, problem.origin
    said = {
        "cell": system.cell.name,
        "hidden": system.hidden,
        "input_size": origin.input_size or system.input_size,
        "steps": system.steps,
        "batch": system.batch,
        "init": origin.init,
        "gain": origin.gain,
        "biases": dict(origin.biases),
        "seed": origin.seed,
        "dtype": system.dtype,
        "jacobians": origin.jacobians,
        "accuracy": problem.accuracy,
        "cut": list(problem.cut),
        "view": problem.view,
        "top": problem.values,
        "inputs": origin.inputs,
    }
    of_layer = {"layer": origin.layer, "direction": system.direction if origin.layer is not None else None}
    given = {
        "input_scale": origin.input_scale,
        "embedding": origin.embedding,
        "initial_state": origin.initial_state,
        "lengths": list(system.lengths) if system.lengths else None,
        "masked": None if origin.masked is None else list(origin.masked),
        "source": origin.source,
        **of_layer,
        **{name: None if words is None else list(words) for name, words in _said(origin).items()},
        **_loss(problem),
        "scale": factors_in(system.parameters) or None,
        "only": None if problem.only == "all" else problem.only,
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
    said = [_said(problem.origin) for problem in problems.layers]
    common |= {
        name: _of_all(problems.names, [one[name] or () for one in said]) for name in said[0] if name in first
    }
    scale: dict[str, float] = {}
    for one in problems.layers:
        scale |= factors_in(one.system.parameters)
    common |= {"scale": scale} if scale else {}
    return common | {"cell": ", ".join(cells), "cut": list(cut)}


def _loss(problem: Problem) -> dict[str, str | None]:
    origin = problem.origin
    return {"readout": origin.readout, "readout_at": origin.readout_at, "adjoint": origin.adjoint}


def _said(origin: Origin) -> dict[str, tuple[str, ...] | None]:
    return {"not_applied": origin.not_applied, "assumed": origin.assumed}


def _of_all(names: Sequence[str], sentences: Sequence[Sequence[str]]) -> list[str]:
    """The sentences of all layers, each once, with the names of the layers if it is not of all."""
    of: dict[str, list[str]] = {}
    for name, each in zip(names, sentences, strict=True):
        for sentence in each:
            of.setdefault(sentence, []).append(name)
    return [s if len(having) == len(names) else f"{listed(having)}: {s}" for s, having in of.items()]
