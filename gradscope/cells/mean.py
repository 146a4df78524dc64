"""States that are means of their old value and of a function that levels out: a GRU's h, a coupled LSTM's c.

Near a level k of the function both are k to all digits of a float, and their difference, through which goes
the gradient of the mean's weights, has none. Less k both have all digits, and so has the mean less k.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # to name a cell imports no JAX
    from gradscope.cells.activations import Levels

# Beside the parameters, of each unit: the level whose value the component is less by, where the step reads it
# as its own old value and where it puts it out.
LEVEL = "(level)"


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


@dataclass(frozen=True)
class Mean:
    """Which component of the state is such a mean, by index; by which path it reads itself; of what."""

    component: int
    path: str
    activation: str

    def of(self, own: Any, kept: Any, shut: Any, a: Any, parameters: Mapping[str, Any]) -> Any:
        """kept * own + shut * phi(a), whose weights add up to 1; see ``LEVEL``."""
        from gradscope.cells import activations

        less, levels = activations.less(self.activation), self.levels
        if LEVEL in parameters:
            return shut * less(a, parameters[LEVEL]) + kept * own
        if not levels.values:
            return shut * less(a, 0) + kept * own
        level = levels.nearest(own)
        value = levels.value(level)
        return value + (shut * less(a, level) + kept * (own - value))

    @property
    def levels(self) -> Levels:
        """Those of the function."""
        from gradscope.cells import activations

        return activations.levels(self.activation)
