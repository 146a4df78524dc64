"""Modules of Equinox: its LSTMCell and GRUCell, anywhere in a tree."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gradscope.checkpoints.found import Found, attempt, blocks, gated, take
from gradscope.checkpoints.jax.equinox_recording import equinox_recorded
from gradscope.checkpoints.jax.own_loops import PureModel, with_loops
from gradscope.checkpoints.live import LOOPING, Live, doubt_of, kept, source
from gradscope.formats.tensors import Tensors

_CELLS = {"LSTMCell": ("lstm", ("i", "f", "z", "o")), "GRUCell": ("gru", ("r", "z", "h"))}
_ROLES = ("weight_ih", "weight_hh", "bias", "bias_n")


def from_equinox(module: Any, batch: Any = None) -> Live:
    """The ``equinox.nn.LSTMCell`` and ``GRUCell`` anywhere in a module or tree, for ``gradscope.analyze``.

    module : which cell reads what another puts out is in its code: each is on its own.
    batch : what the module is called with: an array, a tuple of arguments, or a dict of them by name; of a
        module of one sequence one, or give ``equinox.filter_vmap(module)``. It runs over the batch once, in
        inference mode: every cell is then analysed on the inputs and states that it had itself, whatever
        stands before it and whatever loop, scan or vmap calls it, and ``analyze`` compares what gradscope
        computes with what the cell put out. A loop over time of the user's own, of Python or a scan, is a
        layer too, differentiated by JAX.
    Raises InputError where there is no such cell, or the module fails on the batch.
    """
    return read_equinox("from_equinox", module, batch)


def read_equinox(function: str, module: Any, batch: Any) -> Live:
    """What ``from_equinox`` returns; function : whose name messages begin with."""
    import jax

    tree, _ = jax.tree_util.tree_flatten_with_path(module, is_leaf=lambda leaf: _kind(leaf) != "")
    leaves = [(jax.tree_util.keystr(path, simple=True, separator="."), leaf) for path, leaf in tree]
    cells = {name: leaf for name, leaf in leaves if _kind(leaf)}
    arrays = {name: leaf for name, leaf in leaves if hasattr(leaf, "dtype")}
    for name, cell in cells.items():
        parts = {role: getattr(cell, role, None) for role in _ROLES}
        arrays |= {f"{name}.{role}".lstrip("."): a for role, a in parts.items() if a is not None}
    tensors = {name: kept(name, partial(np.asarray, array)) for name, array in arrays.items()}
    layers = tuple(_found(tensors, name, cell) for name, cell in cells.items())
    called, recorded = source(function, module), None
    if batch is not None:
        recorded = equinox_recorded(called, module, batch, layers, cells)
        layers, recorded = with_loops(called, _as_function(module), batch, layers, recorded)
    return Live(called, layers, tensors, recorded, way=LOOPING)


def _as_function(module: Any) -> PureModel:
    """A module as a function of its arrays, in inference mode."""
    import jax

    equinox = importlib.import_module("equinox")
    arrays, static = equinox.partition(equinox.nn.inference_mode(module), equinox.is_array)
    tree, found = jax.tree.structure(arrays), jax.tree_util.tree_flatten_with_path(arrays)[0]
    weights = {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in found}

    def call(leaves: Sequence[Any], args: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        return equinox.combine(jax.tree.unflatten(tree, leaves), static)(*args, **keywords)

    def kind(name: str) -> str:
        part = holder = module
        for key in filter(None, name.split(".")):
            part = part[int(key)] if isinstance(part, tuple | list) else getattr(part, key, None)
            holder = part if isinstance(part, equinox.Module) else holder
        return type(holder).__name__

    return PureModel(call, weights, kind, "equinox")


def _kind(leaf: Any) -> str:
    """LSTMCell or GRUCell of Equinox, "" for anything else."""
    kinds = [k.__name__ for k in type(leaf).__mro__ if k.__module__.startswith("equinox.")]
    return next((kind for kind in kinds if kind in _CELLS), "")


def _found(tensors: Tensors, name: str, cell: Any) -> Found:
    keys = {role: key for role in _ROLES if (key := f"{name}.{role}".lstrip(".")) in tensors}
    found = attempt(partial(_layer, tensors, keys, _kind(cell)), name, keys.values())
    return found if found.problem else replace(found, doubt=doubt_of(cell, "equinox", found.cells))


def _layer(tensors: Tensors, keys: dict[str, str], kind: str) -> Found:
    cell, gates = _CELLS[kind]
    read, dtype = take(tensors, keys.values())
    arrays = {role: read[key] for role, key in keys.items()}
    blocks("weight_hh", arrays["weight_hh"], (len(gates),))
    weights = {"W": arrays["weight_ih"], "R": arrays["weight_hh"]}
    if "bias" in arrays:
        weights["b"] = arrays["bias"]
    if "bias_n" in arrays:  # inside the reset product
        zero = np.zeros_like(arrays["bias_n"])
        weights["c"] = np.concatenate([zero, zero, arrays["bias_n"]])
    return Found("", gated(gates, weights, reset_after=cell == "gru"), (cell,), dtype=dtype, alone=True)
