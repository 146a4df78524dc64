"""Sums over gate activations: how open the gates are, and how many are saturated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from gradscope.custom_types import Array

# Karpathy, Johnson and Li 2015 (arXiv 1506.02078): a gate is saturated left of 0.1 or right of 0.9.
SATURATED = (0.1, 0.9)


def gate_sums(gates: Mapping[str, Array]) -> dict[str, Array]:
    """Of activations {gate: array}: their sum, how many are saturated, how many there are."""
    low, high = SATURATED
    return {
        name: np.array([g.sum(), np.count_nonzero((g < low) | (g > high)), g.size], np.float64)
        for name, g in gates.items()
    }


def gate_statistics(sums: Sequence[Mapping[str, Array]]) -> dict[str, dict[str, float]]:
    """Mean activation of each gate, and the fraction saturated (below 0.1 or above 0.9)."""
    totals = {name: np.sum([one[name] for one in sums], axis=0) for name in sums[0]}
    return {
        name: {"mean": float(total / count), "saturated": float(saturated / count)}
        for name, (total, saturated, count) in totals.items()
    }
