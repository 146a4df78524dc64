"""What a model of JAX computes, operation by operation: calls and scans within it are written out."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr, Literal

from gradscope.checkpoints.jax.holds import Holds
from gradscope.checkpoints.jax.paths import bound
from gradscope.errors import InputError

# What only holds a program of its own, which is walked through in its place.
_CALLS = dict.fromkeys(("jit", "pjit", "remat2", "checkpoint"), "jaxpr")
_CALLS |= dict.fromkeys(("closed_call", "core_call"), "call_jaxpr")
SLICED, _STACKED = "scan_slice", "scan_stack"
# Operations from which on a loop is not written out.
_MOST = 400_000
# Whose functions loop over no time; an offset within a function is smaller than that.
_OF_JAX, _OFFSETS = ("/jax/", "/jaxlib/"), 2**24


@dataclass(frozen=True, eq=False)
class Constant:
    """A number that is none of the values of a program."""

    value: Any


# A value of a program by its number, or a number that is in the code.
Ref = int | Constant


@dataclass(frozen=True)
class Made:
    """An operation of a program.

    run : computes it; reads : its arguments; puts : the numbers of the values that it makes.
    same : what is alike of two operations that compute the same of their arguments.
    code, frames : where it was traced, as in ``loops.operation.Operation``.
    holds : whether its derivative, or that of one in it, is another than that of what it computes.
    """

    name: str
    run: Callable[..., Sequence[Any]]
    reads: tuple[Ref, ...]
    puts: tuple[int, ...]
    same: tuple[Any, ...]
    code: tuple[int, ...]
    frames: tuple[int, ...]
    holds: bool


class Program:
    """A function of lists of arrays, traced.

    weights : how many of its arguments are weights, the first; sealed : some of them: a scan over what is
    made of these, and of no others, is one operation; holds : which may know its operations already.
    shapes, real : of every value, and whether it holds real numbers; arguments, outputs : of the function.
    """

    def __init__(self, closed: Any, weights: int, sealed: Sequence[int], holds: Holds | None = None) -> None:
        self.operations: list[Made] = []
        self.shapes: list[tuple[int, ...]] = []
        self.real: list[bool] = []
        self._calls, self._codes = itertools.count(), dict[int, tuple[int, Any]]()
        self._sealed, self._holds = frozenset(sealed), holds or Holds()
        self._of = {number: frozenset([number]) for number in range(weights)}
        self.arguments = [self._value(variable) for variable in closed.jaxpr.invars]
        self.outputs = self._walked(closed, self.arguments, (), ())
        self.maker = {put: (k, j) for k, one in enumerate(self.operations) for j, put in enumerate(one.puts)}

    def values(self, arguments: Sequence[Any], wanted: Iterable[Ref] | None = None) -> dict[int, Any]:
        """The values by their numbers, or those alone that are needed for some."""
        known = dict(enumerate(arguments))
        needed = None if wanted is None else self._needed(wanted)
        for number, one in enumerate(self.operations):
            if needed is None or number in needed:
                made = one.run(*(known[r] if isinstance(r, int) else r.value for r in one.reads))
                known |= dict(zip(one.puts, made, strict=True))
        return known

    def behind(self, wanted: Iterable[Ref]) -> set[Ref]:
        """The values that some are made of, arguments among them."""
        wanted = [*wanted]
        reads = (ref for number in self._needed(wanted) for ref in self.operations[number].reads)
        return {*wanted, *reads}

    def _needed(self, wanted: Iterable[Ref]) -> set[int]:
        waiting, seen = [ref for ref in wanted if ref in self.maker], set[int]()
        while waiting:
            number, _ = self.maker[waiting.pop()]
            if number not in seen:
                seen.add(number)
                waiting += [ref for ref in self.operations[number].reads if ref in self.maker]
        return seen

    def _value(self, variable: Any) -> int:
        aval = variable.aval
        self.shapes.append(tuple(getattr(aval, "shape", ())))
        self.real.append(bool(jax.numpy.issubdtype(getattr(aval, "dtype", bool), jax.numpy.floating)))
        return len(self.shapes) - 1

    def _walked(
        self, closed: Any, given: Sequence[Ref], code: tuple[int, ...], frames: tuple[int, ...]
    ) -> list[Ref]:
        """What a program puts out; code, frames : of its call."""
        jaxpr = closed.jaxpr
        known: dict[Any, Ref] = dict(zip(jaxpr.constvars, map(Constant, closed.consts), strict=True))
        known |= dict(zip(jaxpr.invars, given, strict=True))
        before: tuple[list[tuple[int, Any]], list[int]] = [], []

        def ref(variable: Any) -> Ref:
            return Constant(variable.val) if isinstance(variable, Literal) else known[variable]

        for equation in jaxpr.eqns:
            before = self._frames(equation, before)
            here = (*code, *(offset for offset, _ in before[0])), (*frames, *before[1])
            made = self._made(equation, [ref(variable) for variable in equation.invars], *here)
            known |= dict(zip(equation.outvars, made, strict=True))
        return [ref(variable) for variable in jaxpr.outvars]

    def _made(
        self, equation: Any, reads: Sequence[Ref], code: tuple[int, ...], frames: tuple[int, ...]
    ) -> Sequence[Ref]:
        name, params = equation.primitive.name, equation.params
        if (inner := params.get(_CALLS.get(name, ""))) is not None:
            closed = inner if hasattr(inner, "consts") else ClosedJaxpr(inner, ())
            return self._walked(closed, reads, code, frames)
        if name == "scan" and params["length"] and not self._is_sealed(reads):
            return self._scanned(equation, reads, code, frames)
        puts = [self._value(variable) for variable in equation.outvars]
        own = [self._of.get(ref) for ref in reads if isinstance(ref, int)]
        if own and None not in own:
            self._of |= dict.fromkeys(puts, frozenset[int]().union(*filter(None, own)))
        holds = self._holds.in_equation(equation)
        return self._add(name, bound(equation), reads, puts, _alike(params), code, frames, holds=holds)

    def _is_sealed(self, reads: Sequence[Ref]) -> bool:
        """Whether of the sealed arguments alone is made what a scan reads, but for what is none of these."""
        found = frozenset[int]().union(*(self._of.get(ref, ()) for ref in reads if isinstance(ref, int)))
        return bool(found) and found <= self._sealed

    def _add(
        self,
        name: str,
        run: Callable[..., Sequence[Any]],
        reads: Sequence[Ref],
        puts: Sequence[int],
        same: tuple[Any, ...],
        code: tuple[int, ...],
        frames: tuple[int, ...],
        *,
        holds: bool = False,
    ) -> Sequence[int]:
        if len(self.operations) >= _MOST:
            raise InputError(
                f"makes more than {_MOST} operations with its loops written out: give a shorter sequence"
            )
        self.operations.append(Made(name, run, tuple(reads), tuple(puts), (name, *same), code, frames, holds))
        return puts

    def _scanned(
        self, equation: Any, reads: Sequence[Ref], code: tuple[int, ...], frames: tuple[int, ...]
    ) -> Sequence[Ref]:
        """What a scan puts out, all of whose slices are cut before its steps, and stacked after them."""
        params, body = equation.params, equation.params["jaxpr"]
        ends = params["num_consts"], params["num_consts"] + params["num_carry"]
        held, carry, rows = reads[: ends[0]], reads[ends[0] : ends[1]], reads[ends[1] :]
        order = range(params["length"])[:: -1 if params["reverse"] else 1]
        inner = body.jaxpr.invars[ends[1] :]
        slices = [
            [
                *itertools.chain.from_iterable(
                    self._add(
                        SLICED,
                        functools.partial(_sliced, k),
                        [row],
                        [self._value(variable)],
                        (k,),
                        code,
                        frames,
                    )
                    for row, variable in zip(rows, inner, strict=True)
                )
            ]
            for k in order
        ]
        kept: list[Sequence[Ref]] = []
        for given in slices:
            out = self._walked(body, [*held, *carry, *given], code, (*frames, next(self._calls)))
            carry, kept = out[: len(carry)], [*kept, out[len(carry) :]]
        stacks: list[Ref] = []
        for variable, *parts in zip(equation.outvars[len(carry) :], *kept, strict=True):
            parts = parts[:: -1 if params["reverse"] else 1]
            stacks += self._add(_STACKED, _stacked, parts, [self._value(variable)], (), code, frames)
        return [*carry, *stacks]

    def _frames(
        self, equation: Any, before: tuple[list[tuple[int, Any]], list[int]]
    ) -> tuple[list[tuple[int, Any]], list[int]]:
        """Where in the user's functions an equation was traced, and which call of each of these that was.

        A function is taken to run still where those around it are at the same place. before : of the
        equation before.
        """
        traceback = equation.source_info.traceback
        codes, offsets = traceback.raw_frames() if traceback else ((), ())
        found: list[tuple[int, Any]] = []
        if before[0] and not any(_is_theirs(code) for code in codes):
            return before
        for code, offset in zip(reversed(codes), reversed(offsets), strict=True):
            if _is_theirs(code):
                number, _ = self._codes.setdefault(id(code), (len(self._codes), code))
                found.append((number * _OFFSETS + offset, code))
        numbers: list[int] = []
        same = True
        for depth, (_, code) in enumerate(found):
            same = same and depth < len(before[0]) and before[0][depth][1] is code
            numbers.append(before[1][depth] if same else next(self._calls))
            same = same and before[0][depth] == found[depth]
        return found, numbers


def _is_theirs(code: Any) -> bool:
    return not any(part in code.co_filename for part in _OF_JAX)


def _sliced(number: int, rows: Any) -> tuple[Any]:
    return (rows[number],)


def _stacked(*parts: Any) -> tuple[Any]:
    return (jax.numpy.stack([jax.numpy.asarray(part) for part in parts]),)


def _alike(params: Mapping[str, Any]) -> tuple[Any, ...]:
    """What two operations of the same parameters have in common."""
    return tuple((name, _word(value)) for name, value in sorted(params.items()))


def _word(value: Any) -> str:
    if callable(value) and not isinstance(value, type | np.dtype):
        return str(getattr(value, "__name__", type(value).__name__))
    return str(value)
