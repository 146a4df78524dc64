"""Names of Flax parameter trees, linen and nnx: LSTM, GRU and simple cells, anywhere in a model."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from gradscope.checkpoints.found import SIMPLE, Found, attempt, blocks, gated, take
from gradscope.custom_types import Array
from gradscope.errors import InputError, listed, shown
from gradscope.formats.tensors import Tensors

# params.LSTMCell_0.hi.kernel, params/encoder/in/bias, rnn.cell.dense_h.kernel, cell.if_.kernel (nnx)
_TENSOR = re.compile(
    r"(?P<cell>.*[./]|)(?P<dense>i|h|ii|if_?|ig|io|hi|hf|hg|ho|ir|iz|in|hr|hz|hn|dense_i|dense_h)"
    r"[./](?P<role>kernel|bias)",
    re.S,
)
# The Dense layers whose kernels a cell has, our names of the gates in that order.
_SPLIT = {
    ("ii", "if", "ig", "io", "hi", "hf", "hg", "ho"): "ifzo",
    ("ir", "iz", "in", "hr", "hz", "hn"): "rzh",
}
# Of a GRU's products with the state the one that the reset gate scales has a bias, the others none.
_BIASED = {"hn"}
_JOINED = {4: ("i", "f", "z", "o"), 3: ("r", "z", "h"), 1: ("",)}
_CELLS = {4: ("lstm",), 3: ("gru",), 1: tuple(SIMPLE.values())}


def layers(tensors: Tensors) -> list[Found]:
    """Every Flax cell among these names in the order in which they first occur, forward before backward."""
    cells: dict[str, dict[str, str]] = {}
    for key in tensors:
        if match := _TENSOR.fullmatch(key):
            name = match["dense"].rstrip("_") + "/" + match["role"]
            cells.setdefault(match["cell"], {})[name] = key
    # JAX sorts the names of a tree, by which the backward of two directions is the first.
    pairs = {prefix: prefix.replace("backward_rnn", "forward_rnn") for prefix in cells}
    first = {pair: k for k, pair in enumerate(dict.fromkeys(pairs.values()))}
    foreign = _foreign(tensors, cells)
    # A Dense of the model's own may be called i or h.
    return [
        attempt(
            partial(_layer, tensors, cells[prefix], prefix, foreign.get(prefix, "")),
            prefix.rstrip("./"),
            cells[prefix].values(),
        )
        for prefix in sorted(cells, key=lambda prefix: (first[pairs[prefix]], prefix != pairs[prefix]))
        if _recurrent(cells[prefix])
    ]


def _foreign(tensors: Tensors, cells: Mapping[str, Mapping[str, str]]) -> dict[str, str]:
    """By what the names of a cell begin with, a tensor under them that no cell of Flax has."""
    own = {key for keys in cells.values() for key in keys.values()}
    found: dict[str, str] = {}
    for key in tensors:
        if key not in own and "rngs" not in key:
            parts = re.split(r"(?<=[./])", key)
            for prefix in {"".join(parts[:-1]), "".join(parts[:-2])} & cells.keys():
                found.setdefault(prefix, key)
    return found


def _recurrent(keys: Mapping[str, str]) -> bool:
    kernels = {name.partition("/")[0] for name in keys if name.endswith("/kernel")}
    return any({"i" + x, "h" + x} <= kernels for x in ("", "i", "r")) or {"dense_i", "dense_h"} <= kernels


def _layer(tensors: Tensors, keys: Mapping[str, str], prefix: str, foreign: str) -> Found:
    read, dtype = take(tensors, keys.values())
    weights = _joined({name: read[key] for name, key in keys.items()})
    count = blocks("the recurrent kernel, transposed,", weights["R"], _JOINED)
    rows = weights["R"].shape[0]
    for role, array in weights.items():
        if array.ndim != (2 if role in "WR" else 1) or array.shape[0] != rows:
            raise InputError(f"{role} of {prefix} has shape {array.shape[::-1]}, expected {rows} at its end")
    return Found(
        "",
        gated(_JOINED[count], weights, reset_after=count == 3),
        _CELLS[count],
        question=_question(count),
        direction="backward" if "backward_rnn" in re.split("[./]", prefix) else "forward",
        dtype=dtype,
        alone=True,
        free=True,
        doubt=_doubt(foreign, _CELLS[count]) if foreign else "",
    )


def _doubt(foreign: str, cells: Sequence[str]) -> str:
    choice = f"--cell {' or '.join(cells)}"
    return (
        f"has {shown(foreign)}, which no cell of Flax has: if it computes the same all the same, add {choice}"
    )


def _question(count: int) -> str:
    what = "holds a Flax layer, whose activation functions are not in the file"
    if count == 1:
        return f"{what}: add --activation tanh, relu, sigmoid or linear (with residual=True there is no cell)"
    cell = _CELLS[count][0]
    others = f"if not, --cell {cell}-relu or its like"
    return f"{what}: if they are Flax' own, sigmoid and tanh, add --cell {cell}; {others}"


# Of kernels with an axis more.
_STACKED = ": a scan or vmap stacks those of several layers, which a batch beside the model tells apart"


def _joined(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """W, R, b and c with the gates' rows in order, from one Dense per gate or one for all."""
    for names, order in _SPLIT.items():
        if {f"{names[0]}/kernel", f"{names[len(order)]}/kernel"} <= arrays.keys():
            halves = names[: len(order)], names[len(order) :]
            break
    else:
        halves = (("i",), ("h",)) if "i/kernel" in arrays else (("dense_i",), ("dense_h",))
    weights = {}
    for half, matrix, bias in zip(halves, "WR", "bc", strict=True):
        if missing := [f"{name}/kernel" for name in half if f"{name}/kernel" not in arrays]:
            raise InputError(f"a Flax cell without {listed(missing)}, expected a kernel of every gate")
        kernels = [arrays[f"{name}/kernel"] for name in half]
        if any(kernel.ndim != 2 or kernel.shape != kernels[0].shape for kernel in kernels):
            shapes = listed(list(dict.fromkeys(str(kernel.shape) for kernel in kernels)))
            raise InputError(
                f"the kernels of {listed(list(half))} have shapes {shapes}, expected (features, units) alike"
                + _STACKED * any(kernel.ndim > 2 for kernel in kernels)
            )
        weights[matrix] = np.concatenate(kernels, axis=1).T
        if having := {name for name in half if f"{name}/bias" in arrays}:
            if having not in ({*half}, _BIASED):
                lost = [f"{name}/bias" for name in half if name not in having]
                raise InputError(
                    f"a Flax cell without {listed(lost)}, expected a bias of every gate or of none"
                )
            zero = np.zeros(kernels[0].shape[1])
            weights[bias] = np.concatenate([arrays.get(f"{name}/bias", zero) for name in half])
    return weights
