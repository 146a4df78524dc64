"""A cell whose paths carry more or less of the gradient than its equations say."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache, wraps
from typing import Any

import numpy as np

from gradscope.cells.cell import Cell
from gradscope.cells.units import Parameters, Shapes
from gradscope.custom_types import Array

# How the key of a path's factor begins, which stands among the parameters and is none that is trained.
_FACTOR = "(factor) "


@cache
def with_factors(cell: Cell, paths: tuple[str, ...]) -> Cell:
    """The cell whose Jacobian by each of these paths is multiplied by a factor; its states are the same.

    The factors are read among its parameters (``factor_parameters``): what is compiled serves all of them.
    Factor 1 - p on the paths that read h is the mean of h-detach, which detaches h before the gates with
    probability p (Kanuparthi et al. 2019, arXiv 1810.03023): steps are drawn independently and the states do
    not depend on them, so that the mean of the product is the product of the means.
    """
    if cell.factors:  # one cell for the same paths, in whatever turns they came
        bare = replace(cell, step=_wrapped(cell.step), parameters=_wrapped(cell.parameters), factors=())
        every = {*cell.factors, *paths}
        return with_factors(bare, tuple(path for path in cell.paths if path in every))
    if not paths:
        return cell

    @wraps(cell.step)
    def step(parameters: Parameters, x: Any, copies: Mapping[str, Any]) -> Any:
        import jax

        def reached(path: str, copy: Any) -> Any:
            if path not in paths:
                return copy
            here = jax.lax.stop_gradient(copy)
            # The copy to the last bit, with that derivative.
            return here + parameters[factor_key(path)] * (copy - here)

        rest = {name: value for name, value in parameters.items() if name not in keys}
        return cell.step(rest, x, {path: reached(path, copy) for path, copy in copies.items()})

    @wraps(cell.parameters)
    def parameters(hidden: int, input_size: int) -> Shapes:
        return {**cell.parameters(hidden, input_size), **dict.fromkeys(keys, ())}

    keys = [*map(factor_key, paths)]
    return replace(cell, step=step, parameters=parameters, factors=paths)


def _wrapped(function: Any) -> Any:
    return function.__wrapped__


def factor_key(path: str) -> str:
    """Under which a step finds the factor of a path among its parameters."""
    return _FACTOR + path


def factor_parameters(factors: Mapping[str, float]) -> dict[str, Array]:
    """What a cell ``with_factors`` reads beside its own parameters."""
    return {factor_key(path): np.asarray(factor, np.float64) for path, factor in factors.items()}


def factors_in(parameters: Parameters) -> dict[str, float]:
    """{path: its factor} of those that are among the parameters."""
    return {
        name.removeprefix(_FACTOR): float(value)
        for name, value in parameters.items()
        if name.startswith(_FACTOR)
    }


def own(parameters: Parameters) -> dict[str, Any]:
    """The parameters that are the cell's own, in a stack those of its layers: no factors."""
    return {name: value for name, value in parameters.items() if _FACTOR not in name}
