"""Products of time segments on a device: the product up to every one of them, in log2(S) levels."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from gradscope.compiled_svd.graded_step import Form, multiplied_by_n, pivoted
from gradscope.compiled_svd.numbers import largest, power_of_two
from gradscope.product_svd.steps import MAX_SPREAD


class GradedBatch(NamedTuple):
    """A batch of graded products; worst : (B,) smallest pivot so far, growth : (B,) largest entry of x."""

    form: Form
    worst: Any
    growth: Any


class JoinedSegments(NamedTuple):
    """Of every chain, what its segments make up together; before : of every segment, what is left of it.

    vectors : (B, m) about the top left vectors of these.
    """

    whole: GradedBatch
    before: Form
    vectors: Any


def joined_segments(count: int, parts: GradedBatch, head: GradedBatch) -> JoinedSegments:
    """The products of ``count`` segments a chain, the leftmost first, on the ``head`` of every chain.

    parts : of every chain its segments, one after the other. All partial products at once (Hillis, Steele
    1986): more work than in a tree and half the levels, which is what takes the time.
    """
    split = jax.tree.map(lambda a: jnp.swapaxes(a.reshape(-1, count, *a.shape[1:]), 0, 1), parts)
    split = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), head, split)

    def level(k: Any, split: GradedBatch) -> GradedBatch:
        place = jnp.arange(count + 1)
        left = jax.tree.map(lambda a: a[jnp.maximum(place - (1 << k), 0)], split)
        both = _over_all(left, split)
        first = place < (1 << k)
        found: GradedBatch = jax.tree.map(lambda a, b: jnp.where(_beside(first, a), a, b), split, both)
        return found

    upto = lax.fori_loop(0, count.bit_length(), level, split)
    before = jax.tree.map(lambda a: jnp.swapaxes(a[:-1], 0, 1).reshape(-1, *a.shape[2:]), upto.form)
    top = before.x[:, 0]
    length = jnp.linalg.norm(top, axis=1, keepdims=True)
    return JoinedSegments(jax.tree.map(lambda a: a[-1], upto), before, top / length)


def _beside(first: Any, array: Any) -> Any:
    return first.reshape(-1, *[1] * (array.ndim - 1))


def _over_all(high: GradedBatch, low: GradedBatch) -> GradedBatch:
    """``merged_forms`` over two axes."""
    flat = (jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), one) for one in (high, low))
    found: GradedBatch = jax.tree.map(lambda a, b: a.reshape(b.shape), merged_forms(*flat), high)
    return found


def merged_forms(high: GradedBatch, low: GradedBatch) -> GradedBatch:
    """The graded form of high times low: to ``high`` the other is two more steps, X^T D and Y.

    Where D spans more than floats do it is taken in several; x of ``low`` is made well conditioned by a
    reset: what it has lost would meet what y of ``high`` has.
    """
    zero = jnp.zeros_like(low.form.exponent)
    turned = pivoted(low.form, low.form.x, zero, lazily=False)
    x, y = turned.lower, multiplied_by_n(turned, low.form.y, whole=True)
    top = turned.exponent.max(axis=-1, keepdims=True)
    rows = (high.form.y @ jnp.swapaxes(x, 1, 2)) * turned.mantissa[:, None]
    form = high.form._replace(exponent=high.form.exponent + top, y=rows)
    start = form, turned.exponent - top, jnp.minimum(high.worst, low.worst)
    form, _, worst = lax.while_loop(lambda c: (c[1] < 0).any(), _through_d, _through_d(start))
    form, _, worst = _through_d((form._replace(y=form.y @ y), zero, worst))
    growth = jnp.maximum(jnp.maximum(high.growth, low.growth), largest(form.x).max(axis=-1))
    return GradedBatch(form, worst, growth)


def _through_d(carried: tuple[Form, Any, Any]) -> tuple[Form, Any, Any]:
    """As much of a diagonal 2**left as fits multiplied into y, and factored; what is left of it."""
    form, left, worst = carried
    step = jnp.maximum(left, -MAX_SPREAD)
    found = pivoted(form, form.y * power_of_two(step)[:, None], step, lazily=False)
    x = multiplied_by_n(found, form.x, whole=True)
    form = Form(x, found.mantissa, found.exponent, found.lower)
    return form, left - step, jnp.minimum(worst, found.worst)
