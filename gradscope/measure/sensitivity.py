"""How log sigma_1 of a chain, or of what a loss sends back, changes with every parameter, exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from gradscope.cells.units import Parameters
from gradscope.custom_types import Array
from gradscope.linearize.budget import SEGMENT_BYTES
from gradscope.linearize.system import cast
from gradscope.linearize.tangents import JvpSteps
from gradscope.linearize.trajectory import Segments, Spread, Trajectory
from gradscope.measure.log_norm_adjoint import Later, Span, Stretch, differentiated, no_later, pulled, pushed
from gradscope.measure.measured import Measured, near_levels
from gradscope.problem.problem import Problem

# Singular values this close together, in decades, have no derivatives of their own that could be told apart.
DEGENERATE = 1e-6
# So many values may coincide, and are then differentiated together.
MOST_TOGETHER = 128
# From here on the adjoint of the trajectory says that its answer to a change is chaos.
LARGEST_ADJOINT = 1e3
# Decades by which the gain along its own pass may be off that of the chain.
_SAME = 1e-2
# The angle by which singular vectors may move in another pass, and how many of these there may be.
_SETTLED, _MOST_UNSETTLED, _PASSES = 1e-9, 1e-5, 60


@dataclass(frozen=True)
class Sensitivity:
    """d log10 sigma_1 / d(parameter) of the full chain of one sequence, sigma_1 its gain over all T steps.

    total : {parameter: its shape}, decades per unit: with all that a change does to the states, as a step of
        training or a scaled matrix makes it. ``h0``, ``c0``, ... are there where the initial state is not 0.
    direct : the same with the states held as they are, which is not what a change does.
    elasticity, direct_elasticity : {parameter: d log sigma_1 / d log alpha} for the parameter times alpha.
    sequence : of which, the median of the batch.
    values : of how many largest singular values that coincide it is the mean logarithm; mostly 1.
    largest_adjoint : max_t |p_t| of the adjoint of the trajectory, d log sigma_1 / d state, without windows.
    window : where that is above 1e3 the trajectory answers chaotically, and the total is of windows of so
        many steps before each of which the state is held as it is; None where it is exact.
    condition, condition_step : max_t |a_t||b_t| / sigma_1 = 1 / cos angle(a_t, b_t) over the states after the
        steps, and the step: how much a relative change of one Jacobian may do to sigma_1, and where most.
    error : by how many decades b_t^T a_t, which is sigma_1 at every step, differs between them.
    loss : the same of log10 |dL/ds_0| of the loss that is followed back, None without one.
    """

    total: Mapping[str, Array]
    direct: Mapping[str, Array]
    elasticity: Mapping[str, float]
    direct_elasticity: Mapping[str, float]
    sequence: int
    values: int
    largest_adjoint: float
    window: int | None
    condition: float
    condition_step: int
    error: float
    loss: Sensitivity | None = None

    def to_dict(self) -> dict[str, Any]:
        """The part ``sensitivity`` of the JSON object."""
        told = {
            "total": _told(self.total, self.elasticity),
            "direct": _told(self.direct, self.direct_elasticity),
            "gates": _gates(self.total, self.elasticity),
            "sequence": self.sequence,
            "values": self.values,
            "largest_adjoint": self.largest_adjoint,
            "window": self.window,
            "condition": {"largest": self.condition, "step": self.condition_step},
            "error": self.error,
        }
        return told if self.loss is None else told | {"loss": self.loss.to_dict()}


def _told(arrays: Mapping[str, Array], elasticity: Mapping[str, float]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "norm": float(np.linalg.norm(array)),
            "elasticity": elasticity[name],
            "shift": float(array.sum()),
        }
        for name, array in arrays.items()
    }


def _gates(arrays: Mapping[str, Array], elasticity: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """All that makes a gate's pre-activation together: W_f, R_f, b_f and p_f are f."""
    names: dict[str, list[str]] = {}
    for name in arrays:
        module, dot, key = name.rpartition(".")
        if "_" in key:
            names.setdefault(f"{module}{dot}{key.partition('_')[2]}", []).append(name)
    return {
        gate: {
            "norm": math.hypot(*(float(np.linalg.norm(arrays[name])) for name in parts)),
            "elasticity": sum(elasticity[name] for name in parts),
        }
        for gate, parts in names.items()
    }


def sensitivity_of(
    problem: Problem, measured: Sequence[Measured], device: jax.Device | None = None
) -> Sensitivity | str | None:
    """The sensitivity of the median sequence, or why it has none; None where it was not asked for."""
    if not problem.sensitivity:
        return None
    number = median_sequence(measured)
    if not measured[number].alive:
        return "the gain is 0, whose logarithm has no derivative"
    if math.isfinite(step := float(measured[number].course["ends"][0])):
        return (
            f"a state leaves {problem.system.dtype} at step {step:.0f}, and it is differentiated along states"
        )
    try:
        return of_sequence(problem, measured[number], number, device)
    except ArithmeticError as error:
        return str(error)


def median_sequence(measured: Sequence[Measured]) -> int:
    """The number of the sequence in the middle; of an even number the lower of the two there."""
    norms = [float(one.full.log10_singular_values[0]) for one in measured]
    return int(np.argsort(norms, kind="stable")[(len(norms) - 1) // 2])


def top_sums(
    problem: Problem, measured: Measured, number: int, count: int, device: jax.Device
) -> list[dict[str, Array] | None]:
    """Derivatives of the sums of log10 of the 1, 2, ... ``count`` largest singular values of one sequence.

    None where a sum has none: where its last value and the next one coincide.
    """
    found: list[dict[str, Array] | None] = []
    with problem.system.running():
        chain = _Sequence(problem, measured, number, device)
        for values in range(1, count + 1):
            try:
                logs = measured.full.log10_singular_values[:values]
                mean = chain.of_norm(measured.full.right, values, float(np.mean(logs)))
            except ArithmeticError:
                found.append(None)
            else:
                found.append({name: values * mean.total[name] for name in mean.direct})
    return found


def known(found: Sensitivity | str | None) -> Sensitivity | None:
    """What ``sensitivity_of`` returned, if that is a sensitivity."""
    return None if isinstance(found, str) else found


def of_sequence(
    problem: Problem, measured: Measured, number: int, device: jax.Device | None = None
) -> Sensitivity:
    """The sensitivity of one sequence of the problem, of which this was measured.

    Raises ArithmeticError where it has none that could be told.
    """
    device = device or jax.local_devices()[0]
    system = problem.system
    values = _coinciding(measured, system.size)
    with system.running():
        chain = _Sequence(problem, measured, number, device)
        mean = float(np.mean(measured.full.log10_singular_values[:values]))
        found = replace(chain.of_norm(measured.full.right, values, mean), sequence=number)
        if problem.adjoint is not None:
            adjoint = problem.adjoint[number]
            loss = chain.of_loss(adjoint[: system.length(number)])
            found = replace(found, loss=loss and replace(loss, sequence=number))
    return found


def _coinciding(measured: Measured, size: int) -> int:
    """How many of the largest singular values are the same, as far as can be told."""
    spectrum = measured.full
    logs = np.asarray(spectrum.log10_singular_values)
    apart = max(DEGENERATE, 10 * spectrum.log10_norm_error)
    with np.errstate(invalid="ignore"):  # of zeros
        far = np.flatnonzero(~(logs[:-1] - logs[1:] <= apart))  # not >, or NaN is taken to be near
    count = int(far[0]) + 1 if len(far) else len(logs)
    if count > MOST_TOGETHER or (count == len(logs) < size):
        raise ArithmeticError(
            f"the {count} largest singular values coincide: none of them has a derivative of its own"
        )
    return count


class _Sequence:
    """One sequence, to be gone through again and again. To be used within ``system.running()``."""

    def __init__(self, problem: Problem, measured: Measured, number: int, device: jax.Device) -> None:
        system = problem.system
        self.steps, self.number = system.length(number), number
        self.system = system.part([number], self.steps)
        self.chain = JvpSteps(system.cell, problem.kept)
        self._starts: list[Span] = []
        self._end: Span
        # States and columns of every step of a segment, and their copies.
        segments = Segments.cover(self.steps, 8 * 16 * system.size, SEGMENT_BYTES)
        near = near_levels([measured])
        self.trajectory = Trajectory(self.system, segments, Spread((device,)), near=near)

    @property
    def parameters(self) -> Parameters:
        """On the device."""
        placed: Parameters = self.trajectory.parameters
        return placed

    def of_norm(self, right: Array, values: int, log10_mean: float) -> Sensitivity:
        """Of the mean logarithm of the ``values`` largest singular values; right : (m,) the first vector."""
        block = np.random.default_rng(0).standard_normal((self.system.size, values))
        block[:, 0] = right
        first = self._orthonormal(block)
        for _ in range(_PASSES):  # a subspace iteration, until the columns stay
            self._begin(first)
            found, told, again = self._exact_or_windows(self._unit(self._end.block))
            angle = _angle(first.block, again)
            if angle <= max(_SETTLED, 100 * self.system.eps) or values == self.system.size:
                break
            first = self._unit(again)
        if not (angle <= _MOST_UNSETTLED or values == self.system.size):  # not >, or NaN passes
            raise ArithmeticError(
                f"its singular vectors turn by {angle:.0e} from one pass to the next: they are lost in "
                "rounding, beside values almost as large or a gain on the way that is far larger"
            )
        told_log10 = told["log"] / (values * math.log(10.0))
        self._check_same(told_log10, log10_mean)
        worst = int(np.argmin(told["cosine"]))
        return replace(
            found,
            values=values,
            condition=1.0 / max(float(told["cosine"][worst]), np.finfo(float).tiny),
            condition_step=worst + 1,
            error=float(values * (told_log10.max() - told_log10.min())),
        )

    def _check_same(self, told: Array, log10_mean: float) -> None:
        """Raise ArithmeticError where the pass does not find the gain that it differentiates."""
        with np.errstate(invalid="ignore"):  # of zeros
            off = float(np.abs(told - log10_mean).max())
            spread = float(told.max() - told.min())
        if not off <= _SAME + 10 * spread:  # not >, or NaN passes
            dtype = self.system.dtype
            raise ArithmeticError(
                f"the gain hangs on slopes below {np.finfo(dtype).tiny:.0e}, which {dtype} takes as 0, and "
                "it is differentiated in that: inputs and weights of smaller size leave the units a slope"
            )

    def of_loss(self, adjoint: Array) -> Sensitivity | None:
        """Of log |dL/ds_0|; adjoint : (S, n), of the outputs of the last S steps. None where it is 0."""
        losses = np.zeros((self.steps, self.system.size), self.system.dtype)
        losses[self.steps - len(adjoint) :, self.system.output] = adjoint
        self._begin(self._orthonormal(np.eye(self.system.size)[:, :1]))  # for the states alone
        arrived = self._nothing()
        for i in reversed(range(self.trajectory.segments.count)):
            steps = self._stretch(i)
            arrived = pulled(self.chain, self.parameters, steps, arrived, self._of_segment(losses, i))
        if not np.isfinite(float(arrived.log)):
            return None
        self._begin(self._unit(arrived.block))
        return self._exact_or_windows(self._nothing(), losses, float(arrived.log))[0]

    def _unit(self, block: Any) -> Span:
        return Span(np.asarray(block), np.zeros((), self.system.dtype))

    def _orthonormal(self, block: Array) -> Span:
        return self._unit(np.linalg.qr(block / np.abs(block).max())[0].astype(self.system.dtype))

    def _nothing(self) -> Span:
        """A column that stands for 0."""
        block = np.eye(self.system.size, dtype=self.system.dtype)[:, :1]
        return Span(block, np.asarray(-np.inf, self.system.dtype))

    def _begin(self, columns: Span) -> None:
        """Take the columns before the first step along the chain, and note them where segments begin."""
        self._starts, self._end = [], columns
        for i in range(self.trajectory.segments.count):
            self._starts.append(self._end)
            self._end = self._pushed(i)[0]

    def _stretch(self, i: int) -> Stretch:
        return self._pushed(i)[1]

    def _pushed(self, i: int) -> tuple[Span, Stretch]:
        trajectory = self.trajectory
        inputs, start = trajectory.inputs(i)[0], trajectory.start(i)[0]
        first = jax.tree.map(lambda part: part[0], trajectory.beside(i))
        valid = np.int32(trajectory.valid(i))
        found: tuple[Span, Stretch] = pushed(
            self.chain, self.parameters, inputs, start, valid, self._starts[i], first
        )
        return found

    def _of_segment(self, by_step: Array, i: int) -> Array:
        """Rows of every step, those of one segment, filled up."""
        length = self.trajectory.segments.length
        part = by_step[i * length : (i + 1) * length]
        return np.pad(part, [(0, length - len(part)), *[(0, 0)] * (part.ndim - 1)])

    def _exact_or_windows(
        self, end: Span, losses: Array | None = None, whole: float = 0.0
    ) -> tuple[Sensitivity, dict[str, Array], Any]:
        """The derivative, with windows where the trajectory's answer is chaos; what was told; b_0."""
        later, told = self._pass(end, losses, whole, None)
        largest, window = float(np.max(told["adjoint"])), None
        if not largest <= LARGEST_ADJOINT:  # not >, or NaN passes
            # |p| grows at this rate, or faster; where it is no number any more it has gone beyond 1e308.
            growth = math.log(largest) if math.isfinite(largest) else -math.log(np.finfo(float).tiny)
            window = max(1, min(self.steps - 1, int(self.steps * math.log(LARGEST_ADJOINT) / growth)))
            later, told = self._pass(end, losses, whole, window)
            while window > 1 and not np.max(told["adjoint"]) <= LARGEST_ADJOINT:
                window //= 2
                later, told = self._pass(end, losses, whole, window)
        return self._concluded(later, end.block.shape[1], largest, window), told, later.columns.block

    def _pass(
        self, end: Span, losses: Array | None, whole: float, window: int | None
    ) -> tuple[Later, dict[str, Array]]:
        """One pass back over all segments."""
        held = np.zeros(self.steps, bool)
        if window is not None:
            held[self.steps - window :: -window] = True
            held[0] = False  # the initial state is what it is a derivative by
        joining = np.zeros((self.steps, self.system.size), self.system.dtype) if losses is None else losses
        later, parts = no_later(self.parameters, end), []
        for i in reversed(range(self.trajectory.segments.count)):
            by_step = (
                self._of_segment(joining, i),
                np.asarray(whole, self.system.dtype),
                self._of_segment(held, i),
            )
            later, told = differentiated(
                self.chain, losses is not None, self.parameters, self._stretch(i), *by_step, later
            )
            valid = self.trajectory.valid(i)
            parts.append({name: np.asarray(one)[:valid] for name, one in told.items()})
        joined = {name: np.concatenate([part[name] for part in parts[::-1]]) for name in parts[0]}
        return jax.device_get(later), joined

    def _concluded(self, later: Later, values: int, largest: float, window: int | None) -> Sensitivity:
        decades = 1.0 / (values * math.log(10.0))
        parameters = cast(self.system.parameters, "float64")
        direct = {name: np.asarray(later.direct[name], np.float64) * decades for name in parameters}
        total = {
            name: direct[name] + np.asarray(later.through[name], np.float64) * decades for name in parameters
        }
        extents = self.system.cell.extents(self.system.hidden)
        if self.system.state.any():
            for component, place in extents.items():
                total[f"{component}0"] = np.asarray(later.adjoint, np.float64)[place] * decades
                parameters[f"{component}0"] = self.system.state[0, place]
        return Sensitivity(
            total=total,
            direct=direct,
            elasticity=_elasticities(total, parameters),
            direct_elasticity=_elasticities(direct, parameters),
            sequence=self.number,
            values=values,
            largest_adjoint=largest,
            window=window,
            condition=math.nan,
            condition_step=0,
            error=math.nan,
        )


def _elasticities(arrays: Mapping[str, Array], parameters: Mapping[str, Array]) -> dict[str, float]:
    return {name: float((one * parameters[name]).sum() * math.log(10.0)) for name, one in arrays.items()}


def _angle(one: Any, other: Any) -> float:
    """Sine of the largest angle between two spans of orthonormal columns."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(np.linalg.norm(other - one @ (one.T @ other), 2))
