"""The cells again, in PyTorch, straight from the equations in their papers.

A step is ``step(p, x, state, use)``: every appearance of the previous state in the equations goes
through ``use(path, value)``, so that a test can cut all paths but one with ``detach``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

Use = Callable[[str, Tensor], Tensor]
Step = Callable[[dict[str, Tensor], Tensor, Tensor, Use], Tensor]


def elman(phi: Callable[[Tensor], Tensor]) -> Step:
    """h_t = phi(W x_t + R h_(t-1) + b)."""
    return lambda p, x, h, use: phi(p["W"] @ x + p["R"] @ use("R", h) + p["b"])


def block(
    peepholes: str = "",
    without: str = "",
    coupled: bool = False,
    g: Callable[[Tensor], Tensor] = torch.tanh,
    h: Callable[[Tensor], Tensor] = torch.tanh,
) -> Step:
    """Greff et al. (arXiv 1503.04069), section 2 and the variants of section 3; y is the output."""

    def step(p: dict[str, Tensor], x: Tensor, state: Tensor, use: Use) -> Tensor:
        c, y = state.chunk(2)

        def bar(gate: str) -> Tensor:
            return p["W_" + gate] @ x + p["R_" + gate] @ use("R_" + gate, y) + p["b_" + gate]

        def peep(gate: str, cell: Tensor) -> Tensor:
            return p["p_" + gate] * cell if gate in peepholes else torch.zeros_like(cell)

        one = torch.ones_like(c)
        z = g(bar("z"))
        i = one if "i" in without else torch.sigmoid(bar("i") + peep("i", use("p_i", c)))
        f = (
            one
            if "f" in without
            else 1 - i
            if coupled
            else torch.sigmoid(bar("f") + peep("f", use("p_f", c)))
        )
        new = z * i + use("carousel", c) * f
        o = one if "o" in without else torch.sigmoid(bar("o") + peep("o", new))
        return torch.cat([new, h(new) * o])

    return step


def gru(p: dict[str, Tensor], x: Tensor, h: Tensor, use: Use) -> Tensor:
    """As documented for torch.nn.GRU, with b_hn called c_h."""
    r = torch.sigmoid(p["W_r"] @ x + p["b_r"] + p["R_r"] @ use("R_r", h))
    z = torch.sigmoid(p["W_z"] @ x + p["b_z"] + p["R_z"] @ use("R_z", h))
    n = torch.tanh(p["W_h"] @ x + p["b_h"] + r * (p["R_h"] @ use("R_h", h) + p["c_h"]))
    return (1 - z) * n + z * use("carry", h)


def cho(p: dict[str, Tensor], x: Tensor, h: Tensor, use: Use) -> Tensor:
    """Cho et al. 2014 (arXiv 1406.1078), equations 5 to 8, with biases."""
    r = torch.sigmoid(p["W_r"] @ x + p["R_r"] @ use("R_r", h) + p["b_r"])
    z = torch.sigmoid(p["W_z"] @ x + p["R_z"] @ use("R_z", h) + p["b_z"])
    tilde = torch.tanh(p["W_h"] @ x + p["R_h"] @ (r * use("R_h", h)) + p["b_h"])
    return z * use("carry", h) + (1 - z) * tilde


def linear(a: Tensor) -> Tensor:
    return a


# name -> (step, gates, peepholes)
CELLS: dict[str, tuple[Step, str, str]] = {
    "lstm": (block(), "zifo", ""),
    "lstm-1997": (block(without="f"), "zio", ""),
    "lstm-peephole": (block("ifo"), "zifo", "ifo"),
    "lstm-nig": (block("fo", without="i"), "zfo", "fo"),
    "lstm-nfg": (block("io", without="f"), "zio", "io"),
    "lstm-nog": (block("if", without="o"), "zif", "if"),
    "lstm-niaf": (block("ifo", g=linear), "zifo", "ifo"),
    "lstm-noaf": (block("ifo", h=linear), "zifo", "ifo"),
    "lstm-cifg": (block("io", coupled=True), "zio", "io"),
    "gru": (gru, "rzh", ""),
    "gru-reset-before": (cho, "rzh", ""),
    "linear": (elman(linear), "", ""),
    "rnn": (elman(torch.tanh), "", ""),
    "rnn-relu": (elman(torch.relu), "", ""),
    "rnn-sigmoid": (elman(torch.sigmoid), "", ""),
}


def keys(name: str) -> set[str]:
    """The parameters that the equations have."""
    _, gates, peepholes = CELLS[name]
    matrices = {f"{kind}_{gate}" for kind in "WRb" for gate in gates} or {"W", "R", "b"}
    return matrices | {f"p_{gate}" for gate in peepholes} | ({"c_h"} if name == "gru" else set())


def advance(name: str, p: dict[str, np.ndarray], x: np.ndarray, state: np.ndarray) -> np.ndarray:
    """One step forward."""
    step = CELLS[name][0]
    return step(_tensors(p), torch.tensor(x), torch.tensor(state), lambda _, value: value).numpy()


def jacobian(
    name: str, p: dict[str, np.ndarray], x: np.ndarray, state: np.ndarray, path: str | None = None
) -> np.ndarray:
    """d(new state)/d(state), of one path alone if it is named."""
    step, weights, inputs = CELLS[name][0], _tensors(p), torch.tensor(x)

    def use(which: str, value: Tensor) -> Tensor:
        return value if path in (None, which) else value.detach()

    def forward(old: Tensor) -> Tensor:
        return step(weights, inputs, old, use)

    return torch.autograd.functional.jacobian(forward, torch.tensor(state)).numpy()


def _tensors(p: dict[str, np.ndarray]) -> dict[str, Tensor]:
    return {key: torch.tensor(value) for key, value in p.items()}
