"""Names that DyNet gives to parameters of its VanillaLSTMBuilder, alone or in a BiRNNBuilder."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import partial

import numpy as np

from gradscope.checkpoints.found import Found, attempt, gated, take
from gradscope.errors import InputError, listed
from gradscope.formats.tensors import Tensors

# /birnn_1/vanilla-lstm-builder_1/_2: three parameters (W, R, b) for each layer of a builder.
_TENSOR = re.compile(
    r"(?P<builder>(?P<above>.*/)(?P<kind>[a-z-]+-builder)(_(?P<number>\d+))?)/_(?P<index>\d+)", re.S
)
_KIND = "vanilla-lstm-builder"
_OF_LAYER = 3
_BOTH_WAYS = re.compile(r"(.*/)?birnn(_\d+)?/", re.S)
_FORGET_BIAS = "the forget bias of 1 that DyNet's VanillaLSTMBuilder adds as it runs is added"


def layers(tensors: Tensors) -> list[Found]:
    """Every layer of the builders among these names; those of a BiRNNBuilder forward and backward in turn."""
    builders: dict[str, list[re.Match[str]]] = {}
    for key in tensors:
        if match := _TENSOR.fullmatch(key):
            builders.setdefault(match["builder"], []).append(match)
    found: list[Found] = []
    last: dict[str, list[str]] = {}  # the topmost layers of what stands under one name
    for builder, parts in builders.items():
        above, number = parts[0]["above"], int(parts[0]["number"] or 0)
        keys = [part[0] for part in parts]
        groups = [keys[k : k + _OF_LAYER] for k in range(0, len(keys), _OF_LAYER)]
        both = _BOTH_WAYS.fullmatch(above) is not None
        below = tuple(last.get(f"{above}{number // 2 - 1}", ())) if both else ()
        for k, group in enumerate(groups):
            name = builder.lstrip("/") + (f"/l{k}" if len(groups) > 1 else "")
            layer = attempt(partial(_layer, tensors, group, parts[0]["kind"]), name, group)
            side = "backward" if both and number % 2 else "forward"
            depth = k + (number // 2 if both else 0)
            found.append(replace(layer, direction=side, below=below, depth=depth, alone=not below))
            below = (name,)
        last.setdefault(f"{above}{number // 2}", []).extend(below)
    return found


def _layer(tensors: Tensors, keys: list[str], kind: str) -> Found:
    """A layer of VanillaLSTMBuilder: gates i f o g (dynet/lstm.cc), the forget bias added later."""
    if kind != _KIND or len(keys) != _OF_LAYER:
        raise InputError(
            f"holds the parameters {listed(keys)} of DyNet's {kind}, expected three of a {_KIND} without "
            "layer normalisation: say what its arrays are by --map"
        )
    read, dtype = take(tensors, keys)
    kernel, recurrent, bias = (read[key] for key in keys)
    units = len(bias) // 4 if bias.ndim == 1 else 0
    if not units or recurrent.shape != (4 * units, units) or kernel.shape[:1] != bias.shape:
        shapes = listed([str(read[key].shape) for key in keys])
        raise InputError(f"holds arrays of shapes {shapes}, expected (4 H, I), (4 H, H) and (4 H,)")
    bias = bias + np.repeat([0.0, 1.0, 0.0, 0.0], units)
    arrays = gated(("i", "f", "o", "z"), {"W": kernel, "R": recurrent, "b": bias})
    return Found("", arrays, ("lstm",), dtype=dtype, assumed=(_FORGET_BIAS,))
