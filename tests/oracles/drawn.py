"""A small cell with random weights and inputs of given sizes, and the states that they lead to."""

from __future__ import annotations

import jax
import numpy as np

from gradscope.cells import find
from gradscope.linearize.system import System
from gradscope.linearize.trajectory import states_of

# Units, inputs, steps.
N, D, T = 3, 2, 10


def drawn(cell, weights, size, seed=1, steps=T):
    """(weights by name, inputs (1, T, d), states (T + 1, m)) of a cell by its name."""
    rng, found = np.random.default_rng(seed), find(cell)
    shapes = found.shapes(N, D).items()
    arrays = {key: weights * rng.normal(size=shape) / np.sqrt(shape[-1]) for key, shape in shapes}
    inputs = size * rng.normal(size=(1, steps, D))
    system = System(found, N, arrays, inputs, np.zeros((1, found.size(N))))
    return arrays, inputs, states_of(system, jax.devices()[:1])[0]
