"""The notation of Greff et al. (arXiv 1503.04069): what is a recurrent matrix, an input weight, a bias."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from gradscope.custom_types import Array

# The one path of a cell that names none.
NAMELESS = "state"


def recurrent_matrices(parameters: Mapping[str, Array]) -> dict[str, dict[str, Any]]:
    """Spectral norm, radius (None of one that is not square) and singular values of every R*."""
    result = {}
    for name, matrix in parameters.items():
        if name.startswith("R") and matrix.ndim == 2:
            square = matrix.shape[0] == matrix.shape[1]
            singular = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False)
            result[name] = {
                "spectral_norm": float(singular[0]),
                "spectral_radius": float(np.abs(np.linalg.eigvals(matrix)).max()) if square else None,
                "singular_values": singular,
            }
    return result


def key(kind: str, gate: str) -> str:
    """``R_f`` for gate f; plain ``R`` for the one nameless gate of a simple RNN."""
    return f"{kind}_{gate}" if gate else kind


def named(parameters: Iterable[str], kind: str) -> list[str]:
    """Keys of one kind: "R" recurrent matrices, "W" input weights, "b" biases."""
    return [key for key in parameters if key.rpartition(".")[2].startswith(kind)]
