"""What is asked of programs: chains whose steps they take, and passes over these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from gradscope.compiled_svd.step_arrays import Shape, StepArrays
from gradscope.product_svd.steps import Steps

# Platforms with an LU in float64.
PLATFORMS = ("cpu", "gpu", "cuda", "rocm")


class Segment(Protocol):
    """Some steps of a chain."""

    @property
    def step_arrays(self) -> StepArrays | None:
        """The steps as a program takes them; None where none takes them."""


class ArraySource(Protocol):
    """A chain in segments that begin at ``starts``."""

    starts: Sequence[int]

    def segment(self, i: int) -> Segment:
        """The steps of segment i."""


def shape_of(chain: ArraySource) -> Shape | None:
    """The program that a chain needs; None if there is none for it."""
    arrays = chain.segment(0).step_arrays
    return None if arrays is None else arrays.shape


@dataclass(frozen=True, eq=False)
class Asked:
    """A chain whose spectrum is asked for; entry_error : rounding unit of its entries."""

    chain: ArraySource
    steps: Steps
    shape: Shape
    entry_error: float

    def arrays(self, i: int) -> StepArrays:
        """The steps of segment i."""
        found = self.chain.segment(i).step_arrays
        assert found is not None
        return found


@dataclass(frozen=True)
class Pass:
    """One pass over a chain: ``draw`` of its changed entries, or None for them as they are.

    resets : whether x is made well conditioned again and again, see graded_chain.prefixes; by_lag : whether
    the norm at every lag is wanted.
    """

    asked: Asked
    draw: int | None
    resets: bool
    by_lag: bool
