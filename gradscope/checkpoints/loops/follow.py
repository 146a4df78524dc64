"""The loops over time in what the code of a module does: their steps, and the state that passes between them.

A parameter that is used again and again, each time on what came of the use before, is in a loop. A step
begins where, between two uses, the code of the function that loops is run anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from gradscope.checkpoints.carried import Place
from gradscope.checkpoints.derivatives import NOT_LINEAR, is_not_linear
from gradscope.checkpoints.loops.operation import RESULT, Operation
from gradscope.checkpoints.loops.state import Part, State
from gradscope.checkpoints.loops.turns import Turns
from gradscope.checkpoints.loops.uses import STEPS, Flow, Uses, runs_of
from gradscope.custom_types import Array
from gradscope.errors import InputError, shown

# Functions that put out a tensor with another written into it.
_WRITING = {"index_copy", "index_put", "scatter", "select_scatter", "slice_scatter", "masked_scatter"}
_WRITING |= {"scatter-add", "dynamic_update_slice"}

# A step may use a parameter so often, in a loop of its own.
_SEVERAL = (2, 3, 4)


@dataclass(frozen=True)
class TimeLoop:
    """A loop over time.

    name : of a parameter that is used once a step; turns : of the loop, that are one step; weights : the
        names of all parameters that the gradient meets.
    parts, shapes : of the state; written : of each part whether it is a tensor that is written into.
    first : the number of the first state that is whole; starts : the operation that begins the step after
        each state, from the first on; there are as many steps.
    idle : turns before the first state, which use none; unlike : before this state other code makes them;
        cut_short : whether other code makes the one after the last; drops : whether there is dropout between
        the states.
    names : of the functions that the module calls, operation by operation; apart : those of parameters
        that meet gradients only where no state is made of them.
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
    idle: int
    unlike: int
    cut_short: bool
    drops: bool
    names: tuple[str, ...]
    apart: frozenset[str]
    reads: Mapping[int, Mapping[Place, tuple[int, int]]]
    makes: Mapping[int, Sequence[tuple[int, int, Place]]]

    @property
    def last(self) -> int:
        """The number of the last state."""
        return self.first + len(self.starts)

    @property
    def said(self) -> tuple[str, ...]:
        """What is to be said of where the loop is differentiated."""
        said = []
        if self.idle:
            said.append(f"{_steps(self.idle)} left out: {_NO_STATE}")
        if self.first:
            why = "the state is made by other code" if self.unlike else "there is no whole state before"
            said.append(f"{_steps(self.first, after=self.idle)} left out: {why}")
        if self.cut_short:
            said.append("its last step is left out: the state is made by other code")
        if self.turns > 1:
            said.append(f"a step is {self.turns} turns of its loop, which are not alike")
        return tuple(said)


# What starts a loop is of no model's inputs then: None, zeros, or what has been learnt.
_NO_STATE = "the state that is read there is none, or made of weights and constants alone"


def _steps(count: int, after: int = 0) -> str:
    """So many of the first steps, or of those after some that are left out already."""
    which = "the next" if after else "its first"
    return f"{which} {count} steps are" if count > 1 else f"{which} step is"


def check_product(
    jacobians: Iterable[Array],
    rows: Array,
    through: Callable[[Array], Array],
    between: tuple[int, int],
    allowed: float,
) -> None:
    """Raise InputError where the way through the code is not the product of those through its steps.

    through : rows (B, m) -> the same through the code as it is; between : the states that it is between;
    allowed : relative.
    """
    theirs = through(rows)
    if product_apart(jacobians, rows, theirs) <= allowed:
        return
    has = f"has from step {between[0] + 1} to {between[1]} a derivative that is"
    if is_not_linear(theirs, through(rows / 2)):
        raise InputError(f"{has} {NOT_LINEAR}")
    raise InputError(
        f"{has} not the product of those of its steps: something else than what the loop carries on leads "
        "from step to step, or something changes the gradient there (a hook on it)"
    )


def product_apart(jacobians: Iterable[Array], rows: Array, theirs: Array) -> float:
    """How far rows (B, m) through a product of steps are from those through the code, relative.

    jacobians : (B, paths, m, m) of every step; theirs : (B, m), rows through the code as it is.
    """
    m = rows.shape[1]
    through = bound = np.broadcast_to(np.eye(m), (len(rows), m, m))
    for step in jacobians:
        through, bound = step.sum(axis=1) @ through, np.abs(step).sum(axis=1) @ bound
    apart = np.abs(np.einsum("bi,bij->bj", rows, through) - theirs).max()
    scale = np.einsum("bi,bij->bj", np.abs(rows), bound).max()
    return float(apart / max(scale, np.finfo(float).tiny))


def chained(operations: Sequence[Operation], others: Collection[str]) -> set[str]:
    """The names of the parameters that are used again and again on what came of the use before."""
    return {run.marker[0] for run in runs_of(operations, others)}


def loops(operations: Sequence[Operation], others: Collection[str]) -> list[TimeLoop]:
    """The loops, in their order.

    others : weights of what is recurrent by itself: no gradient is followed through what they do.
    Raises InputError where there is a loop that cannot be told apart into steps.
    """
    runs = runs_of(operations, others)
    for marker, count in Counter(run.marker for run in runs).items():
        if count > 1:
            raise InputError(
                f"uses {shown(marker[0])} in {count} stretches of steps, and no gradient passes from one "
                "to the next (a detach, or another direction with the same weights): give it a batch of "
                "fewer steps, or each direction a loop of its own"
            )
    groups: list[list[Uses]] = []
    for run in sorted(runs, key=lambda one: one.turns[0]):
        if groups and run.turns[0] <= max(one.turns[-1] for one in groups[-1]):
            groups[-1].append(run)
        else:
            groups.append([run])
    found = [_loop(operations, group, others) for group in groups]
    return [loop for loop in found if loop is not None]


def _loop(operations: Sequence[Operation], runs: Sequence[Uses], others: Collection[str]) -> TimeLoop | None:
    """The loop that these uses are in; None where they are of several layers that share a parameter.

    Its steps are as short as they can be: each from one use of a parameter to the next.
    """
    flow = Flow(operations, runs)
    reasons, longest = list[str](), dict[tuple[int, ...], int]()
    for name, marks in _marks(runs):
        try:
            turns = Turns(operations, marks)
            whole = longest.setdefault(turns.code, len(marks))
            if _are_alike(turns, flow):
                _check_others(operations, flow, name, others)
                weights = frozenset(run.marker[0] for run in runs)
                return _time_loop(turns, flow, name, weights, max(turns.each, round(whole / len(marks))))
        except InputError as error:
            reasons.append(str(error))
    if reasons:
        raise InputError(reasons[0])
    return None


def _marks(runs: Sequence[Uses]) -> list[tuple[str, tuple[int, ...]]]:
    """What may be the beginnings of steps, by the parameter used there: the shortest steps first."""
    found: dict[int, tuple[str, tuple[int, ...]]] = {}
    for run in sorted(sorted(runs, key=lambda one: one.marker, reverse=True), key=lambda one: one.uses[0]):
        several = (run.uses[::each] for each in _SEVERAL if len(run.uses) >= each * STEPS)
        for marks in (run.uses, run.turns, *several):
            found.setdefault(len(marks), (run.marker[0], marks))
    return [found[count] for count in sorted(found, reverse=True)]


def _are_alike(turns: Turns, flow: Flow) -> bool:
    """Whether every step uses the same parameters: several layers may share one."""
    met: dict[int, set[str]] = {step: set() for step in range(2, max(3, turns.last - 1))}
    for number, operation in enumerate(turns.operations):
        if flow.before[number] and (step := turns.step(number)) in met:
            met[step] |= operation.met
    return len({frozenset(names) for names in met.values()}) < 2


def _check_others(operations: Sequence[Operation], flow: Flow, lead: str, others: Collection[str]) -> None:
    """Raise InputError where the way from use to use leads through what is recurrent by itself."""
    for number, operation in enumerate(operations):
        if flow.between(number) and (met := operation.weights & frozenset(others)):
            raise InputError(
                f"loops over {shown(lead)} and, in the same loop, feeds {shown(min(met))} of another layer "
                "with what comes of it: name the module around both with cells=[...]"
            )


def _time_loop(turns: Turns, flow: Flow, name: str, weights: frozenset[str], length: int) -> TimeLoop:
    """The loop of these steps; length : of each, in turns of the code."""
    state = State(turns, flow)
    shapes, makes = state.makes()
    state.check_last(makes)
    return TimeLoop(
        name=name,
        turns=length,
        weights=weights,
        parts=state.parts,
        shapes=shapes,
        written=tuple(part.kind.slot[0] != RESULT or state.name(part) in _WRITING for part in state.parts),
        first=state.first,
        starts=tuple(turns.begins[state.first : state.last]),
        idle=turns.idle,
        unlike=state.unlike,
        cut_short=state.last < turns.last,
        drops=any("dropout" in one.name and flow.between(k) for k, one in enumerate(turns.operations)),
        names=tuple(operation.name for operation in turns.operations),
        apart=_apart(turns.operations, makes),
        reads=state.reads(),
        makes=makes,
    )


def _apart(operations: Sequence[Operation], made: Iterable[int]) -> frozenset[str]:
    """The names of the parameters that are met, but by nothing that what some operations make depends on."""
    waiting = [*made]
    seen = set(waiting)
    while waiting:
        above = {value[0] for value in operations[waiting.pop()].reads.values()} - seen
        seen |= above
        waiting += above
    every = frozenset[str]().union(*(operation.met for operation in operations))
    return every.difference(*(operations[number].met for number in seen))
