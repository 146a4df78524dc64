"""PyTorch starts from the initial states that are given."""

from __future__ import annotations

import jsonschema
import numpy as np
import pytest
import torch
from oracles.models import log10_values

import gradscope

RNG = np.random.default_rng(11)
X = RNG.standard_normal((3, 3, 3))
H, C = RNG.standard_normal((2, 3, 4))


@pytest.mark.parametrize("backward", [False, True])
def test_torch_starts_there_too(backward, tmp_path):
    torch.manual_seed(0)
    module = torch.nn.LSTM(3, 4, bidirectional=True, batch_first=True, dtype=torch.float64)
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter)
    torch.save(module.state_dict(), tmp_path / "m.pt")
    direction = int(backward)

    def last(state):  # of the first sequence
        h, c = (torch.as_tensor(np.stack([s, s])) for s in (H, C))
        h, c = h.clone(), c.clone()
        c[direction, 0], h[direction, 0] = state.chunk(2)
        _, (h, c) = module(torch.as_tensor(X), (h, c))
        return torch.cat([c[direction, 0], h[direction, 0]])

    start = torch.as_tensor(np.concatenate([C[0], H[0]]))
    jacobian = torch.autograd.functional.jacobian(last, start)
    analysis = gradscope.analyze(
        checkpoint=tmp_path / "m.pt",
        layer=("l0", "l0_reverse")[direction],
        inputs=X,
        initial_state={"h0": H, "c0": C},
    )
    ours = analysis.full.spectra[0].log10_singular_values
    np.testing.assert_allclose(ours, log10_values(jacobian), rtol=0, atol=1e-6)
    jsonschema.validate(analysis.to_dict(), gradscope.schema())
