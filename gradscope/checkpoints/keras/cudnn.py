"""Weights of CuDNNLSTM and CuDNNGRU, layers of Keras before 2.4, which lie as cuDNN has them.

A bias of both matrices in one, (8 n,) of an LSTM or (6 n,) of a GRU, tells. Keras' own loader, given them for
its LSTM, reads each gate's kernel (d, n) as the buffer of an (n, d) matrix and its recurrent kernel
transposed. On the language model of the package textgenrnn 2.0.0 (287 characters of five English sentences)
that gives .90 nats a character and 73 % of them right; the matrices as they lie give 46.8 nats and .3 %.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from gradscope.custom_types import Array
from gradscope.settings import LAYOUTS

_GATES = (4, 3)
# What is said of a layer that was read in a layout.
SAID = {
    "cudnn": "matrices lie as CuDNNLSTM and CuDNNGRU keep them, which the file does not say (--layout cudnn)",
    "keras": "matrices lie as those of Keras' LSTM and GRU, and the bias is two in one (--layout keras)",
}


def is_packed(weights: Mapping[str, Array]) -> bool:
    """Whether the bias is two in one."""
    bias, kernel = weights.get("bias"), weights.get("kernel")
    return bias is not None and kernel is not None and bias.shape == (2 * kernel.shape[-1],)


def unpacked(weights: Mapping[str, Array], layout: str) -> dict[str, Array]:
    """The weights as Keras' LSTM and GRU have them: matrices from one of LAYOUTS, biases apart or added."""
    kernel, recurrent, bias = (weights[role] for role in ("kernel", "recurrent_kernel", "bias"))
    both = bias.reshape(2, -1)
    gates = recurrent.shape[1] // recurrent.shape[0] if recurrent.ndim == 2 and recurrent.size else 0
    if layout == LAYOUTS[0] and gates in _GATES and kernel.ndim == 2:
        kernel = np.hstack([k.reshape(k.shape[::-1]).T for k in np.split(kernel, gates, axis=1)])
        recurrent = np.hstack([k.T for k in np.split(recurrent, gates, axis=1)])
    return {"kernel": kernel, "recurrent_kernel": recurrent, "bias": both.sum(0) if gates == 4 else both}


def which_layout(kind: str) -> str:
    """What is to be decided where no config says which layer it is, and how."""
    of = "CuDNNLSTM" if kind == "lstm" else "CuDNNGRU"
    return (
        f"holds a bias that is two in one, as {of} has it: add --layout cudnn, as Keras reads a {of}, or "
        f"--layout keras (or --cell {kind}) if the matrices lie as those of Keras' {of.removeprefix('CuDNN')}"
    )
