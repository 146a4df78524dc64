"""Problems that are analysed together: those of the layers of a model, and of the stacks that some form."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gradscope.cells.factors import own
from gradscope.errors import InputError, as_option, listed
from gradscope.problem.clip import Clip
from gradscope.problem.loss_adjoint import with_loss, with_losses
from gradscope.problem.masked import check_masks
from gradscope.problem.masks import Drawn
from gradscope.problem.problem import Problem

if TYPE_CHECKING:
    from gradscope.checkpoints import Named


@dataclass(frozen=True)
class Stack:
    """Connected layers of one direction, or one alone, by their numbers, and the problem of their states."""

    members: tuple[int, ...]
    problem: Problem


@dataclass(frozen=True)
class Problems:
    """What is analysed together: a problem for each layer, and the stacks that some of them form.

    names : of the layers in their file; last : the numbers of the layers that no other reads; masks : those
        of training that are to be drawn.
    """

    layers: tuple[Problem, ...]
    names: tuple[str, ...] = ("",)
    stacks: tuple[Stack, ...] = ()
    last: tuple[int, ...] = (0,)
    masks: Drawn | None = None

    @cached_property
    def every(self) -> tuple[Problem, ...]:
        """All of them, the layers first."""
        return self.layers + tuple(stack.problem for stack in self.stacks)

    @property
    def batch(self) -> int:
        """Input sequences B, of all the same."""
        return self.layers[0].system.batch

    @property
    def joint(self) -> Problem | None:
        """The problem of all states, of one layer or of one stack; None where some stand side by side."""
        stacked = [stack.problem for stack in self.stacks if len(stack.members) == len(self.layers)]
        return self.layers[0] if len(self.layers) == 1 else next(iter(stacked), None)

    @property
    def groups(self) -> tuple[Stack, ...]:
        """What stands side by side: the layers in no stack, and the stacks."""
        stacked = {number for stack in self.stacks for number in stack.members}
        alone = ((k, one) for k, one in enumerate(self.layers) if k not in stacked)
        return (*(Stack((number,), problem) for number, problem in alone), *self.stacks)

    def with_loss(self, readout: Named | None, readout_at: str | None, adjoint: Any) -> Problems:
        """The same with a loss of the outputs of ``joint``, if one is given; see ``loss_adjoint``."""
        if readout is None and readout_at is None and adjoint is None:
            return self
        if self.joint is None:
            return self._with_losses(readout, readout_at, adjoint)
        lossy = with_loss(self.joint, readout, readout_at, adjoint)
        if len(self.layers) == 1:
            return replace(self, layers=(lossy,))
        return replace(self, stacks=(replace(self.stacks[0], problem=lossy),))

    def with_training(self, clip: Clip | None, tbptt: int | None, masks: Drawn | None) -> Problems:
        """The same with what training does besides: to the gradient of its loss, and to the steps."""
        if masks is not None:
            check_masks([group.problem for group in self.groups], masks)
            return replace(self, masks=masks).with_training(clip, tbptt, None)
        asked = {"clip": clip, "tbptt": tbptt}
        names = [as_option(name) for name, value in asked.items() if value is not None]
        lossy = [problem for problem in self.every if problem.adjoint is not None]
        if not names:
            return self
        if not lossy:
            loss = f"{as_option('readout')} or {as_option('adjoint')}"
            raise InputError(
                f"{' and '.join(names)}: of the gradient of a loss, but none is given: add {loss}"
            )
        if len(lossy) > 1:
            raise InputError(
                f"{' and '.join(names)}: of all weights together, but of two directions each has a "
                f"gradient of its own: choose one with {as_option('layer')}, and give its part of the loss "
                f"as {as_option('adjoint')}"
            )
        if not own(lossy[0].system.parameters):
            raise InputError(
                f"{' and '.join(names)}: of the gradient by the weights, but {lossy[0].origin.jacobians} "
                f"differentiates this layer by its states alone: leave {' and '.join(names)} out"
            )

        def measured(problem: Problem) -> Problem:
            return problem if problem.adjoint is None else replace(problem, clip=clip, tbptt=tbptt)

        stacks = tuple(replace(stack, problem=measured(stack.problem)) for stack in self.stacks)
        return replace(self, layers=tuple(map(measured, self.layers)), stacks=stacks)

    def _with_losses(self, *loss: Any) -> Problems:
        """A loss of the outputs of two directions, which is followed back in the topmost layer of each."""
        last = {self.layers[number].system.direction: number for number in self.last}
        if len(self.last) != 2 or last.keys() != {"forward", "backward"}:
            names = listed(self.names)
            raise InputError(f"a loss reads one layer or one stack of them: choose of {names} with --layer")
        numbers = [last["forward"], last["backward"]]
        lossy = with_losses([self.layers[number] for number in numbers], *loss)
        found = dict(enumerate(self.layers)) | dict(zip(numbers, lossy, strict=True))
        return replace(self, layers=tuple(found.values()))
