"""The forward pass by segment and over devices, against the equations and against one scan of everything."""

import math
import subprocess
import sys

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import equations, layouts

from gradscope.cells import find
from gradscope.linearize.system import System, precise
from gradscope.linearize.trajectory import Segments, Spread, Trajectory

N, D, T, B = 5, 3, 23, 3


@given(st.integers(1, 10**7), st.integers(1, 10**5))
def test_segments_cover_every_step_once(steps, step_bytes):
    limit = 2**20
    segments = Segments.cover(steps, step_bytes, limit)
    assert sum(segments.valid(i) for i in range(segments.count)) == steps
    assert all(0 < segments.valid(i) <= segments.length for i in (0, segments.count - 1))
    assert segments.length <= 2 or segments.length * step_bytes <= 1.25 * limit
    assert segments.length * segments.count <= max(steps + 7, 1.25 * steps + segments.length)


def test_an_octave_of_lengths_is_four_shapes():
    lengths = {Segments.cover(steps, 1).length for steps in range(513, 1025)}
    assert lengths == {640, 768, 896, 1024}


@pytest.mark.parametrize("length", [1, 7, 23, 32])
def test_starts_are_the_states_of_the_equations(length):
    parameters = layouts.equations_of("lstm", layouts.recurrent("lstm", D, N))
    rng = np.random.default_rng(0)
    inputs, state = rng.normal(size=(B, T, D)), rng.normal(size=(B, 2 * N))
    segments = Segments(T, length, math.ceil(T / length))
    with precise("float64"):
        spread = Spread((jax.devices()[0],))
        trajectory = Trajectory(System(find("lstm"), N, parameters, inputs, state), segments, spread)
        for i in reversed(range(segments.count)):
            here = i * length
            nets = [
                equations.Unrolled("lstm", parameters, x[:here], s, N)
                for x, s in zip(inputs, state, strict=True)
            ]
            expected = [net.states[-1] for net in nets]
            np.testing.assert_allclose(trajectory.start(i), expected, rtol=1e-12, atol=1e-14)
            shown = np.asarray(trajectory.inputs(i))
            assert shown.shape == (B, length, D)
            valid = trajectory.valid(i)
            np.testing.assert_array_equal(shown[:, :valid], inputs[:, here : here + valid])
            assert not shown[:, valid:].any()


SPREAD = """
import sys
import jax
jax.config.update("jax_num_cpu_devices", 4)
import numpy as np
from gradscope.cells import find
from gradscope.linearize.trajectory import Segments, Spread, Trajectory
from gradscope.linearize.system import System, precise

cell, rng = find("gru"), np.random.default_rng(0)
parameters = {k: rng.normal(size=s) for k, s in cell.parameters(5, 3).items()}
inputs, state = rng.normal(size=(6, 23, 3)), rng.normal(size=(6, 5))
for count in (1, 2, 4):
    with precise("float64"):
        spread = Spread(tuple(jax.devices()[:count]))
        trajectory = Trajectory(System(cell, 5, parameters, inputs, state), Segments(23, 8, 3), spread)
        start = trajectory.start(2)
        assert len(start) == -(-6 // count) * count
        assert len(start.devices()) == count
        doubled = spread.lift(lambda shared, state: {"twice": shared["two"] * state})
        twice = doubled(spread.replicate({"two": np.float64(2.0)}), start)["twice"]
        np.testing.assert_array_equal(twice, 2 * np.asarray(start))
    if count == 1:
        alone = np.asarray(start)
    np.testing.assert_allclose(start[:6], alone, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(start[6:], np.repeat(alone[-1:], len(start) - 6, 0), rtol=1e-12)
"""


def test_a_batch_does_not_depend_on_the_devices_it_is_spread_over():
    subprocess.run([sys.executable, "-c", SPREAD], check=True)
