"""The graded form P = X^T diag(d) Y on a device: LU of its rows, batched, without a decision on the rank."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from gradscope.compiled_svd.numbers import inverse_of, largest, permuted_by, power_of_two
from gradscope.product_svd.graded_lu import NEGLIGIBLE_BITS, SUSPECT

# Rows of the strips in which N is multiplied with where only what is beside its diagonal matters; strips
# where all of it does.
_BLOCK = 64
_STRIPS = 4


class Form(NamedTuple):
    """A batch of graded products, see product_svd.graded_lu.Graded: arrays (B, m, m), (B, m), (B, m)."""

    x: Any
    mantissa: Any
    exponent: Any
    y: Any


class Pivoted(NamedTuple):
    """LU of sorted rows: ``lower`` is L^T in the order of the states, ``upper`` U and what is below it.

    order : of the rows; mantissa, exponent : of the new d; weight : log2 of the sizes of d_i rows_i, falling;
    worst : (B,) the smallest pivot relative to its column.
    """

    lower: Any
    upper: Any
    order: Any
    old: tuple[Any, Any]
    mantissa: Any
    exponent: Any
    weight: Any
    worst: Any


def pivoted(form: Form, rows: Any, after: Any, *, lazily: bool = True) -> Pivoted:
    """LU of the rows, largest first (Tomas, Chang, Scalettar, Bai 2012).

    after : (B, m) exponents by which the columns of the rows are scaled: columns scaled apart have pivots
        apart, and noise is small for its own column; lazily : whether to look whether that matters, for which
        an accelerator waits for the host.
    """
    size = largest(rows)
    weight = jnp.log2(size) + jnp.log2(jnp.abs(form.mantissa)) + form.exponent
    order = jnp.argsort(-weight, axis=-1)
    lu, swaps, _ = lax.linalg.lu(jnp.swapaxes(_taken(rows, order), 1, 2))
    permutation = permuted_by(swaps)
    mantissa, exponent, weight, size = (
        jnp.take_along_axis(a, order, -1) for a in (form.mantissa, form.exponent, weight, size)
    )
    pivots = jnp.diagonal(lu, axis1=1, axis2=2)
    worst = jnp.abs(pivots / size).min(axis=-1)
    apart = (after.max() != after.min()) & (worst < SUSPECT).any()
    scaled = partial(_worst_by_scale, rows, order, pivots, permutation, after)
    if lazily:
        worst = lax.cond(apart, lambda: jnp.maximum(worst, scaled()), lambda: worst)
    else:
        worst = jnp.where(apart, jnp.maximum(worst, scaled()), worst)
    new, carried = jnp.frexp(mantissa * pivots)
    lower = jnp.tril(lu, -1) + jnp.eye(rows.shape[-1])
    lower = jnp.swapaxes(_taken(lower, inverse_of(permutation)), 1, 2)
    worst = jnp.where(jnp.isnan(worst), 0.0, worst)
    return Pivoted(lower, lu, order, (mantissa, exponent), new, exponent + carried, weight, worst)


def _worst_by_scale(rows: Any, order: Any, pivots: Any, permutation: Any, after: Any) -> Any:
    """The smallest pivot relative to its column where the columns are brought to one scale."""
    scale = power_of_two(after - after.max(axis=-1, keepdims=True))
    size = jnp.take_along_axis(largest(rows / scale[:, None]), order, -1)
    return jnp.abs(pivots / jnp.take_along_axis(scale, permutation, -1) / size).min(axis=-1)


def multiplied_by_n(found: Pivoted, other: Any, *, whole: bool = False) -> Any:
    """N other, N = D_new^-1 U D unit upper triangular, without what is negligible of it.

    whole : in one product, zeros and all.
    """
    rows, m = _taken(other, found.order), other.shape[1]
    if whole or m <= _BLOCK:
        return rows + _n(found.upper, found.old, (found.mantissa, found.exponent)) @ rows
    if m <= 2 * _BLOCK:
        return rows + _times_triangle(found, rows)
    return rows + lax.cond(_narrow(found), _times_band, _times_triangle, found, rows)


def _n(upper: Any, old: tuple[Any, Any], new: tuple[Any, Any]) -> Any:
    """Rows of N from their diagonal on, without it; mantissas and exponents of d by columns and by rows."""
    (m_old, e_old), (m_new, e_new) = old, new
    apart = e_old[..., None, :] - e_new[..., None]
    n = upper * (m_old[..., None, :] / m_new[..., None]) * power_of_two(apart)
    above = jnp.arange(upper.shape[-2])[:, None] < jnp.arange(upper.shape[-1])
    # What is negligible must not become denormal, which takes a hundred times as long.
    return jnp.where(above & (apart > -2 * NEGLIGIBLE_BITS), n, 0.0)


def _narrow(found: Pivoted) -> Any:
    """Whether of all of the batch only the blocks of N on and next to the diagonal are not negligible."""
    lowest = jnp.log2(jnp.abs(found.mantissa)) + found.exponent
    m = lowest.shape[-1]
    cuts = range(0, m - 2 * _BLOCK, _BLOCK)
    each = [
        found.weight[:, i + 2 * _BLOCK] < lowest[:, i : i + _BLOCK].min(-1) - NEGLIGIBLE_BITS for i in cuts
    ]
    return jnp.stack(each).all()


def _times_band(found: Pivoted, rows: Any) -> Any:
    """N without its diagonal times rows, by strips that are two blocks wide."""
    return _times_strips(found, rows, _BLOCK, 2 * _BLOCK)


def _times_triangle(found: Pivoted, rows: Any) -> Any:
    """The same by strips of rows, each from the diagonal on."""
    m = rows.shape[1]
    return _times_strips(found, rows, -(-m // _STRIPS), m)


def _times_strips(found: Pivoted, rows: Any, height: int, width: int) -> Any:
    """The same by strips of so many rows, each so wide from the diagonal on."""
    strips = []
    for i in range(0, rows.shape[1], height):
        down, along = slice(i, i + height), slice(i, i + width)
        old, new = (a[:, along] for a in found.old), (found.mantissa[:, down], found.exponent[:, down])
        strips.append(_n(found.upper[:, down, along], tuple(old), new) @ rows[:, along])
    return jnp.concatenate(strips, axis=1)


def _taken(rows: Any, order: Any) -> Any:
    return jnp.take_along_axis(rows, order[..., None], 1)
