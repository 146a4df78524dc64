"""A cell whose paths carry more or less of the gradient than its equations say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, wraps
from typing import Any

from gradscope.cells.cell import Cell


@cache
def with_factors(cell: Cell, factors: tuple[tuple[str, float], ...]) -> Cell:
    """The cell whose Jacobian by each of these paths is multiplied by a factor; its states are the same.

    factors : (path, factor). Factor 1 - p on the paths that read h is the mean of h-detach, which detaches h
    before the gates with probability p (Kanuparthi et al. 2019, arXiv 1810.03023): steps are drawn
    independently and the states do not depend on them, so that the mean of the product is the product of the
    means.

    Cached, so that what is compiled for a scaled cell serves the next one like it.
    """
    if not factors:
        return cell
    by_path = dict(factors)

    @wraps(cell.step)
    def step(parameters: Any, x: Any, copies: Mapping[str, Any]) -> Any:
        import jax

        def reached(path: str, copy: Any) -> Any:
            if path not in by_path:
                return copy
            here = jax.lax.stop_gradient(copy)
            return here + by_path[path] * (copy - here)  # the copy to the last bit, with that derivative

        return cell.step(parameters, x, {path: reached(path, copy) for path, copy in copies.items()})

    return replace(cell, step=step, factors=factors)
