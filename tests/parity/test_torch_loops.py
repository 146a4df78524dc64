"""Loops over time written by hand within one module of torch: the answer is autograd's of the whole loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles.models import log10_values
from oracles.refusals import told
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

import gradscope
from gradscope.errors import InputError

DOUBLE = {"dtype": torch.float64}
B, T, D, N = 2, 6, 3, 4


def batch(*shape, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).standard_normal(shape or (B, T, D)))


class Loop(nn.Module):
    """``run`` is the loop, from any state (B, m), and puts out what a head reads and the last state."""

    width = N

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(D, N, **DOUBLE), nn.Linear(N, N, **DOUBLE)
        self.head = nn.Linear(N, 2, **DOUBLE)
        self.build()

    def build(self):
        pass

    def start(self, x):
        return x.new_zeros(len(x), self.width)

    def forward(self, x):
        return self.head(self.run(x, self.start(x))[0])


class Plain(Loop):
    def run(self, x, h):
        out = []
        for t in range(x.shape[1]):
            h = torch.tanh(self.a(x[:, t]) + self.b(h))
            out.append(h)
        return torch.stack(out, 1), h


class Unbound(Loop):
    """What comes of the inputs is made before; each output is written where it belongs."""

    def run(self, x, h):
        out = x.new_zeros(*x.shape[:2], N)
        for t, step in enumerate(self.a(x).unbind(1)):
            h = torch.tanh(step + self.b(h))
            out[:, t] = h
        return out, h


class Stepped(Loop):
    """The step is a method; a while loop from the end."""

    def step(self, x, h):
        return h + 0.5 * torch.tanh(self.a(x) + self.b(h))

    def run(self, x, h):
        t = x.shape[1] - 1
        while t >= 0:
            h = self.step(x[:, t], h)
            t -= 1
        return h, h


class LSTM(Loop):
    width = 2 * N

    def build(self):
        self.gates = nn.Linear(D + N, 4 * N, **DOUBLE)

    def run(self, x, state):
        h, c = state.split(N, 1)
        for step in x.transpose(0, 1):
            i, f, z, o = self.gates(torch.cat([step, h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
            h = torch.sigmoid(o) * torch.tanh(c)
        return h, torch.cat([h, c], 1)


class GRU(Loop):
    def build(self):
        self.x, self.r, self.n = (nn.Linear(size, k * N, **DOUBLE) for size, k in ((D, 3), (N, 2), (N, 1)))

    def run(self, x, h):
        for step in x.unbind(1):
            r, z, n = self.x(step).chunk(3, -1)
            reset, update = torch.split(self.r(h), N, dim=-1)
            r, z = (r + reset).sigmoid(), (z + update).sigmoid()
            h = (1 - z) * h + z * (n + self.n(r * h)).tanh()
        return h, h


class Masked(Loop):
    def run(self, x, h):
        mask = (x[..., :1] > -0.5).to(x.dtype)
        for t in range(x.shape[1]):
            new = torch.tanh(self.a(x[:, t]) + self.b(h))
            h = mask[:, t] * new + (1 - mask[:, t]) * h
        return h, h


class MaskedCell(Loop):
    """A cell of torch's own, whose state is changed between its calls."""

    def build(self):
        self.cell = nn.GRUCell(D, N, **DOUBLE)

    def run(self, x, h):
        for t in range(x.shape[1]):
            h = torch.where(x[:, t, :1] > -0.5, self.cell(x[:, t], h), h)
        return h, h


class Stacked(Loop):
    """Two layers in one loop, the states in a list."""

    width = 2 * N

    def build(self):
        sizes = (D, N)
        self.inward = nn.ModuleList(nn.Linear(size, N, **DOUBLE) for size in sizes)
        self.onward = nn.ModuleList(nn.Linear(N, N, **DOUBLE) for _ in sizes)

    def run(self, x, state):
        states = list(state.split(N, 1))
        for t in range(x.shape[1]):
            read = x[:, t]
            for layer, (inward, onward) in enumerate(zip(self.inward, self.onward, strict=True)):
                read = states[layer] = torch.tanh(inward(read) + onward(states[layer]))
        return states[-1], torch.cat(states, 1)


class InPlace(Stacked):
    """The same, the states in one tensor that is written into."""

    def run(self, x, state):
        states = torch.stack(state.split(N, 1))
        for t in range(x.shape[1]):
            read = x[:, t]
            for layer, (inward, onward) in enumerate(zip(self.inward, self.onward, strict=True)):
                states[layer] = torch.tanh(inward(read) + onward(states[layer].clone()))
                read = states[layer].clone()
        return read, torch.cat(list(states), 1)


class Sequential(Loop):
    def build(self):
        self.cell = nn.Sequential(nn.Linear(D + N, N, **DOUBLE), nn.LayerNorm(N, **DOUBLE), nn.Tanh())

    def run(self, x, h):
        for step in x.unbind(1):
            h = self.cell(torch.cat((step, h), -1))
        return h, h


class Parameters(Loop):
    """No submodule in the loop; the first state is learned."""

    def build(self):
        self.W, self.R = nn.Parameter(batch(D, N, seed=1)), nn.Parameter(batch(N, N, seed=2) / 2)
        self.h0 = nn.Parameter(batch(1, N, seed=3))

    def start(self, x):
        return self.h0.expand(len(x), -1)

    def run(self, x, h):
        for t in range(x.shape[1]):
            h = torch.relu(x[:, t] @ self.W + h @ self.R)
        return h, h


class Einsum(Loop):
    """Heads apart: a state of three axes."""

    def build(self):
        self.R = nn.Parameter(batch(2, 2, 2, seed=2))

    def run(self, x, state):
        h = state.reshape(-1, 2, 2)
        for step in self.a(x).unbind(1):
            h = functional.softsign(step.view(-1, 2, 2) + torch.einsum("bhi,hij->bhj", h, self.R))
        return h.flatten(1), h.flatten(1)


class Diagonal(Loop):
    """A matrix that is diagonal, as a vector."""

    def build(self):
        self.u = nn.Parameter(batch(N, seed=1))

    def run(self, x, h):
        for step in x.unbind(1):
            h = torch.tanh(self.a(step) + self.u * h)
        return h, h


class Normed(Loop):
    def build(self):
        parametrizations.weight_norm(self.b)
        self.norm = nn.LayerNorm(N, **DOUBLE)

    def run(self, x, h):
        for step in x.unbind(1):
            h = torch.tanh(self.norm(self.a(step) + self.b(h)))
        return h, h


class Delayed(Loop):
    """A skip connection over time: the state is what two steps have made."""

    width = 2 * N

    def build(self):
        self.c = nn.Linear(N, N, **DOUBLE)

    def run(self, x, state):
        h, before = state.split(N, 1)
        for step in x.unbind(1):
            h, before = torch.tanh(self.a(step) + self.b(h) + self.c(before)), h
        return h, torch.cat([h, before], 1)


class FedBack(Loop):
    """A forecast is what the next step reads, and a sum is kept for the loss."""

    def build(self):
        self.y = nn.Linear(N, D, **DOUBLE)

    def run(self, x, h):
        total = x.new_zeros(len(x))
        for t in range(x.shape[1]):
            h = torch.tanh(self.a(x[:, t] + self.y(h)) + self.b(h))
            total = total + h.sum(1)
        return h + total[:, None], h


class Reservoir(Loop):
    """Weights that are no parameters."""

    def build(self):
        self.register_buffer("R", batch(N, N, seed=4))

    def run(self, x, h):
        for step in x.unbind(1):
            h = 0.7 * h + 0.3 * torch.tanh(self.a(step) + functional.linear(h, self.R))
        return h, h


class Late(Loop):
    """A mask from the second step on: another operation makes the first state."""

    def run(self, x, h, start=0):
        for t in range(x.shape[1]):
            new = torch.tanh(self.a(x[:, t]) + self.b(h))
            if t + start > 0:
                new = torch.where(x[:, t, :1] > -0.5, new, h)
            h = new
        return h, h


class Highway(Loop):
    """Two turns of a loop of its own in every step, with one matrix."""

    def run(self, x, h):
        for t in range(x.shape[1]):
            for k in range(2):
                h = torch.tanh((0 if k else self.a(x[:, t])) + self.b(h))
        return h, h


class Convolved(Loop):
    """A convolutional recurrence over a line of three."""

    width = 6

    def build(self):
        self.i, self.s = nn.Conv1d(1, 2, 1, **DOUBLE), nn.Conv1d(2, 2, 3, padding=1, **DOUBLE)
        self.head = nn.Linear(6, 2, **DOUBLE)

    def run(self, x, state):
        h = state.reshape(-1, 2, 3)
        for step in x.unbind(1):
            h = torch.tanh(self.i(step[:, None]) + self.s(h))
        return h.flatten(1), h.flatten(1)


KINDS = {
    kind.__name__: kind
    for kind in (
        Plain, Unbound, Stepped, LSTM, GRU, Masked, MaskedCell, Stacked, InPlace, Sequential, Parameters,
        Einsum, Diagonal, Normed, Delayed, FedBack, Reservoir, Late, Highway, Convolved,
    )
}  # fmt: skip


def whole(model, x, first=0):
    """d(last state)/d(state after ``first`` steps) of every sequence, by autograd through the loop."""
    found = []
    for one in x.split(1):
        state = model.start(one) if not first else model.run(one[:, :first], model.start(one))[1]
        late = {"start": first} if isinstance(model, Late) else {}
        run = lambda state, one=one, late=late: model.run(one[:, first:], state, **late)[1]  # noqa: E731
        found.append(torch.autograd.functional.jacobian(run, state)[0, :, 0].numpy())
    return found


def check(live, expected):
    analysis = gradscope.analyze(checkpoint=live)
    assert len(analysis.full.spectra) == len(expected)
    for ours, theirs in zip(analysis.full.spectra, expected, strict=True):
        with np.errstate(divide="ignore"):  # relu, or a delay, may let nothing through
            theirs, ours = log10_values(theirs), ours.log10_singular_values
        there = theirs[: len(ours)] > theirs[0] - 9
        np.testing.assert_allclose(ours[there], theirs[: len(ours)][there], rtol=0, atol=1e-6)
        np.testing.assert_allclose(ours[0], theirs[0], rtol=0, atol=1e-11)
    assert analysis.problem["jacobians"] == "torch"
    return analysis


def drawn(kind):
    torch.manual_seed(0)
    return kind()


@pytest.mark.parametrize("name", KINDS)
def test_a_loop_within_a_module(name):
    model, x = drawn(KINDS[name]), batch()
    first = {"Delayed": 2, "Late": 1}.get(name, 0)
    live = gradscope.from_torch(nn.Sequential(nn.Identity(), model), x)
    assert [layer.name for layer in live.layers] == ["1"]
    problem = check(live, whole(model, x, first)).problem
    assert problem["direction"] == ("backward" if name == "Stepped" else "forward")
    assert problem["steps"] == T - first
    assert [one for one in problem["assumed"] if "left out" in one] == (
        [f"its first {'2 steps are' if first > 1 else 'step is'} left out: there is no whole state before"]
        if first
        else []
    )


def test_no_state_at_the_first_step_is_said():
    class Begun(Late):
        def run(self, x, h, start=0):
            for t in range(x.shape[1]):
                h = torch.tanh(self.a(x[:, t]) + (self.b(h) if t + start else 0))
            return h, h

    model, x = drawn(Begun), batch()
    problem = check(gradscope.from_torch(model, x), whole(model, x, 1)).problem
    assert problem["steps"] == T - 1
    (said,) = problem["assumed"]
    assert said.startswith("its first step is left out: the state that is read there is none, or made of")


@pytest.mark.parametrize("where", ["step", "head", "functional"])
def test_dropout_on_the_way_is_said(where):
    class Dropping(Loop):
        def build(self):
            self.drop = nn.Dropout(0.25) if where != "functional" else None

        def run(self, x, h):
            for t in range(x.shape[1]):
                kept = functional.dropout(h, 0.5, self.training) if self.drop is None else h
                kept = self.drop(h) if where == "step" else kept
                h = torch.tanh(self.a(x[:, t]) + self.b(kept))
            return (self.drop(h) if where == "head" else h), h

    model, x = drawn(Dropping), batch()
    live = gradscope.from_torch(model, x)
    said = check(live, whole(model.eval(), x)).problem["not_applied"]
    named = {
        "step": ["dropout in training (drop 0.25): "],
        "head": [],
        "functional": ["dropout in training: "],
    }
    assert [one.partition("what")[0] for one in said] == named[where]


class Alternating(Loop):
    """Every other step is another."""

    def run(self, x, h):
        for t in range(x.shape[1]):
            now = self.a(x[:, t])
            h = torch.tanh(now + self.b(h)) if t % 2 else torch.relu(now + self.b(h))
        return h, h


def test_a_step_of_two_turns_is_said():
    model, x = drawn(Alternating), batch()
    analysis = gradscope.analyze(checkpoint=gradscope.from_torch(model, x))
    assert "a step is 2 turns of its loop" in " ".join(analysis.problem["assumed"])
    np.testing.assert_allclose(
        analysis.full.spectra[0].log10_singular_values[0], log10_values(whole(model, x)[0])[0], atol=1e-9
    )


def test_another_last_step_is_left_out():
    class Ended(Loop):
        def run(self, x, h, end=T):
            for t in range(x.shape[1]):
                h = torch.tanh(self.a(x[:, t]) + self.b(h))
                if t < end - 1:
                    h = 0.9 * h
            return h, h

    model, x = drawn(Ended), batch()
    expected = []
    for one in x.split(1):
        run = lambda s, one=one: model.run(one[:, : T - 1], s)[1]  # noqa: E731
        expected.append(torch.autograd.functional.jacobian(run, model.start(one))[0, :, 0].numpy())
    assert "last step is left out" in check(gradscope.from_torch(model, x), expected).problem["assumed"][0]


@pytest.mark.parametrize(
    ("name", "parts"),
    {
        "Plain": ["h"],
        "LSTM": ["c", "h"],
        "Delayed": ["before", "h"],
        "Stacked": ["states[0]", "h"],
        "Convolved": ["h"],
    }.items(),
)
def test_the_parts_of_a_state_are_called_as_in_the_code(name, parts):
    (layer,) = gradscope.from_torch(drawn(KINDS[name]), batch()).layers
    assert list(layer.derivatives.steps.parts) == parts


def test_the_output_is_what_the_code_calls_h(tmp_path):
    """The cell state is made last here, and a readout reads h."""

    class Swapped(LSTM):
        def run(self, x, state):
            h, c = state.split(N, 1)
            for step in x.transpose(0, 1):
                i, f, z, o = self.gates(torch.cat([step, h], 1)).chunk(4, 1)
                h = torch.sigmoid(o) * torch.tanh(c)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
            return h, torch.cat([h, c], 1)

    model, x = drawn(Swapped), batch()
    live = gradscope.from_torch(model, x)
    (layer,) = live.layers
    assert list(layer.derivatives.steps.parts) == ["h", "c"]
    ours = gradscope.analyze(checkpoint=live, adjoint=np.ones(N)).loss.log10_norm
    for one, theirs in zip(x.split(1), ours, strict=True):
        state = model.start(one).requires_grad_()
        (gradient,) = torch.autograd.grad(model.run(one, state)[0].sum(), state)
        np.testing.assert_allclose(theirs[-1], np.log10(np.linalg.norm(gradient)), atol=1e-9)


def test_it_is_the_cell_that_it_is_written_as():
    """The same values as the equations of gradscope's own, both states begun as one tensor of zeros."""

    class Written(LSTM):
        def forward(self, x):
            h = c = torch.zeros(len(x), N, **DOUBLE)
            for step in x.unbind(1):
                i, f, z, o = self.gates(torch.cat([step, h], 1)).chunk(4, 1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(z)
                h = torch.sigmoid(o) * torch.tanh(c)
            return h

    class Called(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTMCell(D, N, **DOUBLE)

        def forward(self, x):
            state = None
            for step in x.unbind(1):
                state = self.cell(step, state)
            return state[0]

    model, called = drawn(Written), drawn(Called)
    weights = model.gates.weight.data.reshape(4, N, D + N)[[0, 1, 2, 3]]
    called.cell.weight_ih.data, called.cell.weight_hh.data = (
        weights.reshape(4 * N, D + N)[:, :D],
        weights.reshape(4 * N, D + N)[:, D:],
    )
    called.cell.bias_ih.data, called.cell.bias_hh.data = model.gates.bias.data, torch.zeros(4 * N, **DOUBLE)
    ours, theirs = (
        gradscope.analyze(checkpoint=gradscope.from_torch(one, batch())) for one in (model, called)
    )
    assert (ours.problem["jacobians"], theirs.problem["jacobians"]) == ("torch", "own")
    for one, other in zip(ours.full.spectra, theirs.full.spectra, strict=True):
        np.testing.assert_allclose(one.log10_singular_values[:4], other.log10_singular_values[:4], atol=1e-12)


def test_several_loops_are_several_layers():
    """Two directions, and beside them a layer of torch's own, which is read as it is."""

    class Both(Loop):
        def build(self):
            self.gru = nn.GRU(D, D, batch_first=True, **DOUBLE)
            self.c, self.d = nn.Linear(D, N, **DOUBLE), nn.Linear(N, N, **DOUBLE)

        def run(self, x, h, g=None):
            x, g = self.gru(x)[0], h if g is None else g
            for t in range(x.shape[1]):
                h = torch.tanh(self.a(x[:, t]) + self.b(h))
            for t in reversed(range(x.shape[1])):
                g = torch.relu(self.c(x[:, t]) + self.d(g))
            return h + g, torch.cat([h, g], 1)

    model, x = drawn(Both), batch()
    live = gradscope.from_torch(model, x)
    assert [layer.name for layer in live.layers] == ["b", "gru", "d"]
    for name, own in (("b", slice(N)), ("d", slice(N, None))):
        analysis = gradscope.analyze(checkpoint=live, layer=name)
        for one, ours in zip(x.split(1), analysis.full.spectra, strict=True):
            run = lambda s, one=one, name=name, own=own: (  # noqa: E731
                model.run(one, s, torch.zeros(1, N, **DOUBLE))
                if name == "b"
                else model.run(one, torch.zeros(1, N, **DOUBLE), s)
            )[1][:, own]
            theirs = torch.autograd.functional.jacobian(run, torch.zeros(1, N, **DOUBLE))[0, :, 0]
            with np.errstate(divide="ignore"):
                np.testing.assert_allclose(ours.log10_singular_values[0], log10_values(theirs)[0], atol=1e-9)


class FromBuffer(Loop):
    def run(self, x, h):
        out = x.new_zeros(len(x), x.shape[1] + 1, N)
        for t in range(x.shape[1]):
            out[:, t + 1] = torch.tanh(self.a(x[:, t]) + self.b(out[:, t].clone()))
        return out, h


class Attending(Loop):
    def run(self, x, h):
        past = [h]
        for step in x.unbind(1):
            seen = torch.stack(past, 1)
            weight = torch.softmax((seen * past[-1][:, None]).sum(2), 1)
            past.append(torch.tanh(self.a(step) + self.b((weight[:, :, None] * seen).sum(1))))
        return past[-1], h


class Between(Loop):
    """What stands between two steps of the loop."""

    between = staticmethod(lambda h: h)

    def run(self, x, h):
        for step in x.unbind(1):
            h = self.between(torch.tanh(self.a(step) + self.b(h)))
        return h, h


class Cut(Between):
    def between(self, h):
        self.count = getattr(self, "count", 0) + 1
        return h.detach() if self.count % T == 3 else h


class Unseen(torch.autograd.Function):
    """A function of the user's own."""

    @staticmethod
    def forward(ctx, h):
        return h.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class Compiled(Between):
    def build(self):
        self.between = torch.jit.script(torch.relu)


class Recomputed(Loop):
    def run(self, x, h):
        for step in x.unbind(1):
            h = checkpoint(lambda x, h: torch.tanh(self.a(x) + self.b(h)), step, h, use_reentrant=False)
        return h, h


def between(function):
    return type("Model", (Between,), {"between": staticmethod(function)})


class Complex(Loop):
    def build(self):
        self.turn = nn.Parameter(torch.polar(*torch.rand(2, N, dtype=torch.float64)))

    def run(self, x, h):
        h = torch.complex(h, h)
        for step in x.unbind(1):
            h = self.turn * h + self.a(step)
        return h.real, h.real


class Vmapped(Loop):
    """A cell of torch's own, called of one sequence at a time."""

    def build(self):
        self.cell = nn.GRUCell(D, N, dtype=torch.float64)

    def run(self, x, h):
        for step in x.unbind(1):
            h = torch.func.vmap(self.cell)(step, h)
        return h, h


class Mixing(nn.Module):
    """The step of a minGRU, whose weights meet the inputs alone."""

    def __init__(self):
        super().__init__()
        self.z, self.new = (nn.Linear(D, N, dtype=torch.float64) for _ in "zn")

    def forward(self, x, h):
        z = torch.sigmoid(self.z(x))
        return (1 - z) * h + z * self.new(x)


class Fed(Loop):
    """A loop that weights only feed."""

    def build(self):
        self.step = Mixing()

    def run(self, x, h):
        for step in x.unbind(1):
            h = self.step(step, h)
        return h, h


class FedWithin(Fed):
    def run(self, x, h):
        for step in x.unbind(1):
            h = self.step.forward(step, h)
        return h, h


REFUSED = {
    "carries complex numbers from step to step": Complex,
    "write the sequences out as an axis of the batch": Vmapped,
    "(minGRU, QRNN, SSM); a loop over time that it writes itself is analysed if its step is a module of its "
    "own, called as h = self.step(x_t, h)": FedWithin,
    "keeps its states in one tensor": FromBuffer,
    "no end of that is seen": Attending,
    "mixes the sequences": between(lambda h: h - h.mean(0)),
    "draws random numbers": between(lambda h: functional.dropout(h, 0.5, training=True)),
    "computes nothing again and again": between(lambda h: h.detach()),
    "in 2 stretches of steps": Cut,
    "in a way that torch does not show": between(Unseen.apply),
    "give the model without it": Recomputed,
    "computes within torch.func (vmap": between(torch.func.vmap(torch.relu)),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_refused_says_why(why):
    message = refusal(drawn(REFUSED[why]), batch())
    assert why in message
    assert message.isprintable()


def refusal(model, x):
    return told(lambda: gradscope.analyze(checkpoint=gradscope.from_torch(model, x)))


def test_a_loop_that_weights_only_feed_by_its_step():
    """As the refusal of FedWithin says."""
    model, x = drawn(Fed), batch()
    check(gradscope.from_torch(model, x), whole(model, x, 0))


def test_two_steps_are_too_few():
    assert "of three steps at least" in refusal(drawn(Plain), batch(B, 2, D))


def test_without_a_batch_it_is_asked_for():
    with pytest.raises(InputError, match="is found on a batch: give one as well"):
        gradscope.from_torch(drawn(Plain))
