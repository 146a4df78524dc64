"""Layers of a Keras model that are recurrent by what they do, as Keras itself differentiates them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gradscope.checkpoints.carried import ARGUMENTS, OUTPUT, StepCall, carried, leaves, placed, started
from gradscope.checkpoints.derivatives import Derivatives
from gradscope.checkpoints.found import Found
from gradscope.checkpoints.keras.steps import KerasSequence, KerasSteps, Loop, is_keras_tensor
from gradscope.checkpoints.own_modules import merged_modules
from gradscope.checkpoints.recording import Recorded
from gradscope.errors import InputError

# What the path of the cell of an RNN ends in.
OF_RNN = "/(cell)"


@dataclass
class OwnNotes:
    """What was noted of the layers of a model in one pass.

    layers : by path, those whose calls may be steps, and RNNs; pushed : that whose outputs are changed on
        their way; calls, loops, put_out : by path, of those called step by step, and of RNNs.
    """

    keras: Any
    layers: Mapping[str, Any]
    pushed: str = ""
    calls: dict[str, list[StepCall]] = field(default_factory=dict)
    loops: dict[str, list[Loop]] = field(default_factory=dict)
    put_out: dict[str, list[Any]] = field(default_factory=dict)
    lost: set[str] = field(default_factory=set)

    @contextmanager
    def listening(self, listening: Callable[..., AbstractContextManager[None]]) -> Iterator[None]:
        """Within, all of that is noted."""
        paths = {id(layer): path for path, layer in self.layers.items()}
        rnns = [layer for layer in self.layers.values() if hasattr(layer, "inner_loop")]
        with (
            listening(self.layers.values(), "call", lambda one, *what: self._call(paths[id(one)], *what)),
            listening(rnns, "inner_loop", lambda one, *what: self._loop(paths[id(one)], *what)),
        ):
            yield

    def _call(self, path: str, given: inspect.BoundArguments, output: Any) -> Any:
        """The call of a layer; what it is to put out."""
        if hasattr(self.layers[path], "cell"):
            self.put_out.setdefault(path, []).append(self._copy(_first(output)))
            return output
        try:
            self.calls.setdefault(path, []).append(self._step(given, output))
        except Exception:  # within a loop that is compiled there are no numbers
            self.lost.add(path)
        return self.keras.tree.map_structure(self._push, output) if path == self.pushed else output

    def _loop(self, path: str, given: inspect.BoundArguments, output: Any) -> Any:
        """The loop of an RNN, which puts out (last output, outputs, states)."""
        sequences, states, mask = (
            self._copy(given.arguments.get(name)) for name in ("sequences", "initial_state", "mask")
        )
        mask = mask[0] if isinstance(mask, list | tuple) else mask
        states = states if isinstance(states, list | tuple) else [states]
        found = Loop(sequences, _lists(states), mask, self._copy(output[1]), _lists(self._copy(output[2])))
        self.loops.setdefault(path, []).append(found)
        return output

    def _step(self, given: inspect.BoundArguments, output: Any) -> StepCall:
        arguments = (given.args, given.kwargs)
        tensors = dict(leaves(arguments, self._is_tensor, (ARGUMENTS,)))
        made = dict(leaves(output, self._is_tensor, (OUTPUT,)))
        inputs = {id(tensor) for tensor in tensors.values()}
        passed = frozenset(place for place, tensor in made.items() if id(tensor) in inputs)
        held = placed(arguments, dict.fromkeys(place[1:] for place in tensors))
        for tensor in (*tensors.values(), *made.values()):
            self.keras.ops.convert_to_numpy(tensor)
        read, out = ({place: self._copy(t) for place, t in some.items()} for some in (tensors, made))
        return StepCall(held, read, out, passed)

    def _is_tensor(self, value: Any) -> bool:
        return is_keras_tensor(self.keras, value)

    def _copy(self, value: Any) -> Any:
        copy = self.keras.ops.copy
        return self.keras.tree.map_structure(lambda x: copy(x) if self._is_tensor(x) else x, value)

    def _push(self, x: Any) -> Any:
        return x + x / 16 + 1 / 16 if self._is_tensor(x) and _is_real(self.keras, x) else x


def _first(output: Any) -> Any:
    return output[0] if isinstance(output, tuple | list) else output


def _lists(states: Any) -> list[Any]:
    """States in lists, of lists or of tensors."""
    return [_lists(state) if isinstance(state, tuple | list) else state for state in states]


def _is_real(keras: Any, x: Any) -> bool:
    return bool(keras.backend.is_float_dtype(keras.backend.standardize_dtype(x.dtype)))


def is_candidate(layer: Any) -> bool:
    """Whether the calls of a layer of Keras may be the steps of a recurrence, or it is an RNN."""
    cell = hasattr(layer, "state_size") or hasattr(layer, "inner_loop")
    return cell or (not _of_keras(layer) and bool(layer.variables))


def _of_keras(layer: Any) -> bool:
    return type(layer).__module__.split(".")[0] == "keras"


def with_own_layers(
    keras: Any,
    layers: Sequence[Found],
    recording: Recorded,
    owner_of: Callable[[Found], str],
    heard: Callable[[str], OwnNotes],
) -> tuple[tuple[Found, ...], Recorded]:
    """The layers of a model and their recording, with those that Keras differentiates.

    owner_of : the path of the RNN or cell that a layer is in; heard : the notes of a pass in which what the
        layer at a path puts out is changed, "" none.
    """
    notes = heard("")
    loops = {path: one for path, one in notes.layers.items() if path in notes.loops}
    sequences = {
        path: KerasSequence(keras, rnn, notes.loops[path], notes.put_out.get(path, ()))
        for path, rnn in loops.items()
    }
    within = {id(part) for rnn in loops.values() for part in rnn._flatten_layers(include_self=False)}
    steps: dict[str, Derivatives] = {}
    for path, calls in notes.calls.items():
        layer = notes.layers[path]
        if len(calls) > 1 and path not in notes.lost and id(layer) not in within:
            with suppress(InputError):
                steps[path.removesuffix(OF_RNN)] = _steps(keras, layer, path, calls, heard)
    kept, _ = merged_modules(layers, recording, steps, "/")
    for path, sequence in sequences.items():
        kept = _with_sequence(kept, recording, path, loops[path], sequence, owner_of)
    return tuple(_apart(kept)), replace(recording, own={**steps, **sequences})


def _with_sequence(
    layers: Sequence[Found],
    recording: Recorded,
    path: str,
    rnn: Any,
    sequence: KerasSequence,
    owner_of: Callable[[Found], str],
) -> tuple[Found, ...]:
    """The layers, with an RNN differentiated unless layers that are compared first are all of it."""
    mates = [one for one in layers if not one.derivatives and owner_of(one) == path]
    cells = getattr(rnn.cell, "cells", [rnn.cell])
    told = all(one.name in recording.layers and len(one.cells) == 1 for one in mates)
    if len(mates) == len(cells) and told and (len(cells) == 1 or all(map(_of_keras, cells))):
        return tuple(layers)
    said = tuple(dict.fromkeys(said for one in mates for said in one.not_applied))
    own = Found(path, {}, kind=sequence.kind, derivatives=sequence, not_applied=said)
    others = [own if mates and one is mates[0] else one for one in layers]
    others = [one for one in others if all(one is not mate for mate in mates)]
    return tuple(others) if mates else (*others, own)


def _apart(layers: Sequence[Found]) -> Iterator[Found]:
    """The layers, none of which reads one that is differentiated: it has its own inputs."""
    names = {one.name for one in layers if not one.derivatives}
    for one in layers:
        yield replace(one, below=None) if set(one.below or ()) - names else one


def _steps(
    keras: Any, layer: Any, path: str, calls: Sequence[StepCall], heard: Callable[[str], OwnNotes]
) -> KerasSteps:
    def same(one: Any, other: Any) -> bool:
        ours, theirs = (np.asarray(keras.ops.convert_to_numpy(x)) for x in (one, other))
        return _is_real(keras, one) and ours.size > 0 and np.array_equal(ours, theirs)

    state = carried(calls, same)
    pushed = heard(path).calls.get(path, [])
    held = [
        [tensor for place, tensor in call.given.items() if place not in state.places]
        for call in (*calls, *pushed)
    ]
    pairs = zip(held[1 : len(calls)], held[len(calls) + 1 :], strict=False)
    fed_back = any(not all(map(same, one, other)) for one, other in pairs)
    steps = KerasSteps(keras, layer, layer, started(calls, state, keras.ops.zeros_like), state)
    steps.fed_back = fed_back
    return steps
