"""The state of a loop: what crosses from step to step on its way from use to use.

What is only collected there for later is none of it. A part is made at the end of every step, as a rule by
the same operation; where a branch of the code makes it elsewhere (the first step applies no mask, say), it is
what is read in its place.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from gradscope.checkpoints.carried import Place
from gradscope.checkpoints.loops.turns import Maker, Turns, unlike
from gradscope.checkpoints.loops.uses import Flow
from gradscope.errors import InputError, counted, listed

# From this state on a part has a gradient, if it ever has.
_STEPS = 3
# Where a step reads: the code of the operation, which of those it is, the place of its argument.
_Reading = tuple[tuple[int, ...], int, Place]


@dataclass(frozen=True)
class Part:
    """A part of the state, by how it is made: age steps before the end of a step."""

    age: int
    kind: Maker


@dataclass
class _Crossing:
    """What crosses the ends of the steps.

    states : of every state but the last ones its parts; reading : {part: {step: where that reads it}}.
    """

    states: dict[int, set[Part]]
    reading: dict[Part, dict[int, set[_Reading]]] = field(default_factory=dict)

    def having(self, part: Part) -> list[int]:
        """The states that have a part."""
        return [state for state, parts in self.states.items() if part in parts]

    def places(self, part: Part) -> set[_Reading]:
        """Where the first step that reads a part does."""
        every = self.reading.get(part, {})
        return every[min(every)] if every else set()


class State:
    """The state of a loop.

    parts : of every state, that which is made last at the end; first, last : the numbers of the first and the
    last state that are whole; unlike : before this one other code makes them.
    """

    def __init__(self, turns: Turns, flow: Flow) -> None:
        self._turns, self._flow = turns, flow
        self._crossing = _crossing(turns, flow)
        self._instead = _branches(self._crossing, turns)
        self.parts, self._since, early = self._whole()
        known = turns.begun and not early and all(self._known(part) for part in self.parts)
        oldest = max(part.age for part in self.parts)
        self.first = 0 if known and not oldest else max(1, early) + oldest
        self.unlike = early
        made = all(part.age or self._made(part, turns.last) for part in self.parts)
        self.last = turns.last if made else turns.last - 1
        if self.last - self.first < 2:
            raise InputError(
                f"has {counted(turns.last, 'step')}, expected {self.first + 2} at least: give a longer "
                "sequence"
            )

    def of(self, value: tuple[int, Place], state: int) -> Part:
        """What of a state a value is."""
        kind = self._turns.kind(value)
        return Part(state - self._turns.step(value[0]), self._instead.get(kind, kind))

    def reads(self) -> dict[int, dict[Place, tuple[int, int]]]:
        """{operation: {place: (number of a state, part)}}, from the first state on."""
        found: dict[int, dict[Place, tuple[int, int]]] = {}
        for number, place, value in self._turns.reads():
            step = self._turns.step(number)
            part = self.of(value, step - 1)
            if part in self.parts and self.first < step:
                found.setdefault(number, {})[place] = (step - 1, self.parts.index(part))
        for index, part in enumerate(self.parts):  # before it came of a use
            for state in range(self.first, self._since[part]):
                for code, turn, place in self._crossing.places(part):
                    here = self._turns.at(state + 1, code, turn)
                    if here is None:
                        raise unlike("do not read the same")
                    found.setdefault(here, {})[place] = (state, index)
        return found

    def makes(self) -> tuple[tuple[tuple[int, ...], ...], dict[int, list[tuple[int, int, Place]]]]:
        """The shapes of the parts, and which operations make them in which states."""
        makes: dict[int, list[tuple[int, int, Place]]] = {}
        shapes = []
        for index, part in enumerate(self.parts):
            found = set()
            for state in range(max(self.unlike, 1), self.last + 1):
                made = self._made(part, state)
                if made is None:
                    raise unlike("do not leave the same to the next")
                number, slot = made
                shape = self._turns.operations[number].made.get(slot)
                if shape is None and state > _STEPS:  # at first of what has no gradient
                    raise unlike("do not leave the same to the next")
                found |= {shape} if shape is not None else set()
                if not part.age:
                    makes.setdefault(number, []).append((state, index, slot))
            if len(found) > 1:
                raise unlike(f"leave states of shapes {listed([str(shape) for shape in sorted(found)])}")
            shapes.append(found.pop())
        return tuple(shapes), makes

    def name(self, part: Part) -> str:
        """Of the function that makes a part."""
        return self._turns.operations[_every(self._turns, part.kind)[0]].name

    def check_last(self, makes: Mapping[int, Collection[tuple[int, int, Place]]]) -> None:
        """Raise InputError where the last step, after which no use is, reads more than the state."""
        turns = self._turns
        waiting = [number for number, made in makes.items() if any(one[0] == self.last for one in made)]
        seen = set(waiting)
        while waiting:
            for value in turns.operations[waiting.pop()].reads.values():
                if turns.step(value[0]) == self.last:
                    waiting += {value[0]} - seen
                    seen.add(value[0])
                elif self._flow.after[value[0]]:
                    part = self.of(value, self.last - 1)
                    if part not in self.parts:
                        raise growing(part.age + 1, self.last)

    def _whole(self) -> tuple[tuple[Part, ...], dict[Part, int], int]:
        """The parts, since when each of them comes of a use, and from which state on there are no others."""
        states = {
            state: {replace(part, kind=self._instead.get(part.kind, part.kind)) for part in parts}
            for state, parts in self._crossing.states.items()
        }
        every, last = set().union(*states.values()), max(states)
        if not every:
            raise unlike("leave nothing to the next")
        since, early = dict[Part, int](), 0
        for part in every:
            having = [state for state, parts in states.items() if part in parts]
            if having != list(range(having[0], having[-1] + 1)):
                raise unlike("do not leave the same to the next")
            if having[-1] < last:
                early = max(early, having[-1] + 1)
            else:
                since[part] = having[0]
        not_made = (state + 1 for state in states for part in since if not self._made(part, state))
        early = max(early, *not_made, 0)
        if 2 * early > last:
            raise unlike("do not leave the same to the next")
        whole = max(since.values(), default=1)
        if 1 < whole >= last:
            raise growing(whole, self._turns.last)
        if not since or any(part.age and replace(part, age=part.age - 1) not in since for part in since):
            raise unlike("do not leave the same to the next")
        return tuple(sorted(since, key=self._order)), since, early

    def _order(self, part: Part) -> tuple[int, int, str]:
        kind = part.kind
        here = self._turns.at(2, kind.code, kind.turn) or 0
        return -part.age, here, str(kind.slot)

    def _known(self, part: Part) -> bool:
        """Whether the first step reads a part where later ones do."""
        places = self._crossing.places(part)
        return bool(places) and all(self._turns.at(1, code, turn) is not None for code, turn, _ in places)

    def _made(self, part: Part, state: int) -> tuple[int, Place] | None:
        """Which operation makes a part in a state, and where of what it makes; None where none does."""
        kinds = {part.kind, *(one for one, other in self._instead.items() if other == part.kind)}
        crossing = {one.kind for one in self._crossing.states.get(state, ()) if not one.age}
        kinds = kinds & crossing or kinds
        there = [(self._turns.at(state, kind.code, kind.turn), kind.slot) for kind in kinds]
        made = [(number, slot) for number, slot in there if number is not None]
        return max(made, key=lambda one: one[0], default=None)


def _crossing(turns: Turns, flow: Flow) -> _Crossing:
    found = _Crossing({state: set() for state in range(1, turns.last - 1)})
    for number, place, value in turns.reads():
        step, made = turns.step(number), turns.step(value[0])
        if not (flow.before[number] and flow.after[value[0]] and made < step):
            continue
        kind = turns.kind(value)
        for state in range(max(made, 1), min(step, turns.last - 1)):
            found.states[state].add(Part(state - made, kind))
        at = (turns.operations[number].code, turns.turn[number], place)
        found.reading.setdefault(Part(step - 1 - made, kind), {}).setdefault(step, set()).add(at)
    return found


def _branches(crossing: _Crossing, turns: Turns) -> dict[Maker, Maker]:
    """Of what only some steps leave, which other one is left in its place by the others."""
    last = max(crossing.states)
    having = {
        part.kind: set(crossing.having(part))
        for part in set().union(*crossing.states.values())
        if not part.age
    }
    whole = {kind for kind, states in having.items() if last in states}
    found: dict[Maker, Maker] = {}
    for kind in sorted(having.keys() - whole, key=lambda one: (-max(having[one]), one.code, one.turn)):
        fitting = [one for one in whole if not having[one] & having[kind] and _alike(turns, one, kind)]
        places = crossing.places(Part(0, kind))
        close = [one for one in fitting if places & crossing.places(Part(0, one))]
        fitting = close if len(close) == 1 else fitting
        if len(fitting) == 1:
            found[kind] = fitting[0]
            having[fitting[0]] |= having[kind]
    return found


def _alike(turns: Turns, one: Maker, other: Maker) -> bool:
    """Whether what is made so is of the same shapes."""
    shapes = [
        {turns.operations[k].made.get(kind.slot) for k in _every(turns, kind)} - {None}
        for kind in (one, other)
    ]
    return shapes[0] == shapes[1]


def _every(turns: Turns, kind: Maker) -> list[int]:
    numbers = (turns.at(step, kind.code, kind.turn) for step in range(1, turns.last + 1))
    return [number for number in numbers if number is not None]


def growing(back: int, steps: int) -> InputError:
    """The error where a step reads what was made ever longer before."""
    return InputError(
        f"reads at a step what was made up to {back} steps before, and in {steps} steps no end of that is "
        "seen: a state that grows, of attention to all steps before, say, has no Jacobian from step to step; "
        "if it does end, give a longer sequence"
    )
