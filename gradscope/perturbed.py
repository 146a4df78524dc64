"""A chain whose entries are changed by one rounding each: what that does to the values is their error."""

from __future__ import annotations

import numpy as np

from gradscope.structure import Array, Steps


class Perturbed(Steps):
    """Steps with every entry multiplied by 1 + size or 1 - size, at random but always the same."""

    def __init__(self, steps: Steps, size: float, draw: int = 0) -> None:
        super().__init__(steps.source, steps.live, steps.size)
        self.weights, self.span = steps.weights, steps.span
        rng = np.random.default_rng(20240229 + draw)
        largest = max(len(w) for w in steps.weights) ** 2 + steps[0].size
        self.starts = rng.integers(4096, size=len(steps))
        self.pool = 1 + size * rng.choice([-1.0, 1.0], size=largest + 4096)

    def parts(self, t: int) -> list[Array]:
        """The parts of the step, changed."""
        changed, at = [], int(self.starts[t])
        for part in super().parts(t):
            changed.append(part * self.pool[at : at + part.size].reshape(part.shape))
            at += part.size
        return changed
