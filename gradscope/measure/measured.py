"""What is measured of one sequence, encoded and summed in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.spectrum import Spectrum

Progress = Callable[[float, int], None]


@dataclass(frozen=True)
class Measured:
    """Of one sequence: {chain: Spectrum}, the full one first, and {path: (T,) shares}."""

    spectra: dict[str, Spectrum]
    shares: dict[str, Array]

    @property
    def alive(self) -> bool:
        """Whether any gradient gets through."""
        return bool(self.spectra["full"].log10_singular_values[0] > -np.inf)


@dataclass(frozen=True)
class Found:
    """What was found of one sequence: of its Jacobians, and sums over its gates (flow.gate_sums)."""

    measured: Measured
    gates: Mapping[str, Array]


def direct_sum(spectra: Sequence[Spectrum]) -> Spectrum:
    """The spectrum of a block diagonal product from those of its blocks."""
    values = np.sort(np.concatenate([s.log10_singular_values for s in spectra]))[::-1]
    largest = max(spectra, key=lambda s: s.log10_singular_values[0])
    whole = all(s.exact_zeros is not None for s in spectra)
    lags, norms = _norms(spectra)
    return Spectrum(
        # Of the top values of each, those are sure that are as many as any block was asked for.
        values if whole else values[: max(len(s.log10_singular_values) for s in spectra)],
        sum(s.exact_zeros or 0 for s in spectra) if whole else None,
        max(s.log10_error for s in spectra),
        largest.log10_norm_error,
        np.concatenate([s.left if s is largest else np.zeros_like(s.left) for s in spectra]),
        np.concatenate([s.right if s is largest else np.zeros_like(s.right) for s in spectra]),
        norms,
        lags,
    )


def _norms(spectra: Sequence[Spectrum]) -> tuple[Any, Any]:
    """The largest norm at every lag that is known of all blocks; and these lags, None for all of them."""
    each = [np.asarray(s.log10_norm_by_lag, np.float64) for s in spectra]
    if all(s.lags is None for s in spectra):
        return None, np.max(each, axis=0)
    at = [np.arange(1, len(n) + 1) if s.lags is None else s.lags for s, n in zip(spectra, each, strict=True)]
    common = reduce(np.intersect1d, at)
    return np.asarray(common), np.max([n[np.isin(a, common)] for a, n in zip(at, each, strict=True)], axis=0)
