"""Calls of the recurrent modules of a model, of any library, put together to the recordings of its layers."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import ml_dtypes
import numpy as np

from gradscope.checkpoints.found import Found
from gradscope.checkpoints.recording import Recorded, Recording
from gradscope.custom_types import Array
from gradscope.errors import InputError, counted, reason

_COLOURS = re.compile(r"\x1b\[[\d;]*m")
# One of every layer of a module, for each part of the state.
States = tuple[Sequence[Array] | Array, ...]


@dataclass(frozen=True)
class ModuleCall:
    """One call of a module, or several in a row that are one sequence.

    inputs : (B, T, d); outputs : (B, T, n), None where not every step is put out; last : (B, n), at the last
        step, where nothing else is.
    before, after : the states, (L, B, n) each, h and of an LSTM c, () where not given or not put out.
    lengths : (B,) or None; mask : (B, T), at which steps the state changes, None where at all.
    rounding : eps of the outputs' dtype; reads, makes : nodes of an autograd graph, where there is one.
    """

    inputs: Array
    outputs: Array | None
    before: States
    after: States
    lengths: tuple[int, ...] | None
    rounding: float
    reads: tuple[Any, ...] = ()
    makes: tuple[Any, ...] = ()
    mask: Array | None = None
    last: Array | None = None


@dataclass
class Heard:
    """What the hook on a module has noted: calls, or why one was none."""

    calls: list[ModuleCall] = field(default_factory=list)
    problem: str = ""

    def note(self, read: Callable[[], ModuleCall]) -> None:
        """What is wrong with a call must not end the forward pass of the others."""
        try:
            self.calls.append(read())
        except Exception as error:  # arrays of any kind, from code of any kind
            self.problem = self.problem or (str(error) if isinstance(error, InputError) else reason(error))


def run_failed(source: str, error: Exception, batch: str) -> InputError:
    """The error where a forward pass fails; batch : what the model is to be given."""
    why = f"{type(error).__name__}: {reason(Exception(_COLOURS.sub('', str(error))))}"
    return InputError(f"{source}: its forward pass fails on the batch ({why}): {batch}")


def recordings(
    layers: Sequence[Found],
    module_of: Callable[[Found], Any],
    heard: Mapping[Any, Heard],
    fed_back: Callable[[Any, ModuleCall], bool],
) -> Recorded:
    """The recordings of layers; what is wrong with one alone is a problem of it.

    module_of : the key of a layer's module in ``heard``; fed_back : whether what a module of several calls
        reads depends on what it put out before.
    """
    found, problems = dict[str, Recording](), dict[str, str]()
    for layer in layers:
        module = module_of(layer)
        if layer.problem or module not in heard:
            continue
        mates = [mate for mate in layers if module_of(mate) == module]
        try:
            call = _as_one_call(heard[module], mates)
            several = len(heard[module].calls) > 1
            found[layer.name] = replace(
                _recording(layer, mates, call), fed_back=several and fed_back(module, call)
            )
        except InputError as error:
            problems[layer.name] = str(error)
    return Recorded(found, problems)


def _as_one_call(heard: Heard, mates: Sequence[Found]) -> ModuleCall:
    """The calls of a module of these layers as one."""
    if heard.problem:
        raise InputError(heard.problem)
    if not heard.calls:
        raise InputError("is not called in the forward pass of the batch (compiled code calls no hooks)")
    return as_one_call(heard.calls, both_ways=any(mate.direction == "backward" for mate in mates))


def as_one_call(calls: Sequence[ModuleCall], *, both_ways: bool) -> ModuleCall:
    """The calls as one sequence; raises InputError unless each goes on from where the one before ended."""
    first, last = calls[0], calls[-1]
    if len(calls) == 1:
        return first
    for number, (one, following) in enumerate(itertools.pairwise(calls), 2):
        whole = all(call.lengths is None and call.mask is None for call in (one, following))
        if both_ways or not whole or not _goes_on(one.after, following.before):
            raise InputError(
                f"is called {len(calls)} times in the forward pass, and call {number} does not start from "
                "the state where the one before ended: expected one call, or one sequence in several; record "
                "the part of the model that makes one, or choose other layers with --layer"
            )
    outputs = [one.outputs for one in calls if one.outputs is not None]
    if len(outputs) < len(calls):
        raise InputError(f"is called {len(calls)} times and puts out last steps alone: expected every step")
    return ModuleCall(
        np.concatenate([one.inputs for one in calls], axis=1),
        np.concatenate(outputs, axis=1),
        first.before,
        last.after,
        None,
        max(one.rounding for one in calls),
        tuple(node for one in calls[1:] for node in one.reads),
        tuple(node for one in calls[:-1] for node in one.makes),
    )


def _goes_on(after: States, before: States) -> bool:
    if not 0 < len(after) == len(before):
        return False
    pairs = zip(itertools.chain(*after), itertools.chain(*before), strict=True)
    return all(np.array_equal(one, other) for one, other in pairs)


def reads_its_own(heard: Heard, pushed: Heard) -> bool:
    """Whether a module's inputs depend on its outputs at calls before.

    pushed : what was heard as all that it put out was changed.
    """
    pairs = zip(heard.calls[1:], pushed.calls[1:], strict=False)
    return len(heard.calls) != len(pushed.calls) or any(
        not np.array_equal(one.inputs, other.inputs) for one, other in pairs
    )


def finite_array(array: Array, axes: int) -> Array:
    """An array that a module was called with or put out; raises InputError if it is not of a layer's kind."""
    if array.ndim != axes or 0 in array.shape:
        raise InputError(f"is called with an array of shape {array.shape}, expected {axes} axes")
    if not np.isfinite(array).all():
        raise InputError("reads or puts out numbers that are not finite")
    return array


def rounding(dtype: str) -> float:
    """The eps of a dtype."""
    return float(ml_dtypes.finfo(dtype).eps)  # type: ignore[no-untyped-call]


def _recording(found: Found, mates: Sequence[Found], call: ModuleCall) -> Recording:
    """Of one layer; mates : all layers of its module."""
    depths, ways = sorted({mate.depth for mate in mates}), len({mate.direction for mate in mates})
    second = ways == 2 and found.direction == "backward"
    index, width = depths.index(found.depth) * ways + second, found.width or 0
    if call.outputs is not None and call.outputs.shape[2] != ways * width and found.depth == depths[-1]:
        raise InputError(f"puts out {counted(call.outputs.shape[2], 'feature')}, expected {ways} x {width}")
    if index >= len(mates):
        raise InputError("is one of several in a module, some of which read from the end and some not")
    names = ("h0", "c0") if found.label.startswith("lstm") else ("h0",)
    for states in (call.before, call.after):
        if states and (len(states) != len(names) or any(len(state) != len(mates) for state in states)):
            raise InputError(f"has {len(states)} states of {len(states[0])} layers, expected {len(names)}")
    top = found.depth == depths[-1]
    if not (top or call.after):
        raise InputError("is within a module that puts out no last states, with which it could be compared")
    here = slice(width, None) if second else slice(width)
    return without_masked(
        Recording(
            inputs=None if found.depth > depths[0] else call.inputs,
            outputs=call.outputs[:, :, here] if top and call.outputs is not None else None,
            state={name: state[index] for name, state in zip(names, call.before, strict=False)},
            last=_last(call, index, top=top),
            lengths=call.lengths,
            rounding=call.rounding,
            mask=call.mask,
            backward=found.direction == "backward",
        )
    )


def _last(call: ModuleCall, index: int, *, top: bool) -> Array | None:
    """The output at the last step: of a module's topmost layer what it put out, whatever its state is."""
    if top and call.last is not None:
        return call.last
    return call.after[0][index] if call.after else None


def without_masked(one: Recording) -> Recording:
    """A recording without the steps at which its mask leaves the state as it is."""
    if one.mask is None or one.mask.all():
        return replace(one, mask=None)
    counts = one.mask.sum(axis=1)
    if not counts.all():
        raise InputError(f"is masked at every step of sequence {int(np.argmin(counts))}")
    order = np.argsort(~one.mask, axis=1, kind="stable")[:, : counts.max(), None]

    def left(array: Array | None) -> Array | None:
        return None if array is None else np.take_along_axis(array, order, axis=1)

    same = counts.min() == counts.max()
    lengths = None if same else tuple(map(int, counts))
    return replace(one, inputs=left(one.inputs), outputs=left(one.outputs), lengths=lengths)
