"""Modules of Equinox: its LSTMCell and GRUCell, anywhere in a tree."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from gradscope.checkpoints.found import Found, attempt, blocks, gated, take
from gradscope.checkpoints.live import Live, kept, source
from gradscope.formats.tensors import Tensors

_CELLS = {"LSTMCell": ("lstm", ("i", "f", "z", "o")), "GRUCell": ("gru", ("r", "z", "h"))}
_ROLES = ("weight_ih", "weight_hh", "bias", "bias_n")


def from_equinox(module: Any) -> Live:
    """The ``equinox.nn.LSTMCell`` and ``GRUCell`` anywhere in a module or tree, for ``gradscope.analyze``.

    Which cell reads what another puts out is in the code of the model: each is on its own.
    Raises InputError where there is none.
    """
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
    return Live(source("from_equinox", module), layers, tensors)


def _kind(leaf: Any) -> str:
    """LSTMCell or GRUCell of Equinox, "" for anything else."""
    kinds = [k.__name__ for k in type(leaf).__mro__ if k.__module__.startswith("equinox.")]
    return next((kind for kind in kinds if kind in _CELLS), "")


def _found(tensors: Tensors, name: str, cell: Any) -> Found:
    keys = {role: key for role in _ROLES if (key := f"{name}.{role}".lstrip(".")) in tensors}
    return attempt(partial(_layer, tensors, keys, _kind(cell)), name, keys.values())


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
