"""Random ways to hold a gradient back, which change no number: each is right, or refused by a reason."""

from __future__ import annotations

import equinox
import jax
import jax.numpy as jnp
import keras
import numpy as np
import pytest
import torch
from flax import linen, nnx
from oracles.held import Halved
from oracles.models import log10_values
from torch import nn

import gradscope
from gradscope.errors import InputError

D, N, B, STEPS = 3, 4, 2, 4
# Keras reads an attribute of NumPy that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
DRAWS = [*range(3), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(3, 10))]
# Each was once neither right nor refused by a reason: a custom_jvp, a clip in a cell of Keras, of torch.
FOUND = [23, 41, pytest.param(222, marks=pytest.mark.slow)]
DOUBLE = {"dtype": torch.float64}


class Clipped(torch.autograd.Function):
    """The same numbers, and a gradient that no Jacobian gives."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient.clamp(-1e-3, 1e-3)


def hooked(change):
    def hold(value):
        value = value.clone()
        if value.requires_grad:
            value.register_hook(change)
        return value

    return hold


def without_grad(value):
    with torch.no_grad():
        kept = value / 2
    return value / 2 + kept


def in_place(value):
    value = value.clone()
    value.data.mul_(1.0)
    return value


TORCH = {
    "nothing": lambda value: value,
    "written": in_place,
    "cut": lambda value: value.detach(),
    "data": lambda value: value.data.clone(),
    "half": lambda value: value / 2 + value.detach() / 2,
    "units": lambda value: torch.cat([value[:, :2], value[:, 2:].detach()], 1),
    "no_grad": without_grad,
    "function": Halved.apply,
    "clipped": Clipped.apply,
    "hook": hooked(lambda gradient: gradient / 2),
    "clip hook": hooked(lambda gradient: gradient.clamp(-1e-3, 1e-3)),
    "straight": lambda value: value + (value - value.detach()),
}


@jax.custom_vjp
def halved(value):
    return value


halved.defvjp(lambda value: (value, None), lambda _, gradient: (gradient / 2,))


@jax.custom_jvp
def tangent(value):
    return value


tangent.defjvp(lambda primals, tangents: (primals[0], tangents[0] / 2))


@jax.custom_vjp
def clipped(value):
    return value


clipped.defvjp(lambda value: (value, None), lambda _, gradient: (jnp.clip(gradient, -1e-3, 1e-3),))

STOP = jax.lax.stop_gradient
JAX = {
    "nothing": lambda value: value,
    "cut": STOP,
    "half": lambda value: value / 2 + STOP(value) / 2,
    "units": lambda value: jnp.concatenate([value[..., :2], STOP(value[..., 2:])], -1),
    "function": halved,
    "tangent": tangent,
    "clipped": clipped,
    "straight": lambda value: value + (value - STOP(value)),
}
# Ways whose backward is no linear map: no Jacobian is right.
NO_JACOBIAN = ("clipped", "clip hook")
REASONS = {
    "torch": (
        "a detach",
        "no gradient goes from step to step",
        "a function of its own",
        "is no linear map",
        "no detach",
    ),
    "jax": ("stop_gradient", "is no linear map"),
}
WHERE = ("within", "between", "first", "carried", "fed", "weights")


def held_state(hold, where, state):
    """What is passed on from call to call: (h,) or (h, c), of which one part is held."""
    if where == "between":
        return (hold(state[0]), *state[1:])
    if where == "carried":
        return (*state[:-1], hold(state[-1]))
    return state


def torch_cell(kind, hold, where):
    """A cell of torch's, or one of the user's, that holds in its forward or in a hook."""
    base = {"RNN": nn.RNNCell, "GRU": nn.GRUCell, "LSTM": nn.LSTMCell}.get(kind)
    if base is None:
        return TorchOwn(hold if where == "within" else TORCH["nothing"])
    if where != "within":
        return base(D, N, **DOUBLE)

    class Held(base):
        def forward(self, x, state):
            new = super().forward(x, state)
            return (hold(new[0]), new[1]) if isinstance(new, tuple) else hold(new)

    return Held(D, N, **DOUBLE)


class TorchOwn(nn.Module):
    """A cell that is none of torch's."""

    def __init__(self, hold):
        super().__init__()
        self.a, self.b, self.hold = nn.Linear(D, N, **DOUBLE), nn.Linear(N, N, **DOUBLE), hold

    def forward(self, x, h):
        return self.hold(torch.tanh(self.a(x) + self.b(h)) * 0.7 + 0.3 * h)


class TorchModel(nn.Module):
    """A loop over a cell, or over its own products."""

    def __init__(self, rng, kind, hold, where):
        super().__init__()
        self.kind, self.hold, self.where = kind, hold, where
        self.front = nn.Linear(D, D, **DOUBLE)
        self.cell = torch_cell("own" if kind == "loop" else kind, hold, where)
        self.parts = 2 if kind == "LSTM" else 1

    def forward(self, x):
        state = x.new_zeros(len(x), self.parts * N)
        return self.run(x, state)[:, :N]

    def run(self, x, state):
        state = state.split(N, 1)
        for step in self.front(x).unbind(1):
            state = held_state(self.hold, self.where, state)
            step = self.hold(step) if self.where == "first" else step
            step = step + self.hold(state[0][:, :D]) / 8 if self.where == "fed" else step
            if self.kind == "loop":
                cell = self.cell
                weight = self.hold(cell.b.weight) if self.where == "weights" else cell.b.weight
                new = torch.tanh(cell.a(step) + state[0] @ weight.T + cell.b.bias) * 0.7 + 0.3 * state[0]
                state = (self.hold(new) if self.where == "within" else new,)
            else:
                new = self.cell(step, state if self.parts == 2 else state[0])
                state = new if isinstance(new, tuple) else (new,)
        return torch.cat(state, 1)


def jax_products(w, x, h):
    return jnp.tanh(x @ w["a"] + h @ w["b"] + w["c"]) * 0.7 + 0.3 * h


class JaxLoop:
    """A loop as a function of a step; scanned : by jax.lax.scan."""

    def __init__(self, rng, hold, where, parts):
        self.hold, self.where, self.parts = hold, where, parts
        self.scanned = rng.random() < 0.5

    def __call__(self, step, x, state):
        """The last state; x : (T, ..., D), state : (..., parts * N)."""

        def turn(state, at):
            state = held_state(self.hold, self.where, jnp.split(state, self.parts, -1))
            at = self.hold(at) if self.where == "first" else at
            at = at + self.hold(state[0][..., :D]) / 8 if self.where == "fed" else at
            new = step(tuple(state), at)
            new = (self.hold(new[0]), *new[1:]) if self.where == "within" else new
            return jnp.concatenate(new, -1), None

        if self.scanned:
            return jax.lax.scan(turn, state, x)[0]
        for at in x:
            state, _ = turn(state, at)
        return state


def nnx_model(loop, kind, seed):
    rngs = nnx.Rngs(seed)
    cell = {"LSTM": nnx.OptimizedLSTMCell, "RNN": nnx.SimpleCell, "GRU": nnx.GRUCell}.get(kind)

    class Model(nnx.Module):
        def __init__(self):
            if cell is None:
                self.w = nnx.Dict({name: nnx.Param(value) for name, value in own_arrays(seed).items()})
            else:
                self.cell = cell(D, N, rngs=rngs)

        def step(self, state, x):
            if cell is None:
                return (jax_products({k: v[...] for k, v in self.w.items()}, x, state[0]),)
            # Flax keeps (c, h)
            new, _ = self.cell(state[::-1] if self.two else state[0], x)
            return new[::-1] if self.two else (new,)

        two = kind == "LSTM"

        def run(self, x, state):
            return loop(self.step, jnp.swapaxes(x, 0, 1), state)

        def __call__(self, x):
            return self.run(x, jnp.zeros((len(x), loop.parts * N), x.dtype))[:, :N]

    model = Model()
    return gradscope.from_flax, model, model.run


def linen_model(loop, kind, seed):
    class Model(linen.Module):
        @linen.compact
        def __call__(self, x, state=None):
            make = {"LSTM": linen.OptimizedLSTMCell, "RNN": linen.SimpleCell, "GRU": linen.GRUCell}.get(kind)
            state = jnp.zeros((len(x), loop.parts * N), x.dtype) if state is None else state
            if make is None:
                w = {n: self.param(n, lambda _, v=v: v) for n, v in own_arrays(seed).items()}
                step = lambda state, x: (jax_products(w, x, state[0]),)  # noqa: E731
            else:
                cell = make(N)

                def step(state, x):
                    new, _ = cell(state[::-1] if loop.parts == 2 else state[0], x)
                    return new[::-1] if loop.parts == 2 else (new,)

            return loop(step, jnp.swapaxes(x, 0, 1), state)

    loop.scanned = loop.scanned and kind == "own"  # a module of linen is not called within jax.lax.scan
    model = Model()
    variables = model.init(jax.random.key(seed), jnp.zeros((1, 2, D)))
    return gradscope.from_flax, model.bind(variables), lambda x, state: model.apply(variables, x, state)


def equinox_model(loop, kind, seed):
    key = jax.random.key(seed)
    cell = {"LSTM": equinox.nn.LSTMCell, "GRU": equinox.nn.GRUCell}.get(kind)

    class Model(equinox.Module):
        inner: object

        def step(self, state, x):
            if cell is None:
                return (jax_products(self.inner, x, state[0]),)
            new = self.inner(x, state if loop.parts == 2 else state[0])
            return new if loop.parts == 2 else (new,)

        def run(self, x, state):
            return loop(self.step, x, state)

        def __call__(self, x):
            return self.run(x, jnp.zeros(loop.parts * N, x.dtype))[:N]

    model = Model(own_arrays(seed) if cell is None else cell(D, N, key=key))
    return gradscope.from_equinox, equinox.filter_vmap(model), jax.vmap(model.run)


def own_arrays(seed):
    rng = np.random.default_rng(seed)
    shapes = {"a": (D, N), "b": (N, N), "c": (N,)}
    return {n: jnp.asarray(rng.standard_normal(s) / 1.7, jnp.float32) for n, s in shapes.items()}


KERAS_CELLS = (keras.layers.SimpleRNNCell, keras.layers.GRUCell, keras.layers.LSTMCell)
LIBRARIES = {"nnx": nnx_model, "linen": linen_model, "equinox": equinox_model}


def of_jax(rng, seed):
    """What is drawn, how it is analysed, and d(last state)/d(first state) of each sequence."""
    library, how = rng.choice([*LIBRARIES]), str(rng.choice([*JAX]))
    kind = str(rng.choice(["GRU", "LSTM", "own"] if library == "equinox" else ["RNN", "GRU", "LSTM", "own"]))
    where = str(rng.choice(WHERE[:-1]))
    loop = JaxLoop(rng, JAX[how], where, 2 if kind == "LSTM" else 1)
    read, model, run = LIBRARIES[library](loop, kind, seed)
    x = jnp.asarray(rng.standard_normal((B, STEPS, D)), jnp.float32)

    def right(first):
        start = jnp.zeros((B, loop.parts * N))
        start = run(x[:, :first], start) if first else start
        whole = jax.jit(jax.jacrev(lambda state: run(x[:, first:], state)))(start)
        return [np.asarray(whole[b, :, b]) for b in range(B)]

    return (f"{library} {kind} {how} {where}", how), lambda: read(model, x), right


def of_torch(rng, seed):
    """See of_jax."""
    torch.manual_seed(seed)
    kind, how = str(rng.choice(["RNN", "GRU", "LSTM", "own", "loop"])), str(rng.choice([*TORCH]))
    where = str(rng.choice(WHERE if kind == "loop" else WHERE[:-1]))
    model = TorchModel(rng, kind, TORCH[how], where)
    if how == "units" and where in ("first", "fed", "weights"):
        model.hold = TORCH[how := "half"]
    x = torch.as_tensor(rng.standard_normal((B, STEPS, D)))

    def right(first):
        start = torch.zeros(B, model.parts * N, **DOUBLE)
        start = (model.run(x[:, :first], start) if first else start).detach().requires_grad_()
        end = model.run(x[:, first:], start)
        if not end.requires_grad:
            return [np.zeros((model.parts * N,) * 2)] * B
        rows = [
            [
                torch.autograd.grad(end[b, i], start, retain_graph=True, allow_unused=True)[0]
                for i in range(model.parts * N)
            ]
            for b in range(B)
        ]
        return [
            np.array([np.zeros(model.parts * N) if r is None else r[b].numpy() for r in rows[b]])
            for b in range(B)
        ]

    return (f"torch {kind} {how} {where}", how), lambda: gradscope.from_torch(model, x), right


def of_keras(rng, seed):
    """See of_jax: a layer of Keras around a cell that holds."""
    keras.utils.set_random_seed(seed)
    base, how = KERAS_CELLS[rng.integers(len(KERAS_CELLS))], str(rng.choice([*JAX]))

    class Held(base):
        def call(self, inputs, states, training=False):
            found, (h, *others) = super().call(inputs, states, training=training)
            return found, [JAX[how](h), *others]

    layer = keras.layers.RNN(Held(N), return_state=True, name="held")
    model = keras.Sequential([keras.Input((STEPS, D)), keras.layers.RNN(Held(N), name="held")])
    x = jnp.asarray(rng.standard_normal((B, STEPS, D)), jnp.float32)
    layer(x)
    layer.set_weights(model.layers[-1].get_weights())

    def right(first):
        parts = 2 if base is keras.layers.LSTMCell else 1

        def run(state):
            found = layer.inner_loop(x, list(jnp.split(state, parts, 1)), None)[2]
            return jnp.concatenate(keras.tree.flatten(found), 1)

        whole = jax.jit(jax.jacrev(run))(jnp.zeros((B, parts * N)))
        return [np.asarray(whole[b, :, b]) for b in range(B)]

    return (f"keras {base.__name__} {how} within", how), lambda: gradscope.from_keras(model, x), right


def outcome(seed):
    """Why a drawn model is refused, "right" where it is not and autograd the same; else AssertionError."""
    rng = np.random.default_rng(seed)
    framework = str(rng.choice(["torch", "jax", "keras"], p=[0.45, 0.45, 0.1]))
    (drawn, how), live, right = {"torch": of_torch, "jax": of_jax, "keras": of_keras}[framework](rng, seed)
    try:
        analysis = gradscope.analyze(checkpoint=live(), only="gain", top=1)
    except InputError as error:
        assert how not in ("nothing", "written"), (drawn, error)  # noqa: PT017  # right or refused: both will do
        reasons = REASONS["torch" if framework == "torch" else "jax"]
        assert any(reason in str(error) for reason in reasons), (drawn, error)  # noqa: PT017
        return f"{framework} refused"
    fed = " fed" in drawn and "that way back" in " ".join(analysis.problem["not_applied"])
    assert fed or not (how in NO_JACOBIAN and not drawn.endswith(("first", "weights"))), drawn
    first = STEPS - analysis.problem["steps"]
    assert first == 0 or "first step is left out" in " ".join(analysis.problem["assumed"]), drawn
    if not fed:
        for ours, theirs in zip(analysis.full.spectra, right(first), strict=True):
            with np.errstate(divide="ignore"):
                theirs = log10_values(theirs)[0]
            tolerance = 1e-8 if framework == "torch" else 1e-4
            ours = ours.log10_singular_values[0]
            assert ours == theirs or abs(ours - theirs) < tolerance, (drawn, ours, theirs)
    return f"{framework} right" + (" beside a way back that is said" if fed else "")


@pytest.mark.parametrize("seed", [*DRAWS, *FOUND])
def test_right_or_refused(seed):
    assert outcome(seed)
