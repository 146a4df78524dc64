"""Models that hold gradients back or change them where no number of the forward pass says so."""

from __future__ import annotations

import equinox as eqx
import flax.linen as linen
import flax.nnx as nnx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from oracles.held import Halved
from torch import nn
from torch.utils.checkpoint import checkpoint

import gradscope
from gradscope.errors import InputError

B, T, D, N = 2, 4, 3, 4
X = np.random.default_rng(0).standard_normal((B, T, D))
DOUBLE = {"dtype": torch.float64}


def first_values(analysis):
    return [spectrum.log10_singular_values[0] for spectrum in analysis.full.spectra]


def largest(jacobians):
    return [np.log10(np.linalg.svd(np.asarray(one), compute_uv=False)[0]) for one in jacobians]


class Cut(nn.GRUCell):
    def forward(self, x, h):
        h = super().forward(x, h)
        return h / 2 + h.detach() / 2


class Scaled(nn.GRUCell):
    def forward(self, x, h):
        return Halved.apply(super().forward(x, h))


class Own(nn.Module):
    def __init__(self, *sizes, **how):
        super().__init__()
        self.a, self.b = nn.Linear(D, N, **how), nn.Linear(N, N, **how)

    def forward(self, x, h):
        return torch.tanh(self.a(x) + self.b(h)) * 0.7 + 0.3 * h


def hooked(*sizes, **how):
    cell = nn.GRUCell(*sizes, **how)
    cell.register_forward_hook(lambda *call: call[2] / 2 + call[2].detach() / 2)
    return cell


CELLS = {"torch's": nn.GRUCell, "cut": Cut, "function": Scaled, "hook": hooked, "own": Own}
BETWEEN = {
    "as it is": lambda h: h,
    "copied": lambda h: h.clone().mul_(1.0),
    "half": lambda h: h / 2 + h.detach() / 2,
    "function": Halved.apply,
    "cut": lambda h: h.detach(),
}


class Loop(nn.Module):
    def __init__(self, cell, between):
        super().__init__()
        self.cell, self.between = cell, between

    def forward(self, x):
        return self.run(x, torch.zeros(len(x), N, dtype=x.dtype))

    def run(self, x, h):
        for step in x.unbind(1):
            h = self.cell(step, self.between(h))
        return h


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("cell", CELLS)
def test_torch(cell, between):
    torch.manual_seed(0)
    model, x = Loop(CELLS[cell](D, N, **DOUBLE), BETWEEN[between]), torch.as_tensor(X)
    if between in ("function", "cut") or (cell, between) == ("function", "half"):
        with pytest.raises(InputError, match="detach"):
            gradscope.analyze(checkpoint=gradscope.from_torch(model, x))
        return
    analysis = gradscope.analyze(checkpoint=gradscope.from_torch(model, x))
    found = torch.autograd.functional.jacobian(lambda h: model.run(x, h), torch.zeros(B, N, **DOUBLE))
    np.testing.assert_allclose(
        first_values(analysis), largest([found[b, :, b] for b in range(B)]), rtol=0, atol=1e-9
    )
    own = cell == "torch's" and between in ("as it is", "copied")
    assert analysis.problem["jacobians"] == ("own" if own else "torch")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_no_other_derivative(dtype):
    for seed in range(5):
        torch.manual_seed(seed)
        cell = nn.LSTMCell(D, N)
        with torch.no_grad():
            for weight in cell.parameters():
                weight.mul_(3)

        class Steps(nn.Module):
            def __init__(self, cell):
                super().__init__()
                self.cell = cell

            def forward(self, x):
                state = None
                for step in x.unbind(1):
                    state = self.cell(step, state)
                return state[0]

        live = gradscope.from_torch(Steps(cell).to(dtype), torch.as_tensor(X, dtype=dtype))
        assert not live.recorded.layers["cell"].unlike
        assert not live.recorded.layers["cell"].unseen


def test_what_is_not_seen_is_said():
    torch.manual_seed(0)
    loop, x = Loop(nn.GRUCell(D, N, **DOUBLE), BETWEEN["as it is"]), torch.as_tensor(X)

    class Without(nn.Module):
        def __init__(self):
            super().__init__()
            self.loop = loop

        @torch.no_grad()
        def forward(self, x):
            return self.loop(x)

    (said,) = gradscope.analyze(checkpoint=gradscope.from_torch(Without(), x)).problem["assumed"]
    assert "could not be seen: it runs without gradients" in said

    class Again(Loop):
        def run(self, x, h):
            for step in x.unbind(1):
                h = checkpoint(self.cell, step, h, use_reentrant=False)
            return h

    again = gradscope.from_torch(Again(loop.cell, None), x)
    assert not gradscope.analyze(checkpoint=again).problem["assumed"]


def test_a_recording_in_a_file_is_no_way_round(tmp_path):
    model = Loop(nn.GRUCell(D, N, **DOUBLE), BETWEEN["cut"])
    with pytest.raises(InputError, match="has other derivatives"):
        gradscope.record(model, torch.as_tensor(X), tmp_path / "run.npz")
    assert not (tmp_path / "run.npz").exists()


STOP = jax.lax.stop_gradient


class StoppedCell(nnx.GRUCell):
    def __call__(self, carry, x):
        h, out = super().__call__(carry, x)
        return h / 2 + STOP(h) / 2, out


class OwnCell(nnx.Module):
    def __init__(self, *sizes, rngs, **how):
        self.a, self.b = (nnx.Linear(size, N, rngs=rngs) for size in (D, N))

    def __call__(self, carry, x):
        h = jnp.tanh(self.a(x) + self.b(carry)) * 0.7 + 0.3 * carry
        return h, h


class Nnx(nnx.Module):
    def __init__(self, cell, *, between=False, fed=False, scan=False):
        self.cell, self.between, self.fed, self.scan = cell, between, fed, scan

    def __call__(self, x):
        return self.run(x, jnp.zeros((len(x), N)))

    def run(self, x, h):
        def step(h, at):
            h = h / 2 + STOP(h) / 2 if self.between else h
            return self.cell(h, at + STOP(h[:, :D]) / 8 if self.fed else at)[0], None

        if self.scan:
            return jax.lax.scan(step, h, jnp.swapaxes(x, 0, 1))[0]
        for t in range(x.shape[1]):
            h, _ = step(h, x[:, t])
        return h


def compare(live, run, x):
    """The values of an analysis are those of JAX's own derivative; what its steps are differentiated by."""
    analysis = gradscope.analyze(checkpoint=live, only="gain", top=1)
    found = jax.jit(jax.jacrev(run))(jnp.zeros((len(x), N)))
    right = largest([found[b, :, b] for b in range(len(x))])
    np.testing.assert_allclose(first_values(analysis), right, rtol=0, atol=1e-4)
    return analysis.problem["jacobians"]


NNX = {
    "a cell that holds": (lambda: Nnx(StoppedCell(D, N, rngs=nnx.Rngs(0))), "flax"),
    "between the calls": (lambda: Nnx(nnx.GRUCell(D, N, rngs=nnx.Rngs(0)), between=True), "flax"),
    "in a scan": (lambda: Nnx(nnx.GRUCell(D, N, rngs=nnx.Rngs(0)), between=True, scan=True), "flax"),
    "between those of an own cell": (lambda: Nnx(OwnCell(rngs=nnx.Rngs(0)), between=True), "flax"),
    "both": (lambda: Nnx(StoppedCell(D, N, rngs=nnx.Rngs(0)), between=True), "flax"),
    "what is read": (lambda: Nnx(nnx.GRUCell(D, N, rngs=nnx.Rngs(0)), fed=True), "own"),
}


@pytest.mark.parametrize("name", NNX)
def test_nnx(name):
    make, by = NNX[name]
    model, x = make(), jnp.asarray(X, jnp.float32)
    assert compare(gradscope.from_flax(model, x), lambda h: model.run(x, h), x) == by


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x, h=None):
        h, cell = jnp.zeros((len(x), N)) if h is None else h, linen.GRUCell(N)
        for t in range(x.shape[1]):
            h, _ = cell(h / 2 + STOP(h) / 2, x[:, t])
        return h


def test_linen():
    model, x = Linen(), jnp.asarray(X, jnp.float32)
    variables = model.init(jax.random.key(0), x)
    live = gradscope.from_flax(model.bind(variables), x)
    assert compare(live, lambda h: model.apply(variables, x, h), x) == "flax"


class Equinox(eqx.Module):
    cell: eqx.nn.GRUCell

    def __call__(self, x):
        return self.run(x, jnp.zeros(N))

    def run(self, x, h):
        return jax.lax.scan(lambda h, at: (self.cell(at, h / 2 + STOP(h) / 2), None), h, x)[0]


def test_equinox():
    model, x = Equinox(eqx.nn.GRUCell(D, N, key=jax.random.key(0))), jnp.asarray(X, jnp.float32)
    live = gradscope.from_equinox(eqx.filter_vmap(model), x)
    assert compare(live, lambda h: jax.vmap(model.run)(x, h), x) == "equinox"


class While(eqx.Module):
    """A loop of which JAX shows no step; held : whether its state has no gradient."""

    cell: eqx.nn.GRUCell
    held: bool

    def __call__(self, x):
        def step(at):
            h = self.cell(x[at[0]], at[1])
            return at[0] + 1, STOP(h) if self.held else h

        return jax.lax.while_loop(lambda at: at[0] < len(x), step, (0, jnp.zeros(N)))[1]


def test_a_while_loop():
    x, cell = jnp.asarray(X[0], jnp.float32), eqx.nn.GRUCell(D, N, key=jax.random.key(0))

    def run(h):
        return jax.lax.scan(lambda h, at: (cell(at, h), None), h, x)[0]

    free = gradscope.analyze(checkpoint=gradscope.from_equinox(While(cell, held=False), x), only="gain")
    right = largest([jax.jacrev(run)(jnp.zeros(N))])
    np.testing.assert_allclose(first_values(free), right, rtol=0, atol=1e-4)
    with pytest.raises(InputError, match="holds a gradient back on the way from state to state"):
        gradscope.analyze(checkpoint=gradscope.from_equinox(While(cell, held=True), x))


def test_a_model_that_jax_cannot_trace_says_so():
    class Looks(eqx.Module):
        cell: eqx.nn.GRUCell

        def __call__(self, x):
            h = jnp.zeros(N)
            for at in x:
                h = STOP(self.cell(at, h)) if float(at[0]) < 9 else h
            return h

    model = Looks(eqx.nn.GRUCell(D, N, key=jax.random.key(0)))
    live = gradscope.from_equinox(model, jnp.asarray(X[0], jnp.float32))
    (said,) = gradscope.analyze(checkpoint=live, only="gain").problem["assumed"]
    assert "could not be seen: JAX cannot trace the model" in said


def test_a_loop_where_jax_computes_in_float64():
    """Its own precision is that of the user's JAX, and not float32."""
    with jax.enable_x64(True):
        model, x = Nnx(OwnCell(rngs=nnx.Rngs(0)), between=True), jnp.asarray(X)
        nnx.update(model, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), nnx.state(model)))
        assert compare(gradscope.from_flax(model, x), lambda h: model.run(x, h), x) == "flax"
