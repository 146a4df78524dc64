"""A recurrent module that gradscope has no equations for, as its own framework differentiates it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from gradscope.cells.given_steps import given_steps
from gradscope.checkpoints.layer import Layer
from gradscope.checkpoints.recording import Recording
from gradscope.custom_types import Array


@dataclass(frozen=True)
class OwnSteps:
    """The steps of a module on what it read, differentiated.

    paths : by which recurrent matrix the state goes first, () where that is not told apart.
    jacobians : (B, T, paths, m, m), which add up to d(state after)/d(state before).
    states : (B, T + 1, m); parts : {component: size} of the state, "h" is what the module puts out.
    input_size : features that it reads, besides the state; rounding : relative, of what it was computed in.
    """

    paths: tuple[str, ...]
    jacobians: Array
    states: Array
    parts: Mapping[str, int]
    input_size: int
    rounding: float


class Derivatives(ABC):
    """Where the steps of a module come from; they are computed when they are asked for.

    by : the framework; kind : what the class of the module is called; fed_back, backward : as in Recording.
    """

    by: str
    kind: str
    fed_back: bool = False
    backward: bool = False

    @abstractmethod
    def differentiate(self) -> OwnSteps:
        """The steps; raises InputError where the module cannot be stepped."""

    @cached_property
    def steps(self) -> OwnSteps:
        """The steps, computed once."""
        return self.differentiate()

    def layer(self, name: str) -> Layer:
        """The layer of a model that these steps are; its inputs are the Jacobians."""
        steps = self.steps
        cell = given_steps(self.kind, steps.paths, tuple(steps.parts.items()))
        size = steps.states.shape[2]
        sizes = steps.parts.get("h", size), max(1, len(steps.paths)) * size**2
        return Layer(cell, {}, name, np.zeros(size), derivatives=self, own_sizes=sizes)

    @property
    def recording(self) -> Recording:
        """The same as what that layer read, and the states that it went through."""
        steps = self.steps
        read = steps.jacobians.reshape(*steps.jacobians.shape[:2], -1)
        return Recording(read, rounding=steps.rounding, fed_back=self.fed_back, states=steps.states)
