"""The norm of a graded product on a device: locally optimal steps from the last lag's vector, batched."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from gradscope.compiled_svd.graded_step import Form
from gradscope.compiled_svd.numbers import largest, power_of_two
from gradscope.product_svd.norm_by_lag import BELOW

# As norm_by_lag: relative growth of the norm that counts as none, and after so many of those it is found.
_TOLERANCE, _STILL = 1e-13, 2
MOST_STEPS = 80
# How much of the start is random: it finds a new top vector that is orthogonal to the old one.
_RANDOM = 0.1
# Squarings of the small Gram matrix, after which its first vector is what is left.
_SQUARINGS = 8
_TINY = 1e-300
# What is left of a direction without the new vector, of its size, or it counts as none.
_CANCELS = 1e-2


class Search(NamedTuple):
    """u (B, m) unit vectors, their images z = M^T u, the last direction p and its image; sigma : (B,)."""

    u: Any
    z: Any
    p: Any
    p_image: Any
    sigma: Any
    still: Any
    step: Any


class Norm(NamedTuple):
    """sigma * 2**exponent (B,); vector : where the next lag starts; sure : whether it was found."""

    sigma: Any
    exponent: Any
    vector: Any
    sure: Any


def norm(form: Form, after: Any, start: Any, noise: Any) -> Norm:
    """Norms of the products whose columns are scaled by 2**after; start : (B, m), noise : (m,) a unit vector.

    Steps of LOBPCG (Knyazev 2001) with M M^T for the product M: the best of u, its residual and the direction
    before takes as many steps as Lanczos, and no small problem that grows.
    """
    reference = after.max(axis=-1, keepdims=True)
    columns = power_of_two(reference - after)
    height = largest(form.y * columns[:, None])
    log_size = jnp.log2(largest(form.x) * height * jnp.abs(form.mantissa)) + form.exponent
    shift = jnp.max(log_size, axis=-1, keepdims=True).astype(jnp.int32)
    matters = log_size > shift + math.log2(BELOW)  # the rest must not become denormal, which is slow
    d = jnp.where(matters, form.mantissa * power_of_two(form.exponent - shift), 0.0)

    def image(u: Any) -> Any:
        return columns * jnp.einsum("bij,bi->bj", form.y, d * jnp.einsum("bij,bj->bi", form.x, u))

    def back(v: Any) -> Any:
        return jnp.einsum("bij,bi->bj", form.x, d * jnp.einsum("bij,bj->bi", form.y, columns * v))

    u = _unit(start + _RANDOM * noise)
    z = image(u)
    zero = jnp.zeros_like(u)
    sigma = jnp.linalg.norm(z, axis=-1)
    first = Search(u, z, zero, zero, sigma, jnp.zeros(sigma.shape, jnp.int32), 0)

    def unfinished(s: Search) -> Any:
        return (s.step < MOST_STEPS) & (s.still < _STILL).any()

    found = lax.while_loop(unfinished, lambda s: _better(s, image, back), first)
    return Norm(found.sigma, (shift - reference)[:, 0], found.u, found.still >= _STILL)


def _better(s: Search, image: Any, back: Any) -> Search:
    """The best vector in the span of u, its residual and the last direction."""
    w = back(s.z) / jnp.maximum(s.sigma, _TINY)[:, None] ** 2
    known = jnp.stack([s.u, s.p], axis=1)
    w = _unit(_without(_unit(_without(w, known)), known))
    basis = jnp.stack([s.u, w, s.p], axis=1)
    images = jnp.stack([s.z, image(w), s.p_image], axis=1)
    top = _first_vector(jnp.einsum("bim,bjm->bij", images, images))
    u, z = (jnp.einsum("bi,bim->bm", top, a) for a in (basis, images))
    length = jnp.linalg.norm(u, axis=-1, keepdims=True)
    u, z = u / length, z / length
    p, p_image = (jnp.einsum("bi,bim->bm", top[:, 1:], a[:, 1:]) for a in (basis, images))
    along, before = (p * u).sum(-1, keepdims=True), jnp.linalg.norm(p, axis=-1, keepdims=True)
    p, p_image = p - along * u, p_image - along * z
    size = jnp.linalg.norm(p, axis=-1, keepdims=True)
    some = size > _CANCELS * before  # of less there is no image to that many digits
    p, p_image = (jnp.where(some, a / jnp.where(some, size, 1.0), 0.0) for a in (p, p_image))
    sigma = jnp.linalg.norm(z, axis=-1)
    still = jnp.where(sigma - s.sigma <= _TOLERANCE * sigma, s.still + 1, 0)
    # Of a batch some are found before others: images that are but added to would drift from their vectors.
    found = s.still >= _STILL
    u, z, p, p_image = (
        jnp.where(found[:, None], a, b) for a, b in zip(s[:4], (u, z, p, p_image), strict=True)
    )
    sigma, still = jnp.where(found, s.sigma, sigma), jnp.where(found, s.still, still)
    return Search(u, z, p, p_image, sigma, still, s.step + 1)


def _first_vector(gram: Any) -> Any:
    """(B, 3) main direction of symmetric matrices, by squaring them again and again.

    By entries: so small a matrix product takes longer than all of this. Scaled once, for the main value is
    between 1 and 3 then, and its power of 2**_SQUARINGS is far from the ends of float64.
    """
    size = jnp.maximum(jnp.diagonal(gram, axis1=1, axis2=2).max(axis=-1), _TINY)
    power = gram / size[:, None, None]
    for _ in range(_SQUARINGS):
        power = sum(power[:, :, k, None] * power[:, k, None] for k in range(3))
    column = jnp.argmax(jnp.diagonal(power, axis1=1, axis2=2), axis=-1)
    return _unit(jnp.take_along_axis(power, column[:, None, None], 1)[:, 0])


def _without(w: Any, known: Any) -> Any:
    """What of w (B, m) is orthogonal to known (B, k, m)."""
    return w - jnp.einsum("bk,bkm->bm", jnp.einsum("bkm,bm->bk", known, w), known)


def _unit(vector: Any) -> Any:
    return vector / jnp.maximum(jnp.linalg.norm(vector, axis=-1, keepdims=True), _TINY)
