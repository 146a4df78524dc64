"""Spectral norms and radii of recurrent matrices, of the large ones from a few vectors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from gradscope.cells.notation import is_recurrent
from gradscope.custom_types import Array

# To this size all values are computed, in a tenth of a second.
_SMALL = 256
# Beyond this size all eigenvalues take minutes, and are not computed where the few are not to be trusted.
_LARGE = 1024
# Of Arnoldi's method: eigenvalues sought, vectors kept, restarts. Where one alone is sought it misses the
# largest of a random matrix, whose eigenvalues fill a disc.
_SOUGHT, _KEPT, _RESTARTS = 6, 120, 60
# What the radii from both sides may differ by, and what a condition may make of rounding.
_AGREE = 1e-9


def recurrent_matrices(parameters: Mapping[str, Array], *, all_values: bool) -> dict[str, dict[str, Any]]:
    """Spectral norm and radius of every R*, and all its singular values if they are asked for.

    With these come all eigenvalues, (n, 2) real and imaginary parts, the largest first, of a square matrix
    of which they are computed for the radius, up to 256 x 256.
    Of what is beyond the range of float64 inf, of a radius that is not to be had nan, of a matrix that is
    not square None.
    """
    found = {}
    for name, matrix in parameters.items():
        if is_recurrent(name) and matrix.ndim == 2 and matrix.size:
            square = matrix.shape[0] == matrix.shape[1]
            singular = singular_values(matrix) if all_values else None
            every = eigenvalues(matrix) if all_values and square and len(matrix) <= _SMALL else None
            radius = None
            if square:
                radius = spectral_radius(matrix) if every is None else _farthest(every)
            found[name] = {
                "spectral_norm": spectral_norm(matrix) if singular is None else float(singular[0]),
                "spectral_radius": radius,
                **({} if singular is None else {"singular_values": singular}),
                **({} if every is None else {"eigenvalues": every}),
            }
    return found


def eigenvalues(matrix: Array) -> Array:
    """All of them, (n, 2) real and imaginary parts, the largest first; inf beyond the range of float64."""
    scaled, scale = _scaled(matrix)
    found = np.linalg.eigvals(scaled)
    found = found[np.argsort(-np.abs(found), kind="stable")]
    return np.asarray(_times(np.stack([found.real, found.imag], axis=1), scale))


def _farthest(values: Array) -> float:
    """The largest absolute value of eigenvalues (n, 2)."""
    with np.errstate(over="ignore"):
        return float(np.hypot(*values.T).max())


def singular_values(matrix: Array) -> Array:
    """All of them, descending; inf where one is beyond the range of float64."""
    scaled, scale = _scaled(matrix)
    return np.asarray(_times(np.linalg.svd(scaled, compute_uv=False), scale))


def spectral_norm(matrix: Array) -> float:
    """The largest singular value; inf where it is beyond the range of float64."""
    scaled, scale = _scaled(matrix)
    if not scale:
        return 0.0
    if min(matrix.shape) > _SMALL:
        tall = scaled if scaled.shape[0] >= scaled.shape[1] else scaled.T
        value = _symmetric(lambda v: tall.T @ (tall @ v), tall.shape[1])
        if value is not None:
            return float(_times(np.sqrt(value), scale))
    return float(singular_values(matrix)[0])


def spectral_radius(matrix: Array) -> float:
    """The largest absolute value of an eigenvalue of a square matrix; nan where it is not to be had."""
    scaled, scale = _scaled(matrix)
    if not scale:
        return 0.0
    if len(matrix) > _SMALL:
        found = _few(scaled)
        if found is not None or len(matrix) > _LARGE:
            return math.nan if found is None else float(_times(found, scale))
    return float(_times(np.abs(np.linalg.eigvals(scaled)).max(), scale))


def _few(matrix: Array) -> float | None:
    """The radius by the eigenvalues of both A and A^T, None where they, or their condition, do not agree.

    A residual alone says little of a matrix that is far from normal; with left and right vectors y and x of
    an eigenvalue, rounding moves it by |A| eps / |y^H x|.
    """
    right, left = _arnoldi(matrix, 0), _arnoldi(matrix.T, 1)
    if right is None or left is None:
        return None
    radius = float(np.abs(right[0]).max())
    k = int(np.abs(right[0]).argmax())
    # Of A^T the eigenvectors are those of A from the left, not conjugated.
    near = int(np.abs(left[0] - right[0][k]).argmin())
    condition = float(abs(left[1][:, near] @ right[1][:, k]))
    rounding = np.finfo(float).eps * np.linalg.norm(matrix) / max(condition, 1e-300)
    agree = abs(radius - np.abs(left[0]).max()) <= _AGREE * radius and rounding <= _AGREE * radius
    return radius if agree else None


def _arnoldi(matrix: Array, seed: int) -> tuple[Array, Array] | None:
    """A few of the largest eigenvalues and their vectors, None where they do not converge."""
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigs

    operator = LinearOperator(matrix.shape, matvec=partial(np.matmul, matrix), dtype=float)
    start = np.random.default_rng(seed).standard_normal(len(matrix))
    try:
        values, vectors = eigs(operator, _SOUGHT, ncv=_KEPT, v0=start, maxiter=_RESTARTS)
    except ArpackError:
        return None
    return values, vectors


def _symmetric(apply: Callable[[Array], Array], size: int) -> float | None:
    """The largest eigenvalue of a symmetric matrix, None where it does not converge."""
    from scipy.sparse.linalg import ArpackError, LinearOperator, eigsh

    operator = LinearOperator((size, size), matvec=apply, dtype=float)
    start = np.random.default_rng(0).standard_normal(size)
    try:
        found = eigsh(operator, 2, ncv=40, v0=start, maxiter=_RESTARTS, return_eigenvectors=False)
    except ArpackError:
        return None
    return float(found.max())


def _scaled(matrix: Array) -> tuple[Array, float]:
    """The matrix over a power of two, near its largest entry, so that no square of it leaves float64."""
    array = np.asarray(matrix, np.float64)
    largest = float(np.abs(array).max())
    if not largest:
        return array, 0.0
    scale = float(np.ldexp(1.0, int(np.frexp(largest)[1]) - 1))
    return array / scale, scale


def _times(values: Any, scale: float) -> Any:
    with np.errstate(over="ignore"):
        return np.multiply(values, scale)
