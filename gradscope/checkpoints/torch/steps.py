"""A module of PyTorch step by recorded step: called again on what it was given, and differentiated there."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from gradscope.checkpoints.carried import ARGUMENTS, KEPT, OUTPUT, Carried, Place, StepCall, leaves, placed
from gradscope.checkpoints.derivatives import (
    DRAWS,
    SAFETY,
    Derivatives,
    Linearised,
    OwnSteps,
    check_jacobians,
    own_steps,
)
from gradscope.checkpoints.torch.linearised import Linearising, as_array, in_rows
from gradscope.checkpoints.torch.operations import is_tensor
from gradscope.checkpoints.torch.products import Product, watching
from gradscope.custom_types import Array
from gradscope.errors import InputError, listed, reason
from gradscope.machine import one_blas_thread

_NOT_AGAIN = (
    "puts out something else when it is called once more on the same: it draws random numbers, in eval mode "
    "too, or keeps a state where that is not seen"
)
DROPPED = "dropout in training{}: what it drops on the way from step to step, the gain loses"


@contextmanager
def one_thread() -> Iterator[None]:
    """Within, torch and NumPy use one thread: with two, small steps took 20 times as long."""
    torch = importlib.import_module("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with one_blas_thread():
            yield
    finally:
        torch.set_num_threads(before)


def is_real(tensor: Any) -> bool:
    """Whether there are derivatives by it that gradscope can use."""
    return bool(tensor.is_floating_point())


def same(one: Any, other: Any) -> bool:
    """Whether two tensors are real numbers and the same ones."""
    torch = importlib.import_module("torch")
    return is_real(one) and one.shape == other.shape and one.numel() > 0 and bool(torch.equal(one, other))


def copied(module: Any) -> Any:
    """A copy of a module; tensors that it keeps are taken out of the graph that they were made in.

    Raises InputError where it holds what cannot be copied.
    """
    memo = {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if is_tensor(value) and value.grad_fn is not None
    }
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # of the user's own objects
        what = f"cannot be copied, to be called again: {type(error).__name__}: {reason(error)}"
        raise InputError(
            f"{what} (a function that torch.jit has compiled, say: give it as it was)"
        ) from error


class TorchSteps(Derivatives):
    """Of a module that is called step by step.

    module : a copy; calls : in their order, each given the state; state : what passes between them.
    """

    by = "torch"

    def __init__(
        self, module: Any, kind: str, calls: Sequence[StepCall], state: Carried, *, fed_back: bool
    ) -> None:
        self.kind, self.fed_back = kind, fed_back
        self._module, self._calls, self._state = module.eval(), calls, state
        self.not_applied = dropout_of(module)

    def weights(self) -> dict[str, Array]:
        """See Derivatives."""
        return module_weights(self._module, self._calls)

    @property
    def states(self) -> list[list[Any]]:
        """Of every part of the state, what each call put out."""
        return [[as_array(call.made[source]) for call in self._calls] for source in self._state.sources]

    def differentiate(self) -> OwnSteps:
        """See Derivatives."""
        first = self._calls[0]
        axes = [_batch_axis(self._inputs(first), first.made[s]) for s in self._state.sources]
        rows = [in_rows(first.made[s], axis) for s, axis in zip(self._state.sources, axes, strict=True)]
        if len({row.shape[0] for row in rows}) != 1:
            raise InputError("its state has parts of as many sequences as not all have")
        self._check_alike()
        matrices = 1 + sum(parameter.ndim > 1 for parameter in self._module.parameters())
        size = sum(row.shape[1] for row in rows)
        check_jacobians(rows[0].shape[0], len(self._calls), matrices, size)
        with one_thread():
            stepped = repeating(self._module, self._calls, self._state, axes)
            found = list(stepped.along(self._calls))
        widths = [row.shape[1] for row in rows]
        features = sum(int(tensor.shape[-1]) for tensor in self._inputs(first)[:1] if tensor.ndim)
        parts = dict(zip(self._part_names(), widths, strict=True))
        return own_steps(found, parts, features, stepped.rounding)

    def _part_names(self) -> list[str]:
        """Of the parts of the state: h is what the module puts out first."""
        first = next(iter(self._calls[0].made))
        return ["h" if source == first else f"s{k}" for k, source in enumerate(self._state.sources)]

    def _inputs(self, call: StepCall) -> list[Any]:
        """What a call is given besides the state."""
        return [
            tensor
            for place, tensor in call.given.items()
            if place[0] == ARGUMENTS and place not in self._state.places and is_real(tensor)
        ]

    def _check_alike(self) -> None:
        """Raise InputError where the state changes its size on the way."""
        shapes = [[tuple(call.made[s].shape) for s in self._state.sources] for call in self._calls]
        for number, shape in enumerate(shapes, 1):
            if shape != shapes[0]:
                raise InputError(
                    f"puts out a state of shape {shape[0]} at call {number}, {shapes[0][0]} at the first: "
                    "expected as many sequences and units at every step"
                )


def repeating(module: Any, calls: Sequence[StepCall], state: Carried, axes: Sequence[int | None]) -> Stepper:
    """What calls a module again: in float64 where it computes the same there, else in its own precision."""
    own = Stepper(module, state, axes)
    try:
        double = Stepper(doubled(module), state, axes, double=True)
        if all(double.repeats(call) for call in calls):
            return double
    except InputError:
        raise
    except Exception as error:  # the user's code may fail in any way in another dtype
        why = f"; in float64 it fails with {type(error).__name__}: {reason(error)}"
    else:
        why = ""
    try:
        whole = all(own.repeats(call) for call in calls)
    except Exception as error:
        raise InputError(f"cannot be called once more: {type(error).__name__}: {reason(error)}") from error
    if not whole:
        raise InputError(_NOT_AGAIN + why)
    return own


def doubled(module: Any) -> Any:
    """A copy in float64, tensors that are neither parameters nor buffers too."""
    module = copied(module).double()
    for part in module.modules():
        for name, value in vars(part).items():
            if is_tensor(value) and is_real(value):
                setattr(part, name, value.double())
    return module


class Stepper(Linearising):
    """Calls a module again.

    double : whether it was made one of float64; frozen : whether its parameters are to have no gradient.
    matrices : {id of a parameter or buffer: its name, "" of what is none}.
    """

    def __init__(
        self,
        module: Any,
        state: Carried,
        axes: Sequence[int | None],
        *,
        double: bool = False,
        frozen: bool = True,
    ) -> None:
        super().__init__(axes)
        self.module, self._state, self._double = module, state, double
        for parameter in module.parameters() if frozen else ():
            parameter.requires_grad_(False)
        self.matrices = {
            id(p): path_name(name) if p.ndim > 1 else "" for name, p in module.named_parameters()
        }
        self.matrices |= {id(buffer): "" for buffer in module.buffers()}

    @property
    def rounding(self) -> float:
        """Relative, of what it computes in."""
        dtypes = [p.dtype for p in self.module.parameters() if is_real(p)]
        coarsest = max((float(self._torch.finfo(dtype).eps) for dtype in dtypes), default=2.0**-23)
        return 2.0**-52 if self._double else coarsest

    def repeats(self, call: StepCall) -> bool:
        """Whether a call puts out what it did, but for what rounding explains."""
        generator = self._torch.Generator().manual_seed(0)
        with self._torch.no_grad():
            draws = [None, None, *[generator] * DRAWS]
            exact, again, *shaken = [self._made(self._run(self._given(call, g))) for g in draws]
        if any(is_real(one) and not same(one, again[place]) for place, one in exact.items() if one.numel()):
            raise InputError(_NOT_AGAIN)
        for place, theirs in call.made.items():
            if not is_real(theirs) or place not in exact:
                continue
            ours, theirs_too = exact[place].double(), theirs.double()
            unit = float(self._torch.finfo(theirs.dtype).eps) * float(theirs_too.abs().max())
            moved = max(float((one[place].double() - ours).abs().max()) for one in shaken)
            if not float((ours - theirs_too).abs().max()) <= SAFETY * (moved + unit):
                return False
        return all(source in exact for source in self._state.sources)

    def run(self, call: StepCall, observing: AbstractContextManager[Any] | None = None) -> Any:
        """What a call puts out, as the module does; observing : a context of that alone."""
        given = self._given(call)
        with observing or nullcontext():
            return self._run(given)

    def made(self, call: StepCall) -> dict[Place, Any]:
        """What a call puts out, and what the module keeps then, by place."""
        with self._torch.no_grad():
            return self._made(self.run(call))

    def along(self, calls: Sequence[StepCall]) -> Iterator[Linearised]:
        """Calls differentiated by the state that each is given: what the one before puts out here."""
        state = self._state_of(calls[0])
        for call in calls:
            new, found = self._linearised(call, state)
            yield found
            kept = [one.detach().double() if self._double else one.detach() for one in new]
            state = [one.requires_grad_() for one in kept]  # a cast in the module may have left float64

    def _after(self, call: StepCall, state: Sequence[Any], *, cut: bool) -> tuple[list[Any], list[Product]]:
        """The state after a call, and the products with matrices on the way."""
        with self._torch.enable_grad(), watching(self.matrices, cut=cut) as mode:
            given = self._given(call, state=state)
            try:
                made = self._made(self._run(given))
            except Exception as error:  # the user's code may fail in any way
                why = f"{type(error).__name__}: {reason(error)}"
                raise InputError(f"cannot be called with the state that it makes itself: {why}") from error
        new = [made[source] for source in self._state.sources]
        return new, mode.products

    def _run(self, given: tuple[Any, Any, Mapping[str, Any]]) -> Any:
        """What a call puts out; given : the arguments, and what the module is to keep."""
        args, keywords, kept = given
        for name, tensor in kept.items():
            keep(self.module, name, tensor)
        with _default_dtype(self._torch, self._torch.float64 if self._double else None):
            return self.module(*args, **keywords)

    def _given(self, call: StepCall, generator: Any = None, state: Sequence[Any] | None = None) -> Any:
        """The arguments of a call, shaken by one rounding of their own dtype with a generator."""
        tensors = {}
        for place, tensor in call.given.items():
            part = self._state.places.get(place)
            given = tensor if state is None or part is None else state[part]
            if is_real(tensor) and given is tensor:
                given = self.shaken(tensor, generator)
            tensors[place] = given
        arguments = {place[1:]: t for place, t in tensors.items() if place[0] == ARGUMENTS}
        args, keywords = placed(call.arguments, arguments)
        return args, keywords, {place[1]: t for place, t in tensors.items() if place[0] == KEPT}

    def shaken(self, tensor: Any, generator: Any) -> Any:
        """A copy in the precision of the module, shaken by one rounding of its own dtype with a generator."""
        eps = float(self._torch.finfo(tensor.dtype).eps)
        found = tensor.double() if self._double else tensor
        if generator is not None:
            signs = self._torch.randint(0, 2, tensor.shape, generator=generator).to(found) * 2 - 1
            found = found * (1 + eps * signs)
        return found.clone()

    def _made(self, output: Any) -> dict[Place, Any]:
        """The tensors of an output, and those that the module keeps, by place."""
        return dict(leaves(output, is_tensor, (OUTPUT,))) | kept_by(self.module)

    def _state_of(self, call: StepCall) -> list[Any]:
        """The parts of the state before a call, by which it is differentiated."""
        found: dict[int, Any] = {}
        for place, part in self._state.places.items():
            found.setdefault(part, self.shaken(call.given[place], None).requires_grad_())
        return [found[part] for part in range(len(self._state.sources))]


@contextmanager
def _default_dtype(torch: Any, dtype: Any) -> Iterator[None]:
    """Within, tensors that a module makes of nothing are of this dtype, if it is one."""
    before = torch.get_default_dtype()
    if dtype is not None:
        torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def kept_by(module: Any) -> dict[Place, Any]:
    """The real tensors that a module and those in it keep as attributes or buffers."""
    found = {}
    for path, part in module.named_modules():
        for name, value in (*vars(part).items(), *part._buffers.items()):
            if is_tensor(value) and is_real(value):
                found[KEPT, f"{path}.{name}".lstrip(".")] = value
    return found


def module_weights(module: Any, calls: Sequence[StepCall]) -> dict[str, Array]:
    """The real tensors of a module's state dict, without those that these calls have changed."""
    changed = {place[1] for call in calls for place in call.made if place[0] == KEPT}
    return {
        name: as_array(tensor)
        for name, tensor in module.state_dict().items()
        if is_tensor(tensor) and is_real(tensor) and name not in changed
    }


def dropout_of(module: Any) -> tuple[str, ...]:
    """What training does that modules within do not do in use: random masks."""
    rates = {
        path: part.p
        for path, part in module.named_modules()
        if "Dropout" in type(part).__name__ and isinstance(getattr(part, "p", None), float) and part.p > 0
    }
    of = [f"{path} {rate:g}" if path else f"{rate:g}" for path, rate in rates.items()]
    return (DROPPED.format(f" ({listed(of)})"),) if of else ()


def keep(module: Any, name: str, tensor: Any) -> None:
    """Set such a tensor."""
    path, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(path), attribute, tensor)


def class_of(module: Any) -> str:
    """What the class of a module is called."""
    kinds = [kind for kind in type(module).__mro__ if kind.__module__ != "torch.nn.utils.parametrize"]
    return kinds[0].__name__


def path_name(parameter: str) -> str:
    """What the path through a matrix is called: its name, without the parts of a parametrisation."""
    parts = parameter.split(".")
    if "parametrizations" in parts:
        at = parts.index("parametrizations")
        parts = [*parts[:at], parts[at + 1]]
    return ".".join(parts)


def _batch_axis(inputs: Sequence[Any], state: Any) -> int | None:
    """Which axis of a state are the sequences, None of one alone."""
    if state.ndim < 2 or (inputs and inputs[0].ndim == 1):
        return None
    if state.ndim > 2 and inputs and inputs[0].shape[0] != state.shape[0]:
        return 1
    return 0
