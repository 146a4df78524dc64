"""How blocks of tangents and cotangents go through one step, whatever the chain is called."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, Protocol

import jax.numpy as jnp


class Moves(Hashable, Protocol):
    """How a step acts on blocks. Hashable: chains for which it is the same share what is compiled."""

    def push(self, shared: Any, step: Any, block: Any) -> Any:
        """J V of one step, for V (m, b)."""

    def pull(self, shared: Any, step: Any, block: Any) -> Any:
        """J^T U of one step, for U (m, b)."""


@dataclass(frozen=True)
class UnitMoves:
    """Blocks through a step of units.

    components : parts of the state; hidden : which of them the recurrent matrices read; others : which
    the other paths read, one by one.
    """

    components: int
    hidden: int
    others: tuple[int, ...]

    def push(self, shared: Any, step: Any, block: Any) -> Any:
        """J V."""
        parts = self.parts(block)
        recurrent, own = step
        products = (shared @ parts[self.hidden]).reshape(-1, *parts.shape[1:])
        read = [*products, *(parts[i] for i in self.others)]
        slopes = [*recurrent, *own]

        def written(i: int) -> Any:
            return sum(slope[i, :, None] * r for slope, r in zip(slopes, read, strict=True))

        return jnp.concatenate([written(i) for i in range(len(parts))])

    def pull(self, shared: Any, step: Any, block: Any) -> Any:
        """J^T U."""
        parts = self.parts(block)
        recurrent, own = step
        written = sum(recurrent[:, i, :, None] * part for i, part in enumerate(parts))
        new = [jnp.zeros_like(part) for part in parts]
        new[self.hidden] = shared @ written.reshape(-1, block.shape[1])
        for slope, i in zip(own, self.others, strict=True):
            new[i] += (slope[..., None] * parts).sum(0)
        return jnp.concatenate(new)

    def parts(self, block: Any) -> Any:
        """(m, b) as (components, n, b)."""
        return block.reshape(self.components, -1, block.shape[1])
