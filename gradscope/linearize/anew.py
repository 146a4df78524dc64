"""Slopes along given states, computed anew with what the states have beside levels (see ``levels``)."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from gradscope.cells.cell import Cell
from gradscope.cells.notation import NAMELESS
from gradscope.cells.units import Parameters
from gradscope.compiled_svd.step_arrays import bucket
from gradscope.custom_types import Array
from gradscope.linearize import levels
from gradscope.linearize.beside import Parted, arithmetic_of, in_beside
from gradscope.linearize.beyond_range import dense_derivatives
from gradscope.linearize.jacobians import slopes
from gradscope.linearize.levels import Last
from gradscope.linearize.rests import walked
from gradscope.linearize.system import cast, precise
from gradscope.linearize.wide import Unbounded, UnknownOperationError
from gradscope.product_svd.extended_range_array import NOTHING, Wide
from gradscope.product_svd.steps import UnknownDigitsError

# Entries of weights, times steps, that are gone through in many digits sooner than a program is compiled:
# each takes some microseconds.
_ON_HOST = 100_000


def slopes_anew(
    cell: Cell,
    parameters: Mapping[str, Array],
    inputs: Array,
    states: Array,
    first: Last,
    between: Collection[str],
    unbounded: bool,
) -> tuple[dict[str, Any], Last]:
    """``paths`` as of ``linearize``, in float64 or, ``unbounded``, as ``Wide``; and the last state's rest.

    inputs : (T, d); states : (T + 1, m); first : the rest of the state before the first step, None where all
    its digits are its own; between : layers of a stack of which slopes by the input are wanted too. Raises
    UnknownOperationError where a cell does what ``wide`` has no rule for.
    """
    names = [member.name for member in cell.members] or [""]
    found, last = {}, {}
    with precise("float64"):
        every = layers_along(cell, *in_float64(parameters, inputs, states))
        for name, one in zip(names, every, strict=True):
            begins, read = (first or {}).get(name), name in between
            few = _in_digits(*one, read) if unbounded and begins is None else None
            found[name], last[name] = few or _along(*one, begins, read, unbounded)
    return (found if cell.members else found[""]["own"]), last


def read_by_others(cell: Cell, paths: Mapping[str, Any]) -> set[str]:
    """Layers of a stack that have slopes by the input, of ``paths`` as of ``linearize``."""
    return {name for name, each in paths.items() if cell.members and each["input"]}


def given(cell: Cell) -> bool:
    """Whether its slopes, or those of a layer of a stack, are part of what it reads."""
    return cell.given or any(member.cell.given for member in cell.members)


def in_float64(
    parameters: Mapping[str, Array], inputs: Array, states: Array
) -> tuple[dict[str, Any], Array, Array]:
    """All of them in float64."""
    return cast(parameters, "float64"), inputs.astype(np.float64), states.astype(np.float64)


def layers_along(
    cell: Cell, parameters: Mapping[str, Array], inputs: Array, states: Array
) -> Iterator[tuple[Cell, Parameters, Array, Array]]:
    """Each layer of a stack, or the cell itself: with its parameters, inputs and states."""
    if not cell.members:
        yield cell, parameters, inputs, states
        return
    outputs: dict[int, Any] = {}
    for j, member in enumerate(cell.members):
        extent = cell.extents(0)[member.name]
        yield (
            member.cell,
            member.own(parameters),
            member.input(inputs, outputs),
            states[:, extent],
        )
        outputs[j] = states[1:, member.output_in(extent.start)]


def _along(
    cell: Cell,
    parameters: Parameters,
    inputs: Array,
    states: Array,
    first: tuple[Array, Wide] | None,
    read: bool,
    unbounded: bool,
) -> tuple[dict[str, Any], tuple[Array, Wide]]:
    """Slopes of every path and step, of the input where it is ``read`` of a layer; and the last rest."""
    steps = len(inputs)
    missing = ((0, bucket(steps) - steps), (0, 0))  # what is compiled serves more lengths than this
    padded = (np.pad(part, missing, "edge") for part in (inputs, states))
    near, rest = first or _first(cell, states[0])
    begins = Parted(near, Unbounded(rest.mantissa, rest.exponent) if unbounded else rest.float64())
    found, left = jax.device_get(_of_steps(cell, read, parameters, *padded, begins))
    on_host: dict[str, Any] = jax.tree.map(lambda one: _on_host(one)[:steps], found, is_leaf=_is_unbounded)
    last = _on_host(left.rest)[steps - 1]
    return on_host, (left.whole[steps - 1], last if unbounded else Wide.of(last))


def _in_digits(
    cell: Cell, parameters: Parameters, inputs: Array, states: Array, read: bool
) -> tuple[dict[str, Any], tuple[Array, Wide]] | None:
    """The same of a small cell, on the host: a program that does it in seconds takes many to compile."""
    if len(inputs) * sum(map(np.size, parameters.values())) > _ON_HOST:
        return None
    from gradscope.linearize.layer_in_digits import LayerInDigits  # python-flint takes its time

    try:
        return LayerInDigits(cell, parameters, inputs, states, read).wide()
    except (UnknownDigitsError, UnknownOperationError):
        return None


def _first(cell: Cell, state: Array) -> tuple[Array, Wide]:
    near, rest = levels.beside_level(cell, state)
    return near, Wide.of(rest)


def _is_unbounded(value: Any) -> bool:
    return isinstance(value, Unbounded)


def _on_host(numbers: Any) -> Any:
    if not isinstance(numbers, Unbounded):
        return numbers
    zero = (numbers.p == 0) | (numbers.e <= NOTHING)
    return Wide(np.where(zero, 0.0, numbers.p), np.where(zero, NOTHING, numbers.e))


@partial(jax.jit, static_argnums=(0, 1))
def _of_steps(
    cell: Cell, read: bool, parameters: Parameters, inputs: Any, states: Any, first: Parted
) -> tuple[dict[str, Any], Parted]:
    """Of every step; and the states after each, of the kind of ``first``, which is that before them."""
    kind = arithmetic_of(first.rest)
    one = _units if cell.units is not None else _dense

    def take(weights: Any, x: Parted, before: Parted) -> tuple[Any, Parted]:
        own, entering, new = one(cell, weights, x, before)
        found = {"own": own, "input": entering if read else {}}
        return jax.tree.map(kind.total, found, is_leaf=lambda one: isinstance(one, Parted)), new

    return walked(take, parameters, inputs, states, first)


def _units(
    cell: Cell, weights: Any, x: Parted, before: Parted
) -> tuple[dict[str, Any], dict[str, Any], Parted]:
    own, entering, _, new = in_beside(partial(slopes, cell), weights, x, before)
    return own, entering, jax.tree.map(jnp.ravel, new)


def _dense(
    cell: Cell, weights: Any, x: Parted, before: Parted
) -> tuple[dict[str, Any], dict[str, Any], Parted]:
    kind, m = arithmetic_of(before.rest), before.whole.size

    def row(unit: Any) -> Any:
        given = (cell, weights, x, before, Parted(None, kind.of(unit)))
        by_input, by_path, new = dense_derivatives(in_beside, *given)
        return kind.total(by_input), kind.total(by_path), new

    # The terms of a product are held where they have exponents of their own.
    at_once = None if isinstance(before.rest, Unbounded) else m
    by_input, by_path, new = lax.map(row, jnp.eye(m), batch_size=at_once)
    paths = [jax.tree.map(lambda part, k=k: part[:, k], by_path) for k in range(max(1, len(cell.paths)))]
    own = {path: Parted(None, found) for path, found in zip(cell.paths or (NAMELESS,), paths, strict=True)}
    return own, {"input": Parted(None, by_input)}, jax.tree.map(lambda part: part[0], new)
