"""How the gradient flows: horizon, shares of the paths, gates, recurrent matrices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.log_scale import median_of_known
from gradscope.product_svd.norm_by_lag import TIED
from gradscope.product_svd.spectrum import Spectrum

# How the name of the level of the full chain without a path begins.
WITHOUT = "without "


@dataclass(frozen=True)
class Extremes:
    """A number per sequence of the batch: its median and its extremes."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Extremes:
        """Summarise one value per sequence."""
        return cls(float(np.median(values)), float(np.min(values)), float(np.max(values)))


@dataclass(frozen=True)
class Chain:
    """A chain of Jacobians, of the full state or of one path, with one Spectrum per sequence.

    steps : how many Jacobians are multiplied, of the longest sequence; horizons : memory horizon per
        sequence, in steps.
    """

    name: str
    steps: int
    spectra: tuple[Spectrum, ...]
    horizons: tuple[int, ...]

    @property
    def size(self) -> int:
        """State size m of the chain's matrices; of a block of them, how many values it has."""
        return min(len(self.spectra[0].left), len(self.spectra[0].right))

    @property
    def exact_zeros(self) -> tuple[int, ...]:
        """How many singular values are exactly zero, per sequence; () where only the top is known."""
        return tuple(s.exact_zeros for s in self.spectra if s.exact_zeros is not None)

    @property
    def unmeasured(self) -> str | None:
        """What of the chain could not be measured, and why; None where all was."""
        lost = max(s.lost for s in self.spectra)
        lags = len(self.lost_lags)
        said = []
        if lost:
            said.append(
                f"{lost} of the {self.size} singular values are lost: the rounding of the Jacobians leaves "
                "nothing of them beside larger ones, or they are too far below these to be followed"
            )
        if lags:
            said.append(f"the gain at {lags} of the lags is lost: the rounding leaves nothing of it")
        return "; ".join(said) or None

    @property
    def told_unmeasured(self) -> dict[str, str]:
        """That as JSON tells it; nothing where all was measured."""
        return {} if self.unmeasured is None else {"unmeasured": self.unmeasured}

    @property
    def engine(self) -> str:
        """What multiplied and factored the steps, see Spectrum; "mixed" where sequences differ."""
        engines = {s.engine for s in self.spectra}
        return engines.pop() if len(engines) == 1 else "mixed"

    @property
    def lengths(self) -> tuple[int, ...]:
        """Steps of each sequence's chain."""
        return tuple(int(_lags(s)[-1]) for s in self.spectra)

    @property
    def lags(self) -> Array:
        """The lags of by_lag, (L,): 1..T, or those known of all that are as long where only the top is."""
        known = [_lags(s) for s in self.spectra]
        every = np.unique(np.concatenate(known))
        return every[np.all([np.isin(every, lags) | (every > lags[-1]) for lags in known], axis=0)]

    @property
    def by_lag(self) -> Array:
        """log10 sigma_1 at ``lags`` for every sequence, (B, L); NaN beyond its own length.

        Of a path's chain an upper bound, where that is below the vanishing threshold already.
        """
        shown = self.lags
        found = np.full((len(self.spectra), len(shown)), np.nan)
        for row, spectrum in zip(found, self.spectra, strict=True):
            known = _lags(spectrum)
            row[np.isin(shown, known)] = np.asarray(spectrum.log10_norm_by_lag)[np.isin(known, shown)]
        return found

    @property
    def median_by_lag(self) -> Array:
        """Its median over the sequences that are as long and whose gain there is not lost, (L,)."""
        return median_of_known(self.by_lag)

    @property
    def error_by_lag(self) -> dict[int, float]:
        """{lag: estimated error of ``by_lag`` there, in decades, the largest of the batch}, where known."""
        found: dict[int, float] = {}
        for spectrum in self.spectra:
            errors = spectrum.log10_norm_error_by_lag
            for at in () if errors is None else np.flatnonzero(np.isfinite(errors)).tolist():
                lag = int(_lags(spectrum)[at])
                found[lag] = max(found.get(lag, 0.0), float(np.asarray(errors)[at]))
        return dict(sorted(found.items()))

    @property
    def lost_lags(self) -> Array:
        """Those of ``lags`` at which rounding leaves nothing of the gain of a sequence, or may."""
        lost = [_lags(s)[np.isnan(np.asarray(s.log10_norm_by_lag))] for s in self.spectra]
        return np.intersect1d(self.lags, np.concatenate(lost))

    @property
    def log10_norm(self) -> Extremes:
        """log10 sigma_1, the gain of the whole chain."""
        return self._summary(lambda s: float(s.log10_singular_values[0]))

    @property
    def log10_rms(self) -> Extremes | None:
        """log10 of the Frobenius norm / sqrt(m): the gain of a random direction; None where values lack."""
        whole = all(len(s.log10_singular_values) == self.size for s in self.spectra)
        return self._summary(_log10_rms) if whole else None

    @property
    def log10_peak(self) -> Extremes:
        """log10 sigma_1 at the lag, of those that are known, where it is largest."""
        return self._summary(lambda s: float(np.max(known_norms(s)[1])))

    @property
    def log10_largest_gain(self) -> Extremes:
        """log10 of the largest gain over any stretch of steps, of those up to T if no other is known."""
        return self._summary(lambda s: np.max([np.max(known_norms(s)[1]), *_known(s.log10_largest_gain)]))

    @property
    def peak_lag(self) -> Extremes:
        """The first lag where it is as large as that, but for what rounding may add."""
        return self._summary(_peak_lag)

    @property
    def rate(self) -> Extremes:
        """ln sigma_1 / T of its own T, in nats per step: the largest finite-time Lyapunov exponent."""
        return self._summary(lambda s: float(s.log10_singular_values[0]) * np.log(10.0) / _lags(s)[-1])

    @property
    def horizon(self) -> Extremes:
        """Memory horizon, in steps."""
        return Extremes.of(self.horizons)

    @property
    def log10_norm_error(self) -> float:
        """Estimated error of log10 sigma_1, the largest of the batch, in decades."""
        return max(s.log10_norm_error for s in self.spectra)

    def _summary(self, value: Callable[[Spectrum], float]) -> Extremes:
        return Extremes.of([value(s) for s in self.spectra])


def _lags(spectrum: Spectrum) -> Any:
    """The lags at which its norm is known, the last of which is T."""
    if spectrum.lags is None:
        return np.arange(1, len(np.asarray(spectrum.log10_norm_by_lag)) + 1)
    return spectrum.lags


def _known(value: float | None) -> tuple[float, ...]:
    return () if value is None else (value,)


def known_norms(spectrum: Spectrum) -> tuple[Array, Array]:
    """The lags whose norm is not lost, and these norms; T and NaN where all are."""
    lags, norms = np.asarray(_lags(spectrum)), np.asarray(spectrum.log10_norm_by_lag)
    known = ~np.isnan(norms)
    return (lags[known], norms[known]) if known.any() else (lags[-1:], norms[-1:])


def _peak_lag(spectrum: Spectrum) -> float:
    lags, norms = known_norms(spectrum)
    return float(lags[np.argmax(norms >= np.max(norms) - TIED)])


def _log10_rms(spectrum: Spectrum) -> float:
    logs = spectrum.log10_singular_values
    if not logs[0] > -np.inf:  # 0, or lost
        return float(logs[0])
    relative = np.nan_to_num(logs - logs[0], nan=-np.inf, neginf=-np.inf)  # the lost ones are the smallest
    return float(logs[0] + 0.5 * np.log10((100.0**relative).mean()))


def chain_of(name: str, spectra: Sequence[Spectrum], threshold: float) -> Chain:
    """A Chain from its spectra by lag; its horizon ends where the gain falls below ``threshold``."""
    norms = [np.asarray(s.log10_norm_by_lag) for s in spectra]
    horizons = tuple(horizon(norm, threshold, s.lags) for norm, s in zip(norms, spectra, strict=True))
    return Chain(name, max(int(_lags(s)[-1]) for s in spectra), tuple(spectra), horizons)


def horizon(log10_norm: Array, threshold: float, lags: Array | None = None) -> int:
    """The largest lag up to which the gain stays at or above ``threshold``; T if it always does.

    What rounding alone may have brought below it is at it.
    log10_norm : (L,), log10 sigma_1 at ``lags``, the last of which is T; at lags 1..T without.
    """
    known = np.arange(1, len(log10_norm) + 1) if lags is None else np.asarray(lags)
    below = np.flatnonzero(log10_norm < np.log10(threshold) - TIED)
    return int([0, *known.tolist()][below[0]] if len(below) else known[-1])


def horizon_error(spectrum: Spectrum, threshold: float, error: float) -> int:
    """How far its horizon moves where the gain is off by ``error`` decades."""
    norms, lags = np.asarray(spectrum.log10_norm_by_lag), spectrum.lags
    # What is taken to be at the threshold may be below it.
    low, own, high = (horizon(norms + shift, threshold, lags) for shift in (-error - TIED, 0.0, error))
    return max(own - low, high - own)


def mean_share(share: Array, full: Chain) -> float:
    """Mean over the known steps of all sequences whose gradient is not exactly zero, NaN if there are none.

    share : (T,), at every step of the longest sequence the mean over those that are as long, aligned at the
        last step; full : the chain of the whole state.
    """
    alive = [s.log10_singular_values[0] > -np.inf for s in full.spectra]
    lags = len(share) - np.arange(len(share))
    reach = (np.array(full.lengths)[alive, None] >= lags).sum(axis=0) * np.isfinite(share)
    if not reach.any():
        return float("nan")
    return float(np.average(share[reach > 0], weights=reach[reach > 0] / reach.max()))
