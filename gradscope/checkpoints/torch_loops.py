"""The loops over time in what the code of a module does: their steps, and the state that passes between them.

A parameter that is used again and again, each time on what came of the use before, is in a loop. A step
begins where, between two uses, the code of the function that loops is run anew. The state is what crosses
that place on its way from use to use: what is only collected there for later is none of it.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gradscope.checkpoints.carried import Place
from gradscope.checkpoints.torch_operations import RESULT, Operation, Value
from gradscope.errors import InputError, listed, shown

# So many steps at least, or what repeats itself cannot be told.
_STEPS = 3
# Functions that put out a tensor with another written into it.
_WRITING = {"index_copy", "index_put", "scatter", "select_scatter", "slice_scatter", "masked_scatter"}
# A parameter, and the place in the code where it is used.
_Marker = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Part:
    """A part of the state, by how it is made: age steps before the end of a step, by which operation of it.

    code : of the operation; turn : which of that step's operations from there; slot : what of all it makes.
    """

    age: int
    code: tuple[int, ...]
    turn: int
    slot: Place


@dataclass(frozen=True)
class TimeLoop:
    """A loop over time.

    name : of a parameter that is used once a step; turns : of the loop, that are one step; weights : the
        names of all parameters that the gradient meets.
    parts, shapes : of the state; written : of each part whether it is a tensor that is written into.
    first : the number of the first state that is whole; starts : the operation that begins the step after
        each state, from the first on; there are as many steps.
    names : of the functions that the module calls, operation by operation.
    reads : {operation: {place: (number of a state, part)}}; makes : {operation: [(state, part, place)]}.
    """

    name: str
    turns: int
    weights: frozenset[str]
    parts: tuple[Part, ...]
    shapes: tuple[tuple[int, ...], ...]
    written: tuple[bool, ...]
    first: int
    starts: tuple[int, ...]
    names: tuple[str, ...]
    reads: Mapping[int, Mapping[Place, tuple[int, int]]]
    makes: Mapping[int, Sequence[tuple[int, int, Place]]]

    @property
    def last(self) -> int:
        """The number of the last state."""
        return self.first + len(self.starts)


@dataclass(frozen=True)
class _Run:
    """Uses of a parameter at one place in the code; turns : the first that goes on from each use before."""

    marker: _Marker
    uses: tuple[int, ...]
    turns: tuple[int, ...]


def chained(operations: Sequence[Operation], others: Collection[str]) -> set[str]:
    """The names of the parameters that are used again and again on what came of the use before."""
    return {run.marker[0] for run in _runs(operations, others)}


def loops(operations: Sequence[Operation], others: Collection[str]) -> list[TimeLoop]:
    """The loops, in their order.

    others : weights of what is recurrent by itself: no gradient is followed through what they do.
    Raises InputError where there is a loop that cannot be told apart into steps.
    """
    runs = _runs(operations, others)
    for marker, count in Counter(run.marker for run in runs).items():
        if count > 1:
            raise InputError(
                f"uses {shown(marker[0])} in {count} stretches of steps, and no gradient passes from one "
                "to the next (a detach, or another direction with the same weights): give it a batch of "
                "fewer steps, or each direction a loop of its own"
            )
    groups: list[list[_Run]] = []
    for run in sorted(runs, key=lambda one: one.turns[0]):
        if groups and run.turns[0] <= max(one.turns[-1] for one in groups[-1]):
            groups[-1].append(run)
        else:
            groups.append([run])
    found = [_loop(operations, group, others) for group in groups]
    return [loop for loop in found if loop is not None]


def _loop(operations: Sequence[Operation], runs: Sequence[_Run], others: Collection[str]) -> TimeLoop | None:
    """The loop that these uses are in; None where they are of several layers that share a parameter.

    Its steps are as short as they can be: each from one use of a parameter to the next.
    """
    every: dict[int, tuple[str, tuple[int, ...]]] = {}
    for run in sorted(sorted(runs, key=lambda one: one.marker, reverse=True), key=lambda one: one.uses[0]):
        for marks in (run.uses, run.turns):
            every.setdefault(len(marks), (run.marker[0], marks))
    reasons, turns = list[str](), dict[tuple[int, ...], int]()
    for _, (name, marks) in sorted(every.items(), reverse=True):
        try:
            steps = _Steps(operations, runs, others, name, marks)
            whole = turns.setdefault(steps.code, len(marks))
            if steps.alike():
                return steps.loop(round(whole / len(marks)))
        except InputError as error:
            reasons.append(str(error))
    if reasons:
        raise InputError(reasons[0])
    return None


def _runs(operations: Sequence[Operation], others: Collection[str]) -> list[_Run]:
    """The uses that come of one another, of every parameter and place."""
    depths: list[Mapping[_Marker, int]] = []
    uses: dict[_Marker, list[list[tuple[int, int]]]] = {}
    for number, operation in enumerate(operations):
        above = {value[0] for value in operation.reads.values()}
        depth = _deepest([depths[one] for one in above if depths[one]])
        if not operation.made or not operation.weights.isdisjoint(others):
            depth = {}
        elif operation.weights:
            markers = [(name, operation.code) for name in operation.weights]
            depth = {**depth, **{marker: depth.get(marker, 0) + 1 for marker in markers}}
            for marker in markers:
                mine = uses.setdefault(marker, [[]])
                if depth[marker] == 1 and mine[-1] and mine[-1][-1][1] > 1:
                    mine.append([])  # it begins anew
                mine[-1].append((number, depth[marker]))
        depths.append(depth)
    found = []
    for marker, stretches in uses.items():
        for stretch in stretches:
            highest = list(itertools.accumulate((depth for _, depth in stretch), max))
            turns = [
                n
                for (n, _), one, before in zip(stretch, highest, [0, *highest], strict=False)
                if one > before
            ]
            if len(turns) >= _STEPS:
                found.append(_Run(marker, tuple(number for number, _ in stretch), tuple(turns)))
    return found


def _deepest(depths: Sequence[Mapping[_Marker, int]]) -> Mapping[_Marker, int]:
    if len(depths) < 2:
        return depths[0] if depths else {}
    found = dict(depths[0])
    for depth in depths[1:]:
        for marker, count in depth.items():
            found[marker] = max(count, found.get(marker, 0))
    return found


class _Steps:
    """The steps of one loop, one from each mark to the next.

    name : of the parameter that is used at the marks; code : where the steps begin.
    """

    def __init__(
        self,
        operations: Sequence[Operation],
        runs: Sequence[_Run],
        others: Collection[str],
        name: str,
        marks: Sequence[int],
    ) -> None:
        self._operations, self._runs, self._others = operations, runs, others
        self._lead, self._marks = name, marks
        self._begins, self._begun = self._starts()
        self.code = operations[self._begins[1]].code
        self._since: dict[Part, int] = {}
        counts: dict[tuple[int, tuple[int, ...]], int] = {}
        self._at: dict[tuple[int, tuple[int, ...], int], int] = {}
        self._turn: list[int] = []
        for number, operation in enumerate(operations):
            key = (self._step(number), operation.code)
            self._turn.append(counts.get(key, 0))
            counts[key] = self._turn[-1] + 1
            self._at[(*key, self._turn[-1])] = number

    def alike(self) -> bool:
        """Whether every step uses the same parameters: several layers may share one."""
        before, last = self._before_uses(), len(self._begins)
        met: dict[int, set[str]] = {step: set() for step in range(2, max(3, last - 1))}
        for number, operation in enumerate(self._operations):
            if before[number] and self._step(number) in met:
                met[self._step(number)] |= operation.met
        return len({frozenset(names) for names in met.values()}) < 2

    def loop(self, turns: int) -> TimeLoop:
        """The loop; turns : as in TimeLoop."""
        after, before = self._after_uses(), self._before_uses()
        self._check_others(after, before)
        states, reading = self._crossing(after, before)
        parts = self._parts(states)
        oldest = max(part.age for part in parts)
        known = self._begun and not oldest and all(self._known(reading[part]) for part in parts)
        first = 0 if known else oldest + 1
        last = len(self._begins)
        if last - first < 2:
            raise InputError(f"has {last} steps, expected {first + 2} at least: give a longer sequence")
        shapes, makes = self._makes(parts, first, last)
        self._check_last(parts, makes, after)
        reads: dict[int, dict[Place, tuple[int, int]]] = {}
        for number, place, value in self._all_reads():
            step = self._step(number)
            part = self._part(value, step - 1)
            if part in parts and first < step:
                reads.setdefault(number, {})[place] = (step - 1, parts.index(part))
        for index, part in enumerate(parts):  # before it came of a use
            for state in range(first, self._since[part]):
                for code, turn, place in reading[part]:
                    here = self._at.get((state + 1, code, turn))
                    if here is None:
                        raise InputError(_unlike("do not read the same"))
                    reads.setdefault(here, {})[place] = (state, index)
        weights = frozenset(run.marker[0] for run in self._runs)
        written = tuple(part.slot[0] != RESULT or self._name(part) in _WRITING for part in parts)
        return TimeLoop(
            name=self._lead,
            turns=turns,
            weights=weights,
            parts=parts,
            shapes=shapes,
            written=written,
            first=first,
            starts=tuple(self._begins[first:]),
            names=tuple(operation.name for operation in self._operations),
            reads=reads,
            makes=makes,
        )

    def _starts(self) -> tuple[list[int], bool]:
        """Which operations begin the steps; whether that is known of the first, too."""
        turns, code = self._marks, [operation.code for operation in self._operations]
        found = [self._begin(one, other) for one, other in itertools.pairwise(turns)]
        if len({code[number] for number in found}) > 1:
            raise InputError(_unlike("do not begin at the same place of its code"))
        first = [k for k in range(turns[0] + 1) if code[k] == code[found[0]]]
        return [first[-1] if first else turns[0], *found], bool(first)

    def _begin(self, one: int, other: int) -> int:
        """Which operation begins the step of a use: where, since the use before, code began anew, earliest.

        Of inner loops, which may begin at the same place, the last one did.
        """
        depth = _shared(self._operations[one].frames, self._operations[other].frames)
        found = []
        for number in range(one + 1, other + 1):
            (offset, call), (before, last) = (self._place(k, depth) for k in (number, number - 1))
            if offset < before or (offset == before and (call is None or call != last)):
                found.append((-offset, number))
        if not found:
            raise InputError(_unlike("are not in a loop of its code"))
        return max(found)[1]

    def _place(self, number: int, depth: int) -> tuple[int, int | None]:
        """Where in the function at this depth an operation was called; and by which call within that."""
        operation = self._operations[number]
        call = operation.frames[depth + 1] if len(operation.frames) > depth + 1 else None
        return operation.code[depth], call

    def _step(self, number: int) -> int:
        """The step of an operation, from 1; 0 before the loop."""
        return bisect.bisect_right(self._begins, number)

    def _all_reads(self) -> Iterator[tuple[int, Place, Value]]:
        for number, operation in enumerate(self._operations):
            for place, value in operation.reads.items():
                yield number, place, value

    def _uses(self) -> set[int]:
        return {number for run in self._runs for number in run.uses}

    def _blocks(self, number: int) -> bool:
        return not self._operations[number].weights.isdisjoint(self._others)

    def _after_uses(self) -> list[bool]:
        """Which operations depend on a use."""
        uses, found = self._uses(), list[bool]()
        for number, operation in enumerate(self._operations):
            found.append(number in uses or any(found[value[0]] for value in operation.reads.values()))
        return found

    def _before_uses(self) -> list[bool]:
        """On which operations a use depends."""
        uses = self._uses()
        found = [number in uses for number in range(len(self._operations))]
        for number in reversed(range(len(found))):
            if found[number]:
                for value in self._operations[number].reads.values():
                    found[value[0]] = True
        return found

    def _check_others(self, after: Sequence[bool], before: Sequence[bool]) -> None:
        """Raise InputError where the way from use to use leads through what is recurrent by itself."""
        for number, operation in enumerate(self._operations):
            if after[number] and before[number] and self._blocks(number):
                name = next(iter(operation.weights & frozenset(self._others)))
                raise InputError(
                    f"loops over {shown(self._lead)} and, in the same loop, feeds {shown(name)} of "
                    "another layer with what comes of it: name the module around both with cells=[...]"
                )

    def _crossing(
        self, after: Sequence[bool], before: Sequence[bool]
    ) -> tuple[dict[int, set[Part]], dict[Part, set[tuple[tuple[int, ...], int, Place]]]]:
        """Of every state but the last ones its parts; of each part, where a step reads it."""
        last = len(self._begins)
        states: dict[int, set[Part]] = {state: set() for state in range(1, last - 1)}
        reading: dict[Part, tuple[int, set[tuple[tuple[int, ...], int, Place]]]] = {}
        for number, place, value in self._all_reads():
            step, made = self._step(number), self._step(value[0])
            if not (before[number] and after[value[0]] and made < step):
                continue
            for state in range(max(made, 1), min(step, last - 1)):
                states[state].add(self._part(value, state))
            at = (self._operations[number].code, self._turn[number], place)
            of, places = reading.setdefault(self._part(value, step - 1), (step, set()))
            if of == step:
                places.add(at)
        return states, {part: places for part, (_, places) in reading.items()}

    def _check_last(
        self,
        parts: Collection[Part],
        makes: Mapping[int, Sequence[tuple[int, int, Place]]],
        after: Sequence[bool],
    ) -> None:
        """Raise InputError where the last step, after which no use is, reads more than the state."""
        last = len(self._begins)
        waiting = [number for number, made in makes.items() if any(one[0] == last for one in made)]
        seen = set(waiting)
        while waiting:
            for value in self._operations[waiting.pop()].reads.values():
                if self._step(value[0]) == last:
                    waiting += {value[0]} - seen
                    seen.add(value[0])
                elif after[value[0]] and self._part(value, last - 1) not in parts:
                    raise InputError(_growing(self._part(value, last - 1).age + 1, last))

    def _part(self, value: Value, state: int) -> Part:
        """What of a state a value is."""
        number, slot = value
        return Part(state - self._step(number), self._operations[number].code, self._turn[number], slot)

    def _parts(self, states: Mapping[int, set[Part]]) -> tuple[Part, ...]:
        """The parts of every state, that which is made last at the end."""
        every, last = set().union(*states.values()), max(states)
        whole = 1
        for part in every:
            having = [state for state, parts in states.items() if part in parts]
            whole = max(whole, having[0])
            self._since[part] = having[0]
            if having != list(range(having[0], last + 1)):
                raise InputError(_unlike("do not leave the same to the next"))
            if part.age and Part(part.age - 1, part.code, part.turn, part.slot) not in every:
                raise InputError(_unlike("do not leave the same to the next"))
        if not every:
            raise InputError(_unlike("leave nothing to the next"))
        if 1 < whole >= last:
            raise InputError(_growing(whole, len(self._begins)))
        return tuple(sorted(every, key=lambda p: (-p.age, self._at.get((2, p.code, p.turn), 0), str(p.slot))))

    def _name(self, part: Part) -> str:
        return self._operations[self._at[1, part.code, part.turn]].name

    def _known(self, reading: Collection[tuple[tuple[int, ...], int, Place]]) -> bool:
        """Whether the first step reads at these places, too."""
        return bool(reading) and all((1, code, turn) in self._at for code, turn, _ in reading)

    def _makes(
        self, parts: Sequence[Part], first: int, last: int
    ) -> tuple[tuple[tuple[int, ...], ...], dict[int, list[tuple[int, int, Place]]]]:
        """The shapes of the parts, and which operations make them in which states."""
        makes: dict[int, list[tuple[int, int, Place]]] = {}
        shapes = []
        for index, part in enumerate(parts):
            found = set()
            for state in range(1, last + 1):
                number = self._at.get((state, part.code, part.turn))
                shape = None if number is None else self._operations[number].made.get(part.slot)
                if number is None or (shape is None and state > _STEPS):  # at first of what has no gradient
                    raise InputError(_unlike("do not leave the same to the next"))
                found |= {shape} if shape is not None else set()
                if not part.age:
                    makes.setdefault(number, []).append((state, index, part.slot))
            if len(found) > 1:
                raise InputError(
                    _unlike(f"leave states of shapes {listed([str(shape) for shape in sorted(found)])}")
                )
            shapes.append(found.pop())
        return tuple(shapes), makes


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """The depth of the innermost function that was running both times."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in same) - 1


def _growing(back: int, steps: int) -> str:
    return (
        f"reads at a step what was made up to {back} steps before, and in {steps} steps no end of that is "
        "seen: a state that grows, of attention to all steps before, say, has no Jacobian from step to step; "
        "if it does end, give a longer sequence"
    )


def _unlike(why: str) -> str:
    return (
        f"loops over its steps, which {why}: expected a loop in which every step computes the state by the "
        "same code, or a module that is called with (input, state) in it"
    )
