"""Random loops over time within one module of torch: each is differentiated right, or refused by a reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles.models import log10_values
from torch import nn
from torch.nn.utils import parametrizations

import gradscope
from gradscope.errors import InputError
from parity.test_random_torch import SQUASH

DOUBLE = {"dtype": torch.float64}
D, N = 3, 4
DRAWS = [*range(5), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(5, 36))]
FORMS = {"simple": 1, "gated": 2, "reset": 2, "lstm": 4, "layers": 2, "delay": 1}
# What makes it another thing than a loop that passes a state on -> how it is refused.
ODD = {
    "noise": "draws random numbers",
    "detached": "nothing again and again",
    "mixing": "mixes the sequences",
    "buffer": "keeps its states in one tensor",
    "attention": "no end of that is seen",
}


class Drawn(nn.Module):
    """A front end, one loop of random equations and style, and a head."""

    def __init__(self, rng):
        super().__init__()
        pick = lambda *options: options[rng.integers(len(options))]  # noqa: E731
        self.form, self.squash = pick(*FORMS), SQUASH[pick(*SQUASH)]
        self.weights = pick("two", "joined", "parameters", "einsum", "sequential")
        self.style = pick("index", "unbind", "iterate", "backwards", "zip")
        self.kept = pick("list", "written", "sum", "last", "joined")
        self.odd = pick(*ODD) if rng.random() < 0.15 else ""
        self.masked, self.tokens = rng.random() < 0.2, rng.random() < 0.2
        self.time_major, self.learned = rng.random() < 0.2, rng.random() < 0.3
        self.before, self.residual = rng.random() < 0.3, rng.random() < 0.2
        self.parts = 2 if self.form in ("lstm", "layers", "delay") else 1
        width = FORMS[self.form] * N
        self.front = nn.Embedding(5, D, **DOUBLE) if self.tokens else nn.Identity()
        self.W, self.b = nn.Linear(D, width, **DOUBLE), nn.Linear(N, width, **DOUBLE)
        self.c = nn.Linear(N, N, **DOUBLE)
        if self.weights == "joined":
            self.J = nn.Linear(D + N, width, bias=rng.random() < 0.5, **DOUBLE)
        elif self.weights == "sequential":
            self.S = nn.Sequential(nn.Linear(D + N, 5, **DOUBLE), nn.Tanh(), nn.Linear(5, width, **DOUBLE))
        elif self.weights in ("parameters", "einsum"):
            self.U = nn.Parameter(torch.as_tensor(rng.standard_normal((N, width)) / 2))
        elif rng.random() < 0.3:
            parametrizations.weight_norm(self.b)
        self.norm = nn.LayerNorm(width, **DOUBLE) if rng.random() < 0.3 else nn.Identity()
        self.h0 = nn.Parameter(torch.as_tensor(rng.standard_normal(self.parts * N)))
        self.head = nn.Linear(N, 2, **DOUBLE)

    def read(self, x, h):
        """The pre-activations; x : what W makes of the inputs where that is made before."""
        if self.weights in ("joined", "sequential"):
            part = self.J if self.weights == "joined" else self.S
            return self.norm(part(torch.cat([x, h], -1)))
        inner = {
            "two": lambda: self.b(h),
            "parameters": lambda: h @ self.U,
            "einsum": lambda: torch.einsum("bi,ij->bj", h, self.U),
        }[self.weights]()
        return self.norm((x if self.before else self.W(x)) + inner)

    def step(self, x, *state):
        h = state[0]
        h = h - h.mean(0) if self.odd == "mixing" else h
        if self.form == "lstm":
            i, f, z, o = self.read(x, h).chunk(4, -1)
            c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * self.squash(z)
            return torch.sigmoid(o) * torch.tanh(c), c
        if self.form == "layers":
            low, high = self.read(x, h).chunk(2, -1)
            low = self.squash(low)
            return low, torch.tanh(high + self.c(state[1]) * low)
        if self.form == "delay":
            return self.squash(self.read(x, h) + self.c(state[1])), h
        if self.form == "simple":
            new = self.squash(self.read(x, h))
        elif self.form == "gated":
            z, n = self.read(x, h).split(N, dim=-1)
            new = torch.sigmoid(z) * h + (1 - torch.sigmoid(z)) * self.squash(n)
        else:
            r = torch.sigmoid(self.read(x, h)[..., :N])
            new = 0.5 * h + self.squash(self.read(x, r * h)[..., N:])
        return (h + 0.1 * new if self.residual else new,)

    def inputs(self, x):
        x = self.front(x)
        x = x.transpose(0, 1) if self.time_major else x
        return self.W(x) if self.before and self.weights in ("two", "parameters", "einsum") else x

    def steps(self, x):
        if self.style == "index":
            for t in range(x.shape[1]):
                yield x[:, t]
        elif self.style == "unbind":
            yield from x.unbind(1)
        elif self.style == "iterate":
            yield from x.transpose(0, 1)
        elif self.style == "backwards":
            t = x.shape[1]
            while t:
                t -= 1
                yield x[:, t]
        else:
            for step, _ in zip(x.split(1, 1), range(x.shape[1]), strict=True):
                yield step.squeeze(1)

    def after(self, step, state, new, past):
        """What is done between steps."""
        if self.masked:
            keep = (step[:, :1] > -0.7).to(step.dtype)
            new = tuple(keep * one + (1 - keep) * other for one, other in zip(new, state, strict=True))
        if self.odd == "noise":
            new = tuple(one + 0.1 * torch.randn_like(one) for one in new)
        if self.odd == "detached":
            new = tuple(one.detach() for one in new)
        if self.odd == "attention":
            weight = torch.softmax(torch.stack([(one * new[0]).sum(1) for one in past]), 0)
            new = (sum(w[:, None] * one for w, one in zip(weight, past, strict=True)) + new[0], *new[1:])
        return new

    def run(self, x, state):
        """The last state (B, m), and what the head reads."""
        state = state.split(N, 1)
        out, total = [], x.new_zeros(len(x), N)
        written = x.new_zeros(len(x), x.shape[1] + 1, N)
        joined, past = written[:, :0], [state[0]]
        written[:, 0] = state[0]
        for t, step in enumerate(self.steps(x)):
            if self.odd == "buffer":
                state = (written[:, t].clone(), *state[1:])
            state = self.after(step, state, self.step(step, *state), past)
            past.append(state[0])
            if self.kept == "list":
                out.append(state[0])
            if self.kept == "written" or self.odd == "buffer":
                written[:, t + 1] = state[0]
            if self.kept == "sum":
                total = total + state[0]
            elif self.kept == "joined":
                joined = torch.cat([joined, state[0][:, None]], 1)
        kept = {"list": lambda: torch.stack(out, 1), "written": lambda: written, "sum": lambda: total}
        last = lambda: joined if self.kept == "joined" else state[0]  # noqa: E731
        return torch.cat(state, 1), kept.get(self.kept, last)()

    def start(self, count):
        first = self.h0 if self.learned else torch.zeros_like(self.h0)
        return first.expand(count, -1)

    def forward(self, x):
        x = self.inputs(x)
        return self.head(self.run(x, self.start(len(x)))[1])


def expected(model, x, first):
    """d(last state)/d(state after ``first`` steps), by autograd through the whole loop, in float64."""
    with torch.no_grad():
        read = model.double().inputs(x if x.dtype == torch.long else x.double())
    early, late = (read[:, :first], read[:, first:])
    if model.style == "backwards" and first:
        early, late = read[:, -first:], read[:, :-first]
    found = []
    for k in range(len(read)):
        state = model.start(1)
        state = model.run(early[k : k + 1], state)[0] if first else state
        run = lambda state, k=k: model.run(late[k : k + 1], state)[0]  # noqa: E731
        found.append(torch.autograd.functional.jacobian(run, state.detach())[0, :, 0].numpy())
    return found


def outcome(seed):
    """Why a drawn model is refused, "right" where it is not and torch says the same; else AssertionError."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model, steps, count = Drawn(rng).eval(), int(rng.integers(6, 9)), int(rng.integers(1, 4))
    model.odd = "" if count == 1 and model.odd == "mixing" else model.odd
    dtype = torch.float32 if rng.random() < 0.3 else torch.float64
    model.to(dtype)
    shape = (steps, count) if model.time_major else (count, steps)
    x = torch.as_tensor(rng.integers(0, 5, shape) if model.tokens else rng.standard_normal((*shape, D)))
    x = x if model.tokens else x.to(dtype)
    try:
        live = gradscope.from_torch(model, x)
        analysis = gradscope.analyze(checkpoint=live)
    except InputError as error:
        assert model.odd, error  # noqa: PT017  # right or refused: both will do
        assert ODD[model.odd] in str(error), error  # noqa: PT017
        return ODD[model.odd]
    assert not model.odd, model.odd
    first = 2 if model.form == "delay" else 0
    if model.form == "delay" and model.masked:
        first = 0  # then the state before is one of its own
    assert analysis.problem["steps"] == steps - first
    for ours, theirs in zip(analysis.full.spectra, expected(model, x, first), strict=True):
        with np.errstate(divide="ignore"):  # relu may let nothing through
            ours, theirs = ours.log10_singular_values, log10_values(theirs)
        there = theirs > theirs[0] - 7 if np.isfinite(theirs[0]) else np.zeros(len(theirs), bool)
        np.testing.assert_allclose(ours[there], theirs[there], rtol=0, atol=1e-6)
    return "right"


@pytest.mark.parametrize("seed", DRAWS)
def test_right_or_refused(seed):
    assert outcome(seed)
