"""A loop over time run again, its states cut out: leaves of a graph, by which it is differentiated."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from typing import Any

from gradscope.checkpoints.carried import Place, StepCall, leaves, placed
from gradscope.checkpoints.loops.follow import TimeLoop
from gradscope.checkpoints.loops.operation import RESULT
from gradscope.checkpoints.torch.operations import is_tensor, observed
from gradscope.checkpoints.torch.products import Product, watching
from gradscope.checkpoints.torch.steps import Stepper
from gradscope.errors import InputError, reason

_ANOTHER = "does something else when it is run once more"
# Whose functions have variables that are none of the user's.
_NOT_OURS = ("torch.", "gradscope.")
# A list of more holds outputs, and no state.
_MANY = 64


def replayed(
    stepper: Stepper,
    call: StepCall,
    loop: TimeLoop,
    cut: Collection[int],
    leaves: Any = None,
    *,
    products: bool = False,
) -> Replay:
    """A run with these states cut; leaves : of a run before; products : whether these are cut, too."""
    replay = Replay(loop, cut, leaves)
    torch = importlib.import_module("torch")
    try:
        with torch.enable_grad(), watching(stepper.matrices, cut=products) as mode:
            replay.products = mode.products
            stepper.run(call, observed(replay))
    except InputError:
        raise
    except Exception as error:  # the user's code may fail in any way
        raise InputError(f"cannot be run again: {type(error).__name__}: {reason(error)}") from error
    return replay


class Replay:
    """An observer that gives the steps of a loop states of their own, leaves of a graph.

    cut : the numbers of the states that are; leaves : where they are kept, {(state, part): tensor}.
    made : of the same keys, what the step before put out. products : a list that grows as it runs; marks :
        how long that was as each step began, and as the last state was there.
    """

    def __init__(self, loop: TimeLoop, cut: Collection[int], leaves: Any = None) -> None:
        self.loop, self._cut = loop, set(cut)
        self.leaves: dict[tuple[int, int], Any] = {} if leaves is None else leaves
        self.made: dict[tuple[int, int], Any] = {}
        self.names: dict[int, str] = {}
        self.marks: list[int] = []
        self.products: list[Product] = []
        self._working: dict[tuple[int, int], Any] = {}
        self._instead: dict[int, tuple[Any, Any]] = {}  # with what it is in place of: an id is of one object
        self._objects: dict[tuple[int, int], Any] = {}
        self._given: dict[Place, Any] = {}
        self._put: dict[Place, Any] = {}
        last = (number for number, made in loop.makes.items() if any(one[0] == loop.last for one in made))
        self._end = max(last)

    def state(self, number: int) -> list[Any]:
        """The leaves of a state that is cut."""
        return [self.leaves[number, part] for part in range(len(self.loop.parts))]

    def new(self, number: int) -> list[Any]:
        """A state as the step before it put it out."""
        return [self._source(number, part) for part in range(len(self.loop.parts))]

    def before(self, number: int, name: str, given: tuple[Any, Any]) -> tuple[Any, Any]:
        """See Observer."""
        if self.loop.names[number : number + 1] != (name,):
            return given
        if number == self.loop.starts[-1]:
            self.names = self._called()
        begun = len(self.marks)
        if begun < len(self.loop.starts) and number == self.loop.starts[begun]:
            self.marks.append(len(self.products))
            state = self.loop.first + begun
            if state in self._cut:
                self._instead.clear()
                for part in range(len(self.loop.parts) if state else 0):
                    self._cut_out(state, part, None)
        self._given = dict(leaves(given, is_tensor))
        self._put = {
            place: self._instead[id(tensor)][1]
            for place, tensor in self._given.items()
            if id(tensor) in self._instead
        }
        for place, (state, part) in self.loop.reads.get(number, {}).items():
            if state in self._cut:
                self._put[place] = self._cut_out(state, part, _at(given, place))
            elif self.loop.parts[part].age:  # it may be of a state before, which is cut
                self._put[place] = self._source(state, part)
        changed: tuple[Any, Any] = placed(given, self._put)
        return changed

    def after(
        self, number: int, name: str, given: tuple[Any, Any], result: Any, written: list[Place]
    ) -> None:
        """See Observer."""
        if self.loop.names[number : number + 1] != (name,):
            raise InputError(_ANOTHER)
        for place in written:
            if place in self._put and place in self._given:
                self._instead[id(self._given[place])] = (self._given[place], self._put[place])
        if makes := self.loop.makes.get(number, ()):
            made = dict(leaves(given, is_tensor)) | dict(leaves(result, is_tensor, (RESULT,)))
            for state, part, slot in makes:
                if slot not in made:
                    raise InputError(_ANOTHER)
                self.made[state, part] = made[slot].clone()  # before it is written into
                self._objects[state, part] = made[slot]
        if number == self._end:
            self.marks.append(len(self.products))

    def _called(self) -> dict[int, str]:
        """What the code that runs calls the parts of the last state but one, those that it has a name for."""
        parts = self.loop.parts
        youngest = {part: parts.index(replace(one, age=0)) for part, one in enumerate(parts)}
        objects = {
            id(self._objects.get((self.loop.last - 1 - parts[part].age, own))): part
            for part, own in youngest.items()
        }
        found: dict[int, str] = {}
        for name, value in _variables():
            if id(value) in objects:
                found.setdefault(objects[id(value)], name)
        return found

    def _source(self, state: int, part: int) -> Any:
        """A part of a state as what came before put it out."""
        own = self.loop.parts[part]
        if not own.age:
            if (state, part) not in self.made:
                raise InputError(_ANOTHER)
            return self.made[state, part]
        before = (state - 1, self.loop.parts.index(replace(own, age=own.age - 1)))
        return self._working[before] if before in self._working else self._source(*before)

    def _cut_out(self, state: int, part: int, given: Any) -> Any:
        """What a step is given in place of a part of the state; given : what it would be."""
        key = (state, part)
        if key not in self._working:
            if key not in self.leaves:
                value = self._source(state, part) if state else _filled(given, self.loop.shapes[part])
                self.leaves[key] = value.detach().clone().requires_grad_()
            self._working[key] = self.leaves[key].clone()
        return self._working[key]


def _variables() -> Iterator[tuple[str, Any]]:
    """The tensors that the functions of the user's that run have by a name, those of the outermost first."""
    frame, frames = sys._getframe(), []
    while frame:
        if not f"{frame.f_globals.get('__name__', '')}.".startswith(_NOT_OURS):
            frames.append(dict(frame.f_locals))
        frame = frame.f_back  # type: ignore[assignment]
    for variables in reversed(frames):
        within: dict[str, Any] = {}
        for name, value in variables.items():
            if is_tensor(value):
                yield name, value
            elif isinstance(value, list | tuple) and len(value) < _MANY:
                within |= {f"{name}[{k}]": one for k, one in enumerate(value) if is_tensor(one)}
            elif isinstance(value, Mapping):
                within |= {str(key): one for key, one in value.items() if is_tensor(one)}
        yield from within.items()


def _at(value: Any, place: Place) -> Any:
    """What is at a place."""
    for key in place:
        value = value[key]
    return value


def _filled(given: Any, shape: tuple[int, ...]) -> Any:
    """An initial state in the shape that states have."""
    torch = importlib.import_module("torch")
    if isinstance(given, int | float):
        return torch.full(shape, float(given))
    try:
        return given.expand(shape)
    except (AttributeError, RuntimeError) as error:
        raise InputError("begins with a state that is not of the shape of the others") from error
