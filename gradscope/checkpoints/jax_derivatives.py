"""A module of JAX' libraries step by recorded step: called again on what it was given, and differentiated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from gradscope.checkpoints.calls import rounding
from gradscope.checkpoints.carried import ARGUMENTS, OUTPUT, Carried, Place, StepCall, leaves, placed
from gradscope.checkpoints.derivatives import Derivatives, OwnSteps
from gradscope.checkpoints.jax_steps import is_float
from gradscope.custom_types import Array
from gradscope.errors import InputError, reason
from gradscope.machine import available

# Times what a rounding of every number moves, and draws of that, as in problem/self_check.py.
_SAFETY, _DRAWS = 16.0, 3
# weights, arguments, {by name} -> what the module puts out: pure.
Pure = Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]


def is_array(value: Any) -> bool:
    """Whether a value is an array."""
    return isinstance(value, jax.Array | np.ndarray)


def equal(one: Any, other: Any) -> bool:
    """Whether two arrays are real numbers and the same ones."""
    alike = is_float(one) and one.shape == other.shape and one.size > 0
    return alike and bool(np.array_equal(np.asarray(one), np.asarray(other)))


class JaxSteps(Derivatives):
    """Of a module that is called step by step.

    call : the module; weights : a tree of its arrays; calls, state : as for TorchSteps.
    """

    def __init__(
        self,
        by: str,
        kind: str,
        call: Pure,
        weights: Any,
        calls: Sequence[StepCall],
        state: Carried,
        *,
        fed_back: bool,
    ) -> None:
        self.by, self.kind, self.fed_back = by, kind, fed_back
        self._call, self._weights, self._calls, self._state = call, weights, calls, state

    @property
    def states(self) -> list[list[Array]]:
        """Of every part of the state, what each call put out."""
        return [[np.asarray(call.made[s], np.float64) for call in self._calls] for s in self._state.sources]

    def differentiate(self) -> OwnSteps:
        """See Derivatives."""
        shapes = {tuple(call.made[s].shape for s in self._state.sources) for call in self._calls}
        if len(shapes) > 1:
            raise InputError(
                "puts out states of several shapes: expected as many sequences and units each time"
            )
        self._check_memory()
        with jax.default_matmul_precision("highest"):
            for dtype in ("float64", "own"):
                with jax.enable_x64(dtype == "float64"):
                    if found := self._along(dtype):
                        return found
        raise InputError(
            "puts out something else when it is called once more on the same: it draws random numbers, or "
            "keeps a state where that is not seen"
        )

    def _along(self, dtype: str) -> OwnSteps | None:
        """The steps in a dtype, None where the module is another there."""
        try:
            weights = jax.tree.map(lambda leaf: _cast(leaf, dtype), self._weights)
            if not all(self._repeats(weights, call, dtype) for call in self._calls):
                return None
        except Exception as error:  # the user's code may fail in any way
            if dtype == "float64":
                return None
            why = f"{type(error).__name__}: {reason(error)}"
            raise InputError(f"cannot be called once more: {why}") from error
        first = self._calls[0]
        state = self._state_of(first, dtype)
        jacobians, states = [], [_joined(state)]
        for call in self._calls:
            state, jacobian = self._linearised(weights, call, state, dtype)
            jacobians.append(jacobian)
            states.append(_joined(state))
        whole = np.stack(jacobians, axis=1)[:, :, None]
        if not np.isfinite(whole).all():
            raise InputError("has derivatives that are not finite: look for a root or a quotient at zero")
        own = [rounding(str(leaf.dtype)) for leaf in jax.tree.leaves(self._weights) if is_float(leaf)]
        finest = 2.0**-52 if dtype == "float64" else max(own, default=2.0**-23)
        features = next((int(a.shape[-1]) for p, a in first.given.items() if self._is_input(p, a)), 1)
        return OwnSteps((), whole, np.stack(states, axis=1), self._parts(state), features, finest)

    def _is_input(self, place: Place, array: Any) -> bool:
        return (
            place[0] == ARGUMENTS and place not in self._state.places and is_float(array) and array.ndim > 0
        )

    def _parts(self, state: Sequence[Any]) -> dict[str, int]:
        """Sizes of the parts of the state: h is what the module puts out beside the state, or last of it."""
        outputs = [a for p, a in self._calls[0].made.items() if p not in self._state.sources and is_float(a)]
        made = [self._calls[0].made[source] for source in self._state.sources]
        out = [k for k, part in enumerate(made) if any(equal(part, output) for output in outputs)]
        names = ["h" if out and k == out[0] else f"s{k}" for k in range(len(made))]
        return {name: _rows(part).shape[1] for name, part in zip(names, state, strict=True)}

    def _check_memory(self) -> None:
        """Refuse Jacobians that would not fit, before the work."""
        rows = [_rows(self._calls[0].made[source]) for source in self._state.sources]
        batch, size = len(rows[0]), sum(row.shape[1] for row in rows)
        need = 3 * 8 * batch * len(self._calls) * size**2
        if need > (have := available()):
            raise InputError(
                f"the Jacobians of {batch} sequences of {len(self._calls)} steps and {size} states need "
                f"{need >> 30} GiB, this machine has {have >> 30}: give fewer or shorter sequences"
            )

    def _linearised(
        self, weights: Any, call: StepCall, state: Sequence[Any], dtype: str
    ) -> tuple[list[Any], Array]:
        """The state after a call, and its derivatives (B, m, m) by that before it."""

        def step(state: Sequence[Any]) -> list[Any]:
            made = self._made(weights, call, dtype, state=state)
            return [made[source] for source in self._state.sources]

        new, back = jax.vjp(step, list(state))
        rows = [_rows(part) for part in new]
        batch, size = len(rows[0]), sum(row.shape[1] for row in rows)
        ends = np.cumsum([row.shape[1] for row in rows])[:-1]

        def row(unit: Any) -> Any:  # unit : (B, m)
            pairs = zip(jax.numpy.split(unit, ends, 1), new, strict=True)
            parts = [part.reshape(one.shape).astype(one.dtype) for part, one in pairs]
            return jax.numpy.concatenate([_rows(one) for one in back(parts)[0]], axis=1)

        units = jax.numpy.broadcast_to(jax.numpy.eye(size)[:, None], (size, batch, size))
        jacobian = np.moveaxis(np.asarray(jax.vmap(row)(units), np.float64), 0, 1)
        if batch > 1:
            alone = np.zeros((batch, size))
            alone[0] = np.random.default_rng(1).standard_normal(size)
            if np.asarray(row(jax.numpy.asarray(alone)))[1:].any():
                raise InputError("mixes the sequences of its batch: give a batch of one")
        return new, jacobian

    def _repeats(self, weights: Any, call: StepCall, dtype: str) -> bool:
        """Whether a call puts out what it did, but for what rounding explains."""
        generator = np.random.default_rng(0)
        exact, again, *shaken = [
            self._made(weights, call, dtype, generator=g) for g in [None, None, *[generator] * _DRAWS]
        ]
        for place, theirs in call.made.items():
            if not is_float(theirs):
                continue
            ours, numbers = np.asarray(exact[place], np.float64), np.asarray(theirs, np.float64)
            if dtype == "float64" and str(exact[place].dtype) != "float64":
                return False
            moved = max(np.abs(np.asarray(one[place], np.float64) - ours).max() for one in shaken)
            unit = rounding(str(theirs.dtype)) * np.abs(numbers).max()
            if not np.array_equal(ours, np.asarray(again[place], np.float64)):
                return False
            if not np.abs(ours - numbers).max() <= _SAFETY * (moved + unit):
                return False
        return True

    def _made(
        self,
        weights: Any,
        call: StepCall,
        dtype: str,
        *,
        state: Sequence[Any] | None = None,
        generator: np.random.Generator | None = None,
    ) -> dict[Place, Any]:
        """What a call puts out, by place; with a generator its arguments are shaken by a rounding."""
        tensors = {}
        for place, array in call.given.items():
            part = self._state.places.get(place)
            if state is not None and part is not None:
                tensors[place[1:]] = state[part]
            else:
                tensors[place[1:]] = _cast(_shaken(array, generator), dtype)
        args, keywords = placed(call.arguments, tensors)
        return dict(leaves(self._call(weights, args, keywords), is_array, (OUTPUT,)))

    def _state_of(self, call: StepCall, dtype: str) -> list[Any]:
        found: dict[int, Any] = {}
        for place, part in self._state.places.items():
            found.setdefault(part, _cast(call.given[place], dtype))
        return [found[part] for part in range(len(self._state.sources))]


def _cast(array: Any, dtype: str) -> Any:
    if not is_array(array):
        return array
    if dtype == "float64" and is_float(array):
        return jax.numpy.asarray(np.asarray(array, np.float64))
    return jax.numpy.asarray(array)


def _shaken(array: Any, generator: np.random.Generator | None) -> Any:
    if generator is None or not is_float(array):
        return array
    signs = generator.choice([-1.0, 1.0], array.shape)
    numbers = np.asarray(array, np.float64) * (1 + rounding(str(array.dtype)) * signs)
    return numbers if str(array.dtype) == "float64" else jax.numpy.asarray(numbers)


def _rows(array: Any) -> Any:
    """(B, numbers) of an array with the sequences along its first axis, or of one alone."""
    return array.reshape(1, -1) if array.ndim < 2 else array.reshape(len(array), -1)


def _joined(parts: Sequence[Any]) -> Array:
    """(B, m) of the parts of a state."""
    return np.concatenate([np.asarray(_rows(part), np.float64) for part in parts], axis=1)
