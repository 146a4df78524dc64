"""Convolutional LSTMs (Shi et al. 2015, arXiv 1506.04214), for which there are no equations here: named."""

from __future__ import annotations

import itertools

from gradscope.errors import InputError, quoted
from gradscope.formats.tensors import Tensors

_GATES = 4
_LOOKED_AT = 64  # tensors; a file of convolutions alone may have thousands


def convolutional(tensors: Tensors) -> str:
    """What to say of tensors with the weight (4 H, I + H, k, k) of a ConvLSTM's gates, "" if there is none.

    By its name too: a convolution of a network without a state may have such a shape.
    """
    for key in itertools.islice(tensors, _LOOKED_AT):
        if not key.endswith("weight") or not any(part in key.lower() for part in ("lstm", "cell", "rnn")):
            continue
        try:
            shape = tensors[key].load().shape
        except InputError:
            continue
        if len(shape) in (4, 5) and shape[0] % _GATES == 0 and shape[1] > shape[0] // _GATES:
            return (
                f"{quoted(key)} of shape {shape} is as that of a ConvLSTM's gates, (4 H, I + H, k, k), for "
                "which gradscope has no equations: torch differentiates the module itself in "
                "gradscope.analyze(checkpoint=gradscope.from_torch(model, batch))"
            )
    return ""
