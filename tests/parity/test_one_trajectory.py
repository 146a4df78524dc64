"""A layer and its stack go along one trajectory, in a chaotic regime too, whatever programs run them."""

from __future__ import annotations

import jax
import numpy as np
import pytest
import torch
from oracles.models import sequence

import gradscope
from gradscope.checkpoints import read
from gradscope.problem.layers import make_problems
from gradscope.settings import Settings

STEPS = 600
X = np.random.default_rng(0).standard_normal((STEPS, 4))


def chaotic():
    """Two GRU layers, of which the second takes a difference of 1e-13 to one of order 1 in 500 steps."""
    torch.manual_seed(2)
    module = torch.nn.GRU(4, 8, 2, dtype=torch.float64)
    with torch.no_grad():
        for name, values in module.named_parameters():
            if name.endswith("l1"):
                values.mul_(8)
    start = torch.zeros(2, 1, 8, dtype=torch.float64)
    other = start.clone()
    other[1] += 1e-13
    ends = [module(torch.as_tensor(X)[:, None], h)[0][-1] for h in (start, other)]
    assert (ends[0] - ends[1]).abs().max() > 1e-2
    return gradscope.from_torch(module)


def test_the_states_of_a_stack_are_those_of_its_layers():
    live = chaotic()
    problems = make_problems(Settings(checkpoint=live, inputs=X), read(live), jax.devices())
    (stack,) = problems.stacks
    both = [layer.system.states for layer in problems.layers]
    np.testing.assert_array_equal(stack.problem.system.states, np.concatenate(both, axis=2))
    lower = problems.layers[0].system
    np.testing.assert_array_equal(problems.layers[1].system.inputs, lower.states[:, 1:])


@pytest.mark.slow
def test_the_gain_of_a_stack_is_no_less_than_its_blocks():
    """Exactly true of a product whose blocks the layers' are; it was not where these went another way."""
    analysis = gradscope.analyze(checkpoint=chaotic(), inputs=X, top=1, only="gain")
    gains = [one.full.log10_norm.median for one in analysis.layers]
    assert analysis.full.log10_norm.median >= max(gains) - 1e-12


@pytest.mark.slow
def test_all_values_and_the_top_are_of_one_trajectory():
    top, every = (
        gradscope.analyze(checkpoint=chaotic(), inputs=X, top=top, only="gain") for top in (1, "all")
    )
    for one, other in zip((top, *top.layers), (every, *every.layers), strict=True):
        assert one.full.log10_norm.median == pytest.approx(other.full.log10_norm.median, abs=1e-9)


def test_held_states_cut_to_lengths_and_segments(monkeypatch):
    """Of two directions and two layers, in segments of a few steps, as in one."""
    torch.manual_seed(0)
    module = torch.nn.RNN(3, 2, 2, bidirectional=True, batch_first=True, dtype=torch.float64)
    live = gradscope.from_torch(module)
    x = np.stack([sequence(), sequence(seed=4)])
    options = {"checkpoint": live, "inputs": x, "lengths": [5, 7], "top": 1, "only": "gain"}
    whole = gradscope.analyze(**options)
    monkeypatch.setattr("gradscope.measure.top_values.SEGMENT_BYTES", 2**8)
    cut = gradscope.analyze(**options)
    for one, other in zip((whole, *whole.layers), (cut, *cut.layers), strict=True):
        np.testing.assert_allclose(one.full.by_lag, other.full.by_lag, rtol=0, atol=1e-10)
