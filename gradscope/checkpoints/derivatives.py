"""A recurrent module that gradscope has no equations for, as its own framework differentiates it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from gradscope.cells.given_steps import given_steps
from gradscope.checkpoints.layer import Layer
from gradscope.checkpoints.recording import Recording, turned_within
from gradscope.custom_types import Array
from gradscope.errors import InputError, counted
from gradscope.machine import available

# The path of what goes through no recurrent matrix.
DIRECT = "direct"
# Times what a rounding of every number moves, and draws of that, as in problem/self_check.py.
SAFETY, DRAWS = 16.0, 3
# Parts that are put together again differ from the whole by their rounding.
SUM_ROUNDINGS = 1e4
# Relative, by what halves that come back through a linear map may differ from the whole: a half is exact but
# where float16 has no digits left.
_LINEAR = 1e-5
MIXES = "mixes the sequences of its batch: give a batch of one"
NOT_LINEAR = (
    "no linear map, so that no Jacobian is right: half a gradient does not come back as half; something "
    "clips it on its way (a hook on it, a Function or a custom_vjp)"
)


class OpaqueError(Exception):
    """A matrix meets what depends on the state where it cannot be seen what becomes of them."""


@dataclass(frozen=True)
class OwnSteps:
    """The steps of a module on what it read, differentiated.

    paths : by which recurrent matrix the state goes first, () where that is not told apart.
    jacobians : (B, T, paths, m, m), which add up to d(state after)/d(state before).
    states : (B, T + 1, m); parts : {component: size} of the state, "h" is what the module puts out.
    input_size : features that it reads, besides the state; rounding : relative, of what it was computed in.
    lengths, mask : as in Recording, of steps at which the state changes.
    """

    paths: tuple[str, ...]
    jacobians: Array
    states: Array
    parts: Mapping[str, int]
    input_size: int
    rounding: float
    lengths: tuple[int, ...] | None = None
    mask: Array | None = None


@dataclass(frozen=True)
class Linearised:
    """One step: states (B, m), and by path d(state after)/d(state before), (B, m, m)."""

    before: Array
    after: Array
    paths: Mapping[str, Array]


def is_not_linear(whole: Array, half: Array) -> bool:
    """Whether of a gradient and its half what comes back is not another and its half."""
    whole, half = np.asarray(whole, np.float64), np.asarray(half, np.float64)
    return bool(np.abs(2 * half - whole).max() > _LINEAR * np.abs(whole).max())


def halved_rows(rows: Array) -> Array:
    """Rows (B, m) halved, that of the first sequence twice."""
    parts = rows / 2
    parts[0] /= 2
    return parts


def check_way_back(rows: Array, whole: Array, parts: Array, back: Callable[[Array], Array]) -> None:
    """Raise InputError where the way back through a step is no linear map, or leads between sequences.

    whole, parts : what rows (B, m) and ``halved_rows`` them come back as, which tells both at once, for
    powers of two are exact; back : rows -> what they come back as, for what is in doubt.
    """
    if np.array_equal(parts, halved_rows(whole)):
        return
    if is_not_linear(whole, back(rows / 2)):
        raise InputError(f"has a derivative that is {NOT_LINEAR}")
    first = rows * (np.arange(len(rows)) == 0)[:, None]
    if back(first)[1:].any():
        raise InputError(MIXES)


def gap(rows: Array, paths: Mapping[str, Array], whole: Array) -> float:
    """How far rows (B, m) through the paths are from those through the step as it is, relative."""
    through = sum(np.einsum("bi,bij->bj", rows, path) for path in paths.values())
    bound = sum(np.einsum("bi,bij->bj", np.abs(rows), np.abs(path)) for path in paths.values())
    return float(np.abs(through - whole).max() / max(np.max(bound), np.finfo(float).tiny))


def own_steps(
    found: Sequence[Linearised], parts: Mapping[str, int], input_size: int, rounding: float
) -> OwnSteps:
    """The steps of a module, each of which goes on from where the one before ended."""
    names = dict.fromkeys(name for one in found for name, path in one.paths.items() if path.any())
    paths = sorted(names, key=lambda name: (name == DIRECT, name)) or [DIRECT]
    nothing = np.zeros((*found[0].after.shape, found[0].after.shape[1]))
    jacobians = np.stack(
        [np.stack([one.paths.get(name, nothing) for name in paths], axis=1) for one in found], axis=1
    )
    if not np.isfinite(jacobians).all():
        raise InputError("has derivatives that are not finite: look for a square root or a quotient at zero")
    states = np.stack([one.before for one in found] + [found[-1].after], axis=1)
    return OwnSteps(tuple(paths) if paths != [DIRECT] else (), jacobians, states, parts, input_size, rounding)


def check_jacobians(batch: int, steps: int, matrices: int, size: int) -> None:
    """Refuse Jacobians that would not fit, before the work."""
    need = 3 * 8 * batch * steps * matrices * size**2
    if need > (have := available()):
        raise InputError(
            f"the Jacobians of {counted(batch, 'sequence')} of {counted(steps, 'step')} and {size} states "
            f"need {need >> 30} GiB, this machine has {have >> 30}: give fewer or shorter sequences"
        )


class Derivatives(ABC):
    """Where the steps of a module come from; they are computed when they are asked for.

    by : the framework; kind : what the class of the module is called; fed_back, backward : as in Recording;
    not_applied : as in Layer.
    """

    by: str
    kind: str
    fed_back: bool = False
    backward: bool = False
    not_applied: tuple[str, ...] = ()

    @abstractmethod
    def differentiate(self) -> OwnSteps:
        """The steps; raises InputError where the module cannot be stepped."""

    @abstractmethod
    def weights(self) -> Mapping[str, Array]:
        """The real arrays that a checkpoint of the module has, by their names in it."""

    def second_call(self) -> tuple[int, Callable[..., Any], Mapping[str, Any], Any] | None:
        """Of what is called step by step on JAX: how often, the function, its weights, and its batch."""
        return None

    def used(self) -> frozenset[str]:
        """The names of those that the steps are made of."""
        return frozenset(self.weights())

    @property
    def sizes(self) -> tuple[int, int] | None:
        """Hidden and input size, None where that takes the steps."""
        return None

    @cached_property
    def steps(self) -> OwnSteps:
        """The steps, computed once."""
        return self.differentiate()

    def layer(self, name: str) -> Layer:
        """The layer of a model that these steps are; its inputs are the Jacobians."""
        steps = self.steps
        cell = given_steps(self.kind, steps.paths, tuple(steps.parts.items()))
        size = steps.states.shape[2]
        sizes = steps.parts.get("h", size), max(1, len(steps.paths)) * size**2
        direction = "backward" if self.backward else "forward"
        return Layer(cell, {}, name, np.zeros(size), direction=direction, derivatives=self, own_sizes=sizes)

    @property
    def recording(self) -> Recording:
        """The same as what that layer read, and the states that it went through."""
        steps = self.steps
        read = steps.jacobians.reshape(*steps.jacobians.shape[:2], -1)
        return Recording(
            turned_within(read, steps.lengths) if self.backward else read,
            rounding=steps.rounding,
            fed_back=self.fed_back,
            lengths=steps.lengths,
            mask=steps.mask,
            backward=self.backward,
            states=steps.states,
        )
