"""Values of an ONNX graph that are made of constants alone, computed as its operators say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gradscope.checkpoints.onnx.scopes import Scope
from gradscope.checkpoints.onnx.tensors import DTYPES
from gradscope.custom_types import Array
from gradscope.errors import InputError, quoted, reason
from gradscope.formats.budget import Budget

# No exporter makes a weight by a longer chain.
_DEEPEST = 32
Given = Sequence[Any]  # arrays, None for an input that is left out


class Constants:
    """The constants of a model's graphs, each computed once.

    read : the values of a tensor in the file, None of one of no known type; budget : what the rest may take.
    """

    def __init__(self, read: Callable[[Any], Array | None], budget: Budget) -> None:
        self._read = read
        self._budget = budget
        self._made: dict[tuple[Scope, str], Array | None] = {}
        self._leaves: dict[tuple[Scope, str], frozenset[str]] = {}

    def array(self, scope: Scope, name: str, depth: int = 0) -> Array | None:
        """The value of this name in a scope, None where it is not made of constants alone.

        Raises InputError where its operators do not fit their inputs, or it takes too much memory.
        """
        place = scope.find(name)
        if place not in self._made:
            self._made[place] = None  # what is made of itself is none
            self._compute(*place, depth)
        return self._made[place]

    def pay_copy(self, array: Array) -> None:
        """Draw for a copy as float64, which every operator makes of its own."""
        self._budget.draw(size=8 * array.size)

    def leaves(self, scope: Scope, name: str) -> frozenset[str]:
        """The names of the tensors in the file that a value was made of."""
        return self._leaves.get(scope.find(name), frozenset())

    def maker(self, scope: Scope, name: str) -> str:
        """What in the graph makes a value that is not constant."""
        where, own = scope.find(name)
        node = where.makers.get(own)
        return f"{quoted(own)} by {node.op_type}" if node else quoted(own)

    def _compute(self, where: Scope, own: str, depth: int) -> None:
        if own in where.tensors:
            self._made[where, own] = self._read(where.tensors[own])
            self._leaves[where, own] = frozenset({own})
            return
        node = where.makers.get(own)
        if node is None or node.domain not in ("", "ai.onnx") or node.op_type not in _OPERATORS:
            return
        if depth >= _DEEPEST:
            return
        given = [self.array(where, name, depth + 1) if name else None for name in node.input]
        if any(name and array is None for name, array in zip(node.input, given, strict=True)):
            return
        how = _How(where.attributes(node), len(node.output), self._read, self._budget)
        try:
            with np.errstate(all="ignore"):
                made = _OPERATORS[node.op_type](given, how)
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"value {quoted(own)} by {node.op_type}: {reason(error)}: damaged") from error
        leaves = frozenset[str]().union(*(self.leaves(where, name) for name in node.input if name))
        for name, array in zip(node.output, made, strict=False):
            self._made[where, name] = array
            self._leaves[where, name] = leaves


@dataclass(frozen=True)
class _How:
    """What an operator is told besides its inputs: its attributes, and how many values it makes.

    read : as of Constants; budget : what its arrays may take.
    """

    options: Mapping[str, Any]
    count: int
    read: Callable[[Any], Array | None]
    budget: Budget

    def room(self, *shape: int) -> None:
        """Draw for an array that is about to be made."""
        self.budget.draw(size=8 * abs(math.prod(shape)))

    def whole(self, name: str, usual: int) -> int:
        """A whole number among the attributes."""
        return int(self.options[name].i) if name in self.options else usual


def _axes(given: Given, how: _How) -> tuple[int, ...] | None:
    """The axes that an operator names, as an attribute until opset 12, as an input since."""
    if len(given) > 1 and given[1] is not None:
        return tuple(map(int, given[1].ravel()))
    return tuple(how.options["axes"].ints) if "axes" in how.options else None


def _constant(given: Given, how: _How) -> Sequence[Any]:
    if "value_int" in how.options:
        return [np.array(how.options["value_int"].i, np.int64)]
    if "value_ints" in how.options:
        return [np.array(how.options["value_ints"].ints, np.int64)]
    if "value_float" in how.options:
        return [np.array(how.options["value_float"].f, np.float32)]
    return [np.array(how.options["value_floats"].floats, np.float32)]


def _unsqueeze(given: Given, how: _How) -> Sequence[Any]:
    axes = _axes(given, how)
    return [np.expand_dims(given[0], axes or ())]


def _squeeze(given: Given, how: _How) -> Sequence[Any]:
    return [np.squeeze(given[0], _axes(given, how))]


def _concat(given: Given, how: _How) -> Sequence[Any]:
    how.room(sum(array.size for array in given))
    return [np.concatenate(given, axis=how.options["axis"].i)]


def _slice(given: Given, how: _How) -> Sequence[Any]:
    data = given[0]
    if len(given) > 1:
        starts, ends, axes, steps = [*given[1:], None, None, None][:4]
    else:
        starts, ends = how.options["starts"].ints, how.options["ends"].ints
        axes, steps = (how.options["axes"].ints if "axes" in how.options else None), None
    axes = range(len(starts)) if axes is None else axes
    steps = [1] * len(starts) if steps is None else steps
    cut = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        # An end far below 0 is before the first, which Python says with None.
        before = step < 0 and end < -data.shape[int(axis)]
        cut[int(axis)] = slice(int(start), None if before else int(end), int(step))
    return [data[tuple(cut)]]


def _transpose(given: Given, how: _How) -> Sequence[Any]:
    return [np.transpose(given[0], list(how.options["perm"].ints) if "perm" in how.options else None)]


def _reshape(given: Given, how: _How) -> Sequence[Any]:
    data, keep = given[0], not how.whole("allowzero", 0)
    shape = [data.shape[k] if size == 0 and keep else int(size) for k, size in enumerate(given[1].ravel())]
    how.room(data.size)
    return [data.reshape(shape)]


def _flatten(given: Given, how: _How) -> Sequence[Any]:
    axis = how.whole("axis", 1) % (given[0].ndim + 1)
    how.room(given[0].size)
    return [given[0].reshape(math.prod(given[0].shape[:axis]), -1)]


def _cast(given: Given, how: _How) -> Sequence[Any]:
    how.room(given[0].size)
    return [given[0].astype(DTYPES[how.options["to"].i][0])]


def _split(given: Given, how: _How) -> Sequence[Any]:
    axis = how.whole("axis", 0)
    size = given[0].shape[axis]
    if len(given) > 1 and given[1] is not None:
        parts = [int(part) for part in given[1]]
    else:
        most = -(-size // how.count)
        parts = list(how.options["split"].ints) if "split" in how.options else [most] * how.count
    return np.split(given[0], np.cumsum(parts)[:-1], axis=axis)


def _gather(given: Given, how: _How) -> Sequence[Any]:
    axis, (data, index) = how.whole("axis", 0), given
    how.room(index.size, *map(int, np.delete(data.shape, axis)))
    return [np.take(data, index, axis=axis)]


def _expand(given: Given, how: _How) -> Sequence[Any]:
    shape = np.broadcast_shapes(given[0].shape, tuple(map(int, given[1])))
    how.room(*shape)
    return [np.broadcast_to(given[0], shape)]


def _filled(given: Given, how: _How) -> Sequence[Any]:
    shape = tuple(map(int, given[0]))
    how.room(*shape)
    fill = how.read(how.options["value"].t) if "value" in how.options else np.zeros(1, np.float32)
    return [np.full(shape, np.reshape(fill, ()))] if fill is not None else []


def _shape(given: Given, how: _How) -> Sequence[Any]:
    return [np.array(given[0].shape, np.int64)]


def _identity(given: Given, how: _How) -> Sequence[Any]:
    return [given[0]]


def _elementwise(function: Callable[[Any, Any], Any]) -> Callable[..., Sequence[Any]]:
    def apply(given: Given, how: _How) -> Sequence[Any]:
        how.room(*np.broadcast_shapes(given[0].shape, given[1].shape))
        return [function(*given)]

    return apply


def _along(part: Any, data: Any, how: _How) -> Any:
    """A scale or a zero point as it is spread over the array that it is of."""
    if part.ndim == 0 or part.size == 1:
        return part.reshape(())
    shape = [1] * data.ndim
    shape[how.whole("axis", 1)] = part.size
    return part.reshape(shape)


def _dequantize(given: Given, how: _How) -> Sequence[Any]:
    data, scale, *zero = given
    how.room(2, data.size)
    shifted = data.astype(np.float64)
    if zero and zero[0] is not None:
        shifted -= _along(zero[0], data, how).astype(np.float64)
    return [(shifted * _along(scale, data, how)).astype(scale.dtype)]


def _quantize(given: Given, how: _How) -> Sequence[Any]:
    data, scale, *zero = given
    how.room(2, data.size)
    point = zero[0] if zero and zero[0] is not None else np.zeros((), np.uint8)
    rounded = np.rint(data / _along(scale, data, how)) + _along(point, data, how).astype(np.float64)
    limits = np.iinfo(point.dtype)
    return [np.clip(rounded, limits.min, limits.max).astype(point.dtype)]


_OPERATORS: dict[str, Callable[..., Sequence[Any]]] = {
    "Add": _elementwise(np.add),
    "Cast": _cast,
    "Concat": _concat,
    "Constant": _constant,
    "ConstantOfShape": _filled,
    "DequantizeLinear": _dequantize,
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Identity": _identity,
    "Mul": _elementwise(np.multiply),
    "QuantizeLinear": _quantize,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Sub": _elementwise(np.subtract),
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
