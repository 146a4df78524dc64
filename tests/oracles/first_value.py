"""The largest value of a chain, its lags and its error against exact arithmetic."""

from __future__ import annotations

import numpy as np

from gradscope.product_svd.spectrum import Spectrum
from oracles.reference import Reference, allowed, largest


def check_first(found: Spectrum, chain: np.ndarray, true: Reference) -> None:
    """Assert that the one value is right to what its conditioning allows, and lags to 1e-9 decades."""
    (value,) = found.log10_singular_values
    error = missed(true, value)
    assert error <= allowed(chain, np.array([error]))[0] + np.spacing(abs(value))
    assert found.log10_norm_error >= error / 10
    for lag in (1, 7, 30):
        assert abs(largest(chain[-lag:]) - found.log10_norm_by_lag[lag - 1]) <= 1e-9
    assert found.log10_norm_by_lag[-1] == value


def missed(true: Reference, value: float) -> float:
    """|error| of log10 of the largest value."""
    return abs(float(true.log10_errors(np.array([value] * len(true.sigma)))[0]))
