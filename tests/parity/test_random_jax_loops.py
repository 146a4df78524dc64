"""Random loops over time within models of JAX's libraries: each is right, or refused by a reason."""

from __future__ import annotations

import re
from functools import partial

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from oracles.models import log10_values

import gradscope
from gradscope.errors import InputError

D, N = 3, 4
FOUND = [808]  # of a step of two turns the last turn is left out
DRAWS = [*range(4), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(4, 12))]
WIDTHS = {"simple": 1, "gated": 2, "reset": 2, "lstm": 4, "layers": 2, "delay": 1}
SQUASH = {"tanh": jnp.tanh, "relu": jax.nn.relu, "sigmoid": jax.nn.sigmoid, "softplus": jax.nn.softplus}
# What makes it another thing than a loop that passes a state on -> how it is refused.
ODD = {
    "noise": "draws random numbers",
    "detached": "not through stop_gradient",
    "mixing": "mixes the sequences",
    "buffer": "keeps its states in one array",
    "attention": "no end of that is seen",
    "while": "jax.lax.while_loop",
}


class Drawn:
    """Random equations and a random loop, as functions of weights."""

    def __init__(self, rng):
        def pick(*options):
            return options[rng.integers(len(options))]

        self.form, self.squash = pick(*WIDTHS), SQUASH[pick(*SQUASH)]
        self.loop = pick("index", "iterate", "backwards", "jit", "scan", "reverse", "remat", "fori", "chunks")
        self.weights = pick("two", "joined", "einsum", "scaled", "deep")
        self.odd = pick(*ODD) if rng.random() < 0.15 else ""
        self.masked, self.residual, self.norm = (rng.random() < chance for chance in (0.2, 0.2, 0.3))
        self.learned, self.tokens = rng.random() < 0.3, rng.random() < 0.2
        self.parts = 2 if self.form in ("lstm", "layers", "delay") else 1
        self.loop = "index" if self.odd else self.loop
        width = WIDTHS[self.form] * N
        shapes = {"emb": (5, D), "W": (D, width), "U": (N, width), "b": (width,), "c": (N, N), "g": (width,)}
        shapes |= {
            "J": (D + N, width),
            "S": (D + N, 5),
            "V": (5, width),
            "h0": (self.parts * N,),
            "head": (N, 2),
        }
        self.arrays = {
            name: (rng.standard_normal(shape) / 1.7).astype("float32") for name, shape in shapes.items()
        }

    def read(self, w, x, h):
        if self.weights in ("joined", "deep"):
            both = jnp.concatenate([x, h], -1)
            made = both @ w["J"] if self.weights == "joined" else jnp.tanh(both @ w["S"]) @ w["V"]
        else:
            inner = {
                "two": lambda: h @ w["U"],
                "einsum": lambda: jnp.einsum("...i,ij->...j", h, w["U"]),
                "scaled": lambda: h @ (w["U"] / jnp.linalg.norm(w["U"], axis=0)),
            }[self.weights]()
            made = x @ w["W"] + inner + w["b"]
        if self.norm:
            made = made - made.mean(-1, keepdims=True)
            made = w["g"] * made / jnp.sqrt((made**2).mean(-1, keepdims=True) + 1e-3)
        return made

    def equations(self, w, x, state):
        h = state[0]
        if self.form == "lstm":
            i, f, z, o = jnp.split(self.read(w, x, h), 4, -1)
            c = jax.nn.sigmoid(f) * state[1] + jax.nn.sigmoid(i) * self.squash(z)
            return jax.nn.sigmoid(o) * jnp.tanh(c), c
        if self.form == "layers":
            low, high = jnp.split(self.read(w, x, h), 2, -1)
            low = self.squash(low)
            return low, jnp.tanh(high + (state[1] @ w["c"]) * low)
        if self.form == "delay":
            return self.squash(self.read(w, x, h) + state[1] @ w["c"]), h
        if self.form == "simple":
            new = self.squash(self.read(w, x, h))
        elif self.form == "gated":
            z, n = jnp.split(self.read(w, x, h), 2, -1)
            new = jax.nn.sigmoid(z) * h + (1 - jax.nn.sigmoid(z)) * self.squash(n)
        else:
            r = jax.nn.sigmoid(self.read(w, x, h)[..., :N])
            new = 0.5 * h + self.squash(self.read(w, x, r * h)[..., N:])
        return (h + 0.1 * new if self.residual else new,)

    def step(self, w, state, x):
        state = tuple(one - one.mean(0) for one in state) if self.odd == "mixing" else state
        new = self.equations(w, x, state)
        if self.masked:
            keep = x[..., :1] > -0.7
            new = tuple(jnp.where(keep, one, was) for one, was in zip(new, state, strict=True))
        if self.odd == "noise":
            new = tuple(one + np.random.default_rng().standard_normal() for one in new)
        return jax.lax.stop_gradient(new) if self.odd == "detached" else new

    def run(self, w, state, x):
        """The last state, and all outputs; x : (T, ..., D)."""
        step, steps, out = partial(self.step, w), len(x), []
        if self.loop in ("scan", "reverse", "remat"):
            inner = jax.checkpoint(step) if self.loop == "remat" else step
            turn = lambda state, x: ((new := inner(state, x)), new[0])  # noqa: E731
            state, out = jax.lax.scan(turn, state, x, reverse=self.loop == "reverse")
            return state, out[-1]
        if self.loop == "fori":
            state = jax.lax.fori_loop(0, steps, lambda t, state: step(state, x[t]), state)
            return state, state[0]
        if self.odd == "while":
            turn = lambda all_: (all_[0] + 1, step(all_[1], x[all_[0]]))  # noqa: E731
            state = jax.lax.while_loop(lambda all_: all_[0] < steps, turn, (0, state))[1]
            return state, state[0]
        if self.loop == "chunks":
            for k in (0, steps // 2):
                part = x[k : steps // 2] if not k else x[k:]
                state, _ = jax.lax.scan(lambda state, x: (step(state, x), 0), state, part)
            return state, state[0]
        again, past = jax.jit(step) if self.loop == "jit" else step, [state[0]]
        buffer = jnp.zeros((steps + 1, *state[0].shape), state[0].dtype)
        order = range(steps)[:: -1 if self.loop == "backwards" else 1]
        for k, one in enumerate(x if self.loop == "iterate" else (x[t] for t in order)):
            state = (buffer[k], *state[1:]) if self.odd == "buffer" else state
            state = again(state, one)
            if self.odd == "attention":
                state = (state[0] + sum(jax.nn.sigmoid(was) for was in past), *state[1:])
            buffer = buffer.at[k + 1].set(state[0]) if self.odd == "buffer" else buffer
            past.append(state[0])
            out.append(state[0])
        return state, sum(out)

    def start(self, w, shape):
        return tuple(
            jnp.broadcast_to(part, (*shape, N)) * (1 if self.learned else 0)
            for part in jnp.split(w["h0"], self.parts)
        )

    def inputs(self, w, x):
        return w["emb"][x] if self.tokens else x

    def __call__(self, w, x):
        """Of a batch (B, T, D)."""
        read = jnp.swapaxes(self.inputs(w, x), 0, 1)
        return self.run(w, self.start(w, read.shape[1:2]), read)[1] @ w["head"]


class Nnx(nnx.Module):
    def __init__(self, drawn):
        self.drawn = drawn
        self.w = nnx.Dict({name: nnx.Param(jnp.array(one)) for name, one in drawn.arrays.items()})

    def __call__(self, x):
        return self.drawn({name: one[...] for name, one in self.w.items()}, x)


class Linen(linen.Module):
    drawn: object

    @linen.compact
    def __call__(self, x):
        arrays = self.drawn.arrays
        return self.drawn({n: self.param(n, lambda _, n=n: jnp.array(arrays[n])) for n in arrays}, x)


class Equinox(equinox.Module):
    w: dict
    drawn: object = equinox.field(static=True)

    def __call__(self, x):
        return self.drawn(self.w, x)


def live(kind, drawn, x):
    if kind == "equinox":
        return gradscope.from_equinox(Equinox({n: jnp.array(a) for n, a in drawn.arrays.items()}, drawn), x)
    if kind == "nnx":
        return gradscope.from_flax(Nnx(drawn), x)
    model = Linen(drawn)
    return gradscope.from_flax(model.bind(model.init(jax.random.key(0), x)), x)


def expected(drawn, x, first):
    """d(last state)/d(state after ``first`` steps), by JAX through the whole loop, in float64."""
    with jax.enable_x64(True):
        w = {name: jnp.asarray(one, "float64") for name, one in drawn.arrays.items()}
        read = drawn.inputs(w, jnp.asarray(x) if drawn.tokens else jnp.asarray(x, "float64"))
        turned = drawn.loop in ("backwards", "reverse")
        found = []
        for one in read:
            early, late = one[:first], one[first:]
            if turned and first:
                early, late = one[-first:], one[:-first]
            state = drawn.start(w, ())
            for x_t in early[:: -1 if turned else 1]:
                state = drawn.step(w, state, x_t)

            def run(joined, late=late):
                last, _ = drawn.run(w, tuple(jnp.split(joined, drawn.parts)), late)
                return jnp.concatenate(last)

            found.append(np.asarray(jax.jacobian(run)(jnp.concatenate(state))))
    return found


def outcome(seed):
    """Why a drawn model is refused, "right" where it is not and JAX says the same; else AssertionError."""
    rng = np.random.default_rng(seed)
    drawn, steps, count = Drawn(rng), int(rng.integers(6, 9)), int(rng.integers(1, 4))
    drawn.odd = "" if count == 1 and drawn.odd == "mixing" else drawn.odd
    kind = ("nnx", "linen", "equinox")[rng.integers(3)]
    shape = (count, steps)
    x = rng.integers(0, 5, shape) if drawn.tokens else rng.standard_normal((*shape, D)).astype("float32")
    try:
        analysis = gradscope.analyze(checkpoint=live(kind, drawn, jnp.asarray(x)))
    except InputError as error:
        assert drawn.odd, error  # noqa: PT017  # right or refused: both will do
        assert ODD[drawn.odd] in str(error), error  # noqa: PT017
        return ODD[drawn.odd]
    assert not drawn.odd, drawn.odd
    said = " ".join(analysis.problem["assumed"])
    turns = re.search(r"a step is (\d+) turns of its loop", said)
    first = steps - analysis.problem["steps"] * int(turns[1] if turns else 1)
    assert first == 0 or drawn.form == "delay", first
    assert first == 0 or "left out" in said
    if "last step is left out" in said:  # a turn by itself, where two are one step
        assert first == 1
        turned = drawn.loop in ("backwards", "reverse")
        x, first = (x[:, 1:] if turned else x[:, :-1]), 0
    for ours, theirs in zip(analysis.full.spectra, expected(drawn, x, first), strict=True):
        with np.errstate(divide="ignore"):  # relu may let nothing through
            ours, theirs = ours.log10_singular_values, log10_values(theirs)
        there = theirs > theirs[0] - 7 if np.isfinite(theirs[0]) else np.zeros(len(theirs), bool)
        np.testing.assert_allclose(ours[there], theirs[there], rtol=0, atol=1e-6)
    return "right"


@pytest.mark.parametrize("seed", [*DRAWS, *(pytest.param(k, marks=pytest.mark.slow) for k in FOUND)])
def test_right_or_refused(seed):
    assert outcome(seed)
