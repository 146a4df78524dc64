"""The leading left vectors of many matrices at once, each from a start that is near it: LOBPCG."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gradscope.custom_types import Array
from gradscope.product_svd.norm_by_lag import DECOMPOSED, RANDOM, STILL, TINY, TOLERANCE

# Steps at most.
_MOST = 100
# Squarings of the small Gram matrix, after which its first vector is what is left; its entries stay finite.
_SQUARINGS = 8
# What is left of a direction without the new vector, of its size, or it counts as none.
_CANCELS = 1e-2
# From so many states on each matrix goes its own way: its products take longer than the calls do, and a batch
# goes on until all are found.
_LARGE = 512


class LeadingPairs(NamedTuple):
    """sigma : (N,); left (N, r), right (N, m) : unit vectors; sure : (N,) whether they were found."""

    sigma: Array
    left: Array
    right: Array
    sure: Array


def leading_left(matrices: Array, start: Array, rng: np.random.Generator) -> LeadingPairs:
    """Of matrices (N, r, m), none of them zero and entries about 1, the largest singular values.

    start : (N, r). Steps of LOBPCG (Knyazev 2001) with M M^T: the best of u, its residual and the direction
    before takes as many steps as Lanczos, and no small problem that grows.
    """
    if min(matrices.shape[1:]) <= DECOMPOSED:
        u, s, vt = np.linalg.svd(matrices, full_matrices=False)
        return LeadingPairs(s[:, 0], u[:, :, 0], vt[:, 0], np.ones(len(s), bool))
    start = _unit(_unit(start) + RANDOM * _unit(rng.normal(size=start.shape)))
    at_once = 1 if start.shape[1] >= _LARGE else len(start)
    some = [slice(i, i + at_once) for i in range(0, len(start), at_once)]
    found = [_found(matrices[each], start[each]) for each in some]
    return LeadingPairs(*map(np.concatenate, zip(*found, strict=True)))


def _found(matrices: Array, start: Array) -> LeadingPairs:
    """All of them at once."""
    basis = np.zeros((len(start), 3, start.shape[1]))
    basis[:, 0] = start
    images = np.zeros((len(start), 3, matrices.shape[2]))
    images[:, :1] = basis[:, :1] @ matrices
    sigma, still = np.linalg.norm(images[:, 0], axis=1), np.zeros(len(start), int)
    for _ in range(_MOST):
        _improve(basis, images, matrices, sigma)
        better = np.linalg.norm(images[:, 0], axis=1)
        still = np.where(better - sigma <= TOLERANCE * better, still + 1, 0)
        sigma = better
        if (still >= STILL).all():
            break
    return LeadingPairs(sigma, basis[:, 0], images[:, 0] / sigma[:, None], still >= STILL)


def _improve(basis: Array, images: Array, matrices: Array, sigma: Array) -> None:
    """Put into basis (N, 3, r) the best vector u of its span with the residual, and the step there.

    It holds u, a place for the residual, and the last step p without its part along u; images : theirs.
    """
    w = (matrices @ images[:, 0, :, None])[..., 0] / sigma[:, None] ** 2
    basis[:, 1] = 0.0
    for _ in range(2):
        w -= ((basis @ w[..., None]).transpose(0, 2, 1) @ basis)[:, 0]
        w /= np.maximum(np.linalg.norm(w, axis=1, keepdims=True), TINY)
    basis[:, 1] = w
    images[:, 1:2] = basis[:, 1:2] @ matrices
    gram = images @ images.transpose(0, 2, 1)
    gram /= np.einsum("nii->n", gram)[:, None, None]
    for _ in range(_SQUARINGS):
        gram = gram @ gram
        gram /= np.einsum("nii->n", gram)[:, None, None]
    column = np.einsum("nii->ni", gram).argmax(axis=1)
    top = gram[np.arange(len(gram)), column]
    top /= np.linalg.norm(top, axis=1, keepdims=True)
    both = np.stack([top, top * [0.0, 1.0, 1.0]], axis=1)
    before = np.linalg.norm(both[:, 1], axis=1)
    new, new_images = both @ basis, both @ images
    _unit_or_none(new[:, 0], new_images[:, 0], np.zeros(len(new)))
    along = (new[:, 0] * new[:, 1]).sum(axis=1)[:, None]
    new[:, 1] -= along * new[:, 0]
    new_images[:, 1] -= along * new_images[:, 0]
    _unit_or_none(new[:, 1], new_images[:, 1], _CANCELS * before)  # of less the image has not so many digits
    basis[:, ::2], images[:, ::2] = new, new_images


def _unit_or_none(vectors: Array, images: Array, least: Array) -> None:
    """Divide vectors (N, r) and images (N, m), in place, by the norms (N,); none are left of ``least``."""
    size = np.linalg.norm(vectors, axis=1)
    some = size > least
    factor = np.where(some, 1 / np.where(some, size, 1.0), 0.0)[:, None]
    vectors *= factor
    images *= factor


def _unit(vectors: Array) -> Array:
    return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), TINY))
