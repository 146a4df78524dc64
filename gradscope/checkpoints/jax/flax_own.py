"""Modules of nnx that are recurrent by what they do: found as they are called."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from gradscope.checkpoints.carried import ARGUMENTS, OUTPUT, StepCall, carried, leaves, placed, started
from gradscope.checkpoints.found import Found
from gradscope.checkpoints.jax.derivatives import Jax, is_array, named_leaves
from gradscope.checkpoints.jax.own_loops import PureModel
from gradscope.checkpoints.jax.steps import call_model, is_float, line_by_line, wrapped
from gradscope.checkpoints.own_modules import merged_modules
from gradscope.checkpoints.pure_steps import PureSteps, equal
from gradscope.checkpoints.recording import Recorded
from gradscope.errors import InputError

# The attribute of a module that says its path.
_PATH = "_gradscope_own_path"


@dataclass
class _Notes:
    """What was noted of modules in one pass.

    pushed : the one whose outputs are changed on their way; calls : by name; lost : those within a vmap.
    """

    pushed: str | None = None
    calls: dict[str, list[StepCall]] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)

    def call(self, module: Any, own: Callable[..., Any], args: Any, keywords: Any) -> Any:
        """The call of a module."""
        result, name = own(*args, **keywords), getattr(module, _PATH, None)
        if name is None:
            return result
        given = dict(leaves((args, keywords), is_array, (ARGUMENTS,)))
        made = dict(leaves(result, is_array, (OUTPUT,)))
        if any(isinstance(array, jax.core.Tracer) for array in (*given.values(), *made.values())):
            self.lost.add(name)
            return result
        inputs = {id(array) for array in given.values()}
        passed = frozenset(place for place, array in made.items() if id(array) in inputs)
        held = placed((args, keywords), dict.fromkeys(place[1:] for place in given))
        self.calls.setdefault(name, []).append(StepCall(held, _copies(given), _copies(made), passed))
        return jax.tree.map(_push, result) if name == self.pushed else result


def _copies(arrays: Mapping[Any, Any]) -> dict[Any, Any]:
    return {place: np.array(array) if is_float(array) else array for place, array in arrays.items()}


def _push(value: Any) -> Any:
    return value + value / 16 + 1 / 16 if is_array(value) and is_float(value) else value


def with_modules(
    model: Any, batch: Any, layers: Sequence[Found], recording: Recorded
) -> tuple[tuple[Found, ...], Recorded]:
    """The layers and their recording, with the modules of a model of nnx that are differentiated by JAX."""
    notes = _heard(model, batch, layers)
    nnx = sys.modules["flax.nnx"]
    modules = {".".join(map(str, path)): module for path, module in nnx.iter_graph(model)}
    found: dict[str, PureSteps] = {}
    for name, calls in notes.calls.items():
        if len(calls) > 1 and name not in notes.lost:
            try:
                found[name] = _steps(model, batch, layers, name, modules[name], calls)
            except InputError:
                continue
    return merged_modules(layers, recording, found, ".")


def _heard(model: Any, batch: Any, layers: Sequence[Found], pushed: str | None = None) -> _Notes:
    """What modules of the user's own classes, and the cells that are known, do in a forward pass."""
    nnx = sys.modules["flax.nnx"]
    copy, known = nnx.clone(model), {layer.name for layer in layers}
    copy.eval()
    classes = set()
    for path, module in list(nnx.iter_graph(copy)):
        name = ".".join(map(str, path))
        if isinstance(module, nnx.Module) and (name in known or _is_own(module)) and name:
            setattr(module, _PATH, name)
            classes.add(type(module))
    notes = _Notes(pushed)
    with line_by_line(), wrapped(classes, "__call__", notes.call):
        call_model(copy, batch)
    return notes


def as_function(model: Any) -> PureModel:
    """A module of nnx as a function of its weights, in eval mode."""
    nnx = sys.modules["flax.nnx"]
    copy = nnx.clone(model)
    copy.eval()
    graph, state = nnx.split(copy)
    tree, weights = jax.tree.structure(state), named_leaves(state)
    modules = {".".join(map(str, path)): module for path, module in nnx.iter_graph(model)}

    def call(arrays: Sequence[Any], args: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        again = nnx.merge(graph, jax.tree.unflatten(tree, arrays))
        if any(str(leaf.dtype) == "float64" for leaf in arrays):
            _double(again)
        return again(*args, **keywords)

    return PureModel(call, weights, lambda name: type(modules.get(name, model)).__name__, "flax")


def _double(module: Any) -> None:
    """Let a module compute in float64 where it says float32, as that of a SimpleCell does by itself."""
    nnx = sys.modules["flax.nnx"]
    for _, part in nnx.iter_graph(module):
        dtype = vars(part).get("dtype") if isinstance(part, nnx.Module) else None
        if dtype is not None and jax.numpy.dtype(dtype) == "float32":
            part.dtype = jax.numpy.float64


def _is_own(module: Any) -> bool:
    nnx = sys.modules["flax.nnx"]
    theirs = type(module).__module__.startswith("flax.")
    return not theirs and bool(jax.tree.leaves(nnx.state(module, nnx.Param)))


def _steps(
    model: Any, batch: Any, layers: Sequence[Found], name: str, module: Any, calls: list[StepCall]
) -> PureSteps:
    state = carried(calls, equal)
    function = as_function(module)
    pushed = _heard(model, batch, layers, name).calls.get(name, [])
    held = [
        [array for place, array in call.given.items() if place not in state.places]
        for call in (*calls, *pushed)
    ]
    pairs = zip(held[1 : len(calls)], held[len(calls) + 1 :], strict=False)
    fed_back = any(not all(map(np.array_equal, one, other)) for one, other in pairs)

    first = started(calls, state, np.zeros_like)
    kind = type(module).__name__
    return PureSteps(Jax(), "flax", kind, function.call, function.weights, first, state, fed_back=fed_back)
