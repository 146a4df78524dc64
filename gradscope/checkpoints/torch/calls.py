"""Calls of PyTorch's recurrent modules, as hooks see them."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gradscope.checkpoints.calls import ModuleCall
from gradscope.custom_types import Array
from gradscope.errors import InputError, quoted

_CALLED = "a layer is recorded where it is called as torch's own, (input, state)"


def call_of(
    args: Sequence[Any], keywords: Mapping[str, Any], output: Any, *, cell: bool, batch_first: bool
) -> ModuleCall:
    """What a module was called with and put out; raises InputError where that is not as torch's own do."""
    given = args[0] if args else keywords.get("input")
    state = args[1] if len(args) > 1 else keywords.get("hx")
    out, end = (output[0], output if cell else output[1]) if _is_pair(output) else (output, None)
    inputs, lengths, single = _sequence(given, "reads", cell=cell, batch_first=batch_first)
    outputs, *_ = _sequence(out, "puts out", cell=cell, batch_first=batch_first)
    if outputs.shape[:2] != inputs.shape[:2]:
        raise InputError(
            f"reads {inputs.shape[:2]} sequences and steps and puts out {outputs.shape[:2]}, expected as many"
        )
    after = _states(out if cell and end is None else end, cell=cell, single=single)
    return ModuleCall(
        inputs,
        outputs,
        _states(state, cell=cell, single=single),
        after,
        lengths,
        eps_of(out.data if hasattr(out, "batch_sizes") else out),
        _nodes([given]),
        _nodes([output]),
    )


def _is_pair(output: Any) -> bool:
    return isinstance(output, tuple) and len(output) == 2 and not hasattr(output, "_fields")


def _sequence(
    value: Any, does: str, *, cell: bool, batch_first: bool
) -> tuple[Array, tuple[int, ...] | None, bool]:
    """(B, T, d), the lengths, and whether it was a sequence alone."""
    lengths = None
    if hasattr(value, "batch_sizes"):  # a PackedSequence
        unpack = importlib.import_module("torch.nn.utils.rnn").pad_packed_sequence
        value, counts = unpack(value, batch_first=True)
        lengths, batch_first = tuple(map(int, counts)), True
        lengths = None if min(lengths) == max(lengths) else lengths
    elif not hasattr(value, "detach"):
        raise InputError(f"{does} {quoted(value)}, expected a tensor or a PackedSequence: {_CALLED}")
    array = _array(value)
    axes = 1 if cell else 2
    if array.ndim not in (axes, axes + 1) or 0 in array.shape:
        raise InputError(f"{does} a tensor of shape {array.shape}, expected {axes} or {axes + 1} axes")
    single = array.ndim == axes
    if single:
        return (array[None, None] if cell else array[None]), None, True
    if cell:
        return array[:, None], None, False
    return (array if batch_first else array.swapaxes(0, 1)), lengths, False


def _states(state: Any, *, cell: bool, single: bool) -> tuple[Array, ...]:
    """h, and c of an LSTM, as (L, B, n); () where there are none."""
    if state is None:
        return ()
    parts = state if isinstance(state, tuple | list) else (state,)
    if not all(hasattr(part, "detach") for part in parts):
        raise InputError(f"has the state {quoted(state)}, expected a tensor or two: {_CALLED}")
    arrays = [_array(part) for part in parts]
    arrays = [a[None] if cell else a for a in arrays]
    arrays = [a[:, None] if single and a.ndim == 2 else a for a in arrays]
    if any(a.ndim != 3 for a in arrays):
        shapes = " and ".join(str(_array(part).shape) for part in parts)
        raise InputError(f"has a state of shape {shapes}, expected one of torch's own: {_CALLED}")
    return tuple(arrays)


def _array(tensor: Any) -> Array:
    """A copy in float64, before anything changes it in place."""
    array = np.asarray(tensor.detach().to("cpu").double()).copy()
    if not np.isfinite(array).all():
        raise InputError("reads or puts out numbers that are not finite")
    return array


def eps_of(tensor: Any) -> float:
    """The eps of the numbers that a tensor is computed with: torch.autocast rounds those of float32."""
    torch = importlib.import_module("torch")
    device, dtypes = tensor.device.type, [tensor.dtype]
    if tensor.dtype is torch.float32 and torch.is_autocast_enabled(device):
        dtypes.append(torch.get_autocast_dtype(device))
    return max(float(torch.finfo(dtype).eps) for dtype in dtypes)


def _nodes(values: Iterable[Any]) -> tuple[Any, ...]:
    """Where tensors, also within tuples, come from in the graph."""
    found: list[Any] = []
    for value in values:
        if isinstance(value, tuple | list):  # a PackedSequence too
            found += _nodes(value)
        elif (node := getattr(value, "grad_fn", None)) is not None:
            found.append(node)
    return tuple(found)


def reaches(start: Iterable[Any], wanted: Iterable[Any]) -> bool:
    """Whether the autograd graph leads from nodes back to any of others."""
    targets, seen = set(wanted), set[Any]()
    waiting = list(start) if targets else []
    while waiting:
        node = waiting.pop()
        if node in targets:
            return True
        if node not in seen:
            seen.add(node)
            waiting += [other for other, _ in node.next_functions if other is not None]
    return False
