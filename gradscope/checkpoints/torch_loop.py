"""A loop over time within a module of PyTorch: run again with its states cut out, and differentiated."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np

from gradscope.checkpoints.carried import ARGUMENTS, Carried, Place, StepCall, leaves, placed
from gradscope.checkpoints.derivatives import (
    SUM_ROUNDINGS,
    Derivatives,
    Linearised,
    OwnSteps,
    check_jacobians,
    own_steps,
)
from gradscope.checkpoints.torch_linearised import Linearising, in_rows
from gradscope.checkpoints.torch_loops import TimeLoop, chained, loops
from gradscope.checkpoints.torch_operations import RESULT, Operation, Tracing, is_tensor, observed
from gradscope.checkpoints.torch_products import Product, watching
from gradscope.checkpoints.torch_steps import Stepper, class_of, copied, is_real, one_thread, repeating
from gradscope.errors import InputError, reason

# The product of so many Jacobians is compared with torch's own derivative over as many steps.
_WINDOW = 8
# So many ways in which the sequences may lie in the state are tried.
_CHOICES = 16
_UNSEEN = (
    "computes in a way that torch does not show (torch.jit, a function of its own, torch.utils.checkpoint): "
    "give the model without it"
)
_IN_PARTS = (
    "keeps its states in one tensor, of which each step writes a part and reads one: carry the state from "
    "step to step in a variable of its own"
)
_ANOTHER = "does something else when it is run once more"
_MIXES = "mixes the sequences of its batch: give a batch of one"


def loops_of(module: Any, path: str, call: StepCall, others: Collection[str]) -> list[TorchLoop]:
    """The loops of a module, as they ran on a call, in their order.

    path : of the module in its model; others : names of parameters of what is recurrent by itself in it.
    Raises InputError where there is a loop that cannot be told apart into steps.
    """
    names = {name for name, _ in module.named_parameters()} | {name for name, _ in module.named_buffers()}
    # An initial state that is learned is a parameter, but not one that a loop uses again.
    again = chained(_traced(module, call, names), others)
    operations = _traced(module, call, again | set(others)) if again else []
    return [TorchLoop(copied(module), path, call, loop) for loop in loops(operations, others)]


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
    if tracing.unseen:
        raise InputError(_UNSEEN)
    return tracing.operations


class TorchLoop(Derivatives):
    """Of a loop over time within a module.

    module : a copy; path : of it in its model; call : what it was given and put out.
    """

    by = "torch"

    def __init__(self, module: Any, path: str, call: StepCall, loop: TimeLoop) -> None:
        self.kind, self.loop, self._path = class_of(module), loop, path
        self._module, self._call = module.eval(), call

    @property
    def said(self) -> tuple[str, ...]:
        """What is to be said of where the loop is differentiated."""
        first, turns = self.loop.first, self.loop.turns
        steps = f"its first {first} steps are" if first > 1 else "its first step is"
        early = f"{steps} left out: there is no whole state before"
        long = f"a step is {turns} turns of its loop, which are not alike"
        return (*[early] * (first > 0), *[long] * (turns > 1))

    def covers(self, module: str) -> bool:
        """Whether it uses parameters of the module of this name."""
        return any(f"{self._path}.{name}".lstrip(".").startswith(f"{module}.") for name in self.loop.weights)

    def claims(self, module: Any) -> set[int]:
        """The ids of the parameters that it uses, of the module that it is in."""
        return {id(parameter) for name, parameter in module.named_parameters() if name in self.loop.weights}

    def differentiate(self) -> OwnSteps:
        """See Derivatives."""
        try:
            return self._differentiated()
        except RuntimeError as error:  # of torch's own, about the user's code
            raise InputError(f"cannot be differentiated by torch: {reason(error)}") from error

    def _differentiated(self) -> OwnSteps:
        first = self.loop.first
        with one_thread():
            stepper = repeating(self._module, [self._call], Carried((), {}), ())
            inputs = self._inputs(stepper)
            whole = _replayed(
                stepper, replace(self._call, given={**self._call.given, **inputs}), self.loop, [first]
            )
            axes = _axes(whole, self._call.given, inputs)
            batch = len(in_rows(whole.state(first)[0], axes[0]))
            widths = [prod(shape) // batch for shape in self.loop.shapes]
            matrices = 1 + sum(parameter.ndim > 1 for parameter in self._module.parameters())
            steps = _Steps(stepper, self._call, self.loop, axes)
            check_jacobians(batch, len(self.loop.starts), matrices, sum(widths))
            found = list(steps.along())
            steps.check(found)
        names = [*(f"s{k}" for k in range(len(widths) - 1)), "h"]
        features = next((int(t.shape[-1]) for t in self._call.given.values() if is_real(t) and t.ndim), 0)
        return own_steps(found, dict(zip(names, widths, strict=True)), features, stepper.rounding)

    def _inputs(self, stepper: Stepper) -> dict[Place, Any]:
        """What the module is given, as leaves."""
        return {
            place: stepper.shaken(tensor, None).requires_grad_()
            for place, tensor in self._call.given.items()
            if place[0] == ARGUMENTS and is_real(tensor)
        }


def _replayed(
    stepper: Stepper,
    call: StepCall,
    loop: TimeLoop,
    cut: Collection[int],
    leaves: Any = None,
    *,
    products: bool = False,
) -> _Replay:
    """A run with these states cut; leaves : of a run before; products : whether these are cut, too."""
    replay = _Replay(loop, cut, leaves)
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


class _Steps(Linearising):
    """The steps of a loop, each the operations between two states."""

    def __init__(self, stepper: Stepper, call: StepCall, loop: TimeLoop, axes: Sequence[int | None]) -> None:
        super().__init__(axes)
        self._stepper, self._call, self._loop = stepper, call, loop
        states = range(loop.first, loop.last)
        self._plain = _replayed(stepper, call, loop, states)
        self._check_parts()
        self._products = _replayed(stepper, call, loop, states, self._plain.leaves, products=True)

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
        whole = _replayed(self._stepper, self._call, self._loop, begins)
        generator = np.random.default_rng(0)
        for begin in begins:
            end = min(begin + _WINDOW, last)
            rows = generator.standard_normal(found[0].before.shape)
            product = np.broadcast_to(np.eye(rows.shape[1]), (len(rows), rows.shape[1], rows.shape[1]))
            bound, through = product, product
            for one in found[begin - first : end - first]:
                through = sum(one.paths.values()) @ through
                bound = sum(np.abs(path) for path in one.paths.values()) @ bound
            theirs = self._row(whole.new(end), rows, whole.state(begin))
            apart = np.abs(np.einsum("bi,bij->bj", rows, through) - theirs)
            scale = np.einsum("bi,bij->bj", np.abs(rows), bound).max()
            if not apart.max() <= SUM_ROUNDINGS * self.rounding * scale:
                raise InputError(
                    f"has from step {begin + 1} to {end} a derivative that is not the product of those of "
                    "its steps: something else than what the loop carries on leads from step to step"
                )

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


class _Replay:
    """An observer that gives the steps of a loop states of their own, leaves of a graph.

    cut : the numbers of the states that are; leaves : where they are kept, {(state, part): tensor}.
    made : of the same keys, what the step before put out. products : a list that grows as it runs; marks :
        how long that was as each step began, and as the last state was there.
    """

    def __init__(self, loop: TimeLoop, cut: Collection[int], leaves: Any = None) -> None:
        self.loop, self._cut = loop, set(cut)
        self.leaves: dict[tuple[int, int], Any] = {} if leaves is None else leaves
        self.made: dict[tuple[int, int], Any] = {}
        self.marks: list[int] = []
        self.products: list[Product] = []
        self._working: dict[tuple[int, int], Any] = {}
        self._instead: dict[int, tuple[Any, Any]] = {}  # with what it is in place of: an id is of one object
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
        if number == self._end:
            self.marks.append(len(self.products))

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


def _axes(whole: _Replay, given: Mapping[Place, Any], inputs: Mapping[Place, Any]) -> list[int | None]:
    """Along which axis of every part of the state the sequences are, None of one alone.

    whole : a run in which the first state alone is cut; inputs : leaves of the same.
    """
    tensors = [tensor for place, tensor in given.items() if place[0] == ARGUMENTS]
    sizes = dict.fromkeys(
        size for tensor in tensors if tensor.ndim > 1 for size in tensor.shape[:2] if size > 1
    )
    for size in sizes:
        having = [[k for k, own in enumerate(shape) if own == size] for shape in whole.loop.shapes]
        for axes in itertools.islice(itertools.product(*having), _CHOICES):
            if _is_apart(whole, axes, inputs, size):
                return list(axes)
    several = [t for t in tensors if t.ndim > 1 + is_real(t) and 1 not in t.shape[:2]]
    if several:
        raise InputError(_MIXES)
    return [None] * len(whole.loop.shapes)


def _is_apart(whole: _Replay, axes: Sequence[int | None], inputs: Mapping[Place, Any], size: int) -> bool:
    """Whether what the first and the last sequence do depends on no other one."""
    torch = importlib.import_module("torch")
    loop = whole.loop
    late, by = whole.new(min(loop.first + 4, loop.last)), [*whole.state(loop.first), *inputs.values()]
    for sequence in (0, size - 1):
        rows = []
        for tensor, axis in zip(late, axes, strict=True):
            row = torch.zeros_like(tensor)
            row.select(axis, sequence).uniform_(1, 2)
            rows.append(row)
        live = [(tensor, row) for tensor, row in zip(late, rows, strict=True) if tensor.requires_grad]
        if not live:
            return True
        ends, outer = zip(*live, strict=True)
        found = torch.autograd.grad(ends, by, outer, retain_graph=True, allow_unused=True)
        own = [[axis] for axis in axes]
        own += [[k for k, one in enumerate(t.shape[:2]) if one == size] for t in inputs.values()]
        for gradient, places in zip(found, own, strict=True):
            if gradient is None or not places:
                continue
            others = [k for k in range(size) if k != sequence]
            if all(gradient.movedim(axis, 0)[others].any() for axis in places):
                return False
    return True
