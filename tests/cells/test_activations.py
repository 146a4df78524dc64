"""Slopes of every activation and cell against quotients of hundreds of digits, however saturated."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import mpmath
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from oracles.few import few

from gradscope.cells import CELLS, activations, find
from gradscope.cells.activated import ACTIVATIONS
from gradscope.linearize.cell_chain import split
from gradscope.linearize.jacobians import definition, linearize, link

# exp(-1400), the slope of tanh at 700, is still seen beside 1, with 60 digits of its own.
DIGITS = 700
STEP = mpmath.mpf(10) ** -40
ROUNDINGS = 24


def tanh(a):
    e = mpmath.exp(-2 * abs(a))
    return mpmath.sign(a) * (1 - e) / (1 + e)


def sigmoid(a):
    return 1 / (1 + mpmath.exp(-a))


def relu(a):
    return max(a, mpmath.mpf(0))


def clip(a, low, high):
    return min(max(a, mpmath.mpf(low)), mpmath.mpf(high))


def gelu_inner(a):
    return mpmath.sqrt(2 / mpmath.pi) * (a + mpmath.mpf(0.044715) * a**3)


def cumulative(a):
    return mpmath.erfc(-a / mpmath.sqrt(2)) / 2


def softplus(a):
    return mpmath.log1p(mpmath.exp(a))


def elu(a, alpha=1):
    return a if a > 0 else alpha * mpmath.expm1(a)


# As their papers and the documentation of Keras and ONNX have them; the name is that of a cell's.
FUNCTIONS = {
    "tanh": tanh,
    "sigmoid": sigmoid,
    "relu": relu,
    "linear": lambda a: a,
    "affine=3,0.5": lambda a: 3 * a + 0.5,
    "celu=2": lambda a: a if a > 0 else 2 * mpmath.expm1(a / 2),
    "elu": elu,
    "elu=0.25": partial(elu, alpha=0.25),
    "exponential": mpmath.exp,
    "gelu": lambda a: a * cumulative(a),
    "gelu_tanh": lambda a: a * (1 + tanh(gelu_inner(a))) / 2,
    "hard_shrink": lambda a: a if abs(a) > 0.5 else 0 * a,
    "hard_sigmoid=0.2": lambda a: clip(a * mpmath.mpf(0.2) + 0.5, 0, 1),
    "hard_sigmoid=1/6": lambda a: clip(a * mpmath.mpf(1 / 6) + 0.5, 0, 1),
    "hard_silu": lambda a: a * clip(a + 3, 0, 6) / 6,
    "hard_tanh": lambda a: clip(a, -1, 1),
    "leaky_relu=0.01": lambda a: a if a > 0 else mpmath.mpf(0.01) * a,
    "log_sigmoid": lambda a: -softplus(-a),
    "mish": lambda a: a * tanh(softplus(a)),
    "relu6": lambda a: clip(a, 0, 6),
    "scaled_tanh=2,0.5": lambda a: 2 * tanh(a / 2),
    "selu": lambda a: mpmath.mpf(1.0507009873554805) * elu(a, mpmath.mpf(1.6732632423543772)),
    "silu": lambda a: a * sigmoid(a),
    "soft_shrink": lambda a: a - mpmath.sign(a) / 2 if abs(a) > 0.5 else 0 * a,
    "softplus": softplus,
    "softsign": lambda a: a / (1 + abs(a)),
    "sparse_plus": lambda a: 0 * a if a <= -1 else a if a >= 1 else (a + 1) ** 2 / 4,
    "sparse_sigmoid": lambda a: clip((a + 1) / 2, 0, 1),
    "squareplus": lambda a: (a + mpmath.sqrt(a * a + 4)) / 2,
    "tanh_shrink": lambda a: a - tanh(a),
    "thresholded_relu": lambda a: a if a > 1 else 0 * a,
}
# Where a function is not monotone its slope goes through 0, of terms as large as this.
TERMS = {
    "gelu": cumulative,
    "gelu_tanh": lambda a: (1 + tanh(gelu_inner(a))) / 2,
    "mish": lambda a: tanh(softplus(a)),
    "silu": sigmoid,
}
# What the exponent of a slope that ends is: it is rounded before.
EXPONENTS = {"gelu": lambda a: a * a / 2, "gelu_tanh": lambda a: 6 * gelu_inner(a)}
# Where a slope bends, at 0 on one side, a difference quotient is off by its step: all there is beside 0.
BENDS = {"sparse_plus": (-1, 1)}
KINKS = {
    "hard_shrink": (-0.5, 0.5),
    "hard_sigmoid=0.2": (-2.5, 2.5),
    "hard_sigmoid=1/6": (-3, 3),
    "hard_silu": (-3, 3),
    "hard_tanh": (-1, 1),
    "relu6": (0, 6),
    "soft_shrink": (-0.5, 0.5),
    "sparse_sigmoid": (-1, 1),
    "thresholded_relu": (1,),
}


def slope(f, at):
    return (f(at + STEP) - f(at - STEP)) / (2 * STEP)


# --- the cells' equations, of one unit: {path: copy of the state} -> new state -----------------


def rnn(phi):
    def step(p, copies):
        return [phi(p["R"] * copies["R"][0] + p["b"])]

    return step


def gru(p, copies):
    r = sigmoid(p["R_r"] * copies["R_r"][0] + p["b_r"])
    z = sigmoid(p["R_z"] * copies["R_z"][0] + p["b_z"])
    n = tanh(p["b_h"] + r * (p["R_h"] * copies["R_h"][0] + p["c_h"]))
    return [(1 - z) * n + z * copies["carry"][0]]


def gru_before(p, copies):
    r = sigmoid(p["R_r"] * copies["R_r"][0] + p["b_r"])
    z = sigmoid(p["R_z"] * copies["R_z"][0] + p["b_z"])
    n = tanh(p["b_h"] + p["R_h"] * (r * copies["R_h"][0]))
    return [(1 - z) * n + z * copies["carry"][0]]


def lstm(p, copies, name=""):
    def pre(g, new=None):
        seen = 0
        if f"p_{g}" in p:
            seen = p[f"p_{g}"] * (copies[f"p_{g}"][0] if new is None else new)
        return p[f"R_{g}"] * copies[f"R_{g}"][1] + p[f"b_{g}"] + seen

    z = pre("z") if name == "lstm-niaf" else tanh(pre("z"))
    i = sigmoid(pre("i")) if "R_i" in p else 1
    f = 1 - i if name == "lstm-cifg" else sigmoid(pre("f")) if "R_f" in p else 1
    c = f * copies["carousel"][0] + i * z
    o = sigmoid(pre("o", c)) if "R_o" in p else 1
    h = o * (c if name == "lstm-noaf" else tanh(c))
    return [c, p["M"] * h] if "M" in p else [c, h]


STEPS = {
    "linear": rnn(lambda a: a),
    "rnn": rnn(tanh),
    "rnn-relu": rnn(relu),
    "rnn-sigmoid": rnn(sigmoid),
    "gru": gru,
    "gru-reset-before": gru_before,
    "lstm-projected-1": lstm,
} | {name: partial(lstm, name=name) for name in CELLS if name.startswith("lstm")}


def test_every_cell_is_tried():
    assert set(CELLS) < set(STEPS)


def derivatives(name, parameters, state):
    """{path: J (m, m)} by difference quotients."""
    cell = find(name)
    p = {key: mpmath.mpf(float(np.ravel(value)[0])) for key, value in parameters.items()}
    at = [mpmath.mpf(float(s)) for s in state]
    found = {}
    for path in cell.paths:
        columns = []
        for j in range(len(at)):
            ends = []
            for sign in (1, -1):
                moved = [s + sign * STEP * (k == j) for k, s in enumerate(at)]
                ends.append(STEPS[name](p, {other: moved if other == path else at for other in cell.paths}))
            columns.append([(up - down) / (2 * STEP) for up, down in zip(*ends, strict=True)])
        found[path] = np.array(columns, dtype=object).T
    return found


def check(found, true, allowed, tiny):
    for value, expected in zip(np.ravel(found), np.ravel(true), strict=True):
        error = abs(mpmath.mpf(float(value)) - expected)
        assert error <= allowed * abs(expected) + tiny, (float(value), mpmath.nstr(expected, 20))


eighths = st.integers(0, 5600).map(lambda n: n / 8)  # exact in every sum with the rest of a pre-activation
signed = st.builds(lambda a, sign: a * sign, eighths, st.sampled_from([-1, 1]))
# Where c = f c + i z or h - n cancels, what is left of them is the trajectory's rounding, not a slope's.
SIGNS = {"lstm": {"b_z": eighths}, "gru": {"b_h": eighths.map(lambda a: -a)}}
# What the step computes on the way to a pre-activation is rounded beside its bias: of a recurrent matrix that
# reads what a gate has scaled, of a peephole that looks at the new state.
INNER = {"gru": "b_h", "gru-reset-before": "b_h", "lstm-peephole": "b_o"}
FORMATS = {"float64": 2.0**-1022, "float32": 2.0**-126}


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=40, deadline=None)
@given(a=signed)
@example(a=-10.125)  # of gelu_tanh in float32 a factor of the slope is no normal number, the slope is one
def test_slopes_of_activations(name, dtype, a):
    if name == "exponential" and dtype == "float32":
        a /= 8  # or it is larger than any number
    if a in KINKS.get(name, ()) or a in BENDS.get(name, ()) or a == 0:
        a = 5.0  # the slope there is a convention, or not what a difference quotient finds
    with mpmath.workdps(DIGITS), jax.enable_x64(dtype == "float64"):
        value, *slopes = (float(one) for one in slopes_of(name)(jnp.asarray(a, dtype)))
        f, at = FUNCTIONS[name], mpmath.mpf(a)
        term, exponent = (abs(table[name](at)) if name in table else 0 for table in (TERMS, EXPONENTS))
        allowed = float(ROUNDINGS + exponent) * np.finfo(dtype).eps
        for found in slopes:
            check(found, [slope(f, at)], allowed, FORMATS[dtype] * (1 + abs(a)) + allowed * term)
        check(value, [f(at)], allowed, allowed + FORMATS[dtype])


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if activations.levels(name).values])
def test_what_is_left_beside_a_level_has_all_its_digits(name):
    f = FUNCTIONS[name]
    with mpmath.workdps(DIGITS), jax.enable_x64(True):
        for level, value in enumerate(activations.levels(name).values, 1):
            exact = f(mpmath.mpf(-(10**4))) if name == "selu" else mpmath.mpf(value)
            for a in (-300.0, -30.5, -1.25, 0.75, 20.0, 300.0):
                found = activations.less(name)(jnp.asarray(a), level)
                allowed = (ROUNDINGS + 2 * abs(a)) * np.finfo("float64").eps
                check(found, [f(mpmath.mpf(a)) - exact], allowed, 0)


def test_every_activation_is_tried():
    assert {name.partition("=")[0] for name in FUNCTIONS} == set(ACTIVATIONS)


def test_slopes_where_they_bend():
    phi = jax.grad(activations.activation("sparse_plus"))
    assert [float(phi(a)) for a in (-1.0, 0.0, 1.0)] == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("name", [name for name in KINKS if name != "hard_silu"])
def test_slope_at_a_kink_is_that_of_the_flat_side(name):
    phi = jax.grad(activations.activation(name))
    with jax.enable_x64(True):
        sides = [[float(phi(kink + d)) for d in (-1e-6, 0.0, 1e-6)] for kink in KINKS[name]]
    for left, at, right in sides:
        assert at == min(left, right, key=abs)


@cache
def slopes_of(name):
    """The value, and the slope by reverse and by forward mode, as JAX compiles it for one and for a batch."""
    phi = activations.activation(name)
    return jax.jit(
        lambda a: (phi(a), jax.grad(phi)(a), jax.jacfwd(phi)(a), jax.vmap(jax.grad(phi))(a[None])[0])
    )


def test_slope_of_relu_at_zero_is_zero():
    assert jax.grad(activations.relu)(0.0) == 0.0


@cache
def compiled(name):
    cell = find(name)
    return jax.jit(lambda *given: (definition(cell, *given), linearize(cell, *given[:2], given[2][0])))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("name", few(STEPS, "rnn", "lstm", "gru"))
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_slopes_of_cells(name, dtype, data):
    cell = find(name)
    parameters = {key: np.full(shape, 0.25, dtype) for key, shape in cell.shapes(1, 1).items()}
    signs = SIGNS.get(name.split("-")[0], {})
    biases = {key: data.draw(signs.get(key, signed), key) for key in parameters if key.startswith("b")}
    parameters |= {key: np.full((1,), value, dtype) for key, value in biases.items()}
    state = np.array([0.75, 0.5625][-len(cell.components) :], dtype)
    with mpmath.workdps(DIGITS), jax.enable_x64(dtype == "float64"):
        given = (parameters, np.zeros((1, 1), dtype), state[None])
        by_path, fast = jax.device_get(compiled(name)(*given))
        true = derivatives(name, parameters, state)
        carried = abs(biases.get(INNER.get(name, "b_o" if "p_o" in parameters else ""), 0))
        if name == "lstm-niaf":  # c itself is as large as the bias, and multiplies slopes that ended as 0
            carried = 4 * max(map(abs, biases.values()))
        allowed = (ROUNDINGS + 8 * carried) * np.finfo(dtype).eps
        tiny = FORMATS[dtype] * (1 + carried)
        paths = {} if cell.units is None else {p.name: p for p in split(cell, parameters, fast).paths}
        for path, expected in true.items():
            check(by_path[path][0], expected, allowed, tiny)
            if path in paths:
                m = len(state)
                dense = np.zeros((m, m))
                paths[path].add_to(dense[:, paths[path].source : paths[path].source + 1], 0)
                check(dense, expected, allowed, tiny)


@settings(max_examples=50, deadline=None)
@given(c=signed)
def test_slope_of_the_output_of_an_lstm_in_cell_view(c):
    with mpmath.workdps(DIGITS), jax.enable_x64(True):
        found = link(find("lstm"), np.array([[0, 0], [c, 0]], float), {"o": np.full((1, 1), 0.5)})
        check(found, [slope(tanh, mpmath.mpf(c)) / 2], ROUNDINGS * np.finfo(float).eps, FORMATS["float64"])
