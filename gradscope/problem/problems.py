"""All problems that are analysed together, of one cell or of the layers of a model."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from gradscope.checkpoints import Named
from gradscope.errors import InputError, listed
from gradscope.problem.loss_adjoint import LOSS, with_loss, with_losses
from gradscope.problem.problem import Problem


@dataclass(frozen=True)
class Stack:
    """Connected layers of one direction, by their numbers, and the problem of all their states."""

    members: tuple[int, ...]
    problem: Problem


@dataclass(frozen=True)
class Problems:
    """What is analysed together: a problem for each layer, and the stacks that some of them form.

    tops : the numbers of the layers that no other reads.
    """

    layers: tuple[Problem, ...]
    stacks: tuple[Stack, ...] = ()
    tops: tuple[int, ...] = (0,)

    @cached_property
    def every(self) -> tuple[Problem, ...]:
        """All of them, the layers first."""
        return self.layers + tuple(stack.problem for stack in self.stacks)

    @property
    def batch(self) -> int:
        """Input sequences B, of all the same."""
        return self.layers[0].batch

    @property
    def whole(self) -> Problem | None:
        """The problem of all states, of one layer or of one stack; None where some stand side by side."""
        stacked = [stack.problem for stack in self.stacks if len(stack.members) == len(self.layers)]
        return self.layers[0] if len(self.layers) == 1 else next(iter(stacked), None)

    def with_loss(self, readout: Named | None, readout_at: str | None, adjoint: Any) -> Problems:
        """The same with a loss of the whole's outputs, as ``seeds.with_loss``, if one is given."""
        if readout is None and readout_at is None and adjoint is None:
            return self
        if self.whole is None:
            return self._with_losses(readout, readout_at, adjoint)
        lossy = with_loss(self.whole, readout, readout_at, adjoint)
        if len(self.layers) == 1:
            return replace(self, layers=(lossy,))
        return replace(self, stacks=(replace(self.stacks[0], problem=lossy),))

    def _with_losses(self, *loss: Any) -> Problems:
        """A loss of the outputs of two directions, which is followed back in the topmost layer of each."""
        tops = {str(self.layers[number].source["direction"]): number for number in self.tops}
        if len(self.tops) != 2 or tops.keys() != {"forward", "backward"}:
            names = listed([str(problem.source["layer"]) for problem in self.layers])
            raise InputError(f"a loss reads one layer or one stack of them: choose of {names} with --layer")
        numbers = [tops["forward"], tops["backward"]]
        lossy = with_losses([self.layers[number] for number in numbers], *loss)
        found = dict(enumerate(self.layers)) | dict(zip(numbers, lossy, strict=True))
        return replace(self, layers=tuple(found.values()))

    @property
    def source(self) -> dict[str, Any]:
        """What was analysed, as JSON tells it: of several layers, what they have in common."""
        first = self.layers[0].source
        if len(self.layers) == 1:
            return dict(first)
        own = ("hidden", "input_size", "layer", "direction")
        cells = dict.fromkeys(problem.cell.name for problem in self.layers)
        cut = dict.fromkeys(path for stack in self.stacks for path in stack.problem.cut)
        common = {name: value for name, value in first.items() if name not in own}
        loss = {name: self.whole.source[name] for name in LOSS if self.whole and name in self.whole.source}
        return common | loss | {"cell": ", ".join(cells), "cut": list(cut)}
