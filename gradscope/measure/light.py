"""The light probe: gain and horizon alone, from vectors that are kept from one checkpoint to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import BeyondRangeError, InputError, as_option
from gradscope.linearize.beyond_range import with_slopes
from gradscope.linearize.budget import SEGMENT_BYTES, tangent_bytes
from gradscope.linearize.course import check_finite
from gradscope.linearize.leading_vector import leading_vectors, meeting, steps_to_pass
from gradscope.linearize.system import cast
from gradscope.linearize.tangents import tangents
from gradscope.measure.measured import Measured
from gradscope.problem.layers import Problems
from gradscope.problem.problem import Problem
from gradscope.product_svd.spectrum import Spectrum

# Decades that further passes may still add; passes to and fro, at most, and windows that are looked at.
TOLERANCE, _MOST_PASSES, _MOST_WINDOWS = 1e-8, 100, 40
# Part of a start that is drawn: what a kept vector misses is in it.
_DRAWN = 0.1
# What is said to be missing where there are windows left to look at.
_UNKNOWN = 1e-3
# Decades below the exploding threshold from which on the largest gain by lag is looked at more closely.
_CLOSE = 3.0


class LightProbe:
    """Measures problems one after the other, each from the vectors of the one before if their shapes agree.

    What it gives are lower bounds of sigma_1 at every lag, which passes of JVPs and VJPs raise until they
    would add less than ``TOLERANCE`` decades: at T, at the lag where the gain falls below the threshold, and
    where it is largest if that may be above the other.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[Any, ...], Array] = {}

    def measure(
        self, problems: Problems, low: float, high: float, device: jax.Device
    ) -> list[list[Measured]]:
        """Every sequence of every problem; low, high : log10 of the thresholds of the verdict.

        Raises InputError for views and lengths that it does not measure.
        """
        with jax.default_device(device):
            return [self._measured(problem, low, high, place) for place, problem in enumerate(problems.every)]

    def _measured(self, problem: Problem, low: float, high: float, place: int) -> list[Measured]:
        _check(problem)
        system = problem.system
        key = (place, problem.kept, system.batch, system.size, system.lengths, system.steps)
        try:
            probed = _Probed(problem, self._kept.get(key))
        except BeyondRangeError:
            along = with_slopes(system)
            if along is None:
                raise
            probed = _Probed(replace(problem, system=along.system), self._kept.get(key))
        with system.running():
            spectra = probed.spectra(low, high)
        self._kept[key] = probed.left
        return [Measured({"full": one}, {}) for one in spectra]


class _Probed:
    """The chains of one problem. ``spectra`` is to be called within ``system.running()``."""

    def __init__(self, problem: Problem, kept: Array | None) -> None:
        system = problem.system
        self._system = system
        self._tangents = tangents(system.cell, problem.kept)
        start = system.state if system.states is None else system.states
        given = [np.asarray(array, system.dtype) for array in (system.inputs, start)]
        parameters = cast(system.parameters, system.dtype)
        with system.running():
            *self._passes, states = steps_to_pass(self._tangents, parameters, *given)
        self._lengths = np.array([system.length(number) for number in range(system.batch)], np.int32)
        for length, own in zip(self._lengths, np.asarray(states), strict=True):
            check_finite(system.cell, own[1 : length + 1], 0, own.dtype)
        drawn = np.random.default_rng(0).normal(size=(system.batch, system.size))
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        self.left = drawn if kept is None else _unit(kept + _DRAWN * drawn)
        self._doubt = np.zeros(system.batch)  # decades by which a horizon may not be settled

    def spectra(self, low: float, high: float) -> list[Spectrum]:
        """The gain of each, and lower bounds by lag that are raised where they decide."""
        whole = self._window(self._lengths, self.left)
        self.left = whole["left"]
        by_lag, missing = whole["by_lag"], whole["missing"]
        rows = np.arange(len(by_lag))
        np.maximum.at(by_lag, (rows, self._lengths - 1), whole["gain"])
        self._raise(by_lag, whole["left"], low)
        peak = np.argmax(by_lag, axis=1)
        if (near := by_lag[rows, peak] > high - _CLOSE).any():
            self._look(by_lag, whole["left"], np.where(near, peak + 1, 0))
        whole["gain"] = by_lag[rows, self._lengths - 1]
        error = missing + self._rounding(whole) + self._doubt
        return [self._spectrum(whole, by_lag, error, number) for number in range(len(rows))]

    def _raise(self, by_lag: Array, left: Array, low: float) -> None:
        """Look at the lag where the bounds fall below ``low`` first, until the gain itself does there."""
        looked = np.zeros(len(by_lag), np.int32)
        for _ in range(_MOST_WINDOWS):
            first = np.array([_first_below(*one, low) for one in zip(by_lag, self._lengths, strict=True)])
            first[first == looked] = 0  # it stayed there
            first[first == self._lengths] = 0  # known already
            if not first.any():
                return
            looked = np.where(first > 0, first, looked)
            left, missing = self._look(by_lag, left, first)
            reached = by_lag[np.arange(len(by_lag)), first - 1]
            self._doubt = np.where((first > 0) & (reached < low) & (reached + missing >= low), missing, 0.0)
        self._doubt = np.maximum(self._doubt, np.where(first > 0, _UNKNOWN, 0.0))

    def _look(self, by_lag: Array, left: Array, lags: Array) -> tuple[Array, Array]:
        """Raise the bounds by what is found at one lag of each sequence, none where it is 0.

        Returns the vectors that were found, and how many decades further passes would add.
        """
        found = self._window(lags.astype(np.int32), left)
        np.maximum(by_lag, found["by_lag"], out=by_lag)
        return np.asarray(np.where(lags[:, None] > 0, found["left"], left)), found["missing"]

    def _window(self, lags: Array, left: Array) -> dict[str, Array]:
        """The leading vectors of the last ``lags`` steps of each sequence."""
        found = leading_vectors(
            self._tangents,
            _MOST_PASSES,
            max(TOLERANCE, _SEEN * self._system.eps),
            *self._passes,
            self._lengths,
            self._lengths - lags,
            np.asarray(left, self._system.dtype),
        )
        return {name: np.array(value, np.float64) for name, value in found.items()}

    def _rounding(self, whole: dict[str, Array]) -> Array:
        """Decades by which the rounding of the passes may have moved the gains."""
        sides = [np.asarray(whole[side], self._system.dtype) for side in ("left", "right")]
        cosines = np.asarray(meeting(self._tangents, *self._passes, self._lengths, *sides), np.float64)
        with np.errstate(divide="ignore"):
            amplified = np.sqrt((1 / cosines**2).sum(axis=1))
        relative = _ROUNDINGS * self._system.eps * amplified
        alive = np.isfinite(whole["gain"])
        return np.where(alive, np.log10(1 + relative), 0.0)

    def _spectrum(self, whole: dict[str, Array], by_lag: Array, error: Array, number: int) -> Spectrum:
        own = by_lag[number, : self._lengths[number]]
        return Spectrum(
            np.array([whole["gain"][number]]),
            None,
            float(error[number]),
            float(error[number]),
            whole["left"][number],
            whole["right"][number],
            own,
            log10_largest_gain=float(own.max()),
        )


# Of an entry of a vector in one step, about; of the gain, which passes that add nothing move by as much.
_ROUNDINGS, _SEEN = 4, 1e5


def _first_below(by_lag: Array, length: int, low: float) -> int:
    """The first lag at which the gain is below ``low``, 0 if there is none."""
    below = np.flatnonzero(by_lag[:length] < low)
    return int(below[0]) + 1 if len(below) else 0


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def _check(problem: Problem) -> None:
    system = problem.system
    if problem.view != "state":
        raise InputError(
            f"{as_option('light')} measures the whole state: leave {as_option('view')} out, or it"
        )
    need = system.batch * system.steps * tangent_bytes(system.cell, system.hidden)
    if need > _MOST_SEGMENTS * SEGMENT_BYTES:
        most = math.floor(_MOST_SEGMENTS * SEGMENT_BYTES / need * system.steps)
        raise InputError(
            f"{as_option('light')} keeps all steps in memory ({need >> 20} MiB here): give "
            f"{as_option('steps')} of at most {most}, a smaller {as_option('batch')}, or leave it out"
        )


# Steps of several segments may be in memory: there is one problem at a time.
_MOST_SEGMENTS = 16


def converged(spectra: Sequence[Spectrum]) -> bool:
    """Whether passes and rounding leave the gains of a light probe alone, to a millionth of a decade."""
    return all(one.log10_norm_error < 1e-6 for one in spectra)
