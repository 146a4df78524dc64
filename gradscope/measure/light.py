"""The light probe: gain and horizon alone, from vectors that are kept from one checkpoint to the next."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from gradscope.cells.factors import factor_parameters, factors_in, with_factors
from gradscope.custom_types import Array
from gradscope.errors import BeyondRangeError, InputError, as_option
from gradscope.linearize.below_range import may_fall
from gradscope.linearize.beside import Parted
from gradscope.linearize.beyond_range import with_slopes
from gradscope.linearize.budget import SEGMENT_BYTES, tangent_bytes
from gradscope.linearize.course import check_finite
from gradscope.linearize.leading_vector import leading_vectors, meeting, steps_to_pass
from gradscope.linearize.levels import beside_level
from gradscope.linearize.system import System
from gradscope.linearize.tangents import tangents
from gradscope.measure.loss_errors import HELD
from gradscope.measure.measured import Measured
from gradscope.problem.problem import Problem
from gradscope.problem.problems import Problems
from gradscope.product_svd.spectrum import Spectrum

# Decades that further passes may still add; passes to and fro, at most, and windows that are looked at.
TOLERANCE, _MOST_PASSES, _MOST_WINDOWS = 1e-8, 100, 40
# Part of a start that is drawn: what a kept vector misses is in it.
_DRAWN = 0.1
# What is said to be missing where there are windows left to look at.
_UNKNOWN = 1e-3
# Decades below the exploding threshold from which on the largest gain by lag is looked at more closely.
_CLOSE = 3.0
# Roundings of an entry in one step, about; of the gain, which passes that add nothing move by as much.
_ROUNDINGS, _SEEN = 4, 1e5
# Steps of several segments may be in memory: there is one batch of problems at a time.
_MOST_SEGMENTS = 16


class LightProbe:
    """Measures problems, each from the vectors of those before it if their shapes agree.

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
        check_light(problem)
        system = problem.system
        key = (place, problem.kept, system.batch, system.size, system.lengths, system.steps)
        probed = _in_range(_weighed(problem), self._kept.get(key))
        if error := probed.failed[0]:
            raise error
        spectra = probed.spectra(np.array([low]), np.array([high]))
        self._kept[key] = probed.left
        return spectra[0]


def measure_side_by_side(
    problems: Sequence[Problem], lows: Sequence[float], highs: Sequence[float], device: jax.Device
) -> list[list[Measured] | InputError]:
    """Every sequence of each problem, or why there is none; those of one shape are one batch of one program.

    lows, highs : of each problem, as in ``LightProbe.measure``. Nothing is kept between calls, and no problem
    depends on those beside it. Raises InputError for views and lengths that are not measured.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for problem in problems:
        check_light(problem)
    problems = list(map(_weighed, problems))
    for place, problem in enumerate(problems):
        alike.setdefault(_shape(problem), []).append(place)
    found: dict[int, list[Measured] | InputError] = {}
    near: dict[int, bool] = {}
    with jax.default_device(device):
        for places in alike.values():
            size = min(len(places), _at_once(problems[places[0]], device))
            for first in range(0, len(places), size):
                some = places[first : first + size]
                filled = some + [some[-1]] * (size - len(some))  # one shape, one program
                probed = _Probed([problems[place] for place in filled], None)
                low, high = (np.array([each[place] for place in filled]) for each in (lows, highs))
                spectra = probed.spectra(low, high)
                found |= {place: probed.failed[k] or spectra[k] for k, place in enumerate(some)}
                near |= {place: probed.near[k] for k, place in enumerate(some)}
        for place, one in found.items():
            if near[place] or isinstance(one, BeyondRangeError):
                probed = _in_range(problems[place], None)
                low, high = (np.array([each[place]]) for each in (lows, highs))
                found[place] = probed.failed[0] or probed.spectra(low, high)[0]
    return [found[place] for place in range(len(problems))]


def _in_range(problem: Problem, kept: Array | None) -> _Probed:
    """Along its states, or where those leave their dtype along given slopes, if it has such.

    Where they come near levels, with what they have beside these.
    """
    probed = _Probed([problem], kept)
    if probed.near[0]:
        return _Probed([problem], kept, near=True)
    if isinstance(probed.failed[0], BeyondRangeError):
        along = with_slopes(problem.system)
        if along is not None:
            return _Probed([replace(problem, system=along.system)], kept)
    return probed


def _weighed(problem: Problem) -> Problem:
    """With a factor on every path, 0 on those that are cut: one program, whatever is cut or scaled.

    A cell without units has it only where something is: each path has a copy of the state there.
    """
    system = problem.system
    cell, given = system.cell, factors_in(system.parameters)
    if not (cell.units or given or problem.cut):
        return problem
    factors = {path: 0.0 if path in problem.cut else given.get(path, 1.0) for path in cell.paths}
    cell = with_factors(cell, cell.paths)
    weighed = replace(system, cell=cell, parameters=system.parameters | factor_parameters(factors))
    return replace(problem, system=weighed, cut=())


def _shape(problem: Problem) -> tuple[Any, ...]:
    """What problems have in common that are measured side by side."""
    system = problem.system
    shapes = tuple((name, array.shape) for name, array in system.parameters.items())
    start = system.state if system.states is None else system.states
    return system.cell, system.dtype, system.inputs.shape, start.shape, shapes


def _at_once(problem: Problem, device: jax.Device) -> int:
    """How many problems of this shape are a batch.

    A CPU takes one after the other: its matrices stay in the cache, those of eight took twice as long each
    (hidden 64). An accelerator is the faster the more there are.
    """
    return 1 if device.platform == "cpu" else max(1, _MOST_SEGMENTS * SEGMENT_BYTES // _bytes(problem))


class _Probed:
    """The chains of P problems of one shape, with B sequences each.

    failed : (P,), why there is nothing to be measured of a problem, whose numbers mean nothing then; near :
    (P,), whether its states come near levels, and are not taken with what they have beside these.
    """

    def __init__(self, problems: Sequence[Problem], kept: Array | None, near: bool = False) -> None:
        system, many = problems[0].system, [problem.system for problem in problems]
        self._system, self._shape = system, (len(problems), system.batch)
        self._tangents = tangents(system.cell, system.cell.paths)
        starts = [one.state if one.states is None else one.states for one in many]
        parameters = {
            name: np.stack([np.asarray(one.parameters[name], system.dtype) for one in many])
            for name in system.parameters
        }
        inputs, start = (
            np.stack(each).astype(system.dtype) for each in ([one.inputs for one in many], starts)
        )
        with system.running():
            first = (
                Parted(*beside_level(system.cell, np.stack([one.state for one in many]).astype(system.dtype)))
                if near
                else None
            )
            self._passed, states, found = steps_to_pass(self._tangents, parameters, inputs, start, first)
        self._many, self._states = many, np.asarray(states)
        self._lengths = np.array([[one.length(k) for k in range(one.batch)] for one in many], np.int32)
        self.failed = [
            _not_finite(one, length, own)
            for one, length, own in zip(many, self._lengths, self._states, strict=True)
        ]
        self.near = [bool(each.any()) and not near for each in np.asarray(found)]
        drawn = np.random.default_rng(0).normal(size=(system.batch, system.size))
        drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
        drawn = np.broadcast_to(drawn, (*self._shape, system.size))
        self.left = drawn if kept is None else _unit(kept + _DRAWN * drawn)
        self._doubt = np.zeros(self._shape)  # decades by which a horizon may not be settled

    def spectra(self, low: Array, high: Array) -> list[list[Measured]]:
        """The gain of each, and lower bounds by lag that are raised where they decide; low, high : (P,)."""
        lengths = np.where(np.array([bool(error) for error in self.failed])[:, None], 0, self._lengths)
        whole = self._window(lengths, self.left)
        self.left = whole["left"]
        by_lag, missing = whole["by_lag"], whole["missing"]
        _raise_at(by_lag, lengths, whole["gain"])
        self._raise(by_lag, lengths, whole["left"], low)
        peak = np.argmax(by_lag, axis=-1)
        near = (_at_lag(by_lag, peak + 1) > high[:, None] - _CLOSE) & (lengths > 0)
        if near.any():
            self._look(by_lag, whole["left"], np.where(near, peak + 1, 0))
        whole["gain"] = _at_lag(by_lag, np.maximum(lengths, 1))
        error = missing + self._rounding(whole) + self._doubt
        return [
            [
                Measured({"full": self._spectrum(whole, by_lag, error, (p, k))}, {})
                for k in range(self._shape[1])
            ]
            for p in range(self._shape[0])
        ]

    def _raise(self, by_lag: Array, lengths: Array, left: Array, low: Array) -> None:
        """Look at the lag where the bounds fall below ``low`` first, until the gain itself does there."""
        looked = np.zeros(self._shape, np.int32)
        for _ in range(_MOST_WINDOWS):
            first = _first_below(by_lag, lengths, low)
            first[first == looked] = 0  # it stayed there
            first[first == lengths] = 0  # known already
            if not first.any():
                return
            looked = np.where(first > 0, first, looked)
            left, missing = self._look(by_lag, left, first)
            reached, floor = _at_lag(by_lag, np.maximum(first, 1)), low[:, None]
            unsure = (first > 0) & (reached < floor) & (reached + missing >= floor)
            self._doubt = np.where(first > 0, np.where(unsure, missing, 0.0), self._doubt)
        self._doubt = np.maximum(self._doubt, np.where(first > 0, _UNKNOWN, 0.0))

    def _look(self, by_lag: Array, left: Array, lags: Array) -> tuple[Array, Array]:
        """Raise the bounds by what is found at one lag of each sequence, none where it is 0.

        Returns the vectors that were found, and how many decades further passes would add.
        """
        found = self._window(lags.astype(np.int32), left)
        np.maximum(by_lag, found["by_lag"], out=by_lag)
        return np.asarray(np.where(lags[..., None] > 0, found["left"], left)), found["missing"]

    def _window(self, lags: Array, left: Array) -> dict[str, Array]:
        """The leading vectors of the last ``lags`` steps of each sequence."""
        with self._system.running():
            found = leading_vectors(
                self._tangents,
                _MOST_PASSES,
                max(TOLERANCE, _SEEN * self._system.eps),
                self._passed,
                self._lengths,
                self._lengths - lags,
                np.asarray(left, self._system.dtype),
            )
        return {name: np.array(value, np.float64) for name, value in found.items()}

    def _rounding(self, whole: dict[str, Array]) -> Array:
        """Decades by which the rounding of the passes may have moved the gains."""
        sides = [np.asarray(whole[side], self._system.dtype) for side in ("left", "right")]
        with self._system.running():
            found = meeting(self._tangents, self._passed, self._lengths, *sides)
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            amplified = np.sqrt((1 / np.asarray(found, np.float64) ** 2).sum(axis=-1))
            relative = _ROUNDINGS * self._system.eps * amplified
        return np.where(np.isfinite(whole["gain"]), np.log10(1 + relative), 0.0)

    def _spectrum(
        self, whole: dict[str, Array], by_lag: Array, error: Array, at: tuple[int, int]
    ) -> Spectrum:
        own = by_lag[at][: self._lengths[at]]
        off = math.inf if self._falls(at, own) else float(error[at])
        return Spectrum(
            np.array([whole["gain"][at]]),
            None,
            off,
            off,
            whole["left"][at],
            whole["right"][at],
            own,
            log10_largest_gain=float(own.max()),
        )

    def _falls(self, at: tuple[int, int], log10_norms: Array) -> bool:
        """Whether the gain is gone within a step, by slopes that may not be 0 in numbers of any exponent."""
        with np.errstate(invalid="ignore"):
            fell = np.diff(log10_norms, prepend=0.0) < HELD * math.log10(np.finfo(self._system.dtype).tiny)
        one, states, length = self._many[at[0]], self._states[at], self._lengths[at]
        if self.failed[at[0]] or not fell.any():
            return False
        return may_fall(one.cell, one.parameters, one.inputs[at[1], :length], states[: length + 1])


def _not_finite(system: System, lengths: Array, states: Array) -> InputError | None:
    """What there is to say of states (B, T + 1, m) that are not finite; None where all are."""
    try:
        for length, own in zip(lengths, states, strict=True):
            check_finite(system.cell, own[1 : length + 1], 0, own.dtype)
    except InputError as error:
        return error
    return None


def _first_below(by_lag: Array, lengths: Array, low: Array) -> Array:
    """(P, B), the first lag at which the gain is below ``low`` (P,), 0 if there is none."""
    below = (by_lag < low[:, None, None]) & (np.arange(by_lag.shape[-1]) < lengths[..., None])
    return np.where(below.any(axis=-1), np.argmax(below, axis=-1) + 1, 0)


def _at_lag(by_lag: Array, lags: Array) -> Array:
    """(P, B), the bounds at one lag of each, from 1."""
    return np.take_along_axis(by_lag, lags[..., None] - 1, axis=-1)[..., 0]


def _raise_at(by_lag: Array, lags: Array, gains: Array) -> None:
    """Raise the bounds to the gain that is known at one lag of each; none where that is 0."""
    at = np.maximum(lags, 1)[..., None] - 1
    raised = np.where(lags > 0, np.maximum(_at_lag(by_lag, at[..., 0] + 1), gains), -np.inf)
    np.put_along_axis(by_lag, at, raised[..., None], axis=-1)


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=-1, keepdims=True))


def check_light(problem: Problem, instead: str | None = None) -> None:
    """Raise InputError for what the light probe does not measure.

    instead : what to ask for in its place; by default to leave ``--light`` out.
    """
    system, instead = problem.system, instead or f"leave {as_option('light')} out"
    if problem.view != "state":
        raise InputError(
            f"the light probe measures the whole state: leave {as_option('view')} out, or {instead}"
        )
    need = _bytes(problem)
    if need > _MOST_SEGMENTS * SEGMENT_BYTES:
        most = math.floor(_MOST_SEGMENTS * SEGMENT_BYTES / need * system.steps)
        raise InputError(
            f"the light probe keeps all steps in memory ({need >> 20} MiB here): give "
            f"{as_option('steps')} of at most {most}, a smaller {as_option('batch')}, or {instead}"
        )


def _bytes(problem: Problem) -> int:
    """What all steps of all its sequences take."""
    system = problem.system
    return system.batch * system.steps * tangent_bytes(system.cell, system.hidden)


def converged(spectra: Sequence[Spectrum]) -> bool:
    """Whether passes and rounding leave the gains of a light probe alone, to a millionth of a decade."""
    return all(one.log10_norm_error < 1e-6 for one in spectra)
