"""Names of PyTorch state dicts: every layer of LSTM, GRU and RNN, and their cells, anywhere in a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import numpy as np

from gradscope.checkpoints.found import Found, attempt, blocks, gated, projected_name, take
from gradscope.custom_types import Array
from gradscope.errors import InputError, listed
from gradscope.formats.tensors import Tensors

# lstm.weight_ih_l0, encoder.gru.bias_hh_l1_reverse, weight_hh (LSTMCell), lstm.weight_hr_l0 (proj_size);
# with weight norm lstm.weight_hh_l0_g and _v, or lstm.parametrizations.weight_hh_l0.original0 and 1.
_TENSOR = re.compile(
    r"(?P<prefix>(.*?\.)??)(parametrizations\.)?(?P<role>(weight|bias)_(ih|hh|hr))"
    r"(?P<place>(_l(?P<depth>\d{1,3}))?(_reverse)?)(?P<part>_[gv]|\.original[01])?",
    re.S,
)
_PART = {None: "", "_g": "/g", ".original0": "/g", "_v": "/v", ".original1": "/v"}
# Weights and biases of the same module: to leave one out that is not the layer's own must not be silent.
_BESIDE = re.compile(r"(?P<prefix>(.*?\.)??)(parametrizations\.)?(weight|bias)[^.]*(\.original\d?)?", re.S)

# By how many blocks of H rows weight_hh (G H, H) has: the gates in that order, the cells it may be.
_FAMILIES: dict[int, tuple[tuple[str, ...], tuple[str, ...]]] = {
    4: (("i", "f", "z", "o"), ("lstm",)),
    3: (("r", "z", "h"), ("gru",)),
    1: (("",), ("rnn", "rnn-relu")),
}
_WHICH_RNN = "holds a torch RNN, whose nonlinearity is not in the file: add --cell rnn or --cell rnn-relu"

Place = tuple[str, str]  # of a layer: the prefix of its module, the suffix of its tensors


def layers(tensors: Tensors) -> list[Found]:
    """Every torch layer among these names, modules in the order in which they first occur.

    Those of a module of several are told apart by ``.l0``, ``.l0_reverse``, ``.l1``, and are in that order.
    """
    places: dict[Place, dict[str, str]] = {}
    left_over: dict[str, list[str]] = {}
    for key in tensors:
        if match := _TENSOR.fullmatch(key):
            place = match["prefix"], match["place"] or ""
            places.setdefault(place, {})[match["role"] + _PART[match["part"]]] = key
        elif match := _BESIDE.fullmatch(key):
            left_over.setdefault(match["prefix"], []).append(key)
    count = Counter(prefix for prefix, _ in places)
    first = {prefix: k for k, prefix in enumerate(dict.fromkeys(prefix for prefix, _ in places))}
    names = {
        place: place[0].rstrip(".") if count[place[0]] == 1 else place[0] + place[1].lstrip("_")
        for place in sorted(places, key=lambda place: (first[place[0]], _depth(place), place[1]))
    }
    found = []
    for place, name in names.items():
        make = partial(_layer, tensors, places[place], place, left_over.get(place[0], []))
        below = tuple(n for p, n in names.items() if p[0] == place[0] and _depth(p) == _depth(place) - 1)
        layer = attempt(make, name, places[place].values())
        found.append(replace(layer, depth=_depth(place), below=below or (None if _depth(place) else ())))
    return found


def _depth(place: Place) -> int:
    """The k of ``_l<k>``."""
    digits = re.search(r"\d+", place[1])
    return int(digits[0]) if digits else 0


def _layer(tensors: Tensors, roles: Mapping[str, str], place: Place, left_over: list[str]) -> Found:
    if left_over:
        raise InputError(
            f"{listed(left_over)} beside {listed(list(roles.values())[:1])}: expected weight_ih, weight_hh, "
            "bias_ih and bias_hh of a torch layer, or their weight norm: remove what else there is"
        )
    read, dtype = take(tensors, roles.values())
    arrays = _without_norm({role: read[key] for role, key in roles.items()})
    if {"weight_ih", "weight_hh"} - arrays.keys() or ("bias_ih" in arrays) != ("bias_hh" in arrays):
        raise InputError(
            f"holds {listed(list(roles.values()))} alone, expected weight_ih and weight_hh, "
            "and bias_ih and bias_hh or neither"
        )
    projection = arrays.pop("weight_hr", None)
    count = 4 if projection is not None else blocks("weight_hh", arrays["weight_hh"], _FAMILIES)
    _check_rows(arrays, count)
    gates, cells = _FAMILIES[count]
    if projection is not None:
        cells = (projected_name(projection, "weight_hr"),)
    names = {"weight_ih": "W", "weight_hh": "R", "bias_ih": "b", "bias_hh": "c"}
    ours = gated(gates, {names[role]: a for role, a in arrays.items()}, reset_after=cells == ("gru",))
    if projection is not None:
        ours["M"] = projection
    return Found(
        "",
        ours,
        cells,
        question=_WHICH_RNN if len(cells) > 1 else "",
        direction="backward" if place[1].endswith("_reverse") else "forward",
        dtype=dtype,
    )


def _check_rows(arrays: Mapping[str, Array], count: int) -> None:
    rows = arrays["weight_hh"].shape[:1]
    for role, array in arrays.items():
        axes = 2 if role.startswith("weight") else 1
        if array.ndim != axes or array.shape[:1] != rows or rows[0] % count:
            raise InputError(
                f"{role} has shape {array.shape}, expected {axes} axes and {listed([*map(str, rows)])} rows "
                "as weight_hh"
            )


def _without_norm(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Each pair of magnitude g and direction v (Salimans and Kingma 2016) as the weight g v / |v|."""
    result = {role: array for role, array in arrays.items() if "/" not in role}
    for role in sorted({role.partition("/")[0] for role in arrays if "/" in role}):
        if f"{role}/g" not in arrays or f"{role}/v" not in arrays or role in result:
            raise InputError(f"{role} has a part of a weight norm, expected both its magnitude and direction")
        g, v = arrays[f"{role}/g"], arrays[f"{role}/v"]
        if g.ndim not in (0, v.ndim) or any(a not in (1, b) for a, b in zip(g.shape, v.shape, strict=False)):
            raise InputError(f"{role} has a weight norm of shapes {g.shape} and {v.shape}, which do not fit")
        # g keeps the axes along which the norm is not taken; without axes it is taken along all.
        along = tuple(axis for axis, size in enumerate(g.shape) if size == 1) if g.ndim else None
        norm = np.sqrt((v**2).sum(axis=along, keepdims=g.ndim > 0))
        if not norm.all():
            raise InputError(f"{role} has a weight norm whose direction is 0: the weight is not defined")
        result[role] = g * v / norm
    return result
