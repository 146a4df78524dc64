"""Names of TensorFlow 1's cells (tf.nn.rnn_cell): GRUCell and BasicRNNCell, alone or in a MultiRNNCell.

Its LSTM cells add a forget bias as they run, which a map says: see ``map_choices``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from gradscope.checkpoints.found import SIMPLE, Found, attempt, take
from gradscope.custom_types import Array
from gradscope.errors import InputError, listed
from gradscope.formats.tensors import Tensors

# rnn/multi_rnn_cell/cell_0/gru_cell/gates/kernel, rnn/basic_rnn_cell/bias
_TENSOR = re.compile(
    r"(?P<cell>(?P<above>.*/|)(?P<kind>gru_cell|basic_rnn_cell))/(?P<role>((gates|candidate)/)?(kernel|bias))",
    re.S,
)
_PLACE = re.compile(r"(?P<stack>.*multi_rnn_cell/cell_)(?P<depth>\d{1,3})/", re.S)
_BACKWARD = re.compile(r"(.*/)?bw/.*", re.S)
_ROLES = {
    "gru_cell": ("gates/kernel", "gates/bias", "candidate/kernel", "candidate/bias"),
    "basic_rnn_cell": ("kernel", "bias"),
}
_WHAT = "holds a cell of TensorFlow 1, whose activation is not in the file"
_QUESTIONS = {
    "gru_cell": f"{_WHAT}: if it is TensorFlow's own, tanh, add --cell gru-reset-before",
    "basic_rnn_cell": f"{_WHAT}: add --activation tanh, relu, sigmoid or linear",
}


def layers(tensors: Tensors) -> list[Found]:
    """Every such cell among these names; in a MultiRNNCell each reads the one before."""
    cells: dict[str, dict[str, str]] = {}
    kinds: dict[str, str] = {}
    for key in tensors:
        if match := _TENSOR.fullmatch(key):
            cells.setdefault(match["cell"], {})[match["role"]] = key
            kinds[match["cell"]] = match["kind"]
    names = {place: name for name in cells if (place := _PLACE.match(name)) and place}
    at = {(place["stack"], int(place["depth"])): name for place, name in names.items()}
    found = []
    for name, keys in cells.items():
        layer = attempt(partial(_layer, tensors, keys, kinds[name]), name, keys.values())
        place = _PLACE.match(name)
        depth = int(place["depth"]) if place else 0
        under = at.get((place["stack"], depth - 1)) if place else None
        below = (under,) if under else None if depth else ()
        side = "backward" if _BACKWARD.fullmatch(name) else "forward"
        found.append(replace(layer, direction=side, depth=depth, below=below, alone=not depth))
    return sorted(found, key=lambda layer: layer.depth)


def _layer(tensors: Tensors, keys: Mapping[str, str], kind: str) -> Found:
    if missing := [role for role in _ROLES[kind] if role not in keys]:
        raise InputError(f"a cell of TensorFlow 1 without {listed(missing)}: truncated or damaged")
    read, dtype = take(tensors, keys.values())
    arrays = {role: read[key] for role, key in keys.items()}
    if kind == "basic_rnn_cell":
        w, r, b = _split(arrays, "", 1)
        return Found("", {"W": w, "R": r, "b": b}, tuple(SIMPLE.values()), _QUESTIONS[kind], dtype=dtype)
    # u h + (1 - u) c with c = tanh of [x, r h]: r comes first among the gates.
    ours: dict[str, Array] = {}
    gates, candidate = _split(arrays, "gates/", 2), _split(arrays, "candidate/", 1)
    for letter, both, one in zip("WRb", gates, candidate, strict=True):
        half = len(both) // 2
        ours |= {f"{letter}_r": both[:half], f"{letter}_z": both[half:], f"{letter}_h": one}
    return Found("", ours, ("gru-reset-before",), _QUESTIONS[kind], dtype=dtype)


def _split(arrays: Mapping[str, Array], part: str, gates: int) -> tuple[Array, Array, Array]:
    """W, R and b of a kernel (d + n, gates n), whose first rows the inputs go through."""
    kernel, bias = arrays[f"{part}kernel"], arrays[f"{part}bias"]
    units = len(bias) // gates if bias.ndim == 1 else 0
    if kernel.ndim != 2 or not units or kernel.shape[1:] != bias.shape or len(kernel) <= units:
        raise InputError(
            f"{part}kernel and bias have shapes {kernel.shape} and {bias.shape}, expected (I + H, {gates} H) "
            f"and ({gates} H,)"
        )
    turned = kernel.T
    return turned[:, :-units], turned[:, -units:], bias
