"""Names of haste's layers with layer normalisation: ``rnn.gamma``, ``rnn.gamma_h``, ``rnn.beta_h``.

Its plain layers have the names and the shapes of Keras' arrays, in another order of the gates: they are asked
about (``map_choices``).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from gradscope.cells import find
from gradscope.checkpoints.found import Found, attempt, take
from gradscope.checkpoints.layer import assemble
from gradscope.custom_types import Array
from gradscope.errors import InputError
from gradscope.formats.tensors import Tensors

_CELL = "lstm-layernorm"
_GATES = "izfo"  # the order of its columns
_OWN = ("kernel", "recurrent_kernel", "bias", "gamma")
_LSTM = (*_OWN, "gamma_h", "beta_h")
_ZONEOUT = (
    "that haste's zoneout is 0, which the file does not say (another is at work outside of training too: "
    "--zoneout 0,P)"
)


def layers(tensors: Tensors) -> list[Found]:
    """Every ``LayerNormLSTM`` and ``LayerNormGRU`` of haste's among these names."""
    prefixes = [name.removesuffix("gamma") for name in tensors if name.endswith("gamma")]
    return [
        attempt(partial(_layer, tensors, prefix), prefix.rstrip("./"), (prefix + role for role in _OWN))
        for prefix in prefixes
        if prefix[-1:] in ("", ".", "/") and all(prefix + role in tensors for role in _OWN)
    ]


def _layer(tensors: Tensors, prefix: str) -> Found:
    """The LSTM whose arrays these are; raises InputError for what has no cell here."""
    if any(prefix + role not in tensors for role in _LSTM):
        raise InputError(
            "is a GRU of haste's with layer normalisation, which is no cell of gradscope: give the model "
            "with a batch, as in gradscope.analyze(checkpoint=gradscope.from_torch(model, batch))"
        )
    named, dtype = take(tensors, [prefix + role for role in _LSTM])
    arrays = _ours({role: named[prefix + role] for role in _LSTM})
    assemble(find(_CELL), arrays)  # says which array does not fit the others
    return Found("", arrays, (_CELL,), dtype=dtype, assumed=(_ZONEOUT,), alone=True)


def _ours(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """Our arrays of N(W x; gamma_0) + N(R h; gamma_1) + b and h = o tanh(N(c; gamma_h) + beta_h)."""
    kernel, gains = arrays["kernel"], arrays["gamma"]
    if kernel.ndim != 2 or kernel.shape[1] % 4 or gains.shape != (2, kernel.shape[1]):
        raise InputError(
            f"kernel has shape {kernel.shape} and gamma {gains.shape}, expected (d, 4 n) and (2, 4 n)"
        )
    stacked = {
        "W": kernel.T,
        "R": arrays["recurrent_kernel"].T,
        "b": arrays["bias"],
        "g_W": gains[0],
        "g_R": gains[1],
    }
    stacked |= dict.fromkeys(("a_W", "a_R"), np.zeros(kernel.shape[1]))
    split = {key: _parts(key, array, kernel.shape[1]) for key, array in stacked.items()}
    ours = {
        f"{key}_{gate}": part
        for key, parts in split.items()
        for gate, part in zip(_GATES, parts, strict=True)
    }
    return ours | {"g_c": arrays["gamma_h"], "s_c": arrays["beta_h"]}


def _parts(key: str, array: Array, columns: int) -> list[Array]:
    if not array.ndim or len(array) != columns:
        raise InputError(f"{key} has shape {array.shape} where kernel has {columns} columns: damaged")
    return np.split(array, 4)
