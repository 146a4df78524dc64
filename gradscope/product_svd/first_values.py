"""The first value of several chains side by side, by their plain products."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from gradscope.product_svd.error_estimate import rounding_floor
from gradscope.product_svd.plain_product import Beside, PlainProducts
from gradscope.product_svd.spectrum import Spectrum, rounding_of
from gradscope.product_svd.steps import WILD


def plain_values(
    steps: Iterable[Beside], length: int, shape: tuple[int, int], entry_error: float, floor: float = -np.inf
) -> list[Spectrum | None]:
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
    return [_spectrum(products, p, errors[p], entry_error) if sure[p] else None for p in range(shape[0])]


def _spectrum(products: PlainProducts, p: int, error: float, entry_error: float) -> Spectrum:
    lags = products.lags[:, p].copy()
    error = float(error + rounding_floor(lags[-1], entry_error))
    return Spectrum(lags[-1:].copy(), None, error, error, products.left[p], products.right[p], lags)
