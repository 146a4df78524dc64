"""The norm of every partial product: Lanczos on the graded factors, started from the last lag."""

from __future__ import annotations

import numpy as np

from gradscope.graded import Graded
from gradscope.structure import Array

MAX_STEPS = 40
TOLERANCE = 1e-13
# Rows of d this far below the largest do not change the norm.
BELOW = 1e-19


class LagNorm:
    """log10 sigma_1 of one graded product after the other."""

    def __init__(self) -> None:
        self.rng = np.random.default_rng(0)
        self.vector: Array | None = None

    def __call__(self, graded: Graded, after: Array) -> float:
        """After : (m_0,) exponents by which the columns of graded.y are scaled."""
        if graded.rank == 0:
            return -np.inf
        reference = int(after.max(initial=0))
        y = graded.y * np.ldexp(1.0, reference - after)
        # Largest entries, not norms: rows may be so small or large that squares do not fit.
        height = np.abs(y).max(axis=1)
        with np.errstate(divide="ignore"):
            parts = np.abs([np.abs(graded.x).max(axis=1), height, graded.mantissa])
            log_size = np.log2(parts).sum(axis=0) + graded.exponent
        keep = log_size > log_size.max() + np.log2(BELOW)
        if np.isneginf(log_size).all():
            return -np.inf
        shift = int(log_size.max())
        height, carried = np.frexp(height[keep])
        y = np.ldexp(y[keep], -carried[:, None]) / height[:, None]
        d = np.ldexp(graded.mantissa[keep] * height, graded.exponent[keep] + carried - shift)
        sigma = self._norm(graded.x[keep] * d[:, None], y)
        return float(np.log10(np.longdouble(sigma)) + (shift - reference) * np.log10(np.longdouble(2)))

    def _norm(self, x: Array, y: Array) -> float:
        """Largest singular value of x.T @ y by Golub-Kahan-Lanczos, fully reorthogonalised."""
        if len(x) == 1:
            self.vector = x[0] / np.linalg.norm(x[0])
            return float(np.linalg.norm(x) * np.linalg.norm(y))
        if self.vector is None or len(self.vector) != x.shape[1] or min(x.shape) <= 6:
            return self._direct(x, y)
        start = self.rng.normal(size=len(self.vector))
        # The random part finds a new top vector that is orthogonal to the old one.
        start = self.vector + 0.1 * start / np.linalg.norm(start)
        us = np.empty((MAX_STEPS + 1, x.shape[1]))
        vs = np.empty((MAX_STEPS, y.shape[1]))
        bidiagonal = np.zeros((MAX_STEPS + 1, MAX_STEPS))
        us[0] = start / np.linalg.norm(start)
        last, still = 0.0, 0
        for j in range(MAX_STEPS):
            v = (x @ us[j]) @ y
            v -= (vs[:j] @ v) @ vs[:j]
            v -= (vs[:j] @ v) @ vs[:j]
            alpha = np.linalg.norm(v)
            if alpha <= 1e-300:
                break
            vs[j] = v / alpha
            u = (y @ vs[j]) @ x
            u -= (us[: j + 1] @ u) @ us[: j + 1]
            u -= (us[: j + 1] @ u) @ us[: j + 1]
            beta = np.linalg.norm(u)
            bidiagonal[j, j], bidiagonal[j + 1, j] = alpha, beta
            left, sigmas, _ = np.linalg.svd(bidiagonal[: j + 2, : j + 1], full_matrices=False)
            sigma = float(sigmas[0])
            us[j + 1] = u / max(beta, 1e-300)
            still = still + 1 if sigma - last <= TOLERANCE * sigma else 0
            last = sigma
            if still == 2 or beta <= 1e-15 * sigma:
                self.vector = left[:, 0] @ us[: j + 2]
                return sigma
        return self._direct(x, y)

    def _direct(self, x: Array, y: Array) -> float:
        u, s, _ = np.linalg.svd(x.T @ y)
        self.vector = u[:, 0]
        return float(s[0])
