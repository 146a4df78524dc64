"""Activations of cells that may never run: to name a cell, or to list a file's layers, imports no JAX."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from gradscope.cells.activated import name_and_numbers

Function = Callable[[Any], Any]


@cache
def applied(name: str) -> Function:
    """As ``activations.activation``, which comes when the function is first applied."""
    name_and_numbers(name)  # raises where there is none

    def phi(a: Any) -> Any:
        from gradscope.cells import activations

        return activations.activation(name)(a)

    return phi


@cache
def one_minus(name: str) -> Function:
    """The same of ``activations.complement``."""

    def rest(a: Any) -> Any:
        from gradscope.cells import activations

        return activations.complement(name)(a)

    return rest
