"""Truncated backpropagation through time: how far the gradient that it gives is from the whole."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.measure.lag_sums import ALL, LagSums
from gradscope.product_svd.error_estimate import SAFETY

# The relative bias whose length is looked for.
_SMALL = 0.01
# Lags that a decay is fitted on, at least.
_FEWEST = 8


@dataclass(frozen=True)
class Truncation:
    """G_K = sum of the lags k <= K of G = dL/dR: what BPTT gives that follows every loss back K steps.

    Lag 1 is the use of R in the step of the loss itself. A chunked loop (detach every K steps, k1 = k2 = K)
    follows a loss back by 1 to K steps, as far as its chunk goes.

    length : K; steps : T.
    bias, cosine : {"R", "W", "all": (T,)}, |G - G_K| / |G| and the cosine of the angle between G_K and G, at
        K = 1..T, by the recurrent matrices, the input weights, and all parameters together; exact for the
        sequences at hand. chunks : {group: (bias, cosine)} of the chunked loop.
    decay : the factor by which |G_k| falls with every lag k, fitted (least squares on logarithms) over the
        middle half of the lags; NaN where there are too few. beyond : what it makes of all lags after T, or
        after K if that is more, over |G|.
    bias_error : {group: estimated |error| of its bias at any K}, from a run in which all that a step reads is
        changed by roundings; NaN where G is zero, None of results that are older.
    """

    length: int
    steps: int
    bias: Mapping[str, Array]
    cosine: Mapping[str, Array]
    chunks: Mapping[str, tuple[float, float]]
    decay: float
    beyond: float
    bias_error: Mapping[str, float] | None = None

    @property
    def main(self) -> str:
        """The recurrent matrices, or all parameters of a cell without any of that name."""
        return "R" if "R" in self.bias else ALL

    def at(self, group: str, length: int | None = None) -> tuple[float, float]:
        """Bias and cosine of one group, truncated at ``length``; nothing is, beyond T."""
        length = length or self.length
        if length >= self.steps and np.isfinite(self.bias[group][-1]):
            return 0.0, 1.0
        length = min(length, self.steps)
        return float(self.bias[group][length - 1]), float(self.cosine[group][length - 1])

    def error_of(self, group: str) -> float | None:
        """Of its bias; that of what is not truncated is 0 as it stands."""
        if self.bias_error is None:
            return None
        return (
            0.0 if self.length >= self.steps and self.bias_error[group] < np.inf else self.bias_error[group]
        )

    def needs(self, group: str, bias: float = _SMALL) -> int | None:
        """The length from which on the bias stays at or below this; None where the gradient is zero."""
        values = self.bias[group]
        if np.isnan(values[-1]):
            return None
        above = np.flatnonzero(~(values[:-1] <= bias))  # of all T lags nothing is left
        return int(above[-1]) + 2 if len(above) else 1

    @property
    def needs_beyond(self) -> int | None:
        """The length for a bias of 1 % in sequences that are longer than T, by the fitted decay alone.

        None where what lies beyond T is less than that, or does not fall.
        """
        if not _SMALL < self.beyond < np.inf:
            return None
        more = np.log(_SMALL / self.beyond) / np.log(self.decay)
        return max(self.length, self.steps) + int(np.ceil(more))

    def to_dict(self, lags: Array) -> dict[str, Any]:
        """The part ``loss.tbptt`` of the JSON object; the bias at these lags."""
        return {
            "length": self.length,
            **self._numbers(self.main),
            "parameters": {group: self._numbers(group) for group in self.bias},
            "profile": {
                "length": lags.tolist(),
                "bias": np.where(lags < self.steps, self.bias[self.main][lags - 1], 0.0),
                "cosine": self.cosine[self.main][lags - 1],
            },
            "decay": self.decay,
            "beyond": self.beyond,
            "length_beyond": self.needs_beyond,
        }

    def _numbers(self, group: str) -> dict[str, Any]:
        bias, cosine = self.at(group)
        chunked = dict(zip(("bias", "cosine"), self.chunks[group], strict=True))
        known = {} if self.bias_error is None else {"bias_error": self.error_of(group)}
        return {
            "bias": bias,
            **known,
            "cosine": cosine,
            "length_for_1_percent": self.needs(group),
            "chunked": chunked,
        }


def truncation(length: int, whole: LagSums, chunked: LagSums, again: LagSums) -> Truncation:
    """Of BPTT truncated at ``length``; chunked : with every loss followed to the beginning of its chunk.

    again : ``whole`` with roundings, against the same G.
    """
    group = "R" if "R" in whole.bias else ALL
    steps = len(whole.bias[group])
    decay, log10_next = _decay(whole.log10_part[group], max(length, steps))
    beyond = np.nan
    if np.isfinite(decay):
        with np.errstate(over="ignore"):
            first = float(np.float64(10) ** (log10_next - whole.log10_whole[group]))
        beyond = first / (1 - decay) if decay < 1 else np.inf
    chunks = {name: (float(chunked.bias[name][-1]), float(chunked.cosine[name][-1])) for name in whole.bias}
    if length >= steps:  # but for roundings
        chunks = {name: (0.0, 1.0) if np.isfinite(found[0]) else found for name, found in chunks.items()}
    return Truncation(
        length=length,
        steps=steps,
        bias=whole.bias,
        cosine=whole.cosine,
        chunks=chunks,
        decay=decay,
        beyond=beyond,
        bias_error={
            name: SAFETY * float(np.abs(whole.bias[name] - again.bias[name]).max()) for name in whole.bias
        },
    )


def _decay(log10_part: Array, after: int) -> tuple[float, float]:
    """The factor by which parts (T,) fall with the lag, and log10 of what it makes of lag ``after`` + 1.

    On the middle half of the lags: the first are the loss's own doing, the last the initial state's.
    """
    lags = np.arange(len(log10_part) // 4, -(-3 * len(log10_part) // 4))
    lags = lags[np.isfinite(log10_part[lags])]
    if len(lags) < _FEWEST:
        return np.nan, np.nan
    slope, start = np.polyfit(lags + 1.0, log10_part[lags], 1)
    return float(10**slope), float(start + slope * (after + 1))
