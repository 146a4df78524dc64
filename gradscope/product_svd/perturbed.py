"""Steps with every entry slightly changed: what the error of a run is estimated from."""

from __future__ import annotations

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.extended_range_array import Wide
from gradscope.product_svd.steps import Steps


def changes(rng: np.random.Generator, count: int) -> Array:
    """About 1 or -1, at random: of one size a few would undo each other to the last bit."""
    return np.asarray(rng.choice([-1.0, 1.0], size=count) * rng.uniform(0.75, 1.25, size=count))


class Perturbed(Steps):
    """Steps with every entry multiplied by 1 + size or 1 - size, about, at random but always the same."""

    def __init__(self, steps: Steps, size: float, draw: int = 0) -> None:
        super().__init__(steps.source, steps.live, steps.size)
        self.weights, self.span, self._steps = steps.weights, steps.span, steps
        rng = np.random.default_rng(20240229 + draw)
        rows = len(steps.weights[0])
        largest = max(len(w) for w in steps.weights) ** 2 + rows * len(steps.width(0, rows))
        self.starts = rng.integers(4096, size=len(steps))
        self.pool = 1 + size * changes(rng, largest + 4096)

    def _wide(self, t: int) -> Wide:
        found = super()._wide(t)
        if not self.source.beyond:  # of its parts, which are changed
            return found
        at, size = int(self.starts[t]), found.mantissa.size
        changed = self.pool[at : at + size].reshape(found.mantissa.shape)
        return Wide.of(found.mantissa * changed, found.exponent)

    def parts(self, t: int) -> list[Array]:
        """The parts of the step, changed."""
        changed, at = [], int(self.starts[t])
        for part in self._steps.parts(t):
            changed.append(part * self.pool[at : at + part.size].reshape(part.shape))
            at += part.size
        return changed


class PerturbedBeside(Steps):
    """The steps of so many ``draws``, changed as by ``Perturbed``, side by side: parts are (draws, m, n)."""

    def __init__(self, steps: Steps, size: float, draws: int) -> None:
        super().__init__(steps.source, steps.live, steps.size)
        self.weights, self.span = steps.weights, steps.span
        self._each = [Perturbed(steps, size, draw) for draw in range(draws)]

    def parts(self, t: int) -> list[Array]:
        """The parts of the step, changed by every draw."""
        return [np.stack(each) for each in zip(*(one.parts(t) for one in self._each), strict=True)]
