"""The activations of ONNX' recurrent operators under the names that the cells have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from gradscope.cells.activated import spelled, with_activations
from gradscope.errors import InputError, quoted

_LISTS = ("activation_alpha", "activation_beta")
_USUAL = {"LSTM": ("sigmoid", "tanh", "tanh"), "GRU": ("sigmoid", "tanh"), "RNN": ("tanh",)}
# In lower case: our name, and the alpha and beta of those that have them where none are given. None: there
# onnxruntime takes 0, ONNX says nothing, or 1 (of the threshold).
_NAMES: dict[str, tuple[str, tuple[float | None, ...]]] = {
    "affine": ("affine", (None, None)),
    "elu": ("elu", (1.0,)),
    "hardsigmoid": ("hard_sigmoid", (0.2, 0.5)),
    "leakyrelu": ("leaky_relu", (0.01,)),
    "relu": ("relu", ()),
    "scaledtanh": ("scaled_tanh", (None, None)),
    "sigmoid": ("sigmoid", ()),
    "softplus": ("softplus", ()),
    "softsign": ("softsign", ()),
    "tanh": ("tanh", ()),
    "thresholdedrelu": ("thresholded_relu", (None,)),
}


def cell_of(kind: str, base: str, attributes: Mapping[str, Any], number: int) -> str:
    """The cell like ``base`` with the activations that an operator's attributes give a direction.

    Raises InputError where one of them is unknown, or lacks what ONNX has no default for.
    """
    usual = _USUAL[kind]
    count = len(usual)
    every = [spelled(one) for one in _every(attributes)]
    given = every[number * count : (number + 1) * count] or list(usual)
    if every and len(given) < count:
        raise InputError(f"has {len(every)} activations, expected {count} for each direction")
    if kind == "RNN":
        return with_activations(base, given)
    gates, state, *output = given
    return with_activations(base, [state, gates, *output])


def _every(attributes: Mapping[str, Any]) -> Iterator[str]:
    """Of all directions in the order f, g, h; each takes the next alpha and the next beta if it has such."""
    values = [iter(attributes[name].floats if name in attributes else ()) for name in _LISTS]
    for text in attributes["activations"].strings if "activations" in attributes else ():
        name = text.decode("utf-8", "replace").lower()
        if name not in _NAMES:
            raise InputError(f"has activation {quoted(name)}, which ONNX' recurrent operators do not have")
        ours, usual = _NAMES[name]
        parameters = [next(left, default) for left, default in zip(values, usual, strict=False)]
        if None in parameters:
            raise InputError(
                f"has activation {name} without its {' and '.join(_LISTS[: len(usual)])}, for which ONNX and "
                "onnxruntime have no common default: export it with them"
            )
        yield f"{ours}={','.join(map(_number, parameters))}" if parameters else ours


def _number(value: Any) -> str:
    """A number that a file has as float32, as short as it was written: 0.2, and 1/6 for what is nearest."""
    if not np.isfinite(value):
        raise InputError(f"has {value} as alpha or beta of an activation, expected a number")
    short = float(str(np.float32(value)))
    return "1/6" if np.float32(value) == np.float32(1 / 6) else repr(short)
