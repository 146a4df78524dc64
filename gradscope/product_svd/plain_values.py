"""The top values of several chains side by side, or of one, by their plain products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.arguments import window_of
from gradscope.product_svd.block_krylov import columns, top_values
from gradscope.product_svd.error_estimate import rounding_floor, rounding_of
from gradscope.product_svd.grown_rows import few_steps, grown
from gradscope.product_svd.operator import DenseOperator
from gradscope.product_svd.plain_product import (
    GOOD,
    Beside,
    InColumns,
    PlainProducts,
    error_of_noise,
    trusted,
)
from gradscope.product_svd.steps import WILD, Layout, Steps, checked, multiplied, multiplied_back

# Columns beyond those that a chain has for its values: passes over one matrix cost little, and are fewer.
_SPARE = 16
# From so many values on, and so many times those asked for, plain products are the sooner way to several.
_MANY, _TIMES = 64, 4


@dataclass(frozen=True)
class PlainValues:
    """log10, error : (k,) of the largest; left, right : vectors of the first; lags : (T,) log10 norms."""

    log10: Array
    error: Array
    left: Array
    right: Array
    lags: Array


def first_values(
    steps: Iterable[Beside], length: int, shape: tuple[int, int], entry_error: float, floor: float = -np.inf
) -> list[PlainValues | None]:
    """The largest value of each of P chains with every lag; None of those of which this is not sure.

    Vectors on the left are near it: rows that add nothing to the norms are shed.

    steps : the last one first; length : how many; shape : (P, m); entry_error, floor : as for ``spectrum``.
    """
    if few_steps(length, shape[1]):
        steps = list(steps)
        found = _of_few_steps(steps, shape, 1, entry_error)
        if found is not None:
            return found
    products = PlainProducts(length, shape, floor, norms=True)
    span = 0.0
    for step in steps:
        span = max(span, step.span)
        products.times(step)
        if not products.hopeful:
            return [None] * shape[0]
    if span >= WILD:
        return [None] * shape[0]
    entry_error = rounding_of(entry_error, span)
    sure = products.sure(entry_error)
    return [_first(products, p, entry_error) if sure[p] else None for p in range(shape[0])]


def values_of(
    steps: Steps,
    top: int,
    entry_error: float,
    floor: float = -np.inf,
    window: tuple[slice, slice] | None = None,
) -> PlainValues | None:
    """The ``top`` largest of one chain, or of a window of its product; None if any may not be right.

    entry_error : with what saturated units add, see ``rounding_of``.
    """
    size = len(steps.weights[0])
    parts, each = window_of(window, size), _alone(steps)
    if few_steps(len(steps), size, [len(range(size)[part]) for part in parts], top):
        each = iter(held := list(each))
        found = _of_few_steps(held, (1, size), top, entry_error, window, vectors=True)
        if found is not None and found[0] is not None:
            return found[0]
    products = PlainProducts(len(steps), (1, size), floor, window)
    for step in each:
        products.times(step)
        if not products.hopeful:
            return None
    if not products.sure(entry_error)[0]:
        return None
    first = _first(products, 0, entry_error)
    return first if top == 1 else _with_others(first, products, top, entry_error)


def few_of_many(count: int, top: int) -> bool:
    """Whether ``top`` of a chain's ``count`` values are found sooner by its plain product."""
    return count >= max(_MANY, _TIMES * top)


def _of_few_steps(
    steps: Sequence[Beside],
    shape: tuple[int, int],
    top: int,
    entry_error: float,
    window: tuple[slice, slice] | None = None,
    vectors: bool = False,
) -> list[PlainValues | None] | None:
    """The ``top`` largest of each chain from few rows; None of those of which this is not sure, or of all."""
    span = max(step.span for step in steps)
    found = None if span >= WILD else grown(steps, shape, top, window, vectors)
    if found is None:
        return None
    entry_error = rounding_of(entry_error, span)
    lags, noise, lacking = (
        np.array([getattr(one, each)[:, 0] for one in found]) for each in ("log10", "noise", "lacking")
    )
    last = found[-1]
    errors = error_of_noise(noise, entry_error) + lacking / np.log(10)
    sure = trusted(noise, errors)
    others = error_of_noise(last.noise, entry_error) + last.lacking / np.log(10)
    sure &= (others[:, 1:] <= GOOD).all(axis=1)
    floors = np.array([[rounding_floor(float(value), entry_error) for value in one] for one in last.log10])
    return [
        PlainValues(last.log10[p], others[p] + floors[p], last.left[p], last.right[p], lags[:, p])
        if sure[p]
        else None
        for p in range(shape[0])
    ]


@dataclass(frozen=True)
class _InBlocks:
    """See ``Beside``: a step of one chain whose parts have a layout."""

    parts: list[Array]
    layout: Layout
    span: float

    def times(self, y: Array, out: Array) -> None:
        """See ``Beside``."""
        multiplied(y, self.parts, self.layout, out)

    def back(self, x: Array) -> Array:
        """See ``Beside``."""
        return multiplied_back(x, self.parts, self.layout)

    @property
    def columns(self) -> Array:
        """See ``Beside``."""
        size = self.layout[1][-1][0].stop
        return np.asarray(np.linalg.norm(multiplied(np.eye(size), self.parts, self.layout), axis=0)[None])


def _alone(steps: Steps) -> Iterator[Beside]:
    layout = steps.source.layout
    for t in reversed(range(len(steps))):
        if layout is None:
            yield InColumns([part[None] for part in steps.parts(t)], steps.span)
        else:
            yield _InBlocks(steps.parts(t), layout, steps.span)


def _first(products: PlainProducts, p: int, entry_error: float) -> PlainValues:
    lags = products.lags[:, p].copy()
    error = products.errors(entry_error)[-1:, p] + rounding_floor(lags[-1], entry_error)
    return PlainValues(lags[-1:], error, products.left[p], products.right[p], lags)


def _with_others(
    first: PlainValues, products: PlainProducts, top: int, entry_error: float
) -> PlainValues | None:
    """The next values of the first product too, where they stand above its noise."""
    product, noise, scale = products.last(0)
    size = max(product.shape)
    square = np.pad(product, [(0, size - length) for length in product.shape])
    whole = DenseOperator(checked(square[None])[0], size)
    found = top_values(whole, top, columns(whole, top + _SPARE))[0]
    if len(found.log10) < top:
        return None
    others, right = found.log10[1:top].astype(np.float64), found.right[: noise.shape[1], 1:top]
    along = np.sqrt(((noise @ right) ** 2).mean(axis=0)) / 10.0**others
    log10 = np.minimum(others + scale, first.log10)  # of two that are the same rounding orders them
    floors = np.array([rounding_floor(value, entry_error) for value in log10])
    error = error_of_noise(along, entry_error) + found.error[1:top] + floors
    if not error.max() <= GOOD:
        return None
    log10, error = np.append(first.log10, log10), np.append(first.error, error)
    return PlainValues(log10, error, first.left, first.right, first.lags)
