"""d log10 sigma_1 / d(parameter) against central differences in fifty digits, by mpmath."""

import mpmath as mp
import numpy as np
import pytest
from oracles import layouts

import gradscope

N, D, T = 2, 1, 3
DIGITS = 50
# Of the Jacobian, and of the parameters: squares of these are what is left of the error.
INNER, OUTER = mp.mpf(10) ** -14, mp.mpf(10) ** -11


def sigmoid(a):
    return 1 / (1 + mp.exp(-a))


def affine(p, gate, x, h):
    """W x + R h + b by rows."""
    rows = range(len(p[f"b_{gate}"]))
    w, r, b = (p[f"{kind}_{gate}"] for kind in "WRb")
    return [mp.fdot(w[i], x) + mp.fdot(r[i], h) + b[i] for i in rows]


def lstm(p, x, state):
    c, h = state[:N], state[N:]
    z, i, f, o = (affine(p, gate, x, h) for gate in "zifo")
    c = [sigmoid(f[k]) * c[k] + sigmoid(i[k]) * mp.tanh(z[k]) for k in range(N)]
    return c + [sigmoid(o[k]) * mp.tanh(c[k]) for k in range(N)]


def gru(p, x, h):
    """Reset after, with a bias of its own in the reset product."""
    r, z = ([sigmoid(a) for a in affine(p, gate, x, h)] for gate in "rz")
    inner = [mp.fdot(p["R_h"][k], h) + p["c_h"][k] for k in range(N)]
    n = [mp.tanh(mp.fdot(p["W_h"][k], x) + p["b_h"][k] + r[k] * inner[k]) for k in range(N)]
    return [(1 - z[k]) * n[k] + z[k] * h[k] for k in range(N)]


def stack(p, x, state):
    """Two LSTMs, the second reads the h of the first."""
    own = [{name[7:]: a for name, a in p.items() if name.startswith(f"layer{k}.")} for k in range(2)]
    below = lstm(own[0], x, state[: 2 * N])
    return below + lstm(own[1], below[N:], state[2 * N :])


def log10_norm(step, p, xs, size):
    """Of d(last state) / d(first state), from central differences."""

    def last(start):
        for x in xs:
            start = step(p, x, start)
        return start

    columns = []
    for k in range(size):
        up, down = ([mp.mpf(0)] * size for _ in range(2))
        up[k], down[k] = INNER, -INNER
        columns.append([(a - b) / (2 * INNER) for a, b in zip(last(up), last(down), strict=True)])
    return mp.log10(max(mp.svd_r(mp.matrix(columns), compute_uv=False)))


def exact(array):
    return [[mp.mpf(v) for v in row] for row in array] if array.ndim == 2 else [mp.mpf(v) for v in array]


def moved(p, name, direction, by):
    """The parameters with one of them changed along a direction."""

    def add(a, d):
        return [add(x, y) for x, y in zip(a, d, strict=True)] if isinstance(a, list) else a + by * d

    return p | {name: add(p[name], exact(direction))}


def file_of(kind, folder):
    """A checkpoint, and its parameters as the analysis calls them."""
    layer, layers = kind.removeprefix("two "), 1 + kind.startswith("two")
    state = layouts.recurrent(layer, D, N, layers=layers, scale=1.5, dtype="float64")
    each = [layouts.equations_of(layer, state, f"_l{k}") for k in range(layers)]
    if len(each) == 1:
        return layouts.saved(state, folder / "m.safetensors"), each[0]
    named = {f"layer{k}.{name}": a for k, own in enumerate(each) for name, a in own.items()}
    return layouts.saved(state, folder / "m.safetensors"), named


@pytest.mark.parametrize(
    ("kind", "step", "size"),
    [
        ("lstm", lstm, 2 * N),
        ("gru", gru, N),
        pytest.param("two lstm", stack, 4 * N, marks=pytest.mark.slow),
    ],
)
def test_every_parameter(kind, step, size, tmp_path):
    path, parameters = file_of(kind, tmp_path)
    x = np.random.default_rng(3).standard_normal((T, D))
    found = gradscope.analyze(checkpoint=path, inputs=x, only="paths", sensitivity=True).sensitivity
    rng = np.random.default_rng(5)
    with mp.workdps(DIGITS):
        p, xs = {name: exact(a) for name, a in parameters.items()}, exact(x)
        assert found.total.keys() == parameters.keys()
        for name, array in parameters.items():
            direction = rng.standard_normal(array.shape)
            plus, minus = (
                log10_norm(step, moved(p, name, direction, by), xs, size) for by in (OUTER, -OUTER)
            )
            expected = float((plus - minus) / (2 * OUTER))
            assert (found.total[name] * direction).sum() == pytest.approx(expected, rel=1e-10, abs=1e-13)
