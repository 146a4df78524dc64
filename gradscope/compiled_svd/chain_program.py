"""The graded chain as one program: steps formed, multiplied, factored, and the norm at every lag, batched."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gradscope.compiled_svd.device_steps import ChainArrays, times
from gradscope.compiled_svd.graded_step import Form, multiplied_by_n, pivoted
from gradscope.compiled_svd.lag_norm import norm
from gradscope.compiled_svd.numbers import largest, power_of_two
from gradscope.compiled_svd.step_arrays import Shape
from gradscope.product_svd.graded_chain import ALONE, GROWN, LONGEST, RESET_EVERY


class Progress(NamedTuple):
    """Chains under way.

    form : the product of the last ``lag`` steps, within a program its columns scaled by 2**after; vector :
    (B, m) top left vector; group, alone : how many steps are multiplied before they are factored, and for
    how many they go singly; worst : (B,) smallest pivot so far; growth : (B,) largest entry of x; sure :
    (B,) whether every norm was found; sigma, exponent : (B, T) norms at every lag.
    """

    form: Form
    after: Any
    vector: Any
    lag: Any
    group: Any
    alone: Any
    worst: Any
    growth: Any
    sure: Any
    sigma: Any
    exponent: Any


class How(NamedTuple):
    """How chains are gone through.

    noise : (some, m) random unit vectors; want : (B,) whose norms are wanted; last : whether no steps come
    after these; regularly, grouped : as graded_chain.prefixes.
    """

    noise: Any
    want: Any
    last: Any
    regularly: Any
    grouped: Any


@partial(jax.jit, static_argnums=0)
def advanced(shape: Shape, progress: Progress, chains: ChainArrays, steps: Any, how: How) -> Progress:
    """Through the ``steps`` of these chains, from the last to the first."""

    def unfinished(carried: tuple[Any, Any, Progress]) -> Any:
        return (carried[0] > 0) | carried[1]

    after = lax.dynamic_index_in_dim(chains.weights, steps, 1, keepdims=False)
    start = progress._replace(form=columns_scaled(progress.form, after), after=after)
    found: Progress = lax.while_loop(
        unfinished, partial(_attempt, shape, chains, how), (steps, jnp.bool_(False), start)
    )[2]
    return found._replace(form=columns_restored(found.form, found.after))


def columns_scaled(form: Form, after: Any) -> Form:
    """Columns scaled as the rows of the step are that they meet, by 2**after."""
    shift = after.max(axis=-1, keepdims=True)
    y = form.y * power_of_two(after - shift)[:, None]
    return form._replace(y=y, exponent=form.exponent + shift)


def columns_restored(form: Form, after: Any) -> Form:
    """The product as it is."""
    shift = after.max(axis=-1, keepdims=True)
    y = form.y * power_of_two(shift - after)[:, None]
    return form._replace(y=y, exponent=form.exponent - shift)


def _attempt(
    shape: Shape, chains: ChainArrays, how: How, carried: tuple[Any, Any, Progress]
) -> tuple[Any, Any, Progress]:
    """Some steps multiplied and factored, or where x is due the same done to it; t : steps that are left.

    One factorisation in the program serves both: a reset is so many steps as none, with x in place of y.
    """
    t, resets, before = carried
    count = jnp.where(resets, 0, jnp.minimum(before.group, t))
    tried = lax.fori_loop(0, count, partial(_multiplied, shape, chains, how, t), before)
    rows = jnp.where(resets, tried.form.x, tried.form.y)
    found = pivoted(tried.form, rows, jnp.where(resets, 0, tried.after))
    fits = (count <= 1) | (found.worst >= how.grouped).all()

    def accepted() -> tuple[Any, Any, Progress]:
        product = multiplied_by_n(found, jnp.where(resets, tried.form.y, tried.form.x))
        x, y = (jnp.where(resets, *both) for both in ((found.lower, product), (product, found.lower)))
        growth = largest(x).max(axis=-1)
        due = (growth > GROWN).any() | (how.regularly & _reset_due(tried.lag, count))
        group, alone = before.group, jnp.maximum(before.alone - count, 0)
        grown = (found.worst.min() ** 2 > how.grouped) & (alone <= 0)
        return (
            t - count,
            due & ~resets & ((t > count) | ~how.last),
            tried._replace(
                form=Form(x, found.mantissa, found.exponent, y),
                group=jnp.where(resets, group, jnp.where(grown, jnp.minimum(2 * count, LONGEST), count)),
                alone=alone,
                worst=jnp.where(resets, before.worst, jnp.minimum(before.worst, found.worst)),
                growth=jnp.maximum(before.growth, growth),
            ),
        )

    def refused() -> tuple[Any, Any, Progress]:
        return t, resets, before._replace(group=count // 2, alone=jnp.int32(ALONE))

    result: tuple[Any, Any, Progress] = lax.cond(fits, accepted, refused)
    return result


def _multiplied(shape: Shape, chains: ChainArrays, how: How, t: Any, k: Any, before: Progress) -> Progress:
    """One more step in y, and the norm of the product."""
    rows, after, shift = times(shape, chains, before.form.y, t - 1 - k)
    form = before.form._replace(y=rows, exponent=before.form.exponent + shift)
    found = before._replace(form=form, after=after, lag=before.lag + 1)
    measured: Progress = lax.cond(how.want.any(), partial(_with_norm, how), lambda p: p, found)
    return measured


def _with_norm(how: How, found: Progress) -> Progress:
    at = found.lag - 1
    random = lax.dynamic_index_in_dim(how.noise, at % len(how.noise), keepdims=False)
    measured = norm(found.form, found.after, found.vector, random)
    return found._replace(
        vector=measured.vector,
        sure=found.sure & (measured.sure | ~how.want),
        sigma=lax.dynamic_update_index_in_dim(found.sigma, measured.sigma, at, 1),
        exponent=lax.dynamic_update_index_in_dim(found.exponent, measured.exponent, at, 1),
    )


def _reset_due(lag: Any, count: Any) -> Any:
    """As graded_chain: whether one of the ``count`` lags up to ``lag`` is 1, 2, 4, ... or a multiple."""
    return (lag % RESET_EVERY < count) | ((lag < RESET_EVERY) & ((lag & (lag - 1)) == 0))
