"""The example that retrains networks with a remedy: what it turns is what it says."""

import importlib.util

import numpy as np
import pytest
import torch
from oracles.program import EXAMPLES

README = (EXAMPLES / "remedies" / "README.md").read_text("utf-8")


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("retrain", EXAMPLES / "remedies" / "retrain.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "UPDATES", 0)
    return module


def test_the_setting_reaches_the_gain_and_a_tenth_less_does_not(script):
    """By torch's own Jacobian over all steps, of which gradscope's gain is the largest singular value."""
    setting, horizon, learnt, _ = script.adding("lstm", script.forget_bias, 8.0, 0, 1e-3)
    assert (horizon, learnt) == ("100", "never")
    assert f"| 0 | 2000, 14 | b_f + {setting}: 1200 |" in README
    inputs = script.ADDING.unseen()[0][:4]
    reached = []
    for shift in (float(setting), float(setting) - 0.1):
        torch.manual_seed(0)
        layer = script.ADDING.Adder("lstm").layer
        script.forget_bias(layer, shift)
        reached.append(np.median([gain(layer.double(), one.double()) for one in inputs]))
    assert reached[0] >= 1e-3 > reached[1]


def gain(layer, inputs):
    def last(state):
        h, c = state.chunk(2)
        _, (h, c) = layer(inputs[None], (h[None, None], c[None, None]))
        return torch.cat([h[0, 0], c[0, 0]])

    jacobian = torch.autograd.functional.jacobian(
        last, torch.zeros(2 * layer.hidden_size, dtype=torch.float64)
    )
    return np.linalg.svd(jacobian.numpy(), compute_uv=False)[0]
