"""The steps of a loop in a program of JAX, cut out of it: functions of the state, and what each is given."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.checkpoints.jax.loops import Origins
from gradscope.checkpoints.jax.program import Constant, Made, Ref
from gradscope.checkpoints.loops.follow import TimeLoop
from gradscope.errors import InputError

# Constants of more bytes are alike only where they are the same.
_SMALL = 1024


@dataclass(frozen=True)
class StepForm:
    """What steps that are alike compute.

    operations : each with its arguments: ("weight", name), ("state", part), ("given", number), ("made",
    operation, slot) or ("constant", number); state : where the parts of the state after it are of these.
    key : of forms that compute the same.
    """

    operations: tuple[tuple[Callable[..., Sequence[Any]], tuple[Any, ...]], ...]
    state: tuple[tuple[Any, ...], ...]
    key: tuple[Any, ...]

    def run(self, weights: dict[str, Any], state: Sequence[Any], given: Sequence[Any]) -> list[Any]:
        """The state after a step."""
        made: list[Sequence[Any]] = []
        read: dict[str, Callable[..., Any]] = {
            "weight": weights.__getitem__,
            "state": state.__getitem__,
            "given": given.__getitem__,
            "made": lambda number, slot: made[number][slot],
            "constant": lambda value: value,
        }
        for run, places in self.operations:
            made.append(run(*(read[kind](*place) for kind, *place in places)))
        return [read[kind](*place) for kind, *place in self.state]


class CutSteps:
    """The steps of a loop of a program."""

    def __init__(self, origins: Origins, loop: TimeLoop) -> None:
        self.loop, self._origins = loop, origins
        self._program = origins.program
        self._made = {
            (state, part): self._program.operations[number].puts[slot[1]]
            for number, made in loop.makes.items()
            for state, part, slot in made
        }
        made = sorted((state, self._program.maker[ref][0]) for (state, _), ref in self._made.items())
        latest = itertools.accumulate((number for _, number in made), max)
        self._ends = dict(zip((state for state, _ in made), latest, strict=True))
        self._first = {
            part: (number, place[1])
            for number, places in sorted(loop.reads.items(), reverse=True)
            for place, (state, part) in places.items()
            if state == loop.first
        }

    def begins_unlike(self) -> bool:
        """Whether the first state is read by other code, or of another shape than those after it."""
        first = self.loop.first
        if not self._readers(first) <= self._readers(first + 1):
            return True
        shapes = [np.shape(self._value(first, part)) for part in range(len(self.loop.parts))]
        return shapes != [*self.loop.shapes]

    def _readers(self, state: int) -> set[tuple[Any, ...]]:
        """What reads a state."""
        return {
            (self.operation(number).name, self.operation(number).code, place, part)
            for number, places in self.loop.reads.items()
            for place, (at, part) in places.items()
            if at == state
        }

    def state(self, number: int) -> list[Any]:
        """The parts of a state."""
        return [self._value(number, part) for part in range(len(self.loop.parts))]

    def makers(self, number: int) -> list[int]:
        """The values that a state is made of, those that steps make."""
        found = (self._source(number, part) for part in range(len(self.loop.parts)))
        return [ref for ref in found if isinstance(ref, int)]

    def _value(self, state: int, part: int) -> Any:
        ref = self._source(state, part)
        return self._origins.value(ref) if isinstance(ref, int) else ref.value

    def _source(self, state: int, part: int) -> Ref:
        """What makes a part of a state."""
        if (state, part) in self._made:
            return self._made[state, part]
        own = self.loop.parts[part]
        if own.age and state > self.loop.first:
            return self._source(state - 1, self._younger(part, 1))
        if own.age and (state - own.age, self._younger(part, own.age)) in self._made:
            return self._made[state - own.age, self._younger(part, own.age)]
        number, place = self._first[part]
        return self._program.operations[number].reads[place]

    def _younger(self, part: int, by: int) -> int:
        """The part of a state that is this one so many steps later."""
        own = self.loop.parts[part]
        return next(
            k for k, one in enumerate(self.loop.parts) if one.kind == own.kind and one.age == own.age - by
        )

    def _span(self, first: int, last: int) -> range:
        """The operations of the steps from one state to another."""
        return range(self.loop.starts[first - self.loop.first], self._ends[last] + 1)

    def cut(self, step: int) -> tuple[StepForm, list[Any]]:
        """What a step computes, and what it is given; step : the number of the state before it."""
        states = self.loop.reads
        moving = set[int]()
        for number in self._span(step, step + 1):
            here = states.get(number, {})
            own = any(at[0] == step for at in here.values())
            if own or not moving.isdisjoint(self._program.operations[number].reads):
                moving.update(self._program.operations[number].puts)
        ends = [self._end(step + 1, part) for part in range(len(self.loop.parts))]
        return _formed(self, step, moving, ends)

    def _end(self, state: int, part: int) -> Ref | tuple[str, int]:
        """What makes a part of the state after a step, or which part of that before it is."""
        if self.loop.parts[part].age:
            return "state", self._younger(part, 1)
        return self._source(state, part)

    def through(self, first: int, last: int, leaves: Sequence[Any]) -> list[Any]:
        """A state as it comes of another one, by the program as it is."""
        made: dict[int, Any] = {}

        def leaf(state: int, part: int) -> Any:
            back, age = state - first, self.loop.parts[part].age
            return leaves[self._younger(part, back)] if back <= age else None

        for number in self._span(first, last):
            one, here = self._program.operations[number], self.loop.reads.get(number, {})
            given, moves = [], False
            for place, ref in enumerate(one.reads):
                at = here.get(("argument", place))
                own = leaf(*at) if at and at[0] >= first else None
                moves |= own is not None or ref in made
                given.append(own if own is not None else self.at(ref, made))
            if moves:
                made |= dict(zip(one.puts, one.run(*given), strict=True))
        found = []
        for part in range(len(self.loop.parts)):
            own = leaf(last, part)
            found.append(own if own is not None else self.at(self._source(last, part), made))
        return found

    def at(self, ref: Ref, made: dict[int, Any]) -> Any:
        """A value, made anew or as it was."""
        if isinstance(ref, Constant):
            return ref.value
        return made[ref] if ref in made else self._origins.value(ref)

    def operation_of(self, ref: int) -> tuple[int, int] | None:
        """What makes a value, and which of what it makes; None of an argument."""
        return self._program.maker.get(ref)

    def operation(self, number: int) -> Made:
        """An operation of the program."""
        return self._program.operations[number]

    def is_weight(self, ref: int) -> bool:
        """Whether a value is made of weights alone."""
        return self._origins.of[ref].alone

    def weight(self, ref: int) -> str:
        """The name of a weight."""
        return self._origins.names[ref]


def _formed(
    steps: CutSteps, step: int, moving: set[int], ends: Sequence[Ref | tuple[str, int]]
) -> tuple[StepForm, list[Any]]:
    """The form of a step; moving : values that depend on the state before it."""
    needed = sorted(_needed(steps, step, moving, ends))
    local = {number: k for k, number in enumerate(needed)}
    given: list[Any] = []
    placed: dict[int, int] = {}

    def place(ref: Any) -> tuple[Any, ...]:
        if isinstance(ref, tuple):
            return ref
        if isinstance(ref, Constant):
            return "constant", ref.value
        source = steps.operation_of(ref)
        if source and source[0] in local:
            return "made", local[source[0]], source[1]
        if not source and steps.is_weight(ref):
            return "weight", steps.weight(ref)
        if ref not in placed:
            placed[ref] = len(given)
            given.append(steps.at(ref, {}))
        return "given", placed[ref]

    operations = []
    for number in needed:
        operation = steps.operation(number)
        operations.append((operation, tuple(map(place, _reads(steps, step, number)))))
    state = tuple(map(place, ends))
    keys = tuple((one.same, tuple(map(_key, places))) for one, places in operations)
    form = StepForm(
        tuple((one.run, places) for one, places in operations), state, (keys, tuple(map(_key, state)))
    )
    return form, given


def _reads(steps: CutSteps, step: int, number: int) -> Iterator[Ref | tuple[str, int]]:
    """What an operation reads, of the state before the step its part."""
    here = steps.loop.reads.get(number, {})
    for place, ref in enumerate(steps.operation(number).reads):
        at = here.get(("argument", place))
        yield ("state", at[1]) if at and at[0] == step else ref


def _needed(steps: CutSteps, step: int, moving: set[int], ends: Sequence[Ref | tuple[str, int]]) -> set[int]:
    """The operations that a step is made of, and those of weights alone that it needs."""
    waiting = [ref for ref in ends if isinstance(ref, int)]
    found = set[int]()
    while waiting:
        ref = waiting.pop()
        source = steps.operation_of(ref)
        if source is None or source[0] in found or not (ref in moving or steps.is_weight(ref)):
            continue
        found.add(source[0])
        inner = _reads(steps, step, source[0]) if ref in moving else steps.operation(source[0]).reads
        waiting += [one for one in inner if isinstance(one, int)]
    return found


def _key(place: tuple[Any, ...]) -> tuple[Any, ...]:
    if place[0] != "constant":
        return place
    try:
        value = np.asarray(place[1])
        if value.nbytes <= _SMALL:
            return "constant", str(value.dtype), value.shape, value.tobytes()
    except TypeError:  # a key of random numbers
        pass
    return "constant", id(place[1])


def unchanged_rows(jacobians: Any) -> bool:
    """Whether some rows of every Jacobian (..., m, m) are those of the identity."""
    m = jacobians.shape[-1]
    return bool((jacobians == np.eye(m)).all(axis=-1).any(axis=-1).all())


def refuse_parts() -> InputError:
    """The error for a loop whose state is a part of an array that it writes into."""
    return InputError(
        "keeps its states in one array, of which each step writes a part and reads one: carry the state from "
        "step to step in a variable of its own"
    )
