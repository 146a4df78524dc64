"""A layer of Keras step by recorded step: called again, and differentiated by the backend that it runs on."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gradscope.checkpoints.calls import rounding
from gradscope.checkpoints.carried import ARGUMENTS, OUTPUT, Carried, StepCall, leaves
from gradscope.checkpoints.derivatives import Derivatives, OwnSteps
from gradscope.checkpoints.pure_steps import Engine, PureSteps
from gradscope.custom_types import Array
from gradscope.errors import InputError, reason

# Backends of Keras whose derivatives are taken.
BACKENDS = ("jax", "torch", "tensorflow")
# Of the largest number: what steps one by one and all at once may differ by, in eps.
_APART_EPS = 1e4
_RANDOM = (
    "puts out something else when it is called once more on the same: it draws random numbers, in use too, "
    "or keeps a state where that is not seen"
)
# arguments, {by name} -> what a layer puts out.
Run = Callable[..., Any]


def is_keras_tensor(keras: Any, value: Any) -> bool:
    """Whether a value is an array of Keras' backend, or of NumPy."""
    return isinstance(value, np.ndarray) or bool(keras.ops.is_tensor(value))


class KerasSteps(Derivatives):
    """Of a layer that is called step by step, each time on the state that it put out.

    layer : whose variables are its weights; run : calls it; calls, state : as for TorchSteps.
    """

    by = "keras"

    def __init__(self, keras: Any, layer: Any, run: Run, calls: Sequence[StepCall], state: Carried) -> None:
        self.kind = type(layer).__name__
        self._keras, self._layer, self._run = keras, layer, run
        self._calls, self._state = calls, state

    def weights(self) -> dict[str, Array]:
        """See Derivatives."""
        return _weights_of(self._keras, self._layer)

    @property
    def states(self) -> list[list[Array]]:
        """Of every part of the state, what each call put out."""
        return [
            [_array(self._keras, call.made[source]) for call in self._calls] for source in self._state.sources
        ]

    def differentiate(self) -> OwnSteps:
        """See Derivatives."""
        return self._stepped().differentiate()

    def second_call(self) -> tuple[int, Callable[..., Any], Mapping[str, Any], Any] | None:
        """See Derivatives."""
        return self._stepped().second_call()

    def _stepped(self) -> Derivatives:
        return by_backend(self._keras, self._layer, self._run, self._calls, self._state)


@dataclass(frozen=True)
class Loop:
    """What an RNN has run over a batch, tensors of Keras.

    sequences : (B, T, d) as given; states, after : nested lists; outputs : (B, T, n) in the order in which it
        reads, or (B, 1, n); mask : (B, T) as given, None where it reads every step.
    """

    sequences: Any
    states: Any
    mask: Any
    outputs: Any
    after: Any


class KerasSequence(Derivatives):
    """Of an RNN, whose cell is called again for every step.

    loops : of every call of it; put_out : what it has put out itself, in its own order.
    """

    by = "keras"

    def __init__(self, keras: Any, layer: Any, loops: Sequence[Loop], put_out: Sequence[Any]) -> None:
        self.kind = _kind(layer)
        self.backward = bool(layer.go_backwards)
        self._keras, self._layer, self._loops, self._put_out = keras, layer, loops, put_out

    def weights(self) -> dict[str, Array]:
        """See Derivatives."""
        return _weights_of(self._keras, self._layer)

    def differentiate(self) -> OwnSteps:
        """See Derivatives."""
        if len(self._loops) != 1:
            raise InputError(
                f"is called {len(self._loops)} times in the forward pass, and call 2 does not start from the "
                "state where the one before ended: expected one call; record the part of the model that "
                "makes one, or choose other layers with --layer"
            )
        (loop,) = self._loops
        for numbers in self._keras.tree.flatten((loop.sequences, loop.states, loop.after)):
            if not np.isfinite(self._array(numbers)).all():
                raise InputError("reads or puts out numbers that are not finite")
        with quietly(self._keras, self._layer):
            calls, state, run = self._stepped(loop)
        steps = by_backend(self._keras, self._layer.cell, run, calls, state).differentiate()
        if loop.mask is None:
            return steps
        return _unmasked(steps, self._array(loop.mask).astype(bool), backward=self.backward)

    def _stepped(self, loop: Loop) -> tuple[list[StepCall], Carried, Run]:
        """One call a step, each on the state that the one before put out, if they are the sequence."""
        keras, tree = self._keras, self._keras.tree
        size = loop.sequences.shape[1]
        order = range(size)[::-1] if self.backward else range(size)
        states, count = loop.states, len(tree.flatten(loop.states))
        held: tuple[Any, Any] = ((None, tree.map_structure(lambda _: None, states), None), {})
        run, calls = _cell_step(keras, self._layer.cell, None), []
        for step in order:
            mask = None if loop.mask is None else keras.ops.cast(loop.mask[:, step], "bool")
            args = (loop.sequences[:, step], states, mask)
            try:
                out, after = run(*args)
                again = run(*args)
            except InputError:
                raise
            except Exception as error:  # the user's code may fail in any way
                what = f"{type(error).__name__}: {reason(error)}"
                raise InputError(f"is a recurrence whose cell alone fails with {what}") from error
            if not all(map(self._equal, [out, *after], tree.flatten(again))):
                raise InputError(_RANDOM)
            given = dict(leaves((args, {}), lambda v: is_keras_tensor(keras, v), (ARGUMENTS,)))
            made = {(OUTPUT, 0): out} | {(OUTPUT, 1, k): part for k, part in enumerate(after)}
            calls.append(StepCall(held, given, made))
            states = tree.pack_sequence_as(states, list(after))
        self._check(loop, calls, states)
        output = self._output(loop, calls, count)
        sources = tuple((OUTPUT, 0) if k == output else (OUTPUT, 1, k) for k in range(count))
        if output is not None:
            calls = [replace(c, made={**c.made, (OUTPUT, 0): c.made[OUTPUT, 1, output]}) for c in calls]
        places = dict(leaves((None, loop.states), lambda v: is_keras_tensor(keras, v), (ARGUMENTS, 0)))
        state = Carried(sources, {place: k for k, place in enumerate(places)})
        return calls, state, _cell_step(keras, self._layer.cell, output)

    def _check(self, loop: Loop, calls: Sequence[StepCall], states: Any) -> None:
        """Raise InputError where the steps end elsewhere than the layer, or put out something else."""
        pairs = [*zip(*map(self._keras.tree.flatten, (states, loop.after)), strict=True)]
        if loop.outputs.shape[1] == len(calls):
            kept = self._kept(loop, len(calls))
            pairs += [
                (call.made[OUTPUT, 0][kept[:, t]], loop.outputs[:, t][kept[:, t]])
                for t, call in enumerate(calls)
            ]
        if not all(self._near(ours, theirs) for ours, theirs in pairs):
            raise InputError(
                "computes something else than its cell does step by step: it has a loop of its own"
            )

    def _kept(self, loop: Loop, steps: int) -> Array:
        """(B, T), in the order in which it reads: which steps are not masked."""
        if loop.mask is None:
            return np.ones((loop.sequences.shape[0], steps), bool)
        mask = self._array(loop.mask).astype(bool)
        return mask[:, ::-1] if self.backward else mask

    def _output(self, loop: Loop, calls: Sequence[StepCall], count: int) -> int | None:
        """Which part of the state the layer puts out, None where it is another number."""
        kept = self._kept(loop, len(calls))
        for k in range(count):
            parts = [call.made[OUTPUT, 1, k] for call in calls]
            same = all(
                self._equal(call.made[OUTPUT, 0][kept[:, t]], part[kept[:, t]])
                for t, (call, part) in enumerate(zip(calls, parts, strict=True))
            )
            if same and self._is_put_out(parts, kept):
                return k
        return None

    def _is_put_out(self, parts: Sequence[Any], kept: Array) -> bool:
        """Whether what the layer has put out itself is that part of the state."""
        out = self._put_out[0] if self._put_out else None
        if out is None or out.ndim not in (parts[0].ndim, parts[0].ndim + 1):
            return False
        if out.ndim == parts[0].ndim:
            whole = kept[:, -1]
            return out.shape == parts[-1].shape and self._near(out[whole], parts[-1][whole])
        if out.shape[1] != len(parts):
            return False
        pairs = ((out[:, t][kept[:, t]], part[kept[:, t]]) for t, part in enumerate(parts))
        return all(one.shape == other.shape and self._near(one, other) for one, other in pairs)

    def _equal(self, one: Any, other: Any) -> bool:
        return np.array_equal(self._array(one), self._array(other))

    def _near(self, one: Any, other: Any) -> bool:
        eps = max(rounding(self._keras.backend.standardize_dtype(value.dtype)) for value in (one, other))
        ours, theirs = self._array(one), self._array(other)
        largest = np.abs(theirs).max(initial=0.0)
        apart = np.abs(ours - theirs).max(initial=0.0) if ours.shape == theirs.shape else np.inf
        return bool(apart <= _APART_EPS * eps * largest)

    def _array(self, value: Any) -> Array:
        return _array(self._keras, value)


def _array(keras: Any, value: Any) -> Array:
    return np.asarray(keras.ops.convert_to_numpy(value), np.float64)


def _kind(layer: Any) -> str:
    cell = layer.cell
    named = type(layer).__name__
    return type(cell).__name__ if named == "RNN" else named


def _cell_step(keras: Any, cell: Any, output: int | None) -> Run:
    """A step of an RNN, (x, states, mask) -> (output, the states flat), not in training.

    mask : (B,), None where every sequence goes on; output : which of the states it is, None for the cell's.
    """
    options = {"training": False} if getattr(cell, "_call_has_training_arg", False) else {}

    def step(x: Any, states: Any, mask: Any = None) -> tuple[Any, list[Any]]:
        out, after = cell(x, states, **options)
        before, new = keras.tree.flatten(states), keras.tree.flatten(after)
        if len(new) != len(before):
            raise InputError(f"has a cell that is given {len(before)} states and puts out {len(new)}")
        if mask is not None:
            new = [
                keras.ops.where(keras.ops.reshape(mask, (-1, *[1] * (one.ndim - 1))), one, was)
                for one, was in zip(new, before, strict=True)
            ]
        return out if output is None else new[output], new

    return step


def _unmasked(steps: OwnSteps, mask: Array, *, backward: bool) -> OwnSteps:
    """The same without the steps at which nothing changes. mask : (B, T), as given."""
    if mask.all():
        return steps
    kept = mask[:, ::-1] if backward else mask
    counts = kept.sum(axis=1)
    if not counts.all():
        raise InputError(f"is masked at every step of sequence {int(np.argmin(counts))}")
    order = np.argsort(~kept, axis=1, kind="stable")[:, : counts.max()]
    jacobians = np.take_along_axis(steps.jacobians, order[:, :, None, None, None], axis=1)
    states = np.take_along_axis(steps.states, order[:, :, None], axis=1)
    over = np.arange(counts.max()) >= counts[:, None]
    states = np.where(over[:, :, None], steps.states[:, -1:], states)
    states = np.concatenate([states, steps.states[:, -1:]], axis=1)
    lengths = None if counts.min() == counts.max() else tuple(map(int, counts))
    return replace(steps, jacobians=jacobians, states=states, lengths=lengths, mask=mask)


@contextmanager
def quietly(keras: Any, layer: Any) -> Iterator[None]:
    """Within, calls keep no graph, and what they do to variables is undone."""
    variables = [*layer.variables]
    before = [keras.ops.copy(variable.value) for variable in variables]
    torch = importlib.import_module("torch") if keras.backend.backend() == "torch" else None
    try:
        with torch.no_grad() if torch else _precisely():
            yield
    finally:
        for variable, value in zip(variables, before, strict=True):
            variable.assign(value)


def _precisely() -> Any:
    return importlib.import_module("jax").default_matmul_precision("highest")


def _weights_of(keras: Any, layer: Any) -> dict[str, Array]:
    """The real weights of a layer."""
    real = keras.backend.is_float_dtype
    return {v.path: _array(keras, v.value) for v in layer.weights if real(v.dtype)}


def by_backend(keras: Any, layer: Any, run: Run, calls: Sequence[StepCall], state: Carried) -> Derivatives:
    """The steps of a layer by the backend that it runs on."""
    names = _names([variable.path for variable in layer.variables])
    if (backend := keras.backend.backend()) == "jax":
        from gradscope.checkpoints.jax.derivatives import Jax

        steps: Derivatives = _by_engine(Jax(), keras, layer, run, names, calls, state)
    elif backend == "tensorflow":
        from gradscope.checkpoints.tensorflow.derivatives import TensorFlow

        steps = _by_engine(TensorFlow(), keras, layer, run, names, calls, state)
    elif backend == "torch":
        steps = _by_torch(keras, layer, run, names, calls, state)
    else:
        raise InputError(
            f"runs on Keras' {backend} backend, of which gradscope takes no derivatives: run it with "
            f"KERAS_BACKEND={' or '.join(BACKENDS)}"
        )
    return steps


def _by_engine(
    engine: Engine,
    keras: Any,
    layer: Any,
    run: Run,
    names: Sequence[str],
    calls: Sequence[StepCall],
    state: Carried,
) -> Derivatives:
    def call(weights: Sequence[Any], args: Sequence[Any], keywords: Mapping[str, Any]) -> Any:
        with having(keras, layer, weights):
            return run(*args, **keywords)

    numbers = keras.ops.convert_to_numpy
    weights = {name: numbers(v.value) for name, v in zip(names, layer.variables, strict=True)}
    calls = [
        replace(one, given=_mapped(numbers, one.given), made=_mapped(numbers, one.made)) for one in calls
    ]
    return PureSteps(engine, "keras", "", call, weights, calls, state, fed_back=False)


def _mapped(function: Callable[[Any], Any], values: Mapping[Any, Any]) -> dict[Any, Any]:
    return {key: function(value) for key, value in values.items()}


def _by_torch(
    keras: Any, layer: Any, run: Run, names: Sequence[str], calls: Sequence[StepCall], state: Carried
) -> Derivatives:
    from gradscope.checkpoints.torch.steps import TorchSteps

    torch = importlib.import_module("torch")

    class Pure(torch.nn.Module):  # type: ignore[name-defined, misc]
        """The layer with its weights as parameters of a module of torch, which may be copied."""

        def __init__(self) -> None:
            super().__init__()
            for name, variable in zip(names, layer.variables, strict=True):
                value = variable.value.detach().clone()
                self.register_parameter(name, torch.nn.Parameter(value, requires_grad=False))

        def forward(self, *args: Any, **keywords: Any) -> Any:
            with having(keras, layer, [self._parameters[name] for name in names]):
                return run(*args, **keywords)

    return TorchSteps(Pure(), "", calls, state, fed_back=False)


@contextmanager
def having(keras: Any, layer: Any, values: Sequence[Any]) -> Iterator[None]:
    """Within, the variables of a layer have these values; float64 where they are, in all that it does."""
    double = any(keras.backend.standardize_dtype(value.dtype) == "float64" for value in values)
    pairs = [*zip(layer.variables, values, strict=True)]
    with _doubled(keras, layer) if double else nullcontext(), keras.StatelessScope(state_mapping=pairs):
        yield


@contextmanager
def _doubled(keras: Any, layer: Any) -> Iterator[None]:
    """Within, a layer computes in float64, which Keras makes float32 of by itself."""
    parts = [layer, *layer._flatten_layers(include_self=False)]
    before = [(part, "_dtype_policy", part._dtype_policy) for part in parts]
    before += [(v, "_dtype", v._dtype) for v in layer.variables if keras.backend.is_float_dtype(v._dtype)]
    usual, policy = keras.config.floatx(), keras.dtype_policies.DTypePolicy("float64")
    made_of = getattr(sys.modules.get("keras.src.backend.common.dtypes"), "BIT64_TO_BIT32_DTYPE", {})
    narrow = dict(made_of)
    try:
        keras.config.set_floatx("float64")
        made_of["float64"] = "float64"
        for owner, name, _ in before:
            setattr(owner, name, "float64" if name == "_dtype" else policy)
        yield
    finally:
        keras.config.set_floatx(usual)
        made_of.update(narrow)
        for owner, name, was in before:
            setattr(owner, name, was)


def _names(paths: Sequence[str]) -> list[str]:
    """Short names of variables: their paths without what all of them begin with."""
    parts = [path.split("/") for path in paths if "seed_generator" not in path]
    shared = 0
    while len({tuple(p[: shared + 1]) for p in parts}) == 1 and min(map(len, parts)) > shared + 1:
        shared += 1
    names: list[str] = []
    for path in paths:
        name = path if "seed_generator" in path else "/".join(path.split("/")[shared:])
        names.append(name if name not in names else f"{name}_{len(names)}")
    return names
