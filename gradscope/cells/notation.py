"""The notation of Greff et al. (arXiv 1503.04069): what is a recurrent matrix, an input weight, a bias."""

from __future__ import annotations

from collections.abc import Iterable

# Input weights, recurrent matrices, biases, peepholes.
_KINDS = ("W", "R", "b", "p")
# The one path of a cell that names none.
NAMELESS = "state"


def key(kind: str, gate: str) -> str:
    """``R_f`` for gate f; plain ``R`` for the one nameless gate of a simple RNN."""
    return f"{kind}_{gate}" if gate else kind


def is_recurrent(name: str) -> bool:
    """Whether a key, or the path that goes through it, is a recurrent matrix (or a diagonal one)."""
    return _letter(name) == "R"


def is_input_weight(name: str) -> bool:
    """Whether a key is a matrix that the input enters through."""
    return _letter(name) == "W"


def is_bias(name: str) -> bool:
    """Whether a key is a bias, but for c_h, which the GRU has inside the product with its reset gate."""
    return _letter(name) == "b"


def is_any_bias(name: str) -> bool:
    """Whether a key is a bias, that inside the reset product too."""
    return is_bias(name) or name.rpartition(".")[2] == "c_h"


def kind(name: str, axes: int) -> str:
    """W, R, b or p of a key whose array has so many axes; other names are W if matrices, else b.

    An R that is no matrix is a diagonal one, and drawn like a peephole.
    """
    letter, matrix = _letter(name), axes == 2
    if letter == "R" and not matrix:
        return "p"
    return letter if letter in _KINDS else "W" if matrix else "b"


def named(parameters: Iterable[str], letter: str) -> list[str]:
    """Keys that begin with a letter: "R" recurrent matrices, "W" input weights, "b" biases."""
    return [name for name in parameters if _letter(name) == letter]


def _letter(name: str) -> str:
    """The first of a key, which in a stack stands behind the name of its layer."""
    return name.rpartition(".")[2][:1]
