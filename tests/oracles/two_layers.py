"""A stack of two LSTMs, one upon the other."""

import jax
import numpy as np

from gradscope.cells import find
from gradscope.checkpoints import Model
from gradscope.checkpoints.layer import Layer
from gradscope.problem.layers import make_problems
from gradscope.problem.problem import make_problem
from gradscope.problem.problems import Problems
from gradscope.settings import Settings


def two_lstms(steps: int, hidden: int, input_size: int) -> Problems:
    """Their problems at initialisation, l1 reading what l0 puts out."""
    layers = []
    for number, features in enumerate((input_size, hidden)):
        system = make_problem(Settings(hidden=hidden, input_size=features, seed=number)).system
        below = ("l0",) if number else ()
        layers.append(Layer(find("lstm"), system.parameters, f"l{number}", np.zeros(2 * hidden), below=below))
    return make_problems(Settings(steps=steps), Model(tuple(layers), ("l0", "l1")), jax.local_devices())
