"""A cell whose derivatives something else has computed along its states: they are part of what it reads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from gradscope.cells.cell import Cell, unit_cell
from gradscope.cells.factors import with_factors
from gradscope.cells.given_steps import given_steps
from gradscope.cells.units import Parameters

Rows = tuple[tuple[str, tuple[int, ...]], ...]


def given_rows(cell: Cell, hidden: int, input_size: int, gates: tuple[str, ...]) -> Rows:
    """What it reads beside x_t, in its order: names and shapes.

    Of units (components, n) slopes of the core by the own state and by each pre-activation; of another cell
    "input", (m, d), and each path's (m, m); then the ``gates``, (n,) each.
    """
    units, m = cell.units, cell.size(hidden)
    rows: list[tuple[str, tuple[int, ...]]]
    if units is not None:
        names = sorted({*units.gates, *(name for name, _ in units.weights)})
        own = ["(own)"] if units.own else []
        rows = [(name, (len(cell.components), hidden)) for name in (*own, *names)]
    else:
        rows = [("(input)", (m, input_size)), ("(paths)", (max(1, len(cell.paths)), m, m))]
    return (*rows, *((f"(gate) {gate}", (hidden,)) for gate in gates))


def rows_of(x: Any, input_size: int, rows: Rows) -> tuple[Any, dict[str, Any]]:
    """x_t (d,), and the rest of what such a cell is given, (d + all rows,), by name."""
    found, start = {}, input_size
    for name, shape in rows:
        found[name] = x[start : (start := start + math.prod(shape))].reshape(shape)
    return x[:input_size], found


@cache
def given_slopes(cell: Cell, hidden: int, input_size: int, gates: tuple[str, ...]) -> Cell:
    """The linear cell whose input is x_t and then ``given_rows``: its derivatives are these, at any state.

    The network whose they are goes along ``System.states``, through which these steps need not lead.
    Cached, so that what is compiled serves the next one like it.
    """
    rows = given_rows(cell, hidden, input_size, gates)
    made = _of_units(cell, input_size, rows) if cell.units else _dense(cell, hidden, input_size, rows)
    return replace(made, given=True, adds=None)


def _of_units(cell: Cell, input_size: int, rows: Rows) -> Cell:
    units = cell.units
    assert units is not None
    names = [name for name, shape in rows if len(shape) > 1 and name != "(own)"]

    def drive(params: Parameters, x: Any) -> dict[str, Any]:
        x, given = rows_of(x, input_size, rows)
        slopes = {
            f"{name} {k}": slope
            for name, each in given.items()
            if each.ndim > 1
            for k, slope in enumerate(each)
        }
        return {**units.drive(params, x), **slopes, **{k: g for k, g in given.items() if g.ndim == 1}}

    def core(own: Any, pre: Mapping[str, Any], _: Any) -> Any:
        new = [sum(pre[f"{name} {k}"] * pre[name] for name in names) for k in range(len(cell.components))]
        if units.own:
            new = [one + pre[f"(own) {k}"] * own for k, one in enumerate(new)]
        return tuple(new), {
            name.removeprefix("(gate) "): pre[name] for name, shape in rows if len(shape) == 1
        }

    squash = None if units.squash is None else _held(units.squash)
    known = replace(units, drive=drive, core=core, constants=(), squash=squash)
    return with_factors(unit_cell(cell.name, known, cell.parameters, cell.components), cell.factors)


def _dense(cell: Cell, hidden: int, input_size: int, rows: Rows) -> Cell:
    parts = tuple((name, part.stop - part.start) for name, part in cell.extents(hidden).items())
    steps = given_steps(cell.name, cell.paths, parts)

    def step(params: Parameters, x: Any, copies: Any) -> Any:
        x, given = rows_of(x, input_size, rows)
        return given["(input)"] @ x + steps.step(params, given["(paths)"], copies)

    def gates(_: Parameters, x: Any, __: Any) -> dict[str, Any]:
        given = rows_of(x, input_size, rows)[1]
        return {k.removeprefix("(gate) "): gate for k, gate in given.items() if gate.ndim == 1}

    return replace(cell, step=step, gates=gates if cell.gates else None, factors=())  # these have them


@cache
def _held(squash: Any) -> Any:
    """The same function; its slope at infinity is that at a number whose cube is finite."""
    import jax
    import jax.numpy as jnp

    @jax.custom_jvp
    def held(c: Any) -> Any:
        return squash(c)

    @held.defjvp
    def _(primals: Any, tangents: Any) -> Any:
        (c,) = primals
        most = 2.0 ** (math.log2(float(np.finfo(c.dtype).max)) // 3)
        return squash(c), jax.jvp(squash, (jnp.clip(c, -most, most),), tangents)[1]

    return held
