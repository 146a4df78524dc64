"""Loss gradients by lag, deltas and shares in the weight gradients, against torch's autograd on unrolled cells."""

import numpy as np
import pytest
import torch
import torch_cells

from gradscope.loss import loss_gradient
from gradscope.problem import make_problem

CELLS = ["lstm", "lstm-peephole", "gru", "gru-reset-before", "rnn"]


def problem_of(cell, steps=9, hidden=4, **options):
    return make_problem(cell=cell, hidden=hidden, input_size=3, steps=steps, gain=1.5, **options)


class Unrolled:
    """A cell unrolled in torch, straight from its equations, with what gradients are wanted of as leaves."""

    def __init__(self, problem, sequence, cut=()):
        step = torch_cells.CELLS[problem.cell.name][0]
        self.parameters = {k: torch.tensor(v, requires_grad=True) for k, v in problem.parameters.items()}
        self.hidden = problem.hidden
        self.initial = state = torch.tensor(problem.state[sequence], requires_grad=True)
        self.states, self.used, self.olds = [], [], []
        for x in torch.tensor(problem.inputs[sequence]):
            # Every step has weights of its own, views of the same leaves: their gradients are its alone.
            used = {k: v.clone() for k, v in self.parameters.items()}
            state = step(used, x, state, lambda path, value: value.detach() if path in cut else value)
            self.states.append(state)
            self.used.append(used)

    def loss(self, seeds):
        """sum over t of e_t . h_t, h the end of the state."""
        seeds = torch.tensor(np.broadcast_to(seeds, (len(self.states), self.hidden)).copy())
        return sum(seed @ state[-self.hidden :] for seed, state in zip(seeds, self.states, strict=True))

    def gradients(self, loss, of):
        found = torch.autograd.grad(loss, of, retain_graph=True, allow_unused=True)
        return [
            np.zeros(tuple(one.shape)) if g is None else g.numpy() for g, one in zip(found, of, strict=True)
        ]


def last(seed, steps):
    """The same seed as (T, n)."""
    return np.concatenate([np.zeros((steps - 1, len(seed))), [seed]])


@pytest.mark.parametrize(
    ("cell", "every", "cut"),
    [(cell, every, ()) for cell in CELLS for every in (False, True)]
    + [("lstm", True, ("R_z", "carousel")), ("gru-reset-before", False, ("R_z",))],
)
def test_against_autograd(cell, every, cut):
    problem = problem_of(cell, batch=2, cut=cut)
    steps, n = problem.steps, problem.hidden
    seeds = np.random.default_rng(5).standard_normal((2, steps if every else 1, n))
    found = loss_gradient(problem, seeds)
    assert found.at == ("every" if every else "last")

    nets = [Unrolled(problem, b, cut) for b in range(2)]
    by_step = {name: np.zeros((steps, *array.shape)) for name, array in problem.parameters.items()}
    by_lag = {name: np.zeros((steps, *array.shape)) for name, array in problem.parameters.items()}
    for b, net in enumerate(nets):
        all_seeds = seeds[b] if every else last(seeds[b, 0], steps)
        loss = net.loss(all_seeds)
        adjoints = net.gradients(loss, [*net.states[::-1], net.initial])
        norms = np.log10([np.linalg.norm(a) for a in adjoints])
        np.testing.assert_allclose(found.log10_norm[b], norms, rtol=0, atol=1e-12)
        for name in problem.parameters:
            of = [used[name] for used in net.used]
            each = net.gradients(loss, of)
            by_step[name] += each
            if name.startswith("b"):
                gate = "d" + name[1:].strip("_")
                np.testing.assert_allclose(found.deltas[gate][b], each, rtol=1e-11, atol=1e-14)
                with np.errstate(divide="ignore"):
                    logs = np.log10(np.linalg.norm(each, axis=1))
                np.testing.assert_allclose(found.log10_deltas[gate][b], logs, rtol=0, atol=1e-10)
            for tau in range(steps):
                part = net.gradients(net.states[tau][-n:] @ torch.tensor(all_seeds[tau]), of)
                for t in range(tau + 1):
                    by_lag[name][tau - t] += part[t]
    for name, each in by_step.items():
        norm = np.log10(np.linalg.norm(each.sum(axis=0)))
        np.testing.assert_allclose(found.log10_gradients[name], norm, rtol=0, atol=1e-11)
    for kind in "RW":
        names = [name for name in by_lag if name.startswith(kind)]
        assert set(found.kinds[kind]) == set(names)
        whole = sum((by_lag[name].sum(axis=0) ** 2).sum() for name in names)
        for name in names:
            expected = [(part * by_lag[name].sum(axis=0)).sum() / whole for part in by_lag[name]]
            np.testing.assert_allclose(found.shares[name], expected, rtol=1e-9, atol=1e-12)
