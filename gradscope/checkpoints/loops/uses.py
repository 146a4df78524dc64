"""Which parameters the code of a module uses again and again, each time on what came of the use before."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from gradscope.checkpoints.loops.operation import Operation

# So many uses at least, or what repeats itself cannot be told.
STEPS = 3
# A parameter, and the place in the code where it is used.
Marker = tuple[str, tuple[int, ...]]


@dataclass(frozen=True)
class Uses:
    """Uses of a parameter at one place in the code; turns : the first that goes on from each use before."""

    marker: Marker
    uses: tuple[int, ...]
    turns: tuple[int, ...]


def runs_of(operations: Sequence[Operation], others: Collection[str]) -> list[Uses]:
    """The uses that come of one another, of every parameter and place.

    others : weights of what is recurrent by itself: no gradient is followed through what they do.
    """
    depths: list[Mapping[Marker, int]] = []
    uses: dict[Marker, list[list[tuple[int, int]]]] = {}
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
            turns = _turns(stretch)
            if len(turns) >= STEPS:
                found.append(Uses(marker, tuple(number for number, _ in stretch), turns))
    return found


def _deepest(depths: Sequence[Mapping[Marker, int]]) -> Mapping[Marker, int]:
    if len(depths) < 2:
        return depths[0] if depths else {}
    found = dict(depths[0])
    for depth in depths[1:]:
        for marker, count in depth.items():
            found[marker] = max(count, found.get(marker, 0))
    return found


def _turns(uses: Sequence[tuple[int, int]]) -> tuple[int, ...]:
    """Of uses, each with how many came before it on its way, the first of every depth."""
    highest = list(itertools.accumulate((depth for _, depth in uses), max))
    pairs = zip(uses, highest, [0, *highest], strict=False)
    return tuple(number for (number, _), one, before in pairs if one > before)


class Flow:
    """What depends on the uses of a loop, and what they depend on.

    after, before : of every operation, whether it depends on a use, and a use on it; both of a use itself.
    """

    def __init__(self, operations: Sequence[Operation], runs: Sequence[Uses]) -> None:
        uses = {number for run in runs for number in run.uses}
        self.after: list[bool] = []
        for number, operation in enumerate(operations):
            read = (self.after[value[0]] for value in operation.reads.values())
            self.after.append(number in uses or any(read))
        self.before = [number in uses for number in range(len(operations))]
        for number in reversed(range(len(operations))):
            if self.before[number]:
                for value in operations[number].reads.values():
                    self.before[value[0]] = True

    def between(self, number: int) -> bool:
        """Whether the way from use to use may lead through an operation."""
        return self.after[number] and self.before[number]
