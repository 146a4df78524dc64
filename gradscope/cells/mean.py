"""States that add up values of a function that levels out: an LSTM's c, and a GRU's h, which is a mean.

Near a level k of the function a mean's old value and the new one are both k to all digits of a float, and
their difference, through which goes the gradient of the mean's weights, has none. Less k both have all
digits, and so has the mean less k.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # to name a cell imports no JAX
    from gradscope.cells.activations import Levels


@dataclass(frozen=True)
class Sum:
    """Of what activation the values are that the first component adds, and by which gate the old one stays.

    kept : a gate's name, "" where all of it stays; None of a mean, whose two weights add up to 1.
    """

    activation: str
    kept: str | None = None

    @property
    def levels(self) -> Levels:
        """Those of the function."""
        from gradscope.cells import activations

        return activations.levels(self.activation)


def mean_of(activation: str) -> Callable[[Any, Any, Any, Any], Any]:
    """(own, kept, shut, a) -> kept * own + shut * phi(a), whose weights add up to 1."""

    def mean(own: Any, kept: Any, shut: Any, a: Any) -> Any:
        from gradscope.cells import activations

        less, levels = activations.less(activation), activations.levels(activation)
        level = levels.nearest(own)
        value = levels.value(level)
        return value + (shut * less(a, level) + kept * (own - value))

    return mean
