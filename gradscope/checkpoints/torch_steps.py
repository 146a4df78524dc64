"""A module of PyTorch step by recorded step: called again on what it was given, and differentiated there."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from gradscope.checkpoints.carried import ARGUMENTS, KEPT, OUTPUT, Carried, Place, StepCall, leaves, placed
from gradscope.checkpoints.derivatives import (
    DIRECT,
    DRAWS,
    SAFETY,
    SUM_ROUNDINGS,
    Derivatives,
    Linearised,
    OwnSteps,
    check_jacobians,
    gap,
    own_steps,
)
from gradscope.checkpoints.torch_products import Product, watching
from gradscope.custom_types import Array
from gradscope.errors import InputError, reason
from gradscope.machine import one_blas_thread

_NOT_AGAIN = (
    "puts out something else when it is called once more on the same: it draws random numbers, in eval mode "
    "too, or keeps a state where that is not seen"
)


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


def is_tensor(value: Any) -> bool:
    """Whether a value is a tensor of torch."""
    return hasattr(value, "detach") and hasattr(value, "grad_fn") and not hasattr(value, "batch_sizes")


def is_real(tensor: Any) -> bool:
    """Whether there are derivatives by it that gradscope can use."""
    return bool(tensor.is_floating_point())


def same(one: Any, other: Any) -> bool:
    """Whether two tensors are real numbers and the same ones."""
    torch = importlib.import_module("torch")
    return is_real(one) and one.shape == other.shape and one.numel() > 0 and bool(torch.equal(one, other))


def copied(module: Any) -> Any:
    """A copy of a module; tensors that it keeps are taken out of the graph that they were made in."""
    memo = {
        id(value): value.detach().clone()
        for part in module.modules()
        for value in vars(part).values()
        if is_tensor(value) and value.grad_fn is not None
    }
    return copy.deepcopy(module, memo)


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

    @property
    def states(self) -> list[list[Any]]:
        """Of every part of the state, what each call put out."""
        return [[_array(call.made[source]) for call in self._calls] for source in self._state.sources]

    def differentiate(self) -> OwnSteps:
        """See Derivatives."""
        first = self._calls[0]
        axes = [_batch_axis(self._inputs(first), first.made[s]) for s in self._state.sources]
        rows = [_rows(first.made[s], axis) for s, axis in zip(self._state.sources, axes, strict=True)]
        if len({row.shape[0] for row in rows}) != 1:
            raise InputError("its state has parts of as many sequences as not all have")
        self._check_alike()
        matrices = 1 + sum(parameter.ndim > 1 for parameter in self._module.parameters())
        size = sum(row.shape[1] for row in rows)
        check_jacobians(rows[0].shape[0], len(self._calls), matrices, size)
        with one_thread():
            stepped = self._stepper(axes)
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

    def _stepper(self, axes: Sequence[int | None]) -> Stepper:
        """In float64 where the module computes the same there, else in its own precision."""
        own = Stepper(self._module, self._state, axes)
        try:
            double = Stepper(doubled(self._module), self._state, axes, double=True)
            if all(double.repeats(call) for call in self._calls):
                return double
        except InputError:
            raise
        except Exception as error:  # the user's code may fail in any way in another dtype
            why = f"; in float64 it fails with {type(error).__name__}: {reason(error)}"
        else:
            why = ""
        try:
            whole = all(own.repeats(call) for call in self._calls)
        except Exception as error:
            raise InputError(
                f"cannot be called once more: {type(error).__name__}: {reason(error)}"
            ) from error
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


class Stepper:
    """Calls a module again. double : whether it was made one of float64."""

    def __init__(
        self, module: Any, state: Carried, axes: Sequence[int | None], *, double: bool = False
    ) -> None:
        self._torch = importlib.import_module("torch")
        self.module, self._state, self._axes, self._double = module, state, axes, double
        for parameter in module.parameters():
            parameter.requires_grad_(False)
        self._matrices = {id(p): _named(name) if p.ndim > 1 else "" for name, p in module.named_parameters()}
        self._matrices |= {id(buffer): "" for buffer in module.buffers()}
        self._split = True

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

    def made(self, call: StepCall) -> dict[Place, Any]:
        """What a call puts out, and what the module keeps then, by place."""
        with self._torch.no_grad():
            return self._made(self._run(self._given(call)))

    def along(self, calls: Sequence[StepCall]) -> Iterator[Linearised]:
        """Calls differentiated by the state that each is given: what the one before puts out here."""
        state = self._state_of(calls[0])
        for call in calls:
            new, found = self._linearised(call, state)
            yield found
            state = [one.detach().requires_grad_() for one in new]

    def _linearised(self, call: StepCall, state: Sequence[Any]) -> tuple[Sequence[Any], Linearised]:
        """The state after a call, and the call differentiated by that before it."""
        new, _ = self._after(call, state, cut=False)
        self._check_independent(new, state)
        paths = self._by_path(call, state, new) if self._split else None
        if paths is None:
            self._split = False
            paths = {DIRECT: self._derivatives(new, self._axes, state, self._axes)}
        return new, Linearised(self._joined(state), self._joined(new), paths)

    def _by_path(self, call: StepCall, state: Sequence[Any], whole: Sequence[Any]) -> dict[str, Array] | None:
        """By the matrix that the state goes through first; None where that does not come out whole.

        whole : the state after the call, with nothing cut.
        """
        new, products = self._after(call, state, cut=True)
        batch = len(_rows(state[0], self._axes[0]))
        axes = [_axis_of(batch, product.made) for product in products]
        if None in axes and batch > 1:
            return None
        reads = [product.read for product in products]
        inputs, all_axes = [*state, *reads], [*self._axes, *axes]
        columns = np.cumsum([0, *(_rows(t, a).shape[1] for t, a in zip(inputs, all_axes, strict=True))])
        size = int(columns[len(state)])
        direct = self._derivatives(new, self._axes, inputs, all_axes)
        paths = {DIRECT: direct[:, :, :size]}
        onward = {
            k: direct[:, :, columns[len(state) + k] : columns[len(state) + k + 1]] for k in range(len(reads))
        }
        for k in reversed(range(len(products))):
            made = self._derivatives([products[k].made], [axes[k]], inputs, all_axes)
            for j in range(k):
                part = made[:, :, columns[len(state) + j] : columns[len(state) + j + 1]]
                onward[j] = onward[j] + onward[k] @ part
            name = products[k].matrix
            paths[name] = paths.get(name, 0.0) + onward[k] @ made[:, :, :size]
        return paths if self._adds_up(whole, state, paths) else None

    def _adds_up(self, new: Sequence[Any], state: Sequence[Any], paths: Mapping[str, Array]) -> bool:
        """Whether a random row through the paths is that through the step as it is."""
        rows = np.random.default_rng(0).standard_normal(next(iter(paths.values())).shape[:2])
        return gap(rows, paths, self._row(new, rows, state)) <= SUM_ROUNDINGS * self.rounding

    def _check_independent(self, new: Sequence[Any], state: Sequence[Any]) -> None:
        """Raise InputError where what one sequence puts out depends on the state of another."""
        batch = len(_rows(state[0], self._axes[0]))
        size = sum(_rows(t, a).shape[1] for t, a in zip(state, self._axes, strict=True))
        if batch == 1:
            return
        rows = np.zeros((batch, size))
        rows[0] = np.random.default_rng(1).standard_normal(size)
        if self._row(new, rows, state)[1:].any():
            raise InputError("mixes the sequences of its batch: give a batch of one")

    def _row(self, new: Sequence[Any], rows: Array, state: Sequence[Any]) -> Array:
        """b^T J of every sequence, (B, m)."""
        widths = [_rows(t, a).shape[1] for t, a in zip(new, self._axes, strict=True)]
        parts = np.split(rows, np.cumsum(widths)[:-1], axis=1)
        outer = [
            _unrows(self._torch.as_tensor(part).to(t), t, axis)
            for part, t, axis in zip(parts, new, self._axes, strict=True)
        ]
        live = [(t, o) for t, o in zip(new, outer, strict=True) if t.requires_grad]
        if not live:
            return np.zeros(rows.shape)
        found = self._torch.autograd.grad(
            [t for t, _ in live], state, [o for _, o in live], retain_graph=True, allow_unused=True
        )
        filled = [self._torch.zeros_like(s) if g is None else g for g, s in zip(found, state, strict=True)]
        return self._joined(filled)

    def _derivatives(
        self,
        made: Sequence[Any],
        made_axes: Sequence[int | None],
        by: Sequence[Any],
        axes: Sequence[int | None],
    ) -> Array:
        """d(made)/d(by) of every sequence, (B, rows, columns)."""
        blocks = [[*self._block(one, axis, by, axes)] for one, axis in zip(made, made_axes, strict=True)]
        return np.concatenate([np.concatenate(row, axis=2) for row in blocks], axis=1)

    def _block(self, made: Any, axis: int | None, by: Sequence[Any], axes: Sequence[int | None]) -> Any:
        """d(made)/d(each of by), of every sequence."""
        torch = self._torch
        batch, count = _rows(made, axis).shape
        if not made.requires_grad:
            return [np.zeros((batch, count, _rows(t, a).shape[1])) for t, a in zip(by, axes, strict=True)]
        units = torch.eye(count, dtype=made.dtype, device=made.device)
        outer = _unrows(units[:, None].expand(count, batch, count), made, axis)
        try:
            found = torch.autograd.grad(
                made, by, outer, is_grads_batched=True, retain_graph=True, allow_unused=True
            )
        except RuntimeError:  # a function of the user's own that knows no vmap
            each = [torch.autograd.grad(made, by, one, retain_graph=True, allow_unused=True) for one in outer]
            found = [None if parts[0] is None else torch.stack(parts) for parts in zip(*each, strict=True)]
        blocks = []
        for grads, tensor, own in zip(found, by, axes, strict=True):
            if grads is None:
                blocks.append(np.zeros((batch, count, _rows(tensor, own).shape[1])))
            else:
                rows = grads[None] if own is None else grads.movedim(own + 1, 0)
                blocks.append(_array(rows.reshape(batch, count, -1)))
        return blocks

    def _after(self, call: StepCall, state: Sequence[Any], *, cut: bool) -> tuple[list[Any], list[Product]]:
        """The state after a call, and the products with matrices on the way."""
        with self._torch.enable_grad(), watching(self._matrices, cut=cut) as mode:
            made = self._made(self._run(self._given(call, state=state)))
        new = [made[source] for source in self._state.sources]
        if not cut and not any(one.requires_grad for one in new):
            raise InputError(
                "puts out a state that does not depend on the one before (it is detached, or computed under "
                "no_grad): no gradient goes from step to step"
            )
        return new, mode.products

    def _run(self, given: tuple[Any, Any, Mapping[str, Any]]) -> Any:
        """What a call puts out; given : the arguments, and what the module is to keep."""
        args, keywords, kept = given
        for name, tensor in kept.items():
            keep(self.module, name, tensor)
        return self.module(*args, **keywords)

    def _given(self, call: StepCall, generator: Any = None, state: Sequence[Any] | None = None) -> Any:
        """The arguments of a call, shaken by one rounding of their own dtype with a generator."""
        tensors = {}
        for place, tensor in call.given.items():
            part = self._state.places.get(place)
            given = tensor if state is None or part is None else state[part]
            if is_real(tensor) and given is tensor:
                given = self._shaken(tensor, generator)
            tensors[place] = given
        arguments = {place[1:]: t for place, t in tensors.items() if place[0] == ARGUMENTS}
        args, keywords = placed(call.arguments, arguments)
        return args, keywords, {place[1]: t for place, t in tensors.items() if place[0] == KEPT}

    def _shaken(self, tensor: Any, generator: Any) -> Any:
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
            found.setdefault(part, self._shaken(call.given[place], None).requires_grad_())
        return [found[part] for part in range(len(self._state.sources))]

    def _joined(self, parts: Sequence[Any]) -> Array:
        """(B, m) of the parts of a state."""
        return np.concatenate(
            [_array(_rows(t, axis)) for t, axis in zip(parts, self._axes, strict=True)], axis=1
        )


def kept_by(module: Any) -> dict[Place, Any]:
    """The real tensors that a module and those in it keep as attributes or buffers."""
    found = {}
    for path, part in module.named_modules():
        for name, value in (*vars(part).items(), *part._buffers.items()):
            if is_tensor(value) and is_real(value):
                found[KEPT, f"{path}.{name}".lstrip(".")] = value
    return found


def keep(module: Any, name: str, tensor: Any) -> None:
    """Set such a tensor."""
    path, _, attribute = name.rpartition(".")
    setattr(module.get_submodule(path), attribute, tensor)


def class_of(module: Any) -> str:
    """What the class of a module is called."""
    kinds = [kind for kind in type(module).__mro__ if kind.__module__ != "torch.nn.utils.parametrize"]
    return kinds[0].__name__


def _named(parameter: str) -> str:
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


def _axis_of(batch: int, tensor: Any) -> int | None:
    """The first axis of as many as there are sequences."""
    if batch == 1:
        return None
    return next((axis for axis, size in enumerate(tensor.shape) if size == batch), None)


def _rows(tensor: Any, axis: int | None) -> Any:
    """(B, numbers) of a tensor with the sequences along this axis."""
    if axis is None:
        return tensor.reshape(1, -1)
    moved = tensor.movedim(axis, 0)
    return moved.reshape(moved.shape[0], -1)


def _unrows(rows: Any, like: Any, axis: int | None) -> Any:
    """The inverse, in the shape of another tensor; of (..., B, numbers) for several at once."""
    lead = rows.shape[:-2]
    if axis is None:
        return rows.reshape(*lead, *like.shape)
    shape = [like.shape[axis], *(size for k, size in enumerate(like.shape) if k != axis)]
    return rows.reshape(*lead, *shape).movedim(len(lead), len(lead) + axis)


def _array(tensor: Any) -> Array:
    return np.asarray(tensor.detach().to("cpu").double())
