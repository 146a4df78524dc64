"""What will be measured and about how long that takes, said before the work begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gradscope.errors import counted, duration, listed, shown
from gradscope.measure.cost import Work, seconds, surely_below, unit_seconds, units, work_of
from gradscope.problem.layers import Planned
from gradscope.problem.problem import Problem, chosen_top
from gradscope.settings import Settings

# Of one layer nothing is said where it takes less.
_SHORT = 5.0


class Plan:
    """Tells ``settings.plan``, if anybody listens; at_once : as in ``Means``."""

    def __init__(self, settings: Settings, at_once: int) -> None:
        self._settings, self._at_once = settings, at_once

    def of_layers(self, groups: Sequence[Sequence[Planned]], batch: int, steps: int) -> None:
        """Of several layers, those in a group connected; one alone is told later."""
        layers = [layer for group in groups for layer in group]
        if self._settings.plan is None or len(layers) == 1:
            return
        works = [self._work([layer], batch, steps) for layer in layers]
        stacks = [group for group in groups if len(group) > 1 and self._settings.view != "cell"]
        works += [self._work(group, batch, steps) for group in stacks]
        names = listed([layer.name for layer in layers], 4)
        beside = "".join(f", the stack of {len(stack)} ({_states(stack)} states)" for stack in stacks)
        self._say(f"{len(layers)} layers ({names}){beside}", works)

    def of_one(self, problem: Problem) -> None:
        """Of one layer, or a cell."""
        if self._settings.plan is None:
            return
        work = work_of(problem, problem.system.batch)
        if not surely_below(_SHORT, [work]) and units(work) * unit_seconds() >= _SHORT:
            self._say(f"{shown(problem.system.cell.name)}, {counted(work.sizes[0], 'state')}", [work])

    def _work(self, group: Sequence[Planned], batch: int, steps: int) -> Work:
        sizes = tuple(layer.cell.size(layer.hidden) for layer in group)
        asked, (first, *others) = self._settings, group
        top = asked.top if not isinstance(asked.top, int) else min(asked.top, sum(sizes))
        return Work(
            sizes,
            None if others else first.cell,
            first.hidden,
            steps,
            batch,
            asked.only,
            chosen_top(top, sum(sizes)),
        )

    def _say(self, what: str, works: Sequence[Work]) -> None:
        assert self._settings.plan is not None
        first = works[0]
        count = f"{counted(first.sequences, 'sequence')} of {counted(first.steps, 'step')}"
        takes = seconds(works, self._at_once)
        line = f"{what}, {count}: about {duration(takes)}"
        cheap = seconds([replace(work, only="verdict") for work in works], self._at_once)
        if first.only in ("paths", "all") and cheap < takes / 1.5:
            line += f"; --only verdict about {duration(cheap)}"
        self._settings.plan(line, takes)


def _states(group: Sequence[Planned]) -> int:
    return sum(layer.cell.size(layer.hidden) for layer in group)
