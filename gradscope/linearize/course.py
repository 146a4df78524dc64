"""The course of a trajectory in a few numbers: how far its states go, and what its gates are made of."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from gradscope.cells.cell import Cell
from gradscope.cells.notation import is_recurrent, key
from gradscope.custom_types import Array
from gradscope.errors import BeyondRangeError, as_option
from gradscope.linearize.anew import layers_along
from gradscope.linearize.levels import may_cancel

# Steps of a segment at which the terms of the gates are looked at, at most.
_LOOKED_AT = 32
# States that are larger are as good as that: what is made of them is finite.
_HUGE = 1e150
FLOAT32_MAX = float(np.finfo(np.float32).max)
FLOAT64_MIN = float(np.finfo(np.float64).tiny)

# How two stretches of one trajectory, or the courses of two, are put together.
_JOIN = {
    "highest": np.maximum,
    "lowest": np.minimum,
    "moved": np.maximum,
    "leaves": np.minimum,
    "ends": np.minimum,
    "reached": np.maximum,
    "drive": np.maximum,
    "flushed": np.maximum,
    "small": np.maximum,
    "near": np.maximum,
}


def course(
    cell: Cell,
    parameters: Mapping[str, Any],
    inputs: Array,
    states: Array,
    gates: Mapping[str, Array],
    before: int = 0,
) -> dict[str, Array]:
    """Of the steps of a segment, ``before`` of which come first.

    inputs : (T, d); states : (T + 1, m); gates : {gate: (T, n)}. Returns

    highest, lowest : (m,) of every state after a step; moved : the largest change of any in a step;
    leaves, ends : the first step after which a state is beyond float32, and beyond its own dtype (with slopes
        from ``beyond_range``); infinity if none is; reached : log10 of the largest state;
    open.<gate> : (n,) its largest activation; squares : sums of squares of the input's, the state's and the
        bias' term of all gates, and of the inputs; counts : of how many numbers each; drive : the largest
        pre-activation of any, these at some of the steps; flushed : 1, slopes that are not 0 may count
        as that (0 where somebody knows better); small : 1, there may be such,
        held or not; near : 1 where states come so near to levels that floats lose what they have beside
        these (``levels``). Raises BeyondRangeError where a state is not finite.
    """
    after = np.asarray(states[1:], np.float64)
    check_finite(cell, after, before, states.dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        moved = np.abs(after - states[:-1]).max(initial=0)
        sizes = np.abs(after).max(axis=1, initial=0)
    found = {
        "highest": after.max(axis=0),
        "lowest": after.min(axis=0),
        "moved": np.array([moved]),
        "leaves": _first(~(sizes <= FLOAT32_MAX), before),
        "ends": _first(~np.isfinite(sizes), before),
        "flushed": np.array([1.0]),
        "small": np.array([1.0]),
        "near": np.array([float(may_cancel(cell, states, gates))]),
        "reached": np.array([math.log10(max(sizes.max(initial=0), FLOAT64_MIN))]),
    }
    found |= {f"open.{name}": np.asarray(value, np.float64).max(axis=0) for name, value in gates.items()}
    each = layers_along(cell, parameters, inputs, states)
    with np.errstate(over="ignore", invalid="ignore"):
        return found | joined_course([_terms(*one, gates) for one in each])


def _first(beyond: Array, before: int) -> Array:
    """The first step at which that is so, infinity if at none."""
    return np.array([before + 1.0 + np.argmax(beyond) if beyond.any() else np.inf])


def check_finite(cell: Cell, after: Array, before: int, dtype: Any) -> None:
    """Raise BeyondRangeError where a state leaves its dtype: slopes there are of no number.

    Where they are given the state may.
    """
    finite = np.isfinite(after).all(axis=1)
    if finite.all() or cell.given or any(member.cell.given for member in cell.members):
        return
    step = before + 1 + int(np.argmin(finite))
    raise BeyondRangeError(
        f"the state is infinite or NaN in {dtype} after step {step}, expected numbers that it holds: give "
        f"fewer than {step} steps, or weights or inputs that are smaller{_wider(dtype)}"
    )


def _wider(dtype: Any) -> str:
    """What else helps a state that leaves float32."""
    return f", or {as_option('dtype')} float64" if np.finfo(dtype).max <= FLOAT32_MAX else ""


def _terms(
    cell: Cell, parameters: Mapping[str, Any], inputs: Array, states: Array, gates: Collection[str]
) -> dict[str, Array]:
    """``squares``, ``counts`` and ``drive`` at some of the steps, of what stands under the usual keys."""
    some = np.unique(np.linspace(0, len(inputs) - 1, _LOOKED_AT).astype(int))
    x, s = np.asarray(inputs[some], np.float64), np.asarray(states[some], np.float64)
    s = np.clip(s, -_HUGE, _HUGE)
    squares, counts, drive = np.zeros(4), np.zeros(4), 0.0
    squares[3], counts[3] = (x * x).sum(), x.size
    for gate in (name.removeprefix("R").removeprefix("_") for name in parameters if is_recurrent(name)):
        w, r, b = (np.asarray(parameters.get(key(kind, gate), 0.0), np.float64) for kind in "WRb")
        if w.ndim != 2 or r.ndim != 2 or (w.shape[1] != x.shape[1] and not cell.given):
            continue
        h = s[:, -r.shape[1] :] if cell.components[-1] == "h" else s[:, : r.shape[1]]
        terms = x[:, : w.shape[1]] @ w.T, h @ r.T, np.broadcast_to(b, (len(some), len(w)))
        drive = max(drive, float(np.abs(sum(terms)).max()))
        if cell.given:  # what it reads beside x are derivatives
            squares[3], counts[3] = (x[:, : w.shape[1]] ** 2).sum(), len(x) * w.shape[1]
        if gate in gates or not gates:
            squares[:3] += [(term * term).sum() for term in terms]
            counts[:3] += terms[0].size
    return {"squares": squares, "counts": counts, "drive": np.array([drive])}


def joined_course(parts: Sequence[Mapping[str, Array]]) -> dict[str, Array]:
    """The course of all parts."""
    found = dict(parts[0])
    for part in parts[1:]:
        for name, value in part.items():
            join = np.maximum if name.startswith("open.") else _JOIN.get(name, np.add)
            found[name] = join(found[name], value)
    return found
