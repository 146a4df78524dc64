"""The leading left vectors of many matrices at once, each from a start that is near it: LOBPCG."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.norm_by_lag import RANDOM, STILL, TINY, TOLERANCE

# Steps at most.
_MOST = 100
# Squares of two values, one over the other, from which on steps are no way to tell them apart.
_NEAR = 1 - 1e-5
# What is left of a direction without the new vector, of its size, or it counts as none.
_CANCELS = 1e-2
# Of so few rows, or columns, what is left of the matrices is decomposed sooner than steps find it.
_FEW = 32
# From so many states on each matrix goes its own way: its products take longer than the calls do, and a batch
# goes on until all are found.
_LARGE = 512


class LeadingPairs(NamedTuple):
    """sigma : (N,); left (N, r), right (N, m) : unit vectors."""

    sigma: Array
    left: Array
    right: Array


def leading_left(matrices: Array, start: Array, rng: np.random.Generator) -> LeadingPairs:
    """Of matrices (N, r, m), none of them zero and entries about 1, the largest singular values.

    start : (N, r). Steps of LOBPCG (Knyazev 2001) with M M^T: the best of u, its residual and the direction
    before takes as many steps as Lanczos, and no small problem that grows. Where the next value is almost as
    large (as of blocks that do not meet) it stands still before it is there, or takes long: then M M^T is
    decomposed, whose largest eigenvalue has all digits. Where that is not seen (of two values by themselves
    that differ by 1e-6 or less) the first may lack a part of their difference: some 1e-10, 1e-9 at most.
    """
    if matrices.shape[1] <= _FEW:
        return _decomposed(matrices)
    if matrices.shape[2] <= _FEW:
        sigma, right, left = _decomposed(matrices.transpose(0, 2, 1))
        return LeadingPairs(sigma, left, right)
    start = _unit(_unit(start) + RANDOM * _unit(rng.normal(size=start.shape)))
    at_once = 1 if start.shape[1] >= _LARGE else len(start)
    some = [slice(i, i + at_once) for i in range(0, len(start), at_once)]
    found = [_found(matrices[each], start[each]) for each in some]
    return LeadingPairs(*map(np.concatenate, zip(*found, strict=True)))


def _decomposed(matrices: Array) -> LeadingPairs:
    """By all eigenvalues of M M^T."""
    left = np.linalg.eigh(matrices @ matrices.transpose(0, 2, 1))[1][:, :, -1]
    images = (left[:, None] @ matrices)[:, 0]
    sigma = np.linalg.norm(images, axis=1)
    return LeadingPairs(sigma, left, images / sigma[:, None])


def _found(matrices: Array, start: Array) -> LeadingPairs:
    """By steps of all of them at once."""
    basis = np.zeros((len(start), 3, start.shape[1]))
    basis[:, 0] = start
    images = np.zeros((len(start), 3, matrices.shape[2]))
    images[:, :1] = basis[:, :1] @ matrices
    sigma, still = np.linalg.norm(images[:, 0], axis=1), np.zeros(len(start), int)
    for _ in range(_MOST):
        near = _improve(basis, images, matrices, sigma)
        better = np.linalg.norm(images[:, 0], axis=1)
        still = np.where(better - sigma <= TOLERANCE * better, still + 1, 0)
        sigma = better
        if (still >= STILL).all():
            break
    found = LeadingPairs(sigma, basis[:, 0], images[:, 0] / sigma[:, None])
    if (slow := (still < STILL) | (near > _NEAR)).any():
        for whole, part in zip(found, _decomposed(matrices[slow]), strict=True):
            whole[slow] = part
    return found


def _improve(basis: Array, images: Array, matrices: Array, sigma: Array) -> Array:
    """Put into basis (N, 3, r) the best vector u of its span with the residual, and the step there.

    It holds u, a place for the residual, and the last step p without its part along u; images : theirs.
    Returns (N,) the square of the next value in the span, over that of the best.
    """
    w = (matrices @ images[:, 0, :, None])[..., 0] / sigma[:, None] ** 2
    basis[:, 1] = 0.0
    for _ in range(2):
        w -= ((basis @ w[..., None]).transpose(0, 2, 1) @ basis)[:, 0]
        w /= np.maximum(np.linalg.norm(w, axis=1, keepdims=True), TINY)
    basis[:, 1] = w
    images[:, 1:2] = basis[:, 1:2] @ matrices
    gram = images @ images.transpose(0, 2, 1)
    values, vectors = np.linalg.eigh(gram)
    top = vectors[:, :, -1]
    both = np.stack([top, top * [0.0, 1.0, 1.0]], axis=1)
    before = np.linalg.norm(both[:, 1], axis=1)
    new, new_images = both @ basis, both @ images
    _unit_or_none(new[:, 0], new_images[:, 0], np.zeros(len(new)))
    along = (new[:, 0] * new[:, 1]).sum(axis=1)[:, None]
    new[:, 1] -= along * new[:, 0]
    new_images[:, 1] -= along * new_images[:, 0]
    _unit_or_none(new[:, 1], new_images[:, 1], _CANCELS * before)  # of less the image has not so many digits
    basis[:, ::2], images[:, ::2] = new, new_images
    return np.asarray(values[:, 1] / values[:, 2])


def _unit_or_none(vectors: Array, images: Array, least: Array) -> None:
    """Divide vectors (N, r) and images (N, m), in place, by the norms (N,); none are left of ``least``."""
    size = np.linalg.norm(vectors, axis=1)
    some = size > least
    factor = np.where(some, 1 / np.where(some, size, 1.0), 0.0)[:, None]
    vectors *= factor
    images *= factor


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), TINY))
