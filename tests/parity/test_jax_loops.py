"""Loops over time within models of JAX's libraries, held to JAX's own derivative of the whole loop."""

from __future__ import annotations

import json

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from oracles.models import log10_values

import gradscope
from gradscope.errors import InputError

T, D, N, B = 5, 3, 4, 2
DRAW = np.random.default_rng(0)
X = DRAW.standard_normal((B, T, D)).astype("float32")
W = {name: (DRAW.normal(size=(D if name == "a" else N, N)) / 1.5).astype("float32") for name in "abc"}


def simple(w, h, x):
    return jnp.tanh(x @ w["a"] + h @ w["b"])


def reset(w, h, x):
    r = jax.nn.sigmoid(x @ w["a"] + h @ w["c"])
    return 0.3 * h + jax.nn.relu(x @ w["a"] + (r * h) @ w["b"])


def python(step, w, h, x):
    for t in range(len(x)):
        h = step(w, h, x[t])
    return h


def called(step, w, h, x):
    again = jax.jit(lambda h, x: step(w, h, x))
    for t in range(len(x)):
        h = again(h, x[t])
    return h


def scan(step, w, h, x):
    return jax.lax.scan(lambda h, x: (jax.checkpoint(step)(w, h, x), h), h, x)[0]


def backward(step, w, h, x):
    return jax.lax.scan(lambda h, x: (step(w, h, x), h), h, x, reverse=True)[0]


def counted(step, w, h, x):
    return jax.lax.fori_loop(0, len(x), lambda t, h: step(w, h, x[t]), h)


class Equinox(equinox.Module):
    w: dict
    loop: object = equinox.field(static=True)
    step: object = equinox.field(static=True)

    def __call__(self, x):
        return self.loop(self.step, self.w, jnp.zeros(N), x)


class Nnx(nnx.Module):
    def __init__(self, loop, step):
        self.w = nnx.Dict({name: nnx.Param(jnp.array(one)) for name, one in W.items()})
        self.loop, self.step = loop, step

    def __call__(self, x):
        w = {name: one[...] for name, one in self.w.items()}
        return self.loop(self.step, w, jnp.zeros((len(x), N)), x.swapaxes(0, 1))


class Linen(linen.Module):
    loop: object
    step: object

    @linen.compact
    def __call__(self, x):
        w = {name: self.param(name, lambda _, name=name: jnp.array(W[name])) for name in W}
        return self.loop(self.step, w, jnp.zeros((len(x), N)), x.swapaxes(0, 1))


def live(kind, loop, step):
    if kind is Equinox:
        return gradscope.from_equinox(equinox.filter_vmap(Equinox(jax.tree.map(jnp.array, W), loop, step)), X)
    model = kind(loop, step)
    return gradscope.from_flax(model.bind(model.init(jax.random.key(0), X)) if kind is Linen else model, X)


def whole(loop, step, x):
    with jax.enable_x64(True):
        w = {name: jnp.asarray(one, "float64") for name, one in W.items()}
        return np.asarray(jax.jacobian(lambda h: loop(step, w, h, jnp.asarray(x, "float64")))(jnp.zeros(N)))


def same(ours, theirs):
    """Where the product of JAX, in float64, has digits."""
    theirs = log10_values(theirs)
    there = theirs > theirs[0] - 7
    np.testing.assert_allclose(ours.log10_singular_values[there], theirs[there], rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("kind", "loop", "step"),
    [
        *((kind, scan, reset) for kind in (Equinox, Nnx, Linen)),
        *((kind, python, simple) for kind in (Nnx, Linen)),
        *((Nnx, loop, simple) for loop in (called, backward, counted)),
    ],
)
def test_it_is_jaxs_own_derivative(kind, loop, step):
    model = live(kind, loop, step)
    (layer,) = model.layers
    analysis = gradscope.analyze(checkpoint=model)
    assert analysis.problem["jacobians"] == layer.derivatives.by
    assert layer.assumed == ()
    assert analysis.problem["direction"] == ("backward" if loop is backward else "forward")
    weights = {chain.name.rpartition(".")[2] for chain in analysis.chains} - {"full", "direct"}
    assert weights == ({"b", "c"} if step is reset else {"b"})
    for ours, x in zip(analysis.full.spectra, X, strict=True):
        same(ours, whole(loop, step, x))


def test_a_python_loop_under_vmap_is_followed_from_its_second_step():
    model = live(Equinox, python, simple)
    analysis = gradscope.analyze(checkpoint=model)
    assert "its first step is left out" in " ".join(analysis.problem["assumed"])
    for ours, x in zip(analysis.full.spectra, X, strict=True):
        with jax.enable_x64(True):
            w = {name: jnp.asarray(one, "float64") for name, one in W.items()}
            h = simple(w, jnp.zeros(N), x[0].astype("float64"))
            found = jax.jacobian(lambda h, w=w, x=x: python(simple, w, h, x[1:].astype("float64")))(h)
        same(ours, np.asarray(found))


def test_the_file_has_what_memory_has(run, tmp_path):
    model = Nnx(scan, simple)
    memory = gradscope.analyze(checkpoint=gradscope.from_flax(model, X)).to_dict()["chains"][0]
    gradscope.record(model, X, tmp_path / "run.npz")
    code, out, err = run("analyze", tmp_path / "run.npz", "--json")
    assert code == 0, err
    found = json.loads(out)["chains"][0]["log10_singular_values"]
    np.testing.assert_allclose(found, memory["log10_singular_values"], rtol=0, atol=1e-12)


def written(step, w, h, x):
    states = jnp.zeros((len(x) + 1, *h.shape), h.dtype)
    for t in range(len(x)):
        states = states.at[t + 1].set(step(w, states[t], x[t]))
    return states[-1]


def detached(step, w, h, x):
    for t in range(len(x)):
        h = jax.lax.stop_gradient(step(w, h, x[t]))
    return h


def random(step, w, h, x):
    for t in range(len(x)):
        h = step(w, h, x[t]) + np.random.default_rng().standard_normal()
    return h


@pytest.mark.parametrize(
    ("loop", "why"),
    [
        (detached, "not through stop_gradient"),
        (written, "keeps its states in one array"),
        (random, "draws random numbers"),
    ],
)
def test_what_is_refused(loop, why):
    with pytest.raises(InputError, match=why):
        gradscope.analyze(checkpoint=live(Nnx, loop, simple))


class Deep(nnx.Module):
    """Layers one upon another, their weights in one stack."""

    def __init__(self):
        self.w = nnx.Param(jnp.stack([jnp.array(W["b"])] * 4))

    def __call__(self, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), 0), x, self.w[...])[0]


def test_layers_of_one_stack_are_no_loop():
    with pytest.raises(InputError, match="holds no recurrent layer"):
        gradscope.from_flax(Deep(), np.ones((B, N), "float32"))
