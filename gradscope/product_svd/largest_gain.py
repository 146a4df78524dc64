"""The largest gain over any stretch of a chain: by how much the forward pass amplifies its own rounding."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gradscope.custom_types import Array

# Perturbations that are followed side by side; each meets the largest direction by chance.
_COLUMNS = 4
# Numbers are brought back to about 1 where they leave this range.
_RANGE = (1e-100, 1e100)


def log10_largest_gain(chain: Sequence[Array]) -> float:
    """log10 of the largest sigma_1(A_t ... A_s), 1 <= s <= t <= T; to a small factor, from below.

    New random perturbations at every step grow as those of rounding do: where they are largest a stretch of
    large gain ends, whose own gain the way back from there tells.
    """
    end, left = _end_of_growth(chain)
    return _largest_back(chain, end, left)


def _end_of_growth(chain: Sequence[Array]) -> tuple[int, Array]:
    """The step (from 1) where perturbations are largest, and their main direction there."""
    rng = np.random.default_rng(0)
    m = len(chain[0])
    vectors, log, best = np.zeros((m, _COLUMNS)), 0.0, -np.inf
    end, there = 1, vectors
    for t in range(len(chain)):
        noise = rng.normal(size=vectors.shape) * 10.0**-log
        vectors = chain[t] @ (vectors + noise)
        size = float(np.abs(vectors).max())
        if size > 0 and np.log10(size) + log > best:
            best, end, there = np.log10(size) + log, t + 1, vectors
        if size > _RANGE[1]:
            vectors, log = vectors / size, log + float(np.log10(size))
        elif log > 0 and size < _RANGE[0]:
            shift = min(log, -float(np.log10(size))) if size > 0 else log
            vectors, log = vectors * 10.0**shift, log - shift
    return end, np.linalg.svd(there / max(np.abs(there).max(), 1e-300))[0][:, 0]


def _largest_back(chain: Sequence[Array], end: int, left: Array) -> float:
    """Largest log10 |left^T A_end ... A_s|, over s."""
    log, largest = 0.0, -np.inf
    for t in range(end - 1, -1, -1):
        left = left @ chain[t]
        size = float(np.abs(left).max())
        if not size > 0:  # not ==, or NaN passes
            break
        left, log = left / size, log + float(np.log10(size))
        largest = max(largest, log + float(np.log10(np.linalg.norm(left))))
    return largest
