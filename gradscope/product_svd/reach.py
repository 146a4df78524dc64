"""The norm at some lags, where every lag would take too long: each of them right."""

from __future__ import annotations

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.block_krylov import Top, tolerance, top_values
from gradscope.product_svd.block_pass import Operator

# Every lag up to here, then two for every doubling, and one where a lag takes long.
SMALL = 8
LONG = 1024


def norm_by_lag(operator: Operator, whole: list[Top], log10_threshold: float) -> tuple[Array, Array]:
    """Lags (L,), ascending, and log10 sigma_1(A_T ... A_(T-k+1)) at them, (B, L).

    whole : what was found for T. A lag is left out where its norm is not known to about ten digits
    (four in float32). Where it falls below ``log10_threshold`` between two lags, those between are
    bisected: the lag of a fall is exact, and the first where there is only one.
    """
    lags = _Lags(operator, whole)
    spread = _spread(operator.steps)
    for lag in spread:
        lags.at(lag)
    for sequence in range(operator.sequences):
        below = [lag for lag in spread if lags.at(lag)[sequence] < log10_threshold]
        if not below:
            continue
        above, fallen = max((lag for lag in spread if lag < below[0]), default=0), below[0]
        while fallen - above > 1:
            middle = (above + fallen) // 2
            if lags.at(middle)[sequence] < log10_threshold:
                fallen = middle
            else:
                above = middle
    known = [lag for lag in sorted(lags.norms) if not np.isnan(lags.norms[lag]).any()]
    return np.array(known, np.int64), np.array([lags.norms[lag] for lag in known]).T


class _Lags:
    """norms : {lag: (B,) log10 norms} measured so far, NaN where they are not known well."""

    def __init__(self, operator: Operator, whole: list[Top]) -> None:
        self.operator, self.width = operator, min(whole[0].left.shape[1], 2 * SMALL)
        self.norms = {operator.steps: _norms(whole, np.inf)}

    def at(self, lag: int) -> Array:
        if lag not in self.norms:
            part = self.operator.tail(lag)
            self.norms[lag] = _norms(top_values(part, 1, self.width), 100 * tolerance(part))
        return self.norms[lag]


def _norms(found: list[Top], allowed: float) -> Array:
    norms = [top.log10[0] if len(top.log10) else -np.inf for top in found]
    right = [not len(top.error) or top.error[0] <= allowed for top in found]
    return np.where(right, norms, np.nan)


def _spread(steps: int) -> list[int]:
    """Small lags, then log-spaced ones up to T."""
    spaced = [SMALL * 2**k for k in range(steps.bit_length())]
    between = [round(lag * 2**0.5) for lag in spaced if lag < LONG]
    return sorted({lag for lag in (*range(1, SMALL), *spaced, *between, steps) if lag <= steps})
