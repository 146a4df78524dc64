"""CellSteps of the cells of JAX's libraries, whatever loop, scan or vmap they are called in."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.custom_batching import custom_vmap

from gradscope.checkpoints.calls import (
    Heard,
    ModuleCall,
    as_one_call,
    finite_array,
    reads_its_own,
    recordings,
    rounding,
    run_failed,
)
from gradscope.checkpoints.found import Found
from gradscope.checkpoints.recording import Recorded, turned_within
from gradscope.errors import InputError


def call_model(model: Any, batch: Any) -> Any:
    """What a model makes of a batch: an argument, a tuple of them, or a dict of them by name."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, tuple | list) else model(batch)


def recorded_steps(
    source: str,
    layers: Sequence[Found],
    listening: Callable[[CellSteps], AbstractContextManager[Callable[[], Any]]],
    batch: str,
) -> Recorded:
    """What the cells of a model read and put out in a forward pass.

    listening : within it steps are noted, and what it yields is the forward pass; batch : what that takes,
        in words. Raises InputError where the pass fails.
    """
    backward = [layer.name for layer in layers if layer.direction == "backward"]

    def run(pushed: str | None = None) -> dict[str, Heard]:
        steps = CellSteps({layer.name: layer.dtype for layer in layers if not layer.problem}, pushed)
        try:
            with listening(steps) as forward, line_by_line():
                forward()
        except Exception as error:  # the user's code may fail in any way
            raise run_failed(source, error, batch) from error
        return steps.heard(backward)

    heard = run()
    return recordings(
        layers,
        lambda layer: layer.name,
        heard,
        lambda name, _: reads_its_own(heard[name], run(name)[name]),
    )


@contextmanager
def line_by_line() -> Iterator[None]:
    """Within, JAX runs Python line by line: the body of a scan is called at every step."""
    with jax.disable_jit(), jax.default_matmul_precision("highest"):
        yield


@contextmanager
def wrapped(
    classes: Iterable[type], method: str, hear: Callable[[Any, Callable[..., Any], Any, Any], Any]
) -> Iterator[None]:
    """Within, calling a method of these very classes is ``hear(instance, method, arguments, keywords)``.

    The method that ``hear`` is given is bound, and that of the class; a subclass is another class.
    """
    own = {kind: getattr(kind, method) for kind in classes}
    before = {kind: vars(kind).get(method) for kind in own}

    def wrap(kind: type, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def heard(self: Any, *args: Any, **keywords: Any) -> Any:
            if type(self) is not kind:  # by super()
                return function(self, *args, **keywords)
            return hear(self, functools.partial(function, self), args, keywords)

        return heard

    try:
        for kind, function in own.items():
            type.__setattr__(kind, method, wrap(kind, function))
        yield
    finally:
        for kind, function in before.items():
            if function is None:
                type.__delattr__(kind, method)
            else:
                type.__setattr__(kind, method, function)


class Stacked(NamedTuple):
    """What a cell puts out in a scan of its library, which stacks it over time: its output, and all else."""

    given_out: Any
    inputs: Any
    output: Any
    before: tuple[Any, ...]
    after: tuple[Any, ...]


@dataclass(frozen=True)
class _Scan:
    """A scan over a cell that runs: its number, the lengths of its sequences, the cell that stacks, or ""."""

    number: int
    lengths: Any
    stacks: str


@dataclass
class CellSteps:
    """What the cells of a model do in one pass.

    weights : of every cell's name, the dtypes of its weights; pushed : the cell whose outputs are changed on
        their way.
    """

    weights: Mapping[str, str]
    pushed: str | None = None
    _found: list[tuple[str, int, ModuleCall]] = field(default_factory=list)
    _problems: dict[str, str] = field(default_factory=dict)
    _rounding: dict[str, float] = field(default_factory=dict)
    _scans: list[_Scan] = field(default_factory=list)
    _count: int = 0

    @contextmanager
    def scan(self, lengths: Any, stacks: str) -> Iterator[None]:
        """Within, the steps of a cell are one sequence.

        lengths : (B,), None where all have T; stacks : the cell that puts out Stacked, in a compiled scan.
        """
        with ExitStack() as within:
            if stacks:
                within.enter_context(jax.disable_jit(False))
            self._scans.append(_Scan(self._next(), lengths, stacks))
            within.callback(self._scans.pop)
            yield

    def step(
        self,
        name: str,
        inputs: Any,
        before: Sequence[Any],
        output: Any,
        after: Sequence[Any],
        result: Any,
        dtype: Any = None,
    ) -> Any:
        """Note a step, and give back what the cell is to put out, (carry, output).

        before, after : states, h first; result : what it has put out; dtype : what it says to compute in.
        """
        arrays = (inputs, output, *before, *after)
        if not all(getattr(array, "ndim", 0) for array in arrays):
            self.fail(name, "is called with something else than arrays (..., n)")
            return result
        self._rounding[name] = self._unit(name, inputs, before, output, dtype)
        scan = self._scans[-1] if self._scans else None
        result = jax.tree.map(_push, result) if name == self.pushed else result
        if scan and scan.stacks == name:
            return result[0], Stacked(result[1], inputs, output, tuple(before), tuple(after))
        number, lengths = (scan.number, scan.lengths) if scan else (self._next(), None)
        self._note(name, number, [jax.numpy.expand_dims(array, -2) for array in arrays], lengths)
        return result

    def stacked(self, name: str, stack: Stacked, lengths: Any, *, time_major: bool, turned: bool) -> None:
        """Note a scan; turned : whether its outputs have been put back into the order that was given."""
        values = [stack.inputs, stack.output, *stack.before, *stack.after]
        if time_major:
            values = [jax.numpy.moveaxis(value, 0, -2) for value in values]
        self._note(name, self._next(), values, lengths, turned=turned)

    def fail(self, name: str, why: str) -> None:
        """Note why a cell cannot be recorded."""
        self._problems.setdefault(name, why)

    def _unit(self, name: str, inputs: Any, before: Sequence[Any], output: Any, dtype: Any) -> float:
        """The coarsest rounding in a step: what is multiplied has the finer of two dtypes."""
        weights = max(map(rounding, self.weights[name].split(", ")))
        met = [rounding(str(value.dtype)) for value in (inputs, *before) if is_float(value)]
        own = [] if dtype is None else [rounding(str(jax.numpy.dtype(dtype)))]
        return max(rounding(str(output.dtype)), *own, *(min(weights, one) for one in met))

    def _next(self) -> int:
        self._count += 1
        return self._count

    def _note(
        self, name: str, number: int, values: Sequence[Any], lengths: Any, *, turned: bool = False
    ) -> None:
        """values : inputs, output, states before and as many after, (..., T, n) each."""

        def keep(arrays: Sequence[Any]) -> None:
            call = _call(arrays, len(values), turned=turned)
            self._found.append((name, number, replace(call, rounding=self._rounding[name])))

        try:
            _seen(keep, [*values, *([] if lengths is None else [lengths])])
        except Exception as error:  # arrays of any kind
            self.fail(name, str(error))

    def heard(self, backward: Collection[str]) -> dict[str, Heard]:
        """What was noted of each cell, the steps of a sequence as one call, of some from its end."""
        found = {name: Heard(problem=self._problems.get(name, "")) for name in self.weights}
        sequences: dict[tuple[str, int], list[ModuleCall]] = {}
        for name, number, call in self._found:
            sequences.setdefault((name, number), []).append(call)
        for (name, _), calls in sequences.items():
            found[name].note(functools.partial(_sequence, calls, backward=name in backward))
        return found


def _call(arrays: Sequence[Any], parts: int, *, turned: bool) -> ModuleCall:
    """The call of arrays (..., T, n), of which the last may be the lengths, in the order that was read."""
    values = [np.array(array, np.float64) for array in arrays[:parts]]
    values = [finite_array(value.reshape(-1, *value.shape[-2:]), 3) for value in values]
    if len({len(value) for value in values}) > 1:
        raise InputError(f"has arrays of {[len(v) for v in values]} sequences, expected as many in each")
    lengths = tuple(int(n) for array in arrays[parts:] for n in np.ravel(array)) or None
    if turned:
        values = [turned_within(value, lengths) for value in values]
    inputs, outputs, *states = values
    half = len(states) // 2
    before, after = [state[:, 0] for state in states[:half]], [state[:, -1] for state in states[half:]]
    return ModuleCall(
        inputs,
        outputs,
        tuple(state[None] for state in before),
        tuple(state[None] for state in after),
        lengths,
        1.0,
    )


def _sequence(calls: Sequence[ModuleCall], *, backward: bool) -> ModuleCall:
    """The steps of one sequence, from those in the order in which they were read."""
    lengths = calls[0].lengths
    whole = as_one_call([replace(call, lengths=None) for call in calls], both_ways=False)
    if lengths is not None and min(lengths) < whole.inputs.shape[1]:
        whole = replace(whole, lengths=lengths, after=())  # those of the padding
    if not backward or whole.outputs is None:
        return whole
    outputs = turned_within(whole.outputs, whole.lengths)
    return replace(whole, inputs=turned_within(whole.inputs, whole.lengths), outputs=outputs)


def _seen(keep: Callable[[Sequence[Any]], None], values: Sequence[Any]) -> None:
    """Call ``keep`` with the values, of a vmap with all that it maps over, its axis the first."""
    if not any(isinstance(value, jax.core.Tracer) for value in values):
        keep(values)
        return

    @custom_vmap
    def pass_on(*inner: Any) -> tuple[Any, ...]:
        return inner

    @pass_on.def_vmap
    def every(size: int, mapped: Sequence[bool], *inner: Any) -> Any:
        whole = [
            value if is_mapped else jax.numpy.broadcast_to(value, (size, *jax.numpy.shape(value)))
            for value, is_mapped in zip(inner, mapped, strict=True)
        ]
        _seen(keep, whole)
        return tuple(whole), tuple(True for _ in whole)

    pass_on(*values)


def _push(value: Any) -> Any:
    return value + value / 16 + 1 / 16 if is_float(value) else value


def is_float(value: Any) -> bool:
    """Whether an array holds real numbers."""
    return bool(jax.numpy.issubdtype(value.dtype, jax.numpy.floating))
