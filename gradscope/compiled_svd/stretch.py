"""Short stretches of many chains with a fixed course: what an accelerator need not ask the host about."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from gradscope.compiled_svd.chain_program import columns_restored, columns_scaled
from gradscope.compiled_svd.device_steps import ChainArrays, serving, times
from gradscope.compiled_svd.graded_step import Form, multiplied_by_n, pivoted
from gradscope.compiled_svd.lag_norm import Norm, norm
from gradscope.compiled_svd.numbers import largest
from gradscope.compiled_svd.step_arrays import Shape

# Steps after which x is made well conditioned again; a stretch is so many times as long.
RESET_AFTER = 4


class PassResults(NamedTuple):
    """What B passes found over the steps they went through, see Progress; sure, sigma, exponent : by lag.

    form : None on the way for the norms alone.
    """

    form: Any
    worst: Any
    growth: Any
    sure: Any
    sigma: Any
    exponent: Any


class _Carried(NamedTuple):
    """Products under way: the columns of ``form`` are scaled by 2**after."""

    form: Form
    after: Any
    vector: Any
    worst: Any
    growth: Any


def stretched(
    shape: Shape, resets: Any, form: Form, vector: Any, chains: ChainArrays, noise: Any, by_lag: Any
) -> PassResults:
    """``form`` times all steps of these, every one factored, with the norms on the way where ``by_lag``.

    resets : whether x is made well conditioned again and again; vector : (B, m) about their top left vectors;
    noise : (some, m) random unit vectors.
    """
    batch, length = len(chains.weights), chains.weights.shape[1] - 1
    chains = serving(chains, batch)
    after = chains.weights[:, length]
    start = columns_scaled(form, after)
    one = jnp.ones(batch)
    every = jnp.arange(length - 1, -1, -1).reshape(-1, RESET_AFTER)

    def step(carried: _Carried, t: Any) -> tuple[_Carried, Norm]:
        rows, after, shift = times(shape, chains, carried.form.y, t)
        form = carried.form._replace(y=rows, exponent=carried.form.exponent + shift)
        found = pivoted(form, rows, after, lazily=False)
        x = multiplied_by_n(found, form.x, whole=True)
        form = Form(x, found.mantissa, found.exponent, found.lower)
        zero = jnp.zeros(batch)
        none = Norm(zero, zero.astype(jnp.int32), carried.vector, zero == 0)
        random = noise[t % len(noise)]
        measured = lax.cond(by_lag, lambda: norm(form, after, carried.vector, random), lambda: none)
        worst = jnp.minimum(carried.worst, found.worst)
        growth = jnp.maximum(carried.growth, largest(x).max(axis=-1))
        return _Carried(form, after, measured.vector, worst, growth), measured._replace(vector=None)

    def some(carried: _Carried, steps: Any) -> tuple[_Carried, Norm]:
        carried, measured = lax.scan(step, carried, steps)
        form = lax.cond(resets, _reset, lambda form: form, carried.form)
        return carried._replace(form=form), measured

    end, norms = lax.scan(some, _Carried(start, after, vector, one, one), every)
    sure, sigma, exponent = (
        jnp.moveaxis(a.reshape(length, batch), 0, 1) for a in (norms.sure, norms.sigma, norms.exponent)
    )
    return PassResults(columns_restored(end.form, end.after), end.worst, end.growth, sure, sigma, exponent)


def _reset(form: Form) -> Form:
    """As graded_chain.reset."""
    found = pivoted(form, form.x, jnp.zeros_like(form.exponent), lazily=False)
    return Form(found.lower, found.mantissa, found.exponent, multiplied_by_n(found, form.y, whole=True))
