"""What is measured of one sequence: the one place that takes it apart, sums it and puts it together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

import numpy as np

from gradscope.custom_types import Array
from gradscope.linearize.course import joined_course
from gradscope.product_svd.spectrum import Spectrum

# Those of its fields that hold spectra by name.
_SPECTRA = ("spectra", "without")


@dataclass(frozen=True)
class Measured:
    """Of one sequence.

    spectra : {chain: Spectrum}, the full one first; without : {path: Spectrum} of the full chain without it,
    its first value alone, none of one path; shares : {path: (T,)}, none where they are not asked for;
    shares_error : estimated, of their means over the steps, NaN where it is not known; gates : {gate: see
    linearize.gates.gate_sums}; course : of the trajectory, see linearize.course; returning : see
    measure.returning, of the first sequence alone.
    """

    spectra: Mapping[str, Spectrum]
    shares: Mapping[str, Array]
    gates: Mapping[str, Array] = field(default_factory=dict)
    course: Mapping[str, Array] = field(default_factory=dict)
    without: Mapping[str, Spectrum] = field(default_factory=dict)
    returning: Mapping[str, Array] = field(default_factory=dict)
    shares_error: float = math.nan

    @property
    def full(self) -> Spectrum:
        """Of the chain of the whole state."""
        return self.spectra["full"]

    @property
    def alive(self) -> bool:
        """Whether any gradient gets through."""
        return bool(self.full.log10_singular_values[0] > -np.inf)

    def without_claims(self, dtype: str) -> Measured:
        """The same with no number of exact zeros where slopes may have counted as 0 that are not.

        dtype : of the trajectory.
        """
        if not (self.course["flushed"][0] and drives_below(self.course, dtype)):
            return self
        spectra = {
            name: replace(one, exact_zeros=None) if one.exact_zeros else one
            for name, one in self.spectra.items()
        }
        return replace(self, spectra=spectra)

    def encode(self) -> dict[str, Any]:
        """The same in mappings and arrays alone."""
        return vars(self) | {
            kind: {name: vars(one) for name, one in getattr(self, kind).items()} for kind in _SPECTRA
        }

    @classmethod
    def decode(cls, plain: Mapping[str, Any]) -> Measured:
        """From what ``encode`` returned, its arrays as lists."""
        spectra, without = (
            {name: Spectrum(**_arrays(fields)) for name, fields in plain.get(kind, {}).items()}
            for kind in _SPECTRA
        )
        rest: dict[str, Any] = {
            name: _arrays(value) if isinstance(value, Mapping) else value
            for name, value in plain.items()
            if name not in _SPECTRA
        }
        return cls(spectra, without=without, **rest)


def _arrays(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: np.array(v) if isinstance(v, list) else v for name, v in fields.items()}


def gate_statistics(measured: Sequence[Measured]) -> dict[str, dict[str, Any]]:
    """Mean activation of each gate, the fraction saturated (below 0.1 or above 0.9) and that in each bar.

    Of the whole batch; the fraction saturated of every sequence too, and how far rounding may move it.
    """
    totals = {name: np.sum([one.gates[name] for one in measured], axis=0) for name in measured[0].gates}
    return {
        name: {
            "mean": float(sums[0] / sums[2]),
            "saturated": float(sums[1] / sums[2]),
            "histogram": (sums[4:] / sums[2]).tolist(),
            "sequences": {"saturated": [float(one.gates[name][1] / one.gates[name][2]) for one in measured]},
            "saturated_error": max(float(one.gates[name][3] / one.gates[name][2]) for one in measured),
        }
        for name, sums in totals.items()
    }


def drives_below(course: Mapping[str, Array], dtype: str) -> bool:
    """Whether a pre-activation a is so large that sech^2 a is below the smallest number of a dtype."""
    return bool(course["drive"][0] > -math.log(np.finfo(dtype).tiny) / 2)


def course_of(measured: Sequence[Measured]) -> dict[str, Array]:
    """The course of all sequences together."""
    return joined_course([one.course for one in measured])


def near_levels(measured: Sequence[Measured]) -> bool:
    """Whether states of any sequence come near levels, or nobody has looked (see linearize.levels)."""
    return any(not one.course or bool(one.course["near"][0]) for one in measured)


def direct_sum(spectra: Sequence[Spectrum]) -> Spectrum:
    """The spectrum of a block diagonal product (a direct sum) from those of its blocks."""
    values = np.concatenate([s.log10_singular_values for s in spectra])
    # What is lost of a block may be as large as the smallest value that is known of it.
    hidden = np.isfinite(values) & (values < max(map(_lost_below, spectra)))
    values = np.where(hidden, np.nan, values)
    # Descending; those that are lost come before the zeros.
    values = values[np.lexsort((-values, np.isneginf(values), np.isnan(values) | np.isneginf(values)))]
    largest = max(spectra, key=known_gain)
    every = all(len(s.log10_singular_values) == len(s.right) for s in spectra)
    counted = all(s.exact_zeros is not None for s in spectra)
    lags, norms = _norms(spectra)
    gains = [s.log10_largest_gain for s in spectra if s.log10_largest_gain is not None]
    return Spectrum(
        # Of the top values of each, those are sure that are as many as any block was asked for.
        values if every else values[: max(len(s.log10_singular_values) for s in spectra)],
        exact_zeros=sum(s.exact_zeros or 0 for s in spectra) if counted else None,
        log10_error=max(s.log10_error for s in spectra),
        log10_norm_error=_error_of_largest(largest, spectra),
        left=np.concatenate([s.left if s is largest else np.zeros_like(s.left) for s in spectra]),
        right=np.concatenate([s.right if s is largest else np.zeros_like(s.right) for s in spectra]),
        log10_norm_by_lag=norms,
        lags=lags,
        lost=sum(s.lost for s in spectra) + int(hidden.sum()),
        log10_largest_gain=max(gains, default=None),
        engine=largest.engine if len({s.engine for s in spectra}) == 1 else "mixed",
    )


def known_gain(spectrum: Spectrum) -> float:
    """log10 sigma_1, or below all others where it is lost."""
    first = float(spectrum.log10_singular_values[0])
    return -math.inf if math.isnan(first) else first


def _lost_below(spectrum: Spectrum) -> float:
    """What values that are lost are at most, in log10; of none nothing."""
    if not spectrum.lost:
        return -math.inf
    values = spectrum.log10_singular_values
    return float(np.min(values, where=np.isfinite(values), initial=math.inf))


def _error_of_largest(largest: Spectrum, spectra: Sequence[Spectrum]) -> float:
    """Of the largest norm, in decades: another block's may be larger than it, by its own error."""
    most = max(known_gain(s) + s.log10_norm_error for s in spectra)
    beyond = most - known_gain(largest) if math.isfinite(most) else 0.0
    return max(largest.log10_norm_error, beyond)


def _norms(spectra: Sequence[Spectrum]) -> tuple[Any, Any]:
    """The largest norm at every lag that is known of all blocks; and these lags, None for all of them."""
    each = [np.asarray(s.log10_norm_by_lag, np.float64) for s in spectra]
    if all(s.lags is None for s in spectra):
        return None, np.max(each, axis=0)
    at = [np.arange(1, len(n) + 1) if s.lags is None else s.lags for s, n in zip(spectra, each, strict=True)]
    common = reduce(np.intersect1d, at)
    return np.asarray(common), np.max([n[np.isin(a, common)] for a, n in zip(at, each, strict=True)], axis=0)
