"""Random recurrent modules of torch in memory: each is differentiated right, or refused by a reason."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles.models import log10_values
from torch import nn
from torch.nn.utils import parametrizations

import gradscope
from gradscope.errors import InputError

DOUBLE = {"dtype": torch.float64}
D, N = 3, 4
DRAWS = [*range(7), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(7, 40))]
FOUND = [512, 804, 951]  # each was once neither right nor refused by a reason
SQUASH = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "softplus": nn.functional.softplus,
    "silu": nn.functional.silu,
    "sine": torch.sin,
    "module": nn.Tanh(),
    "method": lambda value: value.tanh(),
}


class Drawn(nn.Module):
    """A cell of random equations, which can be asked for one step of its state alone.

    logged : what it was called with, input and state, for the oracle.
    """

    def __init__(self, rng, size):
        super().__init__()
        pick = lambda *options: options[rng.integers(len(options))]  # noqa: E731
        self.squash = SQUASH[pick(*SQUASH)]
        self.form = pick("simple", "gated", "reset", "two", "vector")
        self.returns = pick("state", "state", "pair", "output", "dict")
        self.noise = rng.random() < 0.04
        self.detached = rng.random() < 0.04
        self.one_weight = rng.random() < 0.4
        self.leak = pick(0.0, 0.0, 0.3)
        gates = {"simple": 1, "gated": 2, "reset": 2, "two": 4, "vector": 2}[self.form]
        self.W = nn.Linear(size, gates * N, **DOUBLE)
        if self.one_weight:
            self.R = nn.Linear(N, gates * N, bias=rng.random() < 0.5, **DOUBLE)
            if rng.random() < 0.3:
                parametrizations.weight_norm(self.R)
        else:
            self.U = nn.Parameter(torch.as_tensor(rng.standard_normal((gates * N, N)) / 2))
        self.norm = nn.LayerNorm(gates * N, **DOUBLE) if rng.random() < 0.4 else nn.Identity()
        self.out = nn.Linear(N, 2, **DOUBLE)
        self.logged = []

    def parts(self):
        return 2 if self.form == "two" else 1

    def product(self, h):
        if self.one_weight:
            return self.R(h)
        return h @ self.U.T if self.leak else nn.functional.linear(h, self.U)

    def step(self, x, *state):
        h = state[0]
        if self.form == "reset":
            r = torch.sigmoid(self.W(x) + self.product(h))[..., :N]
            new = self.squash((self.norm(self.W(x) + self.product(r * h)))[..., N:])
        elif self.form == "vector":
            pre = self.norm(self.W(x))
            new = torch.sigmoid(pre[..., :N]) * h + self.squash(pre[..., N:])
        else:
            pre = self.norm(self.W(x) + self.product(h)).chunk(self.W.out_features // N, -1)
            if self.form == "simple":
                new = self.squash(pre[0])
            elif self.form == "gated":
                z = torch.sigmoid(pre[0])
                new = z * h + (1 - z) * self.squash(pre[1])
            else:
                c = torch.sigmoid(pre[0]) * state[1] + torch.sigmoid(pre[1]) * self.squash(pre[2])
                return torch.sigmoid(pre[3]) * torch.tanh(c), c
        return ((1 - self.leak) * new + self.leak * h,)

    def forward(self, x, state):
        state = state["state"] if isinstance(state, dict) else state
        state = state if isinstance(state, tuple) else (state,)
        self.logged.append((x.detach(), tuple(one.detach() for one in state)))
        if self.detached:
            state = tuple(one.detach() for one in state)
        new = self.step(x, *state)
        if self.noise:
            new = tuple(one + torch.rand(1).to(one) for one in new)
        if self.detached:
            new = tuple(one.detach() for one in new)
        found = new if len(new) > 1 else new[0]
        if self.returns == "dict":
            return {"out": self.out(new[0]), "state": found}
        return {"state": found, "pair": (new[0], found), "output": (self.out(new[0]), found)}[self.returns]


class Model(nn.Module):
    """What stands before a cell, and the loop over it."""

    def __init__(self, rng):
        super().__init__()
        self.tokens = rng.random() < 0.2
        self.front = nn.Embedding(5, D, **DOUBLE) if self.tokens else nn.Identity()
        if not self.tokens and rng.random() < 0.4:
            self.front = nn.Sequential(nn.Linear(D, D, **DOUBLE), nn.ReLU())
        self.between = str(rng.choice(["", "mask", "norm"], p=[0.9, 0.05, 0.05]))
        self.fed_back = rng.random() < 0.2
        self.given = rng.random() < 0.8  # the first state, or the cell's own
        self.cell = Drawn(rng, D)
        self.h0 = torch.as_tensor(rng.standard_normal(N)) if rng.random() < 0.3 else torch.zeros(N, **DOUBLE)
        self.last = nn.LayerNorm(N, **DOUBLE)

    def forward(self, x):
        return self.loop(self.front(x), self.start(x))

    def start(self, x):
        state = (self.h0.expand(len(x), N).to(self.last.weight.dtype),) * self.cell.parts()
        return state if len(state) > 1 else state[0]

    def loop(self, x, state, first=0):
        for k, step in enumerate(x.unbind(1)[first:], first):
            h = state[0] if isinstance(state, tuple) else state
            step = step + h.mean(1, keepdim=True) if self.fed_back else step
            found = self.cell(step, state)
            found = found["state"] if isinstance(found, dict) else found
            new = found[1] if self.cell.returns in ("pair", "output") else found
            if self.between == "mask" and k:
                new = (
                    tuple(
                        torch.where(torch.tensor([[True], [False]]), *both)
                        for both in zip(new, state, strict=True)
                    )
                    if isinstance(new, tuple)
                    else torch.where(torch.tensor([[True], [False]]), new, state)
                )
            elif self.between == "norm":
                new = (self.last(new[0]), *new[1:]) if isinstance(new, tuple) else self.last(new)
            state = new
        return state


def expected(cell, dtype):
    """The product of the steps' Jacobians for every sequence, by torch, along the states of float64."""
    calls, products = cell.logged, []
    cell = cell.double()
    for b in range(len(calls[0][0])):
        state = tuple(one[b].double() for one in calls[0][1])
        product = np.eye(N * len(state))
        for x, _ in calls:
            run = lambda s, x=x: torch.cat(cell.step(x[b].double(), *s.split(N)))  # noqa: E731, B023
            whole = torch.cat(state)
            product = torch.autograd.functional.jacobian(run, whole).numpy() @ product
            state = tuple(run(whole).detach().split(N))
        products.append(product)
    return products


def through(model, x):
    """The derivative of the whole loop, of what is done between the calls too."""
    model.double()
    x = model.front(x if model.tokens else x.double()).detach()
    start, first = model.start(x), int(model.between == "mask")  # a first step unlike the others is left out
    start = model.loop(x[:, :first], start)
    whole = torch.cat(start, 1) if isinstance(start, tuple) else start

    def run(state):
        end = model.loop(x, state.split(N, 1) if isinstance(start, tuple) else state, first)
        return torch.cat(end, 1) if isinstance(end, tuple) else end

    found = torch.autograd.functional.jacobian(run, whole.detach())
    return [found[b, :, b].numpy() for b in range(len(x))]


REASONS = (
    "draws random numbers",
    "given to the next as it is",
    "no gradient goes from step to step",
)


def outcome(seed):
    """Why a drawn model is refused, "right" where it is not and torch says the same; else AssertionError."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    model, steps = Model(rng), int(rng.integers(3, 7))
    dtype = torch.float32 if rng.random() < 0.3 else torch.float64
    model.to(dtype)
    model.cell.logged.clear()
    x = torch.as_tensor(rng.integers(0, 5, (2, steps))) if model.tokens else None
    x = torch.as_tensor(rng.standard_normal((2, steps, D))).to(dtype) if x is None else x
    live, refusal = None, ""
    try:
        live = gradscope.from_torch(model, x)
        logged = [*model.cell.logged[:steps]]
        analysis = gradscope.analyze(checkpoint=live)
    except InputError as error:
        refusal = str(error)
    # What a module draws or holds back is refused, some masks from the second step on, and nothing else.
    odd = model.cell.noise or model.cell.detached or model.between == "mask"
    if refusal:
        assert any(reason in refusal for reason in REASONS), refusal
        assert odd, refusal
        return next(reason for reason in REASONS if reason in refusal)
    assert not model.cell.noise
    assert not model.cell.detached
    assert ("first step is left out" in "".join(analysis.problem["assumed"])) == (model.between == "mask")
    model.cell.logged = logged
    right = through(model, x) if model.between else expected(model.cell, dtype)
    for ours, theirs in zip(analysis.full.spectra, right, strict=True):
        with np.errstate(divide="ignore"):  # relu may let nothing through
            ours, theirs = ours.log10_singular_values, log10_values(theirs)
        there = theirs > theirs[0] - 7 if np.isfinite(theirs[0]) else np.zeros(len(theirs), bool)
        np.testing.assert_allclose(ours[there], theirs[there], rtol=0, atol=1e-6)
    assert ("that way back" in "".join(analysis.problem["not_applied"])) == (
        model.fed_back and not model.between
    )
    return "right"


@pytest.mark.parametrize("seed", [*DRAWS, *FOUND])
def test_right_or_refused(seed):
    assert outcome(seed)
