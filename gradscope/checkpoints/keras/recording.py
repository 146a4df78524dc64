"""One forward pass of a Keras model, in which its recurrent layers note what they read and put out."""

from __future__ import annotations

import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from gradscope.checkpoints.calls import (
    Heard,
    ModuleCall,
    States,
    finite_array,
    reads_its_own,
    recordings,
    rounding,
    run_failed,
)
from gradscope.checkpoints.found import Found
from gradscope.checkpoints.keras.own import OwnNotes, is_candidate, with_own_layers
from gradscope.checkpoints.recording import Recorded
from gradscope.custom_types import Array
from gradscope.errors import InputError, quoted

_BATCH = (
    "batch is what the model is called with: an array, a list or a dict of them, or a dict of its call's "
    "arguments by name"
)
_CALLED = "a layer is recorded where it is called as Keras' own, (sequences) or (inputs, states)"


def keras_recorded(
    source: str,
    model: Any,
    batch: Any,
    layers: Sequence[Found],
    owners: Mapping[str, Any],
    places: Mapping[str, Any],
) -> tuple[tuple[Found, ...], Recorded]:
    """The layers of a model with those that Keras differentiates, and what they do as it runs over a batch.

    It does not run as in training. owners : of every path of weights the RNN that has them, or the cell that
    is in none; places : by path every layer of the model. Raises InputError where the forward pass fails.
    """
    keras = package_of(model)
    if not hasattr(keras, "ops"):
        raise InputError(f"{source}: is a model of Keras 2, expected one of Keras 3 to run on a batch")
    theirs = {layer.name: owner for layer in layers if (owner := owners.get(path_of(layer))) is not None}
    steps = {path: layer for path, layer in places.items() if is_candidate(layer)}

    def run(pushed: int | None = None, pushed_path: str = "") -> tuple[dict[int, Heard], OwnNotes]:
        notes = _Notes(keras, {id(owner): Heard() for owner in theirs.values()}, pushed)
        own = OwnNotes(keras, steps, pushed_path)
        loops = [owner for owner in theirs.values() if hasattr(owner, "inner_loop")]
        try:
            with (
                _as_before(keras, model),
                _line_by_line(keras),
                listening(theirs.values(), "call", notes.call),
                listening(loops, "inner_loop", notes.inner_loop),
                own.listening(listening),
            ):
                _run(model, batch)
        except Exception as error:  # the user's code may fail in any way
            raise run_failed(source, error, _BATCH) from error
        return notes.heard, own

    heard, own = run()
    recorded = recordings(
        layers,
        lambda layer: id(theirs.get(layer.name)),
        heard,
        lambda module, _: reads_its_own(heard[module], run(module)[0][module]),
    )
    paths = {id(layer): path for path, layer in reversed(steps.items())}

    def owner_of(layer: Found) -> str:
        return paths.get(id(theirs.get(layer.name)), "")

    return with_own_layers(
        keras, layers, recorded, owner_of, lambda path: run(pushed_path=path)[1] if path else own
    )


def path_of(found: Found) -> str:
    """The path of the weights of a layer."""
    return found.keys[0].rpartition("/")[0] if found.keys else ""


def package_of(model: Any) -> Any:
    """The package that a model is of."""
    names = [kind.__module__.split(".")[0] for kind in type(model).__mro__]
    return sys.modules[next(name for name in names if name in ("keras", "tf_keras"))]


def _run(model: Any, batch: Any) -> None:
    known = inspect.signature(model.call).parameters
    if isinstance(batch, dict) and batch and batch.keys() <= known.keys():
        model(**batch, training=False)
    else:
        model(batch, training=False)


@contextmanager
def _as_before(keras: Any, model: Any) -> Iterator[None]:
    """Within, the model may move its variables, such as seeds and the states of stateful layers."""
    states = (getattr(layer, "states", None) for layer in model._flatten_layers())
    moving = [*model.non_trainable_variables, *keras.tree.flatten([one for one in states if one])]
    before = [(variable, keras.ops.copy(variable.value)) for variable in moving]
    try:
        yield
    finally:
        for variable, value in before:
            variable.assign(value)


@contextmanager
def _line_by_line(keras: Any) -> Iterator[None]:
    """Within, loops have values at every step, no graph is kept, and float32 is float32."""
    with ExitStack() as within:
        if keras.config.backend() == "jax":
            jax = importlib.import_module("jax")
            within.enter_context(jax.disable_jit())
            within.enter_context(jax.default_matmul_precision("highest"))
        elif keras.config.backend() == "torch":
            within.enter_context(importlib.import_module("torch").no_grad())
        yield


@contextmanager
def listening(
    layers: Iterable[Any], method: str, note: Callable[[Any, inspect.BoundArguments, Any], Any]
) -> Iterator[None]:
    """Within, a method of layers ends in ``note(layer, arguments, output)``, which returns that."""

    def wrapped(layer: Any) -> Callable[..., Any]:
        own = getattr(layer, method)

        @functools.wraps(own)
        def heard(*args: Any, **keywords: Any) -> Any:
            output = own(*args, **keywords)
            return note(layer, inspect.signature(own).bind(*args, **keywords), output)

        return heard

    before: list[tuple[dict[str, Any], Any]] = []
    try:
        for layer in {id(layer): layer for layer in layers}.values():
            mine, method_now = vars(layer), vars(layer).get(method)
            mine[method] = wrapped(layer)
            before.append((mine, method_now))
        yield
    finally:
        for mine, method_before in before:
            del mine[method]
            if method_before is not None:
                mine[method] = method_before


@dataclass
class _Notes:
    """What is noted of a pass.

    heard : by the id of a layer or cell; pushed : that of the one whose outputs are changed on their way.
    states : of an RNN, before and after the loop that it has just run.
    """

    keras: Any
    heard: dict[int, Heard]
    pushed: int | None = None
    states: dict[int, tuple[Any, Any]] = field(default_factory=dict)

    def inner_loop(self, layer: Any, given: inspect.BoundArguments, output: Any) -> Any:
        """Of an RNN, which is given its states and gives them back whatever it puts out."""
        copy = partial(self.keras.tree.map_structure, lambda x: np.array(self.keras.ops.convert_to_numpy(x)))
        self.states[id(layer)] = (copy(given.arguments.get("initial_state")), copy(output[2]))
        return output

    def call(self, layer: Any, given: inspect.BoundArguments, output: Any) -> Any:
        """Of an RNN or a cell."""
        read = self._sequence if hasattr(layer, "cell") else self._step
        self.heard[id(layer)].note(partial(read, layer, given.arguments, output))
        return self._push(output) if self.pushed == id(layer) else output

    def _push(self, output: Any) -> Any:
        return self.keras.tree.map_structure(
            lambda x: x + x / 16 + 1 / 16 if self.keras.backend.is_float_dtype(x.dtype) else x, output
        )

    def _sequence(self, layer: Any, arguments: Mapping[str, Any], output: Any) -> ModuleCall:
        given = next(iter(arguments.values()), None)
        known = self.states.pop(id(layer), None)
        out, *rest = output if layer.return_state else [output]
        before, after = known or (arguments.get("initial_state"), rest or None)
        inputs, out, mask = self._array(given, 3), self._array(out, 2 + layer.return_sequences), None
        if arguments.get("mask") is not None:
            mask = np.asarray(self._array(arguments["mask"], 2), bool)
        last = None if layer.return_sequences or layer.zero_output_for_mask else out
        if layer.return_sequences and layer.go_backwards:
            out = out[:, ::-1]
        several = hasattr(layer.cell, "cells")
        return ModuleCall(
            inputs,
            out if layer.return_sequences else None,
            self._states(before, several=several),
            self._states(after, several=several),
            None,
            self._rounding(output),
            mask=mask,
            last=last,
        )

    def _step(self, layer: Any, arguments: Mapping[str, Any], output: Any) -> ModuleCall:
        given, states, *_ = [*arguments.values(), None, None]
        if not (isinstance(output, tuple | list) and len(output) == 2):
            raise InputError(f"puts out {quoted(output)}, expected an output and states: {_CALLED}")
        out, after = output
        return ModuleCall(
            self._array(given, 2)[:, None],
            self._array(out, 2)[:, None],
            self._states(states),
            self._states(after),
            None,
            self._rounding(output),
        )

    def _states(self, states: Any, *, several: bool = False) -> States:
        """h, and c of an LSTM, of every cell; () where there are none."""
        if states is None:
            return ()
        cells = states if several else [states]
        cells = [cell if isinstance(cell, tuple | list) else [cell] for cell in cells]
        if len({len(cell) for cell in cells}) != 1:
            raise InputError("has cells of different numbers of states, expected them alike")
        arrays = [[self._array(state, 2) for state in cell] for cell in cells]
        return tuple(zip(*arrays, strict=True))

    def _array(self, value: Any, axes: int) -> Array:
        """A copy in float64."""
        if not hasattr(value, "shape"):
            raise InputError(f"is called with {quoted(value)}, expected an array: {_CALLED}")
        array = np.array(self.keras.ops.convert_to_numpy(value), np.float64)
        return finite_array(array, axes)

    def _rounding(self, output: Any) -> float:
        out = self.keras.tree.flatten(output)[0]
        return rounding(self.keras.backend.standardize_dtype(out.dtype))
