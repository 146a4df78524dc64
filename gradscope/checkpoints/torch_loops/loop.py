"""A loop over time within a module of PyTorch: run again with its states cut out, and differentiated."""

from __future__ import annotations

import importlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import prod
from typing import Any

import numpy as np

from gradscope.checkpoints.carried import ARGUMENTS, Carried, Place, StepCall
from gradscope.checkpoints.derivatives import (
    SUM_ROUNDINGS,
    Derivatives,
    Linearised,
    OwnSteps,
    check_jacobians,
    own_steps,
)
from gradscope.checkpoints.loops.follow import TimeLoop, chained, check_product, loops
from gradscope.checkpoints.loops.operation import Operation
from gradscope.checkpoints.torch.linearised import Linearising, in_rows
from gradscope.checkpoints.torch.operations import WRAPPED, Tracing, observed
from gradscope.checkpoints.torch.products import Product
from gradscope.checkpoints.torch.steps import (
    DROPPED,
    Stepper,
    class_of,
    copied,
    dropout_of,
    is_real,
    module_weights,
    one_thread,
    repeating,
)
from gradscope.checkpoints.torch_loops.apart import is_backward, sequence_axes
from gradscope.checkpoints.torch_loops.replay import replayed
from gradscope.custom_types import Array
from gradscope.errors import InputError, reason

# The product of so many Jacobians is compared with torch's own derivative over as many steps.
_WINDOW = 8
_UNSEEN = (
    "computes in a way that torch does not show (torch.jit, a function of its own, torch.utils.checkpoint): "
    "give the model without it"
)
_COMPLEX = (
    "carries complex numbers from step to step, which have no Jacobian of real numbers: carry their real and "
    "imaginary parts as tensors of their own"
)
_IN_PARTS = (
    "keeps its states in one tensor, of which each step writes a part and reads one: carry the state from "
    "step to step in a variable of its own"
)


def loops_of(module: Any, path: str, call: StepCall, others: Collection[str]) -> list[TorchLoop]:
    """The loops of a module, as they ran on a call, in their order.

    path : of the module in its model; others : names of parameters of what is recurrent by itself in it.
    Raises InputError where there is a loop that cannot be told apart into steps.
    """
    names = {name for name, _ in module.named_parameters()} | {name for name, _ in module.named_buffers()}
    # An initial state that is learned is a parameter, but not one that a loop uses again.
    again = chained(_traced(module, call, names), others)
    operations = _traced(module, call, again | set(others)) if again else []
    found = []
    for loop in loops(operations, others):
        backward = is_backward(Stepper(copied(module).eval(), Carried((), {}), ()), call, loop)
        found.append(TorchLoop(copied(module), path, call, loop, backward=backward))
    return found


def _traced(module: Any, call: StepCall, names: Collection[str]) -> list[Operation]:
    """The operations of a run; names : of the parameters and buffers that are watched."""
    torch = importlib.import_module("torch")
    module = copied(module).eval()
    for parameter in module.parameters():
        if is_real(parameter):
            parameter.requires_grad_(True)
    for part in module.modules():  # a reservoir has its weights in buffers
        for name, buffer in part._buffers.items():
            if buffer is not None and is_real(buffer) and buffer.ndim > 1:
                part._buffers[name] = buffer.detach().clone().requires_grad_(True)
    named = [*module.named_parameters(), *module.named_buffers()]
    tracing = Tracing({id(tensor): name for name, tensor in named}, names)
    stepper = Stepper(module, Carried((), {}), (), frozen=False)
    try:
        with torch.enable_grad():
            stepper.run(call, observed(tracing))
    except Exception as error:  # the user's code may fail in any way
        raise InputError(f"cannot be run once more: {type(error).__name__}: {reason(error)}") from error
    if tracing.wrapped:
        raise InputError(WRAPPED)
    if tracing.unseen:
        raise InputError(_UNSEEN)
    return tracing.operations


class TorchLoop(Derivatives):
    """Of a loop over time within a module.

    module : a copy; path : of it in its model; call : what it was given and put out.
    """

    by = "torch"

    def __init__(self, module: Any, path: str, call: StepCall, loop: TimeLoop, *, backward: bool) -> None:
        self.kind, self.loop, self._path, self.backward = class_of(module), loop, path, backward
        self._module, self._call = module.eval(), call
        self.not_applied = (dropout_of(module) or (DROPPED.format(""),)) if loop.drops else ()

    @property
    def said(self) -> tuple[str, ...]:
        """What is to be said of where the loop is differentiated."""
        return self.loop.said

    def covers(self, module: str) -> bool:
        """Whether it uses parameters of the module of this name."""
        return any(f"{self._path}.{name}".lstrip(".").startswith(f"{module}.") for name in self.loop.weights)

    def claims(self, module: Any) -> set[int]:
        """The ids of the parameters that it uses, of the module that it is in."""
        return {id(parameter) for name, parameter in module.named_parameters() if name in self.loop.weights}

    def weights(self) -> dict[str, Array]:
        """See Derivatives."""
        every = module_weights(self._module, [self._call])
        return {name: array for name, array in every.items() if name not in self.loop.apart}

    def used(self) -> frozenset[str]:
        """See Derivatives."""
        return self.loop.weights

    def differentiate(self) -> OwnSteps:
        """See Derivatives."""
        try:
            return self._differentiated()
        except RuntimeError as error:  # of torch's own, about the user's code
            if "torch.utils.checkpoint" in str(error):
                raise InputError(_UNSEEN) from error
            raise InputError(f"cannot be differentiated by torch: {reason(error)}") from error

    def _differentiated(self) -> OwnSteps:
        first = self.loop.first
        with one_thread():
            stepper = repeating(self._module, [self._call], Carried((), {}), ())
            inputs = self._inputs(stepper)
            whole = replayed(
                stepper, replace(self._call, given={**self._call.given, **inputs}), self.loop, [first]
            )
            if any(tensor.is_complex() for tensor in whole.state(first)):
                raise InputError(_COMPLEX)
            axes = sequence_axes(whole, self._call.given, inputs)
            batch = len(in_rows(whole.state(first)[0], axes[0]))
            widths = [prod(shape) // batch for shape in self.loop.shapes]
            matrices = 1 + sum(parameter.ndim > 1 for parameter in self._module.parameters())
            steps = LoopSteps(stepper, self._call, self.loop, axes)
            check_jacobians(batch, len(self.loop.starts), matrices, sum(widths))
            found = list(steps.along())
            steps.check(found)
        names = _named(whole.names, len(widths))
        features = next((int(t.shape[-1]) for t in self._call.given.values() if is_real(t) and t.ndim), 0)
        return own_steps(found, dict(zip(names, widths, strict=True)), features, stepper.rounding)

    def _inputs(self, stepper: Stepper) -> dict[Place, Any]:
        """What the module is given, as leaves."""
        return {
            place: stepper.shaken(tensor, None).requires_grad_()
            for place, tensor in self._call.given.items()
            if place[0] == ARGUMENTS and is_real(tensor)
        }


def _named(called: Mapping[int, str], count: int) -> list[str]:
    """Names for the parts of a state, those that the code has: h is what is put out, the last if none is."""
    names = [called.get(part, f"s{part}") for part in range(count)]
    if "h" not in names:
        names[-1] = "h"
    return names if len(set(names)) == count else [*(f"s{part}" for part in range(count - 1)), "h"]


class LoopSteps(Linearising):
    """The steps of a loop, each the operations between two states."""

    def __init__(self, stepper: Stepper, call: StepCall, loop: TimeLoop, axes: Sequence[int | None]) -> None:
        super().__init__(axes)
        self._stepper, self._call, self._loop = stepper, call, loop
        states = range(loop.first, loop.last)
        self._plain = replayed(stepper, call, loop, states)
        self._check_parts()
        self._products = replayed(stepper, call, loop, states, self._plain.leaves, products=True)

    @property
    def rounding(self) -> float:
        """See Linearising."""
        return self._stepper.rounding

    def along(self) -> Iterator[Linearised]:
        """The steps, differentiated one after the other."""
        for state in range(self._loop.first, self._loop.last):
            yield self._linearised(state, self._plain.state(state))[1]

    def check(self, found: Sequence[Linearised]) -> None:
        """Raise InputError where over several steps torch's derivative is not the product of those of each.

        It is not where a step reads something of those before that is no part of the state.
        """
        first, last = self._loop.first, self._loop.last
        begins = range(first, last, _WINDOW)
        whole = replayed(self._stepper, self._call, self._loop, begins)
        generator = np.random.default_rng(0)
        for begin in begins:
            end = min(begin + _WINDOW, last)
            rows = generator.standard_normal(found[0].before.shape)
            each = (np.stack([*one.paths.values()], 1) for one in found[begin - first : end - first])
            through = partial(self._row, whole.new(end), state=whole.state(begin))
            check_product(each, rows, through, (begin, end), SUM_ROUNDINGS * self.rounding)

    def _after(self, step: int, state: Sequence[Any], *, cut: bool) -> tuple[list[Any], list[Product]]:
        """See Linearising; step : the number of the state before it."""
        replay, k = self._products if cut else self._plain, step - self._loop.first
        return replay.new(step + 1), replay.products[replay.marks[k] : replay.marks[k + 1]]

    def _check_parts(self) -> None:
        """Raise InputError where a part of the state is a tensor that is written little by little."""
        generator = self._torch.Generator().manual_seed(0)
        for part in (k for k, written in enumerate(self._loop.written) if written):
            kept = []
            for state in range(self._loop.first, self._loop.last):
                leaf, made = self._plain.leaves[state, part], self._plain.made[state + 1, part]
                row = self._torch.randn(made.shape, generator=generator).to(made)
                found = made.requires_grad and self._torch.autograd.grad(
                    made, leaf, row, retain_graph=True, allow_unused=True
                )
                kept.append(bool(found) and found[0] is not None and bool((found[0] == row).any()))
            if all(kept):
                raise InputError(_IN_PARTS)
