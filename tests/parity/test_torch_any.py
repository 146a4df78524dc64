"""Recurrent modules of torch that gradscope has no equations for: its answers are torch's own autograd.

Every model runs a loop that can be begun from any state; the oracle is the derivative of where it ends.
"""

from __future__ import annotations

from functools import partial

import jsonschema
import numpy as np
import pytest
import torch
from oracles.models import log10_values
from oracles.refusals import told
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import gradscope
from gradscope.errors import InputError
from gradscope.report.table import render_table
from gradscope.report.terminal import Terminal
from gradscope.report.views import Look

DOUBLE = {"dtype": torch.float64}
B, T, D, N = 2, 6, 3, 4


def batch(*shape, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).standard_normal(shape or (B, T, D)))


class NormedLSTM(nn.LSTMCell):
    """A subclass of torch's with equations of its own."""

    parts = 2

    def __init__(self):
        super().__init__(D, N, **DOUBLE)
        self.norm = nn.LayerNorm(4 * N, **DOUBLE)

    def forward(self, x, state):
        gates = self.norm(
            functional.linear(x, self.weight_ih, self.bias_ih) + functional.linear(state[0], self.weight_hh)
        )
        i, f, z, o = gates.chunk(4, -1)
        c = f.sigmoid() * state[1] + i.sigmoid() * z.tanh()
        return o.sigmoid() * c.tanh(), c


class Minimal(nn.Module):
    """The minimal gated unit, whose candidate reads what the gate has scaled."""

    parts = 1

    def __init__(self):
        super().__init__()
        self.f, self.h = (nn.Linear(D + N, N, **DOUBLE) for _ in "fh")

    def forward(self, x, h):
        f = torch.sigmoid(self.f(torch.cat([x, h], 1)))
        return (1 - f) * h + f * torch.tanh(self.h(torch.cat([x, f * h], 1)))


class ResetBefore(nn.Module):
    """A GRU with parameters of its own, whose reset gate comes before the product; it puts out a dict."""

    parts = 1

    def __init__(self):
        super().__init__()
        self.W = nn.Parameter(batch(D, 3 * N, seed=1))
        self.R = nn.Parameter(batch(N, 2 * N, seed=2))
        self.R_h = nn.Parameter(batch(N, N, seed=3))

    def forward(self, x, state):
        h = state["h"]
        r, z, n = (x @ self.W).chunk(3, 1)
        reset, update = (h @ self.R).chunk(2, 1)
        r, z = torch.sigmoid(r + reset), torch.sigmoid(z + update)
        return {"h": z * h + (1 - z) * torch.tanh(n + torch.einsum("bn,nm->bm", r * h, self.R_h))}

    def first(self, states):
        return {"h": states[0]}

    def state(self, output):
        return output

    def tensors(self, state):
        return [state["h"]]


class Simple(nn.Module):
    """An SRU: its state goes through no matrix."""

    parts = 1

    def __init__(self):
        super().__init__()
        self.W = nn.Linear(D, 2 * N, **DOUBLE)
        self.v = nn.Parameter(batch(N, seed=4))

    def forward(self, x, c):
        z, f = self.W(x).chunk(2, 1)
        f = torch.sigmoid(f + self.v * c)
        return f * c + (1 - f) * z


class Zoneout(nn.Module):
    """Torch's cell within another, which holds a part of the state back, and puts out another thing."""

    parts = 2

    def __init__(self):
        super().__init__()
        self.inner = nn.LSTMCell(D, N, **DOUBLE)
        self.out = nn.Linear(N, 2, **DOUBLE)

    def forward(self, x, state):
        h, c = self.inner(x, state)
        h, c = 0.9 * h + 0.1 * state[0], 0.8 * c + 0.2 * state[1]
        return self.out(h), (h, c)

    def state(self, output):
        return output[1]


class Orthogonal(nn.Module):
    """A weight in parts."""

    parts = 1

    def __init__(self):
        super().__init__()
        self.R = parametrizations.weight_norm(nn.Linear(N, N, **DOUBLE))
        self.W = nn.Linear(D, N, **DOUBLE)

    def forward(self, x, h):
        return functional.softplus(self.W(x) + self.R(h))


class Memory(nn.Module):
    """A state that is no vector."""

    parts = 1

    def __init__(self):
        super().__init__()
        self.k, self.v = (nn.Linear(D, 3, **DOUBLE) for _ in "kv")

    def forward(self, x, memory):
        k, v = torch.tanh(self.k(x)), self.v(x)
        return memory - 0.5 * torch.einsum("bij,bj,bk->bik", memory, k, k) + v[:, :, None] * k[:, None]

    def first(self, states):
        return states[0].reshape(-1, 3, 3)


class Loop(nn.Module):
    """A loop over a cell, from any state."""

    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x, states=None):
        cell = self.cell
        if states is None:
            size = 9 if isinstance(cell, Memory) else N
            states = [torch.zeros(len(x), size, dtype=x.dtype)] * cell.parts
        state = (
            cell.first(states) if hasattr(cell, "first") else (states[0] if cell.parts == 1 else (*states,))
        )
        for step in x.unbind(1):
            output = cell(step, state)
            state = cell.state(output) if hasattr(cell, "state") else output
        if hasattr(cell, "tensors"):
            return torch.cat(cell.tensors(state), 1)
        return (
            torch.cat([state] if cell.parts == 1 else [*state], 1).reshape(len(x), -1)
            if not isinstance(cell, Memory)
            else state.reshape(len(x), -1)
        )


def jacobians(model, x, size, parts):
    """d(last state)/d(first state) of every sequence, by torch."""

    def run(one, first):
        return model(one[None], [*first[None].split(size, 1)])[0]

    start = torch.zeros(size * parts, **DOUBLE)
    return [torch.autograd.functional.jacobian(partial(run, one), start).numpy() for one in x]


def check(model, x, expected, **choice):
    """The spectra of one layer's sequences are those of torch's Jacobians."""
    analysis = gradscope.analyze(checkpoint=gradscope.from_torch(model, x), **choice)
    assert len(analysis.full.spectra) == len(expected)
    for ours, theirs in zip(analysis.full.spectra, expected, strict=True):
        theirs, ours = log10_values(theirs), ours.log10_singular_values
        there = theirs[: len(ours)] > theirs[0] - 9
        np.testing.assert_allclose(ours[there], theirs[: len(ours)][there], rtol=0, atol=1e-6)
    return analysis


CELLS = {
    cell.__name__: cell for cell in (NormedLSTM, Minimal, ResetBefore, Simple, Zoneout, Orthogonal, Memory)
}
PATHS = {
    "NormedLSTM": ["weight_hh", "direct"],
    "Minimal": ["f.weight", "h.weight", "direct"],
    "ResetBefore": ["R", "R_h", "direct"],
    "Simple": [],
    "Zoneout": ["inner.weight_hh", "direct"],
    "Orthogonal": ["R.weight"],
    "Memory": [],
}


@pytest.mark.parametrize("name", CELLS)
def test_any_cell_in_a_loop(name):
    torch.manual_seed(0)
    model = Loop(CELLS[name]())
    size = 9 if name == "Memory" else N
    analysis = check(model, batch(), jacobians(model, batch(), size, model.cell.parts))
    assert analysis.problem["jacobians"] == "torch"
    assert [chain.name for chain in analysis.chains] == ["full", *PATHS[name]]


class Inline(nn.Module):
    """A sequence at once, by equations within."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.batch_first = batch_first
        self.W = nn.Linear(D, N, **DOUBLE)
        self.R = nn.Parameter(batch(N, N, seed=5) / 2)

    def forward(self, x, h=None):
        axis = 1 if self.batch_first else 0
        h = x.new_zeros(x.shape[1 - axis], N) if h is None else h
        out = []
        for step in self.W(x).unbind(axis):
            h = torch.tanh(step + h @ self.R.T)
            out.append(h)
        return torch.stack(out, axis), h


class Keeping(nn.Module):
    """A cell that keeps its state."""

    parts = 1

    def __init__(self):
        super().__init__()
        self.W, self.h = nn.Linear(D + N, N, **DOUBLE), None

    def forward(self, x, state=None):
        h = x.new_zeros(len(x), N) if self.h is None else self.h
        self.h = torch.tanh(self.W(torch.cat([x, h], 1)))
        return self.h


class Begun(Loop):
    """A loop over a cell that keeps its state, which is not given."""

    def forward(self, x, states=None):
        self.cell.h = None if states is None else states[0]
        for step in x.unbind(1):
            last = self.cell(step)
        return last


def inline_jacobians(module, x):
    def run(one, h):
        return module(one, h)[1][0]

    axis = 0 if module.batch_first else 1
    return [
        torch.autograd.functional.jacobian(partial(run, one), torch.zeros(1, N, **DOUBLE))[:, 0].numpy()
        for one in x.split(1, axis)
    ]


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_sequence_at_once_is_called_step_by_step(batch_first):
    module = Inline(batch_first)
    x = batch() if batch_first else batch().transpose(0, 1)
    analysis = check(nn.Sequential(module), x, inline_jacobians(module, x))
    assert (analysis.problem["layer"], analysis.problem["steps"]) == ("0", T)
    assert [chain.name for chain in analysis.chains] == ["full", "R"]


def test_a_state_that_the_module_keeps():
    model = Begun(Keeping())
    check(model, batch(), jacobians(model, batch(), N, 1))
    assert model.cell.h is not None


class Detached(Minimal):
    def forward(self, x, h):
        return super().forward(x, h.detach()).detach()


class Drawn(Minimal):
    def forward(self, x, h):
        return super().forward(x, h) + torch.randn(1, **DOUBLE)


class Mixing(Minimal):
    def forward(self, x, h):
        return super().forward(x, h - h.mean(0))


class Hidden(Minimal):
    """Depends on how often it was called."""

    count = 0

    def forward(self, x, h):
        self.count += 1
        return super().forward(x, h) * self.count


REFUSED = {
    "no gradient goes from step to step": lambda: Loop(Detached()),
    "draws random numbers": lambda: Loop(Drawn()),
    "mixes the sequences": lambda: Loop(Mixing()),
    "keeps a state where that is not seen": lambda: Loop(Hidden()),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_stepped_says_why(why):
    message = refusal(REFUSED[why]())
    assert why in message
    assert message.isprintable()


def refusal(model, x=None, live=None, **choice):
    def run():
        checkpoint = gradscope.from_torch(model, batch() if x is None else x, **live or {})
        gradscope.analyze(checkpoint=checkpoint, **choice)

    return told(run)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_module_of_less_precision_is_differentiated_in_float64(dtype):
    torch.manual_seed(1)
    model, x = Loop(Minimal()).to(dtype), batch().to(dtype)
    again = Loop(Minimal())
    again.load_state_dict(model.state_dict())
    check(model, x, jacobians(again, x.double(), N, 1))


class Precise(Minimal):
    """Another thing in float64."""

    def forward(self, x, h):
        return super().forward(x, h) * (2 if x.dtype == torch.float64 else 1)


def test_a_module_that_is_another_in_float64_keeps_its_precision():
    torch.manual_seed(2)
    model, plain = Loop(Precise()).float(), Loop(Minimal())
    plain.load_state_dict(model.state_dict())
    x = batch().float()
    analysis = gradscope.analyze(checkpoint=gradscope.from_torch(model, x))
    for ours, theirs in zip(analysis.full.spectra, jacobians(plain, x.double(), N, 1), strict=True):
        apart = abs(ours.log10_singular_values[0] - log10_values(theirs)[0])
        assert apart < 1e-5
        assert 1e-8 < ours.log10_norm_error < 1e-4


OPTIONS = {"gain": 2.0, "init": "keras", "biases": {"b_f": 1.0}, "cell": "gru", "cut": "R"}


def test_what_is_asked_of_it():
    torch.manual_seed(0)
    model = Loop(NormedLSTM())
    live = gradscope.from_torch(model, batch())
    whole = gradscope.analyze(checkpoint=live)
    jsonschema.validate(whole.to_dict(), gradscope.schema())
    assert "Jacobians by torch's own derivatives" in render_table(whole, Look(Terminal(100)))
    for option, value in OPTIONS.items():
        with pytest.raises(InputError, match=option):
            gradscope.analyze(checkpoint=live, **{option: value})


@pytest.mark.slow  # what it compiles
def test_top_values_losses_and_fewer_steps():
    torch.manual_seed(0)
    model = Loop(NormedLSTM())
    live = gradscope.from_torch(model, batch())
    whole, top = gradscope.analyze(checkpoint=live), gradscope.analyze(checkpoint=live, top=2)
    for ours, every in zip(top.full.spectra, whole.full.spectra, strict=True):
        np.testing.assert_allclose(ours.log10_singular_values, every.log10_singular_values[:2], atol=1e-9)
    loss = gradscope.analyze(checkpoint=live, adjoint=np.ones((B, N))).loss
    for one, ours in zip(batch(), loss.log10_norm, strict=True):
        start = torch.zeros(2 * N, **DOUBLE, requires_grad=True)
        end = model(one[None], [*start[None].split(N, 1)])[0, :N].sum()
        assert np.isclose(ours[-1], float(torch.autograd.grad(end, start)[0].norm().log10()), atol=1e-9)
    steps = gradscope.analyze(checkpoint=live, steps=3)
    np.testing.assert_allclose(
        [s.log10_singular_values[0] for s in steps.full.spectra],
        [log10_values(one)[0] for one in jacobians(model, batch()[:, :3], N, 2)],
        atol=1e-9,
    )


def test_paths_add_up_and_are_told_by_the_matrix_that_comes_first():
    torch.manual_seed(0)
    model = Loop(ResetBefore())
    cut = gradscope.analyze(checkpoint=gradscope.from_torch(model, batch()), cut="R_h")
    held = ResetBefore()
    held.load_state_dict(model.cell.state_dict())

    class Cut(ResetBefore):
        def forward(self, x, state):
            h = state["h"]
            r, z, n = (x @ self.W).chunk(3, 1)
            reset, update = (h @ self.R).chunk(2, 1)
            r, z = torch.sigmoid(r + reset), torch.sigmoid(z + update)
            return {"h": z * h + (1 - z) * torch.tanh(n + (r * h.detach()) @ self.R_h)}

    without = Cut()
    without.load_state_dict(model.cell.state_dict())
    expected = steps_multiplied(without, batch(), model)
    for ours, theirs in zip(cut.full.spectra, expected, strict=True):
        np.testing.assert_allclose(ours.log10_singular_values[0], log10_values(theirs)[0], atol=1e-9)


def steps_multiplied(cell, x, along):
    """The product of a cell's one-step Jacobians along the states of another."""
    found = []
    for one in x:
        h, product = torch.zeros(1, N, **DOUBLE), np.eye(N)
        for step in one:
            run = lambda h, step=step: cell(step[None], {"h": h})["h"][0]  # noqa: E731
            product = torch.autograd.functional.jacobian(run, h)[:, 0].numpy() @ product
            h = along.cell(step[None], {"h": h})["h"].detach()
        found.append(product)
    return found


def test_slopes_keep_their_digits_in_saturation():
    """Where 1 - tanh^2 and s (1 - s) have lost all of them, in torch's fused cells too."""

    class Wide(nn.LSTMCell):
        parts = 2

        def forward(self, x, state):
            h, c = super().forward(x, state)
            return h, 1.0 * c + 0.0 * h

    torch.manual_seed(0)
    cell = Wide(D, N, **DOUBLE)
    plain = nn.LSTMCell(D, N, **DOUBLE)
    plain.load_state_dict(cell.state_dict())
    x = 30 * batch()
    ours, theirs = (
        gradscope.analyze(checkpoint=gradscope.from_torch(Loop(one), x, cells=names))
        for one, names in ((cell, "cell"), (with_parts(plain), ()))
    )
    assert (ours.problem["jacobians"], theirs.problem["jacobians"]) == ("torch", "own")
    for one, other in zip(ours.full.spectra, theirs.full.spectra, strict=True):
        np.testing.assert_allclose(one.log10_singular_values[:4], other.log10_singular_values[:4], atol=1e-9)


def with_parts(cell):
    cell.parts = 2
    return cell


def test_a_way_back_through_the_inputs_is_said():
    class Attending(Loop):
        def forward(self, x, states=None):
            h = x.new_zeros(len(x), N)
            for step in x.unbind(1):
                h = self.cell(step * h.mean(1, keepdim=True), h)
            return h

    problem = gradscope.analyze(checkpoint=gradscope.from_torch(Attending(Minimal()), batch())).problem
    assert "that way back is not in the gain" in problem["not_applied"][0]


def test_which_module_is_taken():
    """A wrapper whose state is that of torch's own layer within is that layer, with its own equations."""

    class Wrapped(nn.Module):
        parts = 1

        def __init__(self):
            super().__init__()
            self.dense, self.gru = nn.Linear(D, D, **DOUBLE), nn.GRUCell(D, N, **DOUBLE)

        def forward(self, x, h):
            return self.gru(self.dense(x), h)

    model = Loop(Wrapped())
    live = gradscope.from_torch(model, batch())
    assert [layer.name for layer in live.layers] == ["cell.gru"]
    named = gradscope.from_torch(model, batch(), cells=["cell"])
    assert [layer.name for layer in named.layers] == ["cell"]
    ours, theirs = (gradscope.analyze(checkpoint=one).full.log10_norm.median for one in (live, named))
    assert np.isclose(ours, theirs, rtol=0, atol=1e-9)
    assert "cells names 'x', expected modules of the model: cell" in refusal(model, live={"cells": "x"})
    assert "nothing that a call puts out is given" in refusal(model, live={"cells": "cell.dense"})
