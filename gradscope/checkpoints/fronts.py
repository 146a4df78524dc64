"""What may stand before a recurrent layer in a file of named tensors, which does not say what reads what."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from gradscope.checkpoints.adapters import with_adapters
from gradscope.checkpoints.found import Contents, Found
from gradscope.errors import InputError
from gradscope.formats.tensors import Tensors

# A vector of one number for every feature, as a norm's or a scaler's is; not biases, which heads have too.
_SCALE = re.compile(r"(.*[./_])?(weight|scale|gamma|mean|std|var|mu|sigma|min|max)(:0)?", re.S)
# What is added to every step, (..., T, d): pos_embedding, positional.weight, pe.
_POSITIONS = re.compile(r"(.*[./_])?(pos|pe|position(s|al)?|time)(_\w+)?([./](weight|pe))?(:0)?", re.S)
_KERNEL = re.compile(r"(.*[./])?kernel(:0)?", re.S)
_MOST_AXES = 5
# Shapes are told by reading: of more tensors, or bytes, nobody asks what stands before what.
_MOST, _MOST_BYTES = 4096, 2**28


def placed_in(contents: Contents, tensors: Tensors) -> Contents:
    """What a file holds, each layer with what by the other tensors the model may do around it."""
    layers = with_fronts(contents.layers, contents.others, tensors)
    return replace(contents, layers=with_adapters(layers, contents.others, tensors))


def with_fronts(layers: Sequence[Found], others: Sequence[str], tensors: Tensors) -> tuple[Found, ...]:
    """The layers, each with the tensors that may make as many features of its inputs as it reads.

    Such a Linear, convolution or norm is in the file before the layer, as torch keeps modules in the order in
    which they are made; in a file that is sorted by names, anywhere.
    """
    if not any(map(_untold, layers)):
        return tuple(layers)
    shapes = _shapes(others, tensors)
    at = {key: number for number, key in enumerate(tensors)}
    in_order = list(at) != sorted(at)
    return tuple(
        replace(layer, before=_before(layer, shapes, at if in_order else {})) if _untold(layer) else layer
        for layer in layers
    )


def _untold(layer: Found) -> bool:
    return layer.alone and layer.below == () and bool(layer.name) and layer.sizes is not None


def _before(layer: Found, shapes: Mapping[str, Sequence[int]], at: Mapping[str, int]) -> tuple[str, ...]:
    """The tensors on ways from the layer's input size round to itself; at : where in the file each is."""
    own, first = f"{layer.module}.", min((at[key] for key in layer.keys if key in at), default=len(at))
    edges = {
        name: edge
        for name, shape in shapes.items()
        if not name.startswith(own) and at.get(name, -1) < first and (edge := _edge(name, shape))
    }
    size = layer.sizes[1] if layer.sizes else 0
    ahead = _reached(size, edges.values())
    back = _reached(size, [(out, into) for into, out in edges.values()])
    return tuple(name for name, (into, out) in edges.items() if into in ahead and out in back)


def _edge(name: str, shape: Sequence[int]) -> tuple[int, int] | None:
    """How many features it reads and puts out, None of a tensor that does not look like a module's weight."""
    if len(shape) == 1:
        return (shape[0], shape[0]) if _SCALE.fullmatch(name) else None
    if not 2 <= len(shape) <= _MOST_AXES:
        return None
    if _POSITIONS.fullmatch(name):
        return shape[-1], shape[-1]
    return (shape[-2], shape[-1]) if _KERNEL.fullmatch(name) else (shape[1], shape[0])


def _reached(start: int, edges: Collection[tuple[int, int]]) -> set[int]:
    """The sizes that can be made of this one, and itself."""
    reached = {start}
    while new := {out for into, out in edges if into in reached} - reached:
        reached |= new
    return reached


def _shapes(names: Iterable[str], tensors: Tensors) -> dict[str, tuple[int, ...]]:
    shapes, left = dict[str, tuple[int, ...]](), _MOST_BYTES
    for name in list(names)[:_MOST]:
        left -= tensors[name].size
        if left < 0:
            break
        try:
            shapes[name] = tensors[name].load().shape
        except InputError:  # of no numbers
            continue
    return {name: shape for name, shape in shapes.items() if math.prod(shape)}
