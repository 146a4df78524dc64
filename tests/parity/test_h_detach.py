"""Masks of h-detach in a stack are those of a loop in torch that detaches h, layer by layer."""

import jax
import numpy as np
import pytest
import torch
from oracles.asking import make_problems

from gradscope.checkpoints import read
from gradscope.measure.batch import Means, measure_batch
from gradscope.problem.masked import masked_problems
from gradscope.problem.masks import Drawn
from gradscope.problem.problems import Problems

N, D, T, P = 3, 2, 6, 0.4


def test_a_loop_that_detaches(tmp_path):
    torch.manual_seed(0)
    lstm = torch.nn.LSTM(D, N, num_layers=2, dtype=torch.float64)
    with torch.no_grad():
        for parameter in lstm.parameters():
            parameter *= 2
    torch.save(lstm.state_dict(), tmp_path / "m.pt")
    x = np.random.default_rng(1).standard_normal((T, D))
    problems = make_problems(read(tmp_path / "m.pt"), jax.local_devices(), inputs=x)
    drawn, _ = masked_problems(problems.joint, Drawn("h-detach", (P,), 3, 0))
    (measured,) = measure_batch(Problems((drawn,)), range(3), -3, Means(jax.local_devices()))
    cells = []
    for k in range(2):
        cell = torch.nn.LSTMCell(D if k == 0 else N, N, dtype=torch.float64)
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        cell.load_state_dict({name: getattr(lstm, f"{name}_l{k}") for name in names})
        cells.append(cell)

    def last(state, masks):
        states = [tuple(part[None] for part in own.chunk(2)) for own in state.chunk(2)]
        for row, mask in zip(torch.tensor(x), masks, strict=True):
            below = row[None]
            for k, cell in enumerate(cells):
                h, c = states[k]
                states[k] = cell(below, (h if mask[k] else h.detach(), c))
                below = states[k][0]
        return torch.cat([part[0] for own in states for part in own])

    start = torch.zeros(4 * N, dtype=torch.float64)
    for row, one in zip(drawn.system.inputs[..., D:], measured, strict=True):
        jacobian = torch.autograd.functional.jacobian(lambda s, row=row: last(s, row), start)
        expected = float(torch.linalg.matrix_norm(jacobian, 2).log10())
        assert one.full.log10_singular_values[0] == pytest.approx(expected, abs=1e-9)
