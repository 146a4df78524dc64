"""LSTM with layer normalisation (Ba, Kiros and Hinton 2016, arXiv 1607.06450, equations 20 to 22)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from gradscope.cells.activations import sigmoid, tanh
from gradscope.cells.cell import Cell
from gradscope.cells.notation import is_recurrent
from gradscope.cells.units import Parameters, Shapes

_GATES = ("z", "i", "f", "o")
EPSILON = 1e-5  # of torch.nn.LayerNorm


def layer_normed(variant: str = "", epsilon: float = EPSILON) -> Cell:
    """Of all gates' W x + a_W together, and of their R h + a_R, N; and of c, by ``variant``, on its way out.

    N(v; g) = g (v - mean v) / sqrt(var v + epsilon); the pre-activations are N(W x + a_W; g_W) +
    N(R h + a_R; g_R) + b, and h = o tanh(N(c; g_c) + s_c). variant : "carried" where c itself becomes what
    tanh is given, "gates" where c has no norm.
    A norm mixes the units, so there is no per-unit form.
    """
    with_norm = variant != "gates"

    def norm(v: Any, gain: Any) -> Any:
        centred = v - v.mean()
        return gain * centred / jnp.sqrt((centred * centred).mean() + epsilon)

    def every(params: Parameters, key: str) -> Any:
        return jnp.concatenate([params[f"{key}_{g}"] for g in _GATES])

    def advance(params: Parameters, x: Any, copies: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
        n = len(params["b_z"])
        read = {path: jnp.split(copy, [n])[int(is_recurrent(path))] for path, copy in copies.items()}
        inner = jnp.concatenate([params[f"W_{g}"] @ x for g in _GATES]) + every(params, "a_W")
        back = jnp.concatenate([params[f"R_{g}"] @ read[f"R_{g}"] for g in _GATES]) + every(params, "a_R")
        pre = norm(inner, every(params, "g_W")) + norm(back, every(params, "g_R")) + every(params, "b")
        z, i, f, o = jnp.split(pre, 4)
        gate = {"i": sigmoid(i), "f": sigmoid(f), "o": sigmoid(o)}
        c = gate["f"] * read["carousel"] + gate["i"] * tanh(z)
        normed = norm(c, params["g_c"]) + params["s_c"] if with_norm else c
        return (normed if variant == "carried" else c), gate["o"] * tanh(normed), gate

    def step(params: Parameters, x: Any, copies: Mapping[str, Any]) -> Any:
        return jnp.concatenate(advance(params, x, copies)[:2])

    def gates(params: Parameters, x: Any, state: Any) -> dict[str, Any]:
        return advance(params, x, dict.fromkeys(paths, state))[2]

    paths = ("carousel", *(f"R_{g}" for g in _GATES))
    suffix = ("-" + variant if variant else "") + (f"={epsilon!r}" if epsilon != EPSILON else "")
    return Cell(
        name=f"lstm-layernorm{suffix}",
        parameters=partial(_parameters, with_norm),
        step=step,
        paths=paths,
        components=("c", "h"),
        gates=gates,
        initialize=partial(_initial, with_norm),
        reads=lambda path: "h" if is_recurrent(path) else "c",
    )


def _parameters(with_norm: bool, hidden: int, input_size: int) -> Shapes:
    """W, R, b as of an LSTM; a, the biases inside the norms, and g, their gains; g_c and s_c of c."""
    shapes: Shapes = {f"W_{g}": (hidden, input_size) for g in _GATES}
    shapes |= {f"R_{g}": (hidden, hidden) for g in _GATES}
    shapes |= {f"{key}_{g}": (hidden,) for key in ("b", "a_W", "a_R", "g_W", "g_R") for g in _GATES}
    return shapes | (dict.fromkeys(("g_c", "s_c"), (hidden,)) if with_norm else {})


def _initial(with_norm: bool, rng: np.random.Generator, hidden: int, input_size: int) -> dict[str, Any]:
    """W, R and a as torch's LSTM draws them; norms begin with gain 1 and shift 0."""
    limit = 1.0 / math.sqrt(hidden)

    def draw(key: str, shape: tuple[int, ...]) -> Any:
        if key[0] in "gsb":
            return np.full(shape, float(key[0] == "g"))
        return rng.uniform(-limit, limit, shape)

    return {key: draw(key, shape) for key, shape in _parameters(with_norm, hidden, input_size).items()}
