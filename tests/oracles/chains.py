"""Chains of Jacobians to try the numerics on: plain NumPy, each a function of size, steps and seed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Maker = Callable[[int, int, int], np.ndarray]


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def tanh_rnn(m: int, steps: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    r = rng.normal(size=(m, m)) / np.sqrt(m)
    h = np.zeros(m)
    chain = []
    for _ in range(steps):
        h = np.tanh(r @ h + 0.5 * rng.normal(size=m))
        chain.append((1 - h * h)[:, None] * r)
    return np.array(chain)


def lstm(
    m: int,
    steps: int,
    seed: int,
    bias: tuple[float, float, float] = (0, 0, 0),
    gain: float = 1.0,
) -> np.ndarray:
    """State (c, h) of m / 2 units; bias shifts the gates i, f, o."""
    rng = np.random.default_rng(seed)
    n = m // 2
    rz, ri, rf, ro = gain * rng.normal(size=(4, n, n)) / np.sqrt(n)
    c, h = np.zeros(n), np.zeros(n)
    chain = []
    for _ in range(steps):
        xz, xi, xf, xo = 0.5 * rng.normal(size=(4, n))
        z = np.tanh(rz @ h + xz)
        i, f, o = (sigmoid(r @ h + x + b) for r, x, b in zip((ri, rf, ro), (xi, xf, xo), bias, strict=True))
        c_before, c = c, f * c + i * z
        tanh_c = np.tanh(c)
        dc_dh = (
            (i * (1 - z * z))[:, None] * rz
            + (z * i * (1 - i))[:, None] * ri
            + (c_before * f * (1 - f))[:, None] * rf
        )
        through = o * (1 - tanh_c**2)
        dh_dh = through[:, None] * dc_dh + (tanh_c * o * (1 - o))[:, None] * ro
        chain.append(np.block([[np.diag(f), dc_dh], [np.diag(through * f), dh_dh]]))
        h = o * tanh_c
    return np.array(chain)


def lstm_saturated(m: int, steps: int, seed: int) -> np.ndarray:
    return lstm(m, steps, seed, bias=(-12, 12, 0))


def lstm_saturated_output(m: int, steps: int, seed: int) -> np.ndarray:
    return lstm(m, steps, seed, bias=(-12, 12, 12))


def gru(m: int, steps: int, seed: int) -> np.ndarray:
    """Reset after: h = (1 - z) tanh(W x + r * (R h)) + z h."""
    rng = np.random.default_rng(seed)
    rr, rz, rh = rng.normal(size=(3, m, m)) / np.sqrt(m)
    h = np.zeros(m)
    chain = []
    for _ in range(steps):
        xr, xz, xh = 0.5 * rng.normal(size=(3, m))
        r, z = sigmoid(rr @ h + xr), sigmoid(rz @ h + xz)
        inner = rh @ h
        new = np.tanh(xh + r * inner)
        d_new = (1 - new**2)[:, None] * (r[:, None] * rh + (inner * r * (1 - r))[:, None] * rr)
        d_z = (z * (1 - z))[:, None] * rz
        chain.append(np.diag(z) + (1 - z)[:, None] * d_new + (h - new)[:, None] * d_z)
        h = (1 - z) * new + z * h
    return np.array(chain)


def gaussian(m: int, steps: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(steps, m, m)) / np.sqrt(m)


def orthogonal(m: int, steps: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(steps, m, m)))[0]


def identity(m: int, steps: int, seed: int) -> np.ndarray:
    return np.broadcast_to(np.eye(m), (steps, m, m)).copy()


def scaled(m: int, steps: int, seed: int) -> np.ndarray:
    return 0.99 * identity(m, steps, seed)


def clustered(m: int, steps: int, seed: int) -> np.ndarray:
    """Groups of equal singular values: orthogonal steps around one diagonal with few values."""
    rng = np.random.default_rng(seed)
    q = np.linalg.qr(rng.normal(size=(m, m)))[0]
    values = np.repeat([1.0, 0.9, 0.5, 0.1], -(-m // 4))[:m]
    return np.broadcast_to(q * values @ q.T, (steps, m, m)).copy()


def jordan(m: int, steps: int, seed: int) -> np.ndarray:
    block = 0.9 * np.eye(m) + np.eye(m, k=1)
    return np.broadcast_to(block, (steps, m, m)).copy()


def near_singular(m: int, steps: int, seed: int) -> np.ndarray:
    """One step of condition 1e13 in the middle of an ordinary chain."""
    chain = gaussian(m, steps, seed)
    u, s, vt = np.linalg.svd(chain[steps // 2])
    s[-1] = 1e-13 * s[0]
    chain[steps // 2] = u * s @ vt
    return chain


def row_scaled(m: int, steps: int, seed: int) -> np.ndarray:
    """Rows and columns of very different size: values from 1e346 to 1e-1744 at m = 16, T = 200."""
    scale = np.logspace(1.73, -8.72, m)
    return scale[:, None] * gaussian(m, steps, seed)


def column_scaled(m: int, steps: int, seed: int) -> np.ndarray:
    return gaussian(m, steps, seed) * np.logspace(-8.72, 1.73, m)


def both_scaled(m: int, steps: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed + 1)
    left, right = 10.0 ** rng.uniform(-6, 6, size=(2, steps, m))
    return left[:, :, None] * gaussian(m, steps, seed) * right[:, None, :]


def dead_unit(m: int, steps: int, seed: int) -> np.ndarray:
    chain = tanh_rnn(m, steps, seed)
    chain[steps // 3, 1] = 0
    chain[2 * steps // 3, [0, m // 2]] = 0
    return chain


def zero_column(m: int, steps: int, seed: int) -> np.ndarray:
    chain = tanh_rnn(m, steps, seed)
    chain[steps // 3, :, 1] = 0
    chain[2 * steps // 3, :, [0, m // 2]] = 0
    return chain


def dead_both(m: int, steps: int, seed: int) -> np.ndarray:
    chain = dead_unit(m, steps, seed)
    chain[steps // 2, :, 2 % m] = 0
    return chain


def relu_rnn(m: int, steps: int, seed: int) -> np.ndarray:
    """Many dead units at every step, the live ones of ordinary size."""
    rng = np.random.default_rng(seed)
    on = rng.random((steps, m)) < 0.9
    return 1.5 * on[:, :, None] * rng.normal(size=(m, m)) / np.sqrt(m)


def ones_step(m: int, steps: int, seed: int) -> np.ndarray:
    chain = tanh_rnn(m, steps, seed)
    chain[steps // 2] = 1
    return chain


def integer_rank(m: int, steps: int, seed: int) -> np.ndarray:
    """One integer step of rank m // 2, none of its entries structurally zero."""
    rng = np.random.default_rng(seed + 1)
    chain = tanh_rnn(m, steps, seed)
    low = max(1, m // 2)
    chain[steps // 2] = rng.integers(1, 9, (m, low)) @ rng.integers(1, 9, (low, m))
    return chain


def duplicated_rows(m: int, steps: int, seed: int) -> np.ndarray:
    chain = tanh_rnn(m, steps, seed)
    chain[steps // 2, 1] = chain[steps // 2, 0]
    chain[steps // 4, -1] = -2 * chain[steps // 4, 0]
    return chain


CHAINS: dict[str, Maker] = {
    "tanh": tanh_rnn,
    "lstm": lstm,
    "lstm f~1 i~0": lstm_saturated,
    "lstm f~1 i~0 o~1": lstm_saturated_output,
    "gru": gru,
    "gaussian": gaussian,
    "orthogonal": orthogonal,
    "identity": identity,
    "scaled": scaled,
    "clustered": clustered,
    "jordan": jordan,
    "near-singular": near_singular,
    "row-scaled": row_scaled,
    "column-scaled": column_scaled,
    "both-scaled": both_scaled,
    "dead unit": dead_unit,
    "zero column": zero_column,
    "dead both": dead_both,
    "relu": relu_rnn,
    "ones step": ones_step,
    "integer rank": integer_rank,
    "duplicated rows": duplicated_rows,
}


def two_blocks(sizes, n=3):
    """(T, 2n, 2n): two orthogonal blocks, the first times sizes[t]."""
    rng = np.random.default_rng(0)
    blocks = [np.linalg.qr(rng.normal(size=(n, n)))[0] for _ in range(2)]
    chain = np.zeros((len(sizes), 2 * n, 2 * n))
    chain[:, :n, :n] = np.multiply.outer(sizes, blocks[0])
    chain[:, n:, n:] = blocks[1]
    return chain
