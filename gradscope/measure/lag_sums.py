"""The gradients of the weights summed lag by lag: what backpropagation truncated at each lag would give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradscope.cells.notation import named
from gradscope.cells.units import Parameters
from gradscope.custom_types import Array
from gradscope.errors import InputError
from gradscope.linearize.beside import Parted
from gradscope.linearize.levels import beside_level
from gradscope.linearize.rests import along, nudged, run_at
from gradscope.linearize.system import System, cast
from gradscope.linearize.tangents import JvpSteps
from gradscope.linearize.trajectory import Spread, states_of
from gradscope.machine import available
from gradscope.measure.adjoints import Total, roundings
from gradscope.measure.backprop import ZERO, Columns, by_parameters, renormed
from gradscope.product_svd.log_scale import decades

# Lags that are gone through between two reports of progress.
_AT_ONCE = 64
# All parameters together, beside the kinds "R" and "W".
ALL = "all"
# {group: its parameters}, as something that has a hash.
Groups = tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True)
class LagSums:
    """Of G = sum over k of G_k, the gradient of a loss by some weights and its parts by lag k = 1..T.

    For each group of parameters, (T,): log10_part, log10 |G_k|; log10_kept, log10 of the same after its
    entries were multiplied by weights (clipping), as log10_part where there are none; bias |G - H_k| / |G|
    and cosine of the angle between G and H_k = G_1 + ... + G_k. log10_whole : {group: log10 |G|}.
    """

    log10_part: Mapping[str, Array]
    log10_kept: Mapping[str, Array]
    bias: Mapping[str, Array]
    cosine: Mapping[str, Array]
    log10_whole: Mapping[str, float]


def groups_of(parameters: Mapping[str, Any]) -> dict[str, list[str]]:
    """The parameters of each group: "R" recurrent matrices, "W" input weights, and all."""
    kinds = {kind: named(parameters, kind) for kind in ("R", "W")}
    return {kind: names for kind, names in kinds.items() if names} | {ALL: list(parameters)}


class Losses:
    """Every loss of a batch as one column each, followed back side by side, one lag at a time.

    To be used within ``system.running()``.
    """

    def __init__(
        self, system: System, kept: tuple[str, ...], adjoint: Array, device: jax.Device, near: bool
    ) -> None:
        """Take a system, the paths that are kept and the adjoint (B, S, n) of its loss.

        near : as of ``Trajectory``.
        """
        self._dtype, self._size = system.dtype, system.size
        self._chain = JvpSteps(system.cell, kept)
        self.steps = system.steps
        found = [self._of(system, adjoint, b) for b in range(system.batch)]
        self._sequence = np.concatenate([np.full(len(at), b) for b, (at, _) in enumerate(found)])
        self.at = np.concatenate([at for at, _ in found])
        _check_memory(system, len(self.at))
        self._spread = Spread((device,))
        entering = np.zeros((system.size, len(self.at)))
        entering[system.output] = np.concatenate([seeds for _, seeds in found]).T
        put = self._spread.replicate
        self._start: Columns = put((entering.astype(system.dtype), np.zeros(len(self.at), np.int32)))
        self._parameters: Parameters = put(cast(system.parameters, system.dtype))
        given = put((system.inputs.astype(system.dtype), states_of(system, (device,))))
        states = given[1]
        if near:
            first = put(Parted(*beside_level(system.cell, np.asarray(system.state, system.dtype))))
            states = self._spread.lift(along, system.cell)(self._parameters, *given, first)
        self._steps = given[0], jax.tree.map(lambda part: part[:, :-1], states)

    @property
    def work(self) -> int:
        """Steps to be gone through in all."""
        return int(self.at.sum()) + len(self.at)

    def sums(
        self,
        whole: Total,
        weights: Mapping[str, Array | float] | None = None,
        limits: Array | None = None,
        done: Callable[[int], None] = lambda _: None,
        draw: int = 0,
    ) -> LagSums:
        """The sums by lag, held against the ``whole`` gradient G.

        weights : what the entries of each parameter's part are multiplied by (clipping), 1 without; limits :
            how many lags each loss is followed back, all without; done : told how many steps that were;
            draw : 0, or the number of a run in which all that is read is changed by roundings.
        """
        groups = tuple((name, tuple(names)) for name, names in groups_of(whole.arrays).items())
        if not any(array.any() for array in whole.arrays.values()):
            return _nothing([name for name, _ in groups], self.steps)
        dtype = self._start[0].dtype
        shift = max(_exponent(array) for array in whole.arrays.values())
        goal = {name: np.ldexp(array, -shift).astype(dtype) for name, array in whole.arrays.items()}
        weights = {name: np.asarray(weights[name] if weights else 1.0, dtype) for name in goal}
        limits = np.full(len(self.at), self.steps) if limits is None else limits
        shared = self._spread.replicate((self._parameters, goal, weights, whole.exponent + shift))
        columns = self._spread.replicate((self._sequence, self.at, limits))
        head = {name: np.zeros(array.shape, dtype) for name, array in goal.items()}
        carried = self._start, (head, jnp.int32(ZERO))
        steps = self._steps
        if draw:
            shapes = [jax.tree.leaves(part)[0].shape for part in steps]
            of_inputs, of_states = roundings(shapes, self._dtype, [draw])
            steps = steps[0] * of_inputs, nudged(steps[1], of_states)
        notes = []
        for first in range(0, self.steps, _AT_ONCE):
            lags = np.arange(first, first + _AT_ONCE)
            (factors,) = roundings([(_AT_ONCE, self._size)], self._dtype, draw and [draw, 1 + first])
            carried, note = _followed(self._chain, groups, shared, steps, columns, carried, (lags, factors))
            notes.append(jax.device_get(note))
            done(int(np.minimum(np.maximum(self.at + 1 - first, 0), _AT_ONCE).sum()))
        joined = jax.tree.map(lambda *parts: np.concatenate(parts)[: self.steps], *notes)
        return _sums(groups, joined, goal, whole.exponent + shift)

    @staticmethod
    def _of(system: System, adjoint: Array, b: int) -> tuple[Array, Array]:
        """Steps, from 0, at which one sequence has a loss, and its derivatives by the outputs there."""
        steps = system.length(b)
        seeds = adjoint[b, :steps]
        there = np.flatnonzero(seeds.any(axis=1))
        return there + steps - len(seeds), seeds[there]


def _check_memory(system: System, losses: int) -> None:
    numbers = losses * 4 * (system.size + system.input_size)
    numbers += system.batch * system.steps * (system.size + system.input_size)
    if 8 * numbers > (have := available()):
        raise InputError(
            f"following {losses} losses back side by side needs about {8 * numbers >> 30} GiB, this machine "
            f"has {have >> 30}: give fewer or shorter sequences, or the loss at the last step"
        )


def _exponent(array: Array) -> int:
    largest = float(np.abs(array).max(initial=0.0))
    return int(np.frexp(largest)[1]) if largest else ZERO


@partial(jax.jit, static_argnums=(0, 1))
def _followed(
    chain: JvpSteps, groups: Groups, shared: Any, steps: Any, columns: Any, carried: Any, lags: Any
) -> tuple[Any, Any]:
    """Some lags, one after the other, and what is noted of each."""
    parameters, goal, weights, exponent = shared
    sequence, at, limits = columns

    def one(carried: Any, at_lag: Any) -> tuple[Any, Any]:
        (block, exponents), head = carried
        lag, factors = at_lag
        there = (at - lag >= 0) & (lag < limits)
        here = sequence, jnp.maximum(at - lag, 0)
        at_step = jax.tree.map(lambda every: every[here], steps)
        block, exponents = block * factors[:, None] * there, jnp.where(there, exponents, ZERO)
        top = exponents.max()

        adjoints = (block * _power(exponents - top, block)).T
        part = run_at(partial(by_parameters, chain.cell), parameters, *at_step, adjoints)
        head = _added(head, (part, top))
        noted = {name: _noted(names, part, top, head, goal, weights, exponent) for name, names in groups}
        pulled = jax.vmap(lambda at, b: chain.pull(parameters, at, b[:, None])[:, 0])(at_step, block.T)
        return (renormed(pulled.T, exponents), head), noted

    return lax.scan(one, carried, lags)


def _noted(
    names: Sequence[str], part: Any, top: Any, head: Any, goal: Any, weights: Any, exponent: Any
) -> dict[str, Any]:
    """Of one group: norms of the lag's part, of what is kept of it, of all until here and of what is left."""
    arrays, power = head
    rest = {name: goal[name] - arrays[name] * _power(power - exponent, goal[name]) for name in names}
    return {
        "part": (_norm(part, names), top),
        "kept": (_norm({name: part[name] * weights[name] for name in names}, names), top),
        "head": _norm(arrays, names),
        "along": sum((arrays[name] * goal[name]).sum() for name in names),
        "rest": _norm(rest, names),
    }


def _added(head: Any, part: Any) -> Any:
    """The sum of two gradients, each {parameter: array} times a power of two."""
    (ours, power), (theirs, other) = head, part
    top = jnp.maximum(power, other)
    both = {name: _sum((ours[name], power), (theirs[name], other), top) for name in ours}
    return both, top


def _sum(one: Any, other: Any, top: Any) -> Any:
    return one[0] * _power(one[1] - top, one[0]) + other[0] * _power(other[1] - top, other[0])


def _power(exponents: Any, like: Any) -> Any:
    """2^exponents in the same dtype; what it cannot hold is 0 or its largest."""
    most = int(np.finfo(like.dtype).maxexp) - 1
    return jnp.ldexp(jnp.ones((), like.dtype), jnp.clip(exponents, -4 * most, most))


def _norm(arrays: Any, names: Sequence[str]) -> Any:
    """Frobenius norm of some arrays together; squares may not fit where the entries do."""
    largest = jnp.stack([jnp.abs(arrays[name]).max() for name in names]).max()
    size = jnp.where(largest > 0, largest, 1)
    return size * jnp.sqrt(sum(((arrays[name] / size) ** 2).sum() for name in names))


def _nothing(groups: Sequence[str], steps: int) -> LagSums:
    """Of a gradient that is exactly 0."""
    zero, unknown = (dict.fromkeys(groups, np.full(steps, value)) for value in (-np.inf, np.nan))
    return LagSums(zero, zero, unknown, unknown, dict.fromkeys(groups, -np.inf))


def _sums(groups: Groups, notes: Mapping[str, Any], goal: Mapping[str, Array], exponent: int) -> LagSums:
    """What was noted, without the powers of two; the goal is G over 2^exponent."""
    sizes = {name: _size([goal[one] for one in names]) for name, names in groups}

    def each(function: Callable[[str, Mapping[str, Any]], Array]) -> dict[str, Array]:
        with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
            return {name: function(name, noted) for name, noted in notes.items()}

    return LagSums(
        each(lambda _, noted: decades(*noted["part"])),
        each(lambda _, noted: decades(*noted["kept"])),
        each(lambda name, noted: noted["rest"].astype(float) / sizes[name]),
        each(lambda name, noted: noted["along"].astype(float) / sizes[name] / noted["head"]),
        {name: float(decades(size, exponent)) for name, size in sizes.items()},
    )


def _size(arrays: Sequence[Array]) -> float:
    return float(np.sqrt(sum((array.astype(float) ** 2).sum() for array in arrays)))
