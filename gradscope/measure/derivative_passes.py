"""One sequence, of whose gain or loss the derivative is taken: passes forward and back through it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import jax
import numpy as np

from gradscope.cells.units import Parameters
from gradscope.custom_types import Array
from gradscope.linearize.budget import SEGMENT_BYTES
from gradscope.linearize.system import System, cast
from gradscope.linearize.tangents import JvpSteps
from gradscope.linearize.trajectory import Segments, Spread, Trajectory, states_of
from gradscope.measure.adjoints import roundings
from gradscope.measure.log_norm_adjoint import Later, Span, Stretch, differentiated, no_later, pulled, pushed

# From here on the adjoint of the trajectory says that its answer to a change is chaos.
LARGEST_ADJOINT = 1e3
# Decades by which the gain along its own pass may be off that of the chain, at any step.
SAME = 1e-2
# The angle by which singular vectors may move in another pass, and how many of these there may be.
_SETTLED, _MOST_UNSETTLED, _PASSES = 1e-9, 1e-5, 60


@dataclass(frozen=True)
class Derivative:
    """Of the mean log10 of some singular values, or of log10 |dL/ds_0|, in decades per unit.

    total, direct, window, largest_adjoint : as of ``Sensitivity``; windowed : the total with the states
    before each window held, None where there are none; parameters : what these are derivatives by; log10 :
    (T,), what is differentiated as every step has it; cosine : (T,), of the angle between the vectors that
    meet there; start : the columns before the first step that another pass may begin with.
    """

    total: dict[str, Array]
    direct: dict[str, Array]
    windowed: dict[str, Array] | None
    parameters: dict[str, Array]
    largest_adjoint: float
    window: int | None
    log10: Array
    cosine: Array
    start: Any


def rounded_anew(system: System, device: jax.Device, draw: int) -> System:
    """The same with all that is given changed by roundings, and the states that this leads to."""
    names, given = [*system.parameters], [*system.parameters.values(), system.inputs, system.state]
    factors = roundings([np.shape(each) for each in given], system.dtype, draw and [draw])
    *parameters, inputs, state = (each * factor for each, factor in zip(given, factors, strict=True))
    new = dict(zip(names, parameters, strict=True))
    changed = replace(system, parameters=new, inputs=inputs, state=state, states=None)
    if system.states is None:
        return changed
    return replace(changed, states=np.asarray(states_of(changed, [device])))


class DerivativePasses:
    """A system of one sequence, to be gone through again and again. To be used within ``system.running()``.

    kept : the paths of the chain; near : as of ``Trajectory``; draw : 0, or the number of a run in which all
    that is given is changed by roundings.
    """

    def __init__(
        self, system: System, kept: tuple[str, ...], near: bool, device: jax.Device, draw: int = 0
    ) -> None:
        self._given = system, kept, near, device
        self.system = rounded_anew(system, device, draw)
        self.steps = system.steps
        self.chain = JvpSteps(system.cell, kept)
        self._starts: list[Span] = []
        self._end: Span
        # States and columns of every step of a segment, and their copies.
        segments = Segments.cover(self.steps, 8 * 16 * system.size, SEGMENT_BYTES)
        self.trajectory = Trajectory(self.system, segments, Spread((device,)), near=near)

    def again(self, draw: int) -> DerivativePasses:
        """Another run of it."""
        return DerivativePasses(*self._given, draw)

    @property
    def parameters(self) -> Parameters:
        """On the device."""
        placed: Parameters = self.trajectory.parameters
        return placed

    def of_norm(self, right: Array, values: int, log10_mean: float) -> Derivative:
        """Of the mean logarithm of the ``values`` largest singular values; right : (m,) the first vector.

        Raises ArithmeticError where their vectors, or the gain, are not found.
        """
        block = np.random.default_rng(0).standard_normal((self.system.size, values))
        block[:, 0] = right
        first = self._orthonormal(block)
        for _ in range(_PASSES):  # a subspace iteration, until the columns stay
            found = self.from_columns(first)
            angle = _angle(first.block, found.start.block)
            if angle <= max(_SETTLED, 100 * self.system.eps) or values == self.system.size:
                break
            first = found.start
        if not (angle <= _MOST_UNSETTLED or values == self.system.size):  # not >, or NaN passes
            raise ArithmeticError(
                f"its singular vectors turn by {angle:.0e} from one pass to the next: they are lost in "
                "rounding, beside values almost as large or a gain on the way that is far larger"
            )
        self._check_same(found.log10, log10_mean)
        return found

    def from_columns(self, first: Span, like: Derivative | None = None) -> Derivative:
        """Of the values whose right vectors these columns are; like : another run, whose windows it has."""
        self._begin(first)
        return self._exact_and_windows(self._unit(self._end.block), like)

    def _check_same(self, told: Array, log10_mean: float) -> None:
        """Raise ArithmeticError where the pass does not find the gain that it differentiates."""
        with np.errstate(invalid="ignore"):  # of zeros
            off = float(np.abs(told - log10_mean).max())
            spread = float(told.max() - told.min())
        if off <= SAME:
            return
        if spread > SAME:
            raise ArithmeticError(
                f"the gain as its steps have it differs between them by {spread:.2g} decades: its singular "
                "vectors are lost in rounding on the way"
            )
        dtype = self.system.dtype
        raise ArithmeticError(
            f"the gain hangs on slopes below {np.finfo(dtype).tiny:.0e}, which {dtype} takes as 0, and "
            "it is differentiated in that: inputs and weights of smaller size leave the units a slope"
        )

    def of_loss(self, adjoint: Array, like: Derivative | None = None) -> Derivative | None:
        """Of log |dL/ds_0|; adjoint : (S, n), of the outputs of the last S steps. None where it is 0.

        like : another run, whose windows it has.
        """
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
        found = self._exact_and_windows(self._nothing(), like, losses, float(arrived.log))
        return replace(found, log10=np.array([float(arrived.log) / math.log(10.0)]))

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

    def _exact_and_windows(
        self, end: Span, like: Derivative | None, losses: Array | None = None, whole: float = 0.0
    ) -> Derivative:
        """The derivative, and where the trajectory's answer is chaos that of windows beside it."""
        later, told = self._pass(end, losses, whole, None)
        largest = float(np.max(told["adjoint"]))
        window, windowed = (like.window if like else self._window(largest)), None
        if window is not None:
            windowed, inside = self._pass(end, losses, whole, window)
            while like is None and window > 1 and not np.max(inside["adjoint"]) <= LARGEST_ADJOINT:
                window //= 2
                windowed, inside = self._pass(end, losses, whole, window)
        per = 1.0 / (end.block.shape[1] * math.log(10.0))
        direct = {name: np.asarray(later.direct[name], np.float64) * per for name in self.system.parameters}
        with np.errstate(over="ignore", invalid="ignore"):
            total, parameters = self._total(later, per)
            return Derivative(
                total=total,
                direct=direct,
                windowed=None if windowed is None else self._total(windowed, per)[0],
                parameters=parameters,
                largest_adjoint=largest,
                window=window,
                log10=told["log"] * per,
                cosine=told["cosine"],
                start=self._unit(later.columns.block),
            )

    def _window(self, largest: float) -> int | None:
        """How many steps the answer takes to become chaos: |p| grows at this rate, or faster."""
        if largest <= LARGEST_ADJOINT or self.steps < 2:
            return None
        # Where it is no number any more it has gone beyond 1e308.
        growth = math.log(largest) if math.isfinite(largest) else -math.log(np.finfo(float).tiny)
        return max(1, min(self.steps - 1, int(self.steps * math.log(LARGEST_ADJOINT) / growth)))

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

    def _total(self, later: Later, per: float) -> tuple[dict[str, Array], dict[str, Array]]:
        """What flows back by every parameter, and these; the initial state is one where it is not 0."""
        parameters = cast(self.system.parameters, "float64")
        total = {
            name: (np.asarray(later.direct[name], np.float64) + np.asarray(later.through[name], np.float64))
            * per
            for name in parameters
        }
        if self.system.state.any():
            for component, place in self.system.cell.extents(self.system.hidden).items():
                total[f"{component}0"] = np.asarray(later.adjoint, np.float64)[place] * per
                parameters[f"{component}0"] = self.system.state[0, place]
        return total, parameters


def _angle(one: Any, other: Any) -> float:
    """Sine of the largest angle between two spans of orthonormal columns."""
    one, other = np.asarray(one, np.float64), np.asarray(other, np.float64)
    return float(np.linalg.norm(other - one @ (one.T @ other), 2))
