"""Where the steps of a loop begin, and what of a step an operation is."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradscope.checkpoints.carried import Place
from gradscope.checkpoints.loops.operation import Operation, Value
from gradscope.errors import InputError


@dataclass(frozen=True)
class Maker:
    """How a value is made: by which operation of a step.

    code : of the operation; turn : which of that step's operations from there; slot : what of all it makes.
    """

    code: tuple[int, ...]
    turn: int
    slot: Place


class Turns:
    """The steps of one loop, one from each mark to the next.

    begins : the operations that begin them; begun : whether that is known of the first, too; idle : how many
        turns of the loop come before it, which use nothing of what came before (a first state of None).
    """

    def __init__(self, operations: Sequence[Operation], marks: Sequence[int]) -> None:
        self.operations = operations
        self.begins, self.begun, self.idle = _starts(operations, marks)
        self.code = operations[self.begins[1]].code
        self.turn: list[int] = []
        self._at: dict[tuple[int, tuple[int, ...], int], int] = {}
        counts: dict[tuple[int, tuple[int, ...]], int] = {}
        for number, operation in enumerate(operations):
            key = (self.step(number), operation.code)
            self.turn.append(counts.get(key, 0))
            counts[key] = self.turn[-1] + 1
            self._at[(*key, self.turn[-1])] = number

    @property
    def each(self) -> int:
        """How many turns of the loop the second step is, as far as its beginning is run in each of them."""
        one, other = self.begins[1:3] if len(self.begins) > 2 else self.begins[:2]
        depth = _shared(self.operations[one].frames, self.operations[other].frames)
        within = self.operations[one].frames[: depth + 1]
        at = self.operations[one].code[depth]
        here = [k.frames[: depth + 1] == within and k.code[depth] == at for k in self.operations[one:other]]
        # One line of code may be several operations in a row, of which the last is what begins a step.
        return sum(now and not before for before, now in itertools.pairwise([here[-1], *here]))

    @property
    def last(self) -> int:
        """The number of steps, and of the last state."""
        return len(self.begins)

    def step(self, number: int) -> int:
        """The step of an operation, from 1; 0 before the loop."""
        return bisect.bisect_right(self.begins, number)

    def at(self, step: int, code: tuple[int, ...], turn: int) -> int | None:
        """The operation of a step that is called there; None where it has none."""
        return self._at.get((step, code, turn))

    def kind(self, value: Value) -> Maker:
        """How a value is made."""
        number, slot = value
        return Maker(self.operations[number].code, self.turn[number], slot)

    def reads(self) -> Iterator[tuple[int, Place, Value]]:
        """Every operation with the places of its arguments, and the values there."""
        for number, operation in enumerate(self.operations):
            for place, value in operation.reads.items():
                yield number, place, value


def unlike(why: str) -> InputError:
    """The error where steps are not alike."""
    return InputError(
        f"loops over its steps, which {why}: expected a loop in which every step computes the state by the "
        "same code, or a module that is called with (input, state) in it"
    )


def _starts(operations: Sequence[Operation], marks: Sequence[int]) -> tuple[list[int], bool, int]:
    """Which operations begin the steps, whether that is known of the first, and how many turns are before."""
    found = [_begin(operations, one, other) for one, other in itertools.pairwise(marks)]
    codes = {
        operations[number].code for number in found
    }  # several where a branch of the code begins the turn
    depth = _shared(operations[found[0]].frames, operations[found[1]].frames)
    within = operations[found[0]].frames[: depth + 1]
    there = [k for k, one in enumerate(operations) if one.code in codes and one.frames[: depth + 1] == within]
    first = [k for k in there if k <= marks[0]]
    if not first:
        return [marks[0], *found], False, 0
    each = sum(found[0] <= k < found[1] for k in there)  # an inner loop comes by there more than once
    return [first[-1], *found], True, (len(first) - 1) // each


def _begin(operations: Sequence[Operation], one: int, other: int) -> int:
    """Which operation begins the step of a use: where, since the use before, code began anew, earliest.

    Of inner loops, which may begin at the same place, the last one did.
    """
    depth = _shared(operations[one].frames, operations[other].frames)
    found = []
    for number in range(one + 1, other + 1):
        (offset, call), (before, last) = (_place(operations[k], depth) for k in (number, number - 1))
        if offset < before or (offset == before and (call is None or call != last)):
            found.append((-offset, number))
    if not found:
        raise unlike("are not in a loop of its code")
    return max(found)[1]


def _place(operation: Operation, depth: int) -> tuple[int, int | None]:
    """Where in the function at this depth an operation was called; and by which call within that."""
    call = operation.frames[depth + 1] if len(operation.frames) > depth + 1 else None
    return operation.code[depth], call


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """The depth of the innermost function that was running both times."""
    same = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False))
    return sum(1 for _ in same) - 1
