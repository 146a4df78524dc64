"""Models of Flax: parameter trees of linen, and modules of nnx with their functions and directions."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gradscope.cells.activated import with_activations
from gradscope.checkpoints.found import Found
from gradscope.checkpoints.jax import flax_names
from gradscope.checkpoints.jax.derivatives import named_leaves
from gradscope.checkpoints.jax.flax_own import as_function, with_modules
from gradscope.checkpoints.jax.flax_recording import linen_recorded, nnx_recorded
from gradscope.checkpoints.jax.own_loops import PureModel, with_loops
from gradscope.checkpoints.live import LOOPING, Live, doubt_of, kept, source, wrong
from gradscope.errors import InputError

# Functions of jax.nn that go by the same name here.
_OF_JAX = (
    *("celu", "elu", "hard_silu", "hard_tanh", "log_sigmoid", "mish", "relu", "relu6", "selu", "silu"),
    *("softplus", "sparse_plus", "sparse_sigmoid", "squareplus"),
)


def from_flax(model: Any, batch: Any = None) -> Live:
    """The LSTM, GRU and simple cells of Flax, for ``gradscope.analyze``.

    model : the parameters of a linen model, as ``init`` returns them, or a module of nnx. Parameters do not
        say activation functions (then ``cell`` decides); a module does. With a batch a module of nnx, or of
        linen bound to its variables, ``model.bind(variables)``.
    batch : what the module is called with: an array, a tuple of arguments, or a dict of them by name. It runs
        over the batch once, a module of nnx as a copy in eval mode: every cell is then analysed on the
        inputs, states and lengths that it had itself, whatever stands before it and whatever loop or scan
        calls it, and ``analyze`` compares what gradscope computes with what the cell put out. A module of nnx
        of the user's own class whose calls pass a state on is a layer too, differentiated by JAX; so is a
        loop over time, of Python or a scan, in any forward.
    Raises InputError where it is neither, holds no such cell, or fails on the batch.
    """
    return read_flax_model("from_flax", model, batch)


def read_flax_model(function: str, model: Any, batch: Any) -> Live:
    """What ``from_flax`` returns; function : whose name messages begin with."""
    modules: dict[str, Any] = {}
    if linen := _of(model, "flax.linen", "Module"):
        if model.scope is None:
            raise wrong(function, model, "a module of linen bound to its variables: model.bind(variables)")
        tree = model.variables
    elif _of(model, "flax.nnx", "Module"):
        nnx = sys.modules["flax.nnx"]  # where a module of it is, it has been imported
        modules = {".".join(map(str, path)): node for path, node in nnx.iter_graph(model)}
        tree = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    elif isinstance(model, Mapping) and batch is not None:
        raise InputError(
            f"{function} was given parameters alone, which no batch runs through: give model.bind(variables)"
        )
    elif isinstance(model, Mapping):
        tree = model
    else:
        expected = "a module of flax.nnx, or the parameters of a linen model as its init returns them"
        raise wrong(function, model, expected)
    tensors = {name: kept(name, partial(np.asarray, leaf)) for name, leaf in _leaves(tree, ())}
    sides, layers, recorded = _directions(modules), tuple(flax_names.layers(tensors)), None
    name = source(function, model)
    if linen and batch is not None:
        recorded, modules = linen_recorded(name, model, batch, layers)
    layers = tuple(
        replace(_told(found, modules.get(found.name)), direction=sides.get(found.name, found.direction))
        for found in layers
    )
    if not linen and batch is not None:
        layers, recorded = with_modules(model, batch, layers, nnx_recorded(name, model, batch, layers))
    if recorded is not None:
        pure = _bound(model) if linen else as_function(model)
        layers, recorded = with_loops(name, pure, batch, layers, recorded)
    return Live(name, layers, tensors, recorded, LOOPING)


def _bound(model: Any) -> PureModel:
    """A module of linen that is bound, as a function of its variables."""
    import jax

    module, variables = model.unbind()
    tree, kind = jax.tree.structure(variables), type(model).__name__

    def call(arrays: Sequence[Any], args: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        return module.apply(jax.tree.unflatten(tree, arrays), *args, **keywords)

    return PureModel(call, named_leaves(variables), lambda _: kind, "flax")


def _of(model: Any, package: str, name: str) -> bool:
    return any(k.__name__ == name and k.__module__.startswith(package) for k in type(model).__mro__)


def _leaves(tree: Any, path: tuple[str, ...]) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _leaves(value, (*path, str(key)))
    elif tree is not None:
        yield ".".join(path), tree


def _directions(modules: Mapping[str, Any]) -> dict[str, str]:
    """By name of the cell: as its RNN says, unless a Bidirectional says otherwise."""
    cells = {name: f"{name}.cell".lstrip(".") for name, rnn in modules.items() if _of(rnn, "flax.nnx", "RNN")}
    sides = {cell: "backward" if modules[name].reverse else "forward" for name, cell in cells.items()}
    for name, pair in modules.items():
        if _of(pair, "flax.nnx", "Bidirectional"):
            for side in ("forward", "backward"):
                sides[f"{name}.{side}_rnn.cell".lstrip(".")] = side
    return sides


def _told(found: Found, module: Any) -> Found:
    """A cell with the functions that its module has, where they are JAX' own."""
    if module is None or found.problem:
        return found
    if getattr(module, "residual", False):
        return replace(
            found, cells=(), kind="rnn", problem="has residual=True, for which there is no cell here"
        )
    found = replace(found, doubt=doubt_of(module, "flax", found.cells) or found.doubt)
    gate, activation = (_function(getattr(module, n, None)) for n in ("gate_fn", "activation_fn"))
    if activation and len(found.cells) > 1:
        return replace(found, cells=(with_activations("rnn", [activation]),), question="", free=False)
    if not gate or not activation:
        return found
    cells = tuple(with_activations(cell, [activation, gate]) for cell in found.cells)
    return replace(found, cells=cells, question="", free=False)


def _function(function: Any) -> str:
    """Which of our activations a function is, "" where it is of the user's own."""
    import jax

    ours = {
        "tanh": (jax.numpy.tanh, jax.nn.tanh, jax.lax.tanh),
        "sigmoid": (jax.nn.sigmoid, jax.lax.logistic),
        "linear": (jax.nn.identity,),
        "exponential": (jax.numpy.exp, jax.lax.exp),
        "gelu_tanh": (jax.nn.gelu,),
        "hard_sigmoid=1/6": (jax.nn.hard_sigmoid,),
        "leaky_relu=0.01": (jax.nn.leaky_relu,),
        "softsign": (jax.nn.soft_sign,),
    }
    ours |= {name: (getattr(jax.nn, name),) for name in _OF_JAX}
    return next((name for name, known in ours.items() if any(function is k for k in known)), "")
