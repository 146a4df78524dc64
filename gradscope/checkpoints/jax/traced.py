"""A model of JAX run over a batch: traced in float64 where it computes the same there, else in its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np

from gradscope.checkpoints.calls import rounding
from gradscope.checkpoints.carried import ARGUMENTS, Place, leaves, placed
from gradscope.checkpoints.derivatives import DRAWS, SAFETY
from gradscope.checkpoints.jax.derivatives import Jax, is_array
from gradscope.checkpoints.jax.holds import Holds
from gradscope.checkpoints.jax.program import Program
from gradscope.checkpoints.jax.steps import is_float
from gradscope.checkpoints.live import BY_JACOBIANS
from gradscope.checkpoints.pure_steps import Pure
from gradscope.errors import InputError, reason

_ANOTHER = (
    "puts out something else when it is called once more on the same: it draws random numbers, or keeps a "
    "state where that is not seen"
)


@dataclass(frozen=True)
class Traced:
    """A run of a model.

    weights : its arrays by their names; given : the arrays of the batch by place; values : of the program, as
    they were. double : whether in float64; rounding : of what it computes in.
    """

    program: Program
    weights: Mapping[str, Any]
    given: Mapping[Place, Any]
    values: Mapping[int, Any]
    double: bool
    rounding: float

    def precisely(self) -> Any:
        """A context in which it runs as it was traced."""
        return Jax().precisely(double=self.double)

    def cast(self, array: Any) -> Any:
        """An array as it is run with."""
        return _cast(array, double=self.double)

    def changed(self, given: Mapping[Place, Any], wanted: Sequence[int]) -> list[Any]:
        """Some values as they are with other arrays in the batch."""
        arrays = [self.cast(array) for array in (*self.weights.values(), *{**self.given, **given}.values())]
        values = self.program.values(arrays, wanted)
        return [np.asarray(values[number]) for number in wanted]


class UntracedError(InputError):
    """A model that looks at numbers as it goes, so that JAX cannot trace it."""


def sketched(
    call: Pure, weights: Mapping[str, Any], batch: Any, sealed: Sequence[int], *, with_holds: bool = False
) -> tuple[Program, Callable[[int], Any]] | None:
    """The program of a model in its own precision, and what says a value of it; see ``traced``.

    with_holds : None for a program in which nothing changes a derivative.
    """
    run, given = _function(call, weights, batch)
    with Jax().precisely(double=False):
        arrays = [jax.numpy.asarray(array) for array in (*weights.values(), *given.values())]
        try:
            closed = jax.make_jaxpr(run)(arrays)
            holds = Holds()
            if with_holds and not holds.within(closed.jaxpr):
                return None
            program = Program(closed, len(weights), sealed, holds)
        except InputError:
            raise
        except Exception as error:  # the user's code may fail in any way
            raise _untraced(error) from error
    return program, lambda ref: program.values(arrays, [ref])[ref]


def _untraced(error: Exception) -> UntracedError:
    return UntracedError(f"cannot be traced by JAX: {type(error).__name__}: {reason(error)}; {BY_JACOBIANS}")


def traced(call: Pure, weights: Mapping[str, Any], batch: Any, sealed: Sequence[int]) -> Traced:
    """A model run over a batch.

    call : it as a function of its weights; sealed : which of these are of scans that are not looked into.
    Raises InputError where it cannot be traced, or does not compute the same again.
    """
    run, given = _function(call, weights, batch)
    arrays = [*weights.values(), *given.values()]
    with Jax().precisely(double=False):
        try:
            made = run([*map(jax.numpy.asarray, arrays)])
        except Exception as error:  # the user's code may fail in any way
            raise InputError(f"cannot be run once more: {type(error).__name__}: {reason(error)}") from error
    theirs = [np.asarray(one, np.float64) for one in made if is_array(one) and is_float(one)]
    if not all(np.isfinite(one).all() for one in theirs):
        raise InputError("puts out numbers that are not finite")
    own = max((rounding(str(one.dtype)) for one in weights.values() if is_float(one)), default=2.0**-23)
    for double in (True, False):
        try:
            with Jax().precisely(double=double):
                found = _run(run, arrays, theirs, own, (len(weights), sealed), double=double)
        except InputError:
            raise
        except Exception as error:  # the user's code may fail in any way
            if double:
                continue
            raise _untraced(error) from error
        if found:
            return Traced(found[0], weights, given, found[1], double, 2.0**-52 if double else own)
    raise InputError(_ANOTHER)


def _function(
    call: Pure, weights: Mapping[str, Any], batch: Any
) -> tuple[Callable[[Sequence[Any]], list[Any]], dict[Place, Any]]:
    """A model as a function of its weights and the arrays of a batch, and these by place."""
    args, keywords = _arguments(batch)
    given = dict(leaves((args, keywords), is_array, (ARGUMENTS,)))

    def run(arrays: Sequence[Any]) -> list[Any]:
        inner = dict(zip((place[1:] for place in given), arrays[len(weights) :], strict=True))
        return jax.tree.leaves(call(arrays[: len(weights)], *placed((args, keywords), inner)))

    return run, given


def _arguments(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What ``call_model`` calls a model with."""
    if isinstance(batch, Mapping):
        return (), dict(batch)
    return (tuple(batch) if isinstance(batch, tuple | list) else (batch,)), {}


def _run(
    run: Callable[[Sequence[Any]], list[Any]],
    arrays: Sequence[Any],
    theirs: Sequence[Any],
    own: float,
    weights: tuple[int, Sequence[int]],
    *,
    double: bool,
) -> tuple[Program, dict[int, Any]] | None:
    """The program and its values; None where it is another function in this precision."""
    cast = partial(_cast, double=double)
    program = Program(jax.make_jaxpr(run)([*map(cast, arrays)]), *weights)
    values = program.values([*map(cast, arrays)])
    outputs = [ref for ref in program.outputs if isinstance(ref, int) and program.real[ref]]
    if len(outputs) != len(theirs):
        return None
    ours = [np.asarray(values[ref], np.float64) for ref in outputs]
    if double and any(str(values[ref].dtype) != "float64" for ref in outputs):
        return None
    generator, moved = np.random.default_rng(0), [0.0] * len(ours)
    for _ in range(DRAWS):
        shaken = program.values(
            [_cast(array, double=double, generator=generator) for array in arrays], outputs
        )
        moved = [
            max(most, float(np.abs(np.asarray(shaken[ref], np.float64) - one).max(initial=0)))
            for most, ref, one in zip(moved, outputs, ours, strict=True)
        ]
    for one, other, most in zip(ours, theirs, moved, strict=True):
        unit = own * np.abs(other).max(initial=0)
        if not np.abs(one - other).max(initial=0) <= SAFETY * (most + unit):
            return None
    return program, values


def _cast(array: Any, *, double: bool, generator: np.random.Generator | None = None) -> Any:
    """An array in float64 if ``double``; with a generator shaken by one rounding of its own dtype."""
    if not is_float(array):
        return jax.numpy.asarray(array)
    numbers = np.asarray(array, np.float64)
    if generator is not None:
        numbers = numbers * (1 + rounding(str(array.dtype)) * generator.choice([-1.0, 1.0], array.shape))
    return jax.numpy.asarray(numbers if double else numbers.astype(array.dtype))
