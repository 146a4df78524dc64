"""The first value of several chains side by side, or of one, by their plain products."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.error_estimate import rounding_floor, rounding_of
from gradscope.product_svd.plain_product import Beside, InColumns, PlainProducts
from gradscope.product_svd.steps import WILD, Steps


@dataclass(frozen=True)
class First:
    """log10 of sigma_1, its estimated |error|, its vectors (m,), and (T,) log10 norms at every lag."""

    log10: float
    error: float
    left: Array
    right: Array
    lags: Array


def first_values(
    steps: Iterable[Beside], length: int, shape: tuple[int, int], entry_error: float, floor: float = -np.inf
) -> list[First | None]:
    """The largest value of each of P chains with every lag; None of those of which this is not sure.

    steps : the last one first; length : how many; shape : (P, m); entry_error, floor : as for ``spectrum``.
    """
    products = PlainProducts(length, shape, floor)
    span = 0.0
    for step in steps:
        span = max(span, step.span)
        products.times(step)
    if span >= WILD:
        return [None] * shape[0]
    entry_error = rounding_of(entry_error, span)
    sure, errors = products.sure(entry_error), products.errors(entry_error)[-1]
    return [_first(products, p, errors[p], entry_error) if sure[p] else None for p in range(shape[0])]


def first_of(steps: Steps, entry_error: float, floor: float = -np.inf) -> First | None:
    """The same of one chain; entry_error : with what saturated units add, see ``rounding_of``."""
    shape = 1, steps[0].shape[0]
    products = PlainProducts(len(steps), shape, floor)
    for step in _alone(steps):
        products.times(step)
        if not products.hopeful:
            return None
    if not products.sure(entry_error)[0]:
        return None
    return _first(products, 0, products.errors(entry_error)[-1, 0], entry_error)


def _alone(steps: Steps) -> Iterator[InColumns]:
    for t in reversed(range(len(steps))):
        parts = steps.parts(t) if steps.source.layout is None else [steps[t]]
        yield InColumns([part[None] for part in parts], steps.span)


def _first(products: PlainProducts, p: int, error: float, entry_error: float) -> First:
    lags = products.lags[:, p].copy()
    error = float(error + rounding_floor(lags[-1], entry_error))
    return First(float(lags[-1]), error, products.left[p], products.right[p], lags)
