"""A loop over time in a model of JAX: stepped by its own operations, and differentiated."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from gradscope.checkpoints.carried import ARGUMENTS, OUTPUT, Carried, StepCall
from gradscope.checkpoints.derivatives import MIXES, SUM_ROUNDINGS, Derivatives, OwnSteps
from gradscope.checkpoints.jax.cut import CutSteps, StepForm, refuse_parts, unchanged_rows
from gradscope.checkpoints.jax.derivatives import Jax
from gradscope.checkpoints.jax.loops import Origins, time_loops, used_again, whole_weight
from gradscope.checkpoints.jax.steps import is_float
from gradscope.checkpoints.jax.traced import Traced, sketched, traced
from gradscope.checkpoints.loops.follow import TimeLoop, check_product
from gradscope.checkpoints.pure_steps import Pure, PureSteps
from gradscope.custom_types import Array
from gradscope.errors import InputError

# So many ways in which the sequences may lie in the state are tried.
_CHOICES = 16
# The product of so many Jacobians is compared with JAX's own derivative over them, in so many places.
_WINDOW, _PLACES = 8, 16


def jax_loops(
    call: Pure,
    weights: Mapping[str, Any],
    batch: Any,
    by: str,
    kind: Callable[[str], str],
    others: Collection[str],
) -> dict[str, JaxLoop]:
    """The loops of a model as it runs over a batch, by their names.

    call : the model as a function of its weights; kind : what the class of a module of a name is called;
    others : names of weights of what is recurrent by itself. Raises InputError where the model cannot be
    traced, or has a loop that cannot be told apart into steps.
    """
    names, sealed = [*weights], [k for k, name in enumerate(weights) if name in others]
    sketch = sketched(call, weights, batch, sealed)
    if sketch is None or not used_again(Origins(sketch[0], names, sketch[1], others)):
        return {}
    run = traced(call, weights, batch, sealed)
    origins = Origins(run.program, names, run.values.__getitem__, others)
    with run.precisely():
        found = [JaxLoop(run, origins, loop, by) for loop in time_loops(origins)]
    named = dict(zip(_names(found), found, strict=True))
    for name, loop in named.items():
        loop.kind = kind(name)
    return named


def _names(found: Sequence[JaxLoop]) -> list[str]:
    """What loops are called: the module that all weights of one are in, or of several that of one weight."""
    shared = [_module(sorted(loop.used())) for loop in found]
    names = [
        name if shared.count(name) == 1 else _module([whole_weight(loop.loop.name)])
        for name, loop in zip(shared, found, strict=True)
    ]
    twice, numbers = {name for name in names if names.count(name) > 1}, itertools.count(1)
    return [f"{name}.{next(numbers)}".lstrip(".") if name in twice else name for name in names]


def _module(names: Sequence[str]) -> str:
    parts = [name.replace("/", ".").split(".")[:-1] for name in names]
    alike = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*parts, strict=False))
    return ".".join(column[0] for column in alike)


class JaxLoop(Derivatives):
    """Of a loop over time within a model.

    loop : its steps, by the numbers of the operations of the program that was traced.
    """

    def __init__(self, run: Traced, origins: Origins, loop: TimeLoop, by: str) -> None:
        self.by, self.kind, self._run, self.loop = by, "", run, loop
        self._steps = CutSteps(origins, loop)
        if not loop.first and self._steps.begins_unlike():
            self.loop = replace(loop, first=1, starts=loop.starts[1:])
            self._steps = CutSteps(origins, self.loop)
        self._forms: list[StepForm] = []
        self._given: list[list[Any]] = []
        self._which: list[int] = []
        for step in range(self.loop.first, self.loop.last):
            form, given = self._steps.cut(step)
            known = next((k for k, one in enumerate(self._forms) if one.key == form.key), len(self._forms))
            self._forms += [form] * (known == len(self._forms))
            self._which.append(known)
            self._given.append(given)
        self.backward = self._is_backward()

    @property
    def said(self) -> tuple[str, ...]:
        """What is to be said of where the loop is differentiated."""
        return self.loop.said

    def weights(self) -> dict[str, Array]:
        """See Derivatives."""
        behind = self._run.program.behind(self._steps.makers(self.loop.last))
        return {
            name: np.asarray(one, np.float64)
            for number, (name, one) in enumerate(self._run.weights.items())
            if number in behind and is_float(one)
        }

    def used(self) -> frozenset[str]:
        """See Derivatives."""
        places = itertools.chain.from_iterable(
            itertools.chain(form.state, *(places for _, places in form.operations)) for form in self._forms
        )
        return frozenset(place[1] for place in places if place[0] == "weight")

    def differentiate(self) -> OwnSteps:
        """See Derivatives."""
        with self._run.precisely():
            axes = self._axes()
            steps = self._stepped(axes)
            self._check(steps, axes)
        floats = [array for array in self._run.given.values() if is_float(array) and array.ndim]
        names = [*(f"s{part}" for part in range(len(axes) - 1)), "h"]
        parts = dict(zip(names, steps.parts.values(), strict=True))
        return replace(steps, parts=parts, input_size=int(floats[0].shape[-1]) if floats else 1)

    def _stepped(self, axes: Sequence[int | None]) -> OwnSteps:
        """The steps, each a call of its form."""
        names = sorted(self.used())
        size, calls = len(axes), []
        states = [
            [_rows(part, axis) for part, axis in zip(self._steps.state(number), axes, strict=True)]
            for number in range(self.loop.first, self.loop.last + 1)
        ]
        for k, (which, given) in enumerate(zip(self._which, self._given, strict=True)):
            read = {(ARGUMENTS, 0, 0, part): np.asarray(one) for part, one in enumerate(states[k])}
            read |= {(ARGUMENTS, 0, 1, at): one for at, one in enumerate(given)}
            made = {(OUTPUT, part): np.asarray(one) for part, one in enumerate(states[k + 1])}
            held: tuple[Any, Any] = ((None,) * size, (None,) * len(given), which), {}
            calls.append(StepCall(held, read, made))
        state = Carried(
            tuple((OUTPUT, part) for part in range(size)),
            {(ARGUMENTS, 0, 0, part): part for part in range(size)},
        )

        def call(weights: Sequence[Any], args: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
            del keywords
            rows, given, which = args
            parts = [
                _unrowed(one, axis, shape)
                for one, axis, shape in zip(rows, axes, self.loop.shapes, strict=True)
            ]
            new = self._forms[which].run(dict(zip(names, weights, strict=True)), parts, given)
            return tuple(_rows(one, axis) for one, axis in zip(new, axes, strict=True))

        weights = {name: self._run.cast(self._run.weights[name]) for name in names}
        steps = PureSteps(Jax(), self.by, self.kind, call, weights, calls, state, fed_back=False)
        steps.precisions = (self._run.double,)
        return steps.differentiate()

    def _check(self, steps: OwnSteps, axes: Sequence[int | None]) -> None:
        """Raise InputError where over several steps JAX's derivative is not the product of those of each."""
        if any(self.loop.written) and unchanged_rows(steps.jacobians.sum(axis=2)):
            raise refuse_parts()
        first, last = self.loop.first, self.loop.last
        begins = [*range(first, last, _WINDOW)]
        if len(begins) > _PLACES:
            begins = [begins[k] for k in np.linspace(0, len(begins) - 1, _PLACES).astype(int)]
        generator = np.random.default_rng(0)
        for begin in begins:
            end = min(begin + _WINDOW, last)
            rows = generator.standard_normal(steps.states[:, 0].shape)
            state = self._steps.state(begin)

            def over(leaves: Sequence[Any], begin: int = begin, end: int = end) -> list[Any]:
                made = self._steps.through(begin, end, leaves)
                return [_rows(one, axis) for one, axis in zip(made, axes, strict=True)]

            new, back = jax.vjp(over, [jax.numpy.asarray(one) for one in state])
            widths = np.cumsum([one.shape[1] for one in new])[:-1]

            def through(rows: Array, new: Any = new, back: Any = back, widths: Any = widths) -> Array:
                outer = [
                    jax.numpy.asarray(part, one.dtype)
                    for part, one in zip(np.split(rows, widths, 1), new, strict=True)
                ]
                found = zip(back(outer)[0], axes, strict=True)
                return np.concatenate([np.asarray(_rows(one, a), np.float64) for one, a in found], axis=1)

            each = np.moveaxis(steps.jacobians[:, begin - first : end - first], 1, 0)
            check_product(each, rows, through, (begin, end), SUM_ROUNDINGS * steps.rounding)

    def _axes(self) -> list[int | None]:
        """Along which axis of every part of the state the sequences are, None of one alone."""
        given, shapes = self._run.given, self.loop.shapes
        sizes = dict.fromkeys(n for one in given.values() if one.ndim > 1 for n in one.shape[:2] if n > 1)
        tried = False
        for size in sizes:
            having = [[k for k, own in enumerate(shape) if own == size] for shape in shapes]
            for axes in itertools.islice(itertools.product(*having), _CHOICES):
                tried = True
                if self._is_apart(axes, size):
                    return list(axes)
        if tried and any(one.ndim > 1 + is_float(one) and 1 not in one.shape[:2] for one in given.values()):
            raise InputError(MIXES)
        return [None] * len(shapes)

    def _is_apart(self, axes: Sequence[int], size: int) -> bool:
        """Whether what the first and the last sequence read is met by their own states alone."""
        late = min(self.loop.first + 4, self.loop.last)
        wanted = self._steps.makers(late)
        if len(wanted) < len(axes):
            return True
        was = self._run.changed({}, wanted)
        for sequence, (place, array) in itertools.product((0, size - 1), self._run.given.items()):
            places = [k for k, own in enumerate(array.shape[:2]) if own == size and array.ndim > 1]
            met = []
            for at in places:
                other = self._run.changed({place: _other(array, at, sequence)}, wanted)
                kept = [k for k in range(size) if k != sequence]
                met.append(
                    any(
                        not np.array_equal(np.take(one, kept, axis), np.take(two, kept, axis))
                        for one, two, axis in zip(was, other, axes, strict=True)
                    )
                )
            if met and all(met):
                return False
        return True

    def _is_backward(self) -> bool:
        """Whether the loop reads from the end: on that, not on the start, is its first state."""
        wanted = self._steps.makers(self.loop.first + 1)
        was = self._run.changed({}, wanted)
        for place, array in self._run.given.items():
            for axis in range(min(array.ndim, 3)):
                if array.shape[axis] < max(len(self.loop.starts), 2):
                    continue
                ends = [self._run.changed({place: _other(array, axis, at)}, wanted) for at in (0, -1)]
                moved = [not all(map(np.array_equal, was, end)) for end in ends]
                if moved[0] != moved[1]:
                    return moved[1]
        return False


def _other(array: Any, axis: int, at: int) -> Any:
    """An array with other numbers at one index: those of its neighbour."""
    changed = np.moveaxis(np.array(array), axis, 0)
    beside = changed[1 if at == 0 else at - 1]
    changed[at] = beside * 1.5 + 0.5 if is_float(array) else beside
    return np.moveaxis(changed, 0, axis)


def _rows(array: Any, axis: int | None) -> Any:
    """(B, numbers) of a part of a state."""
    if axis is None:
        return jax.numpy.reshape(array, (1, -1))
    moved = jax.numpy.moveaxis(array, axis, 0)
    return moved.reshape(len(moved), -1)


def _unrowed(rows: Any, axis: int | None, shape: tuple[int, ...]) -> Any:
    """The inverse."""
    if axis is None:
        return rows.reshape(shape)
    rest = [*shape[:axis], *shape[axis + 1 :]]
    return jax.numpy.moveaxis(rows.reshape(-1, *rest), 0, axis)
