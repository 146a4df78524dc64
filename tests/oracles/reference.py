"""High-precision reference: exact entries, fixed-point product, Cholesky, one-sided Jacobi.

Shares nothing with the package: integers of thousands of bits (python-flint) for the product,
gmpy2 floats of as many bits for the singular values. The number of bits is doubled until the
smallest value is resolved.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import flint
import gmpy2
import numpy as np


@dataclass(frozen=True)
class Reference:
    """Singular values of P = A_T ... A_1 for the float64 entries taken as exact."""

    sigma: list[gmpy2.mpfr]  # descending, without the exact zeros
    exact_zeros: int
    left: np.ndarray | None  # (m, r) mpfr, where vectors were asked for
    right: np.ndarray | None  # (m, r) mpfr
    bits: int

    def log10(self) -> list[gmpy2.mpfr]:
        with gmpy2.context(precision=200, emin=gmpy2.get_emin_min(), emax=gmpy2.get_emax_max()):
            return [gmpy2.log10(s) for s in self.sigma]

    def log10_errors(self, log10_values: np.ndarray) -> np.ndarray:
        """Computed minus true log10, as float64; exact zeros must have been cut off."""
        pairs = zip(log10_values, self.log10(), strict=True)
        with gmpy2.context(precision=200):
            return np.array([float(gmpy2.mpfr(float(x)) - y) for x, y in pairs])


def integers(a: np.ndarray) -> tuple[flint.fmpz_mat, int]:
    """(N, e) with a = N 2^e exactly."""
    mantissa, exponent = np.frexp(a)
    whole = (mantissa * 2.0**53).astype(np.int64)
    exponent = exponent.astype(int) - 53
    low = int(exponent[whole != 0].min()) if whole.any() else 0
    rows = [
        [int(w) << int(e - low) if w else 0 for w, e in zip(ws, es, strict=True)]
        for ws, es in zip(whole, exponent, strict=True)
    ]
    return flint.fmpz_mat(rows), low


def rounded(matrix: flint.fmpz_mat, exponent: int, bits: int) -> tuple[flint.fmpz_mat, int]:
    """Fixed point: keep `bits` bits of the largest entry."""
    size = max(abs(int(x)).bit_length() for x in matrix.entries())
    cut = size - bits
    if cut <= 64:
        return matrix, exponent
    entries = [int(x) >> cut for x in matrix.entries()]
    return flint.fmpz_mat(matrix.nrows(), matrix.ncols(), entries), exponent + cut


def floats(matrix: flint.fmpz_mat, exponent: int) -> np.ndarray:
    values = [
        gmpy2.mul_2exp(gmpy2.mpfr(int(x)), exponent)
        if exponent >= 0
        else gmpy2.div_2exp(gmpy2.mpfr(int(x)), -exponent)
        for x in matrix.entries()
    ]
    return np.array(values, dtype=object).reshape(matrix.nrows(), matrix.ncols())


def exact_rank(jacobians: np.ndarray, prime: int = 2305843009213693951) -> int:
    """Rank of the product over GF(2^61 - 1): the true rank but for a chance of about 1e-16."""
    product = None
    for a in jacobians:
        whole, _exponent = integers(np.asarray(a, float))
        step = flint.nmod_mat(whole, prime)
        product = step if product is None else step * product
    return int(product.rank())


def cholesky(gram: np.ndarray, rank: int) -> np.ndarray:
    """R (rank, m) with gram = R^T R, by diagonal pivoting (columns stay in place)."""
    gram = gram.copy()
    rows = []
    for _ in range(rank):
        pivot = int(np.argmax(np.diag(gram)))
        row = gram[pivot] / gmpy2.sqrt(gram[pivot, pivot])
        rows.append(row)
        gram = gram - np.multiply.outer(row, row)
        gram[pivot, :] = gram[:, pivot] = gmpy2.mpfr(0)
    return np.array(rows, dtype=object)


def jacobi(w: np.ndarray, tolerance: gmpy2.mpfr) -> np.ndarray:
    """Columns of w made orthogonal by plane rotations; returns the rotated copy."""
    columns = [w[:, j].copy() for j in range(w.shape[1])]
    norms = [c @ c for c in columns]
    for _ in range(60):
        done = True
        for p in range(len(columns)):
            for q in range(p + 1, len(columns)):
                dot = columns[p] @ columns[q]
                if dot * dot <= tolerance * tolerance * norms[p] * norms[q]:
                    continue
                done = False
                zeta = (norms[q] - norms[p]) / (2 * dot)
                t = 1 / (abs(zeta) + gmpy2.sqrt(1 + zeta * zeta))
                t = t if zeta >= 0 else -t
                c = 1 / gmpy2.sqrt(1 + t * t)
                a, b = columns[p], columns[q]
                columns[p], columns[q] = c * (a - t * b), c * (t * a + b)
                norms[p], norms[q] = columns[p] @ columns[p], columns[q] @ columns[q]
        if done:
            return np.stack(columns, axis=1)
    raise ArithmeticError("the reference did not converge")


def reference(jacobians: np.ndarray, bits: int = 1024, vectors: bool = False) -> Reference:
    """All singular values of the exact product; with vectors m = 64, T = 60 takes some ten seconds."""
    rank = exact_rank(jacobians)
    while True:
        with gmpy2.context(precision=bits, emin=gmpy2.get_emin_min(), emax=gmpy2.get_emax_max()):
            found = _at_bits(jacobians, rank, bits, vectors)
        if found is not None:
            return found
        bits *= 2


def largest(jacobians: np.ndarray, bits: int = 1024) -> float:
    """log10 of the largest singular value of the exact product, -inf of none: the Gram matrix squared.

    The 2^k-th root of the trace of its 2^k-th power is the 2^k-norm of the squared values, whose logarithm is
    convex in 2^-k: what it still falls by is at most what it fell by last. Powers need no more bits than the
    answer: of chains that need thousands a fraction of the time that all values take.
    """
    if exact_rank(jacobians) == 0:
        return -math.inf
    with gmpy2.context(precision=200):
        while True:
            product, exponent, norm_bits = _product(jacobians, bits)
            log_norm = _log2_of_norm(product, exponent)
            if norm_bits - float(log_norm) + 160 <= bits:
                return float(log_norm * gmpy2.log10(gmpy2.mpfr(2)))
            bits *= 2


def _log2_of_norm(matrix: flint.fmpz_mat, exponent: int) -> gmpy2.mpfr:
    power, exponent = rounded(matrix.transpose() * matrix, 2 * exponent, 256)
    before, roots = gmpy2.inf(), 1
    while True:
        trace = sum(int(power[i, i]) for i in range(power.nrows()))
        if trace <= 0:  # so few bits that nothing is left
            return -gmpy2.inf()
        log_trace = (gmpy2.log2(gmpy2.mpfr(trace)) + exponent) / roots
        if before - log_trace < 2.0**-64:
            return log_trace / 2
        before, roots = log_trace, 2 * roots
        power, exponent = rounded(power * power, 2 * exponent, 256)


def allowed(jacobians: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """(len(errors),) decades that the largest values may be off: of 1e-11 or 4 eps conditioning.

    The second needs singular vectors of thousands of bits: it is looked for where the first does not do.
    """
    least = np.full(len(errors), 1e-11)
    if (errors > least / np.log(10)).any():
        condition = conditioning(jacobians, reference(jacobians, vectors=True))[: len(errors)]
        least = np.maximum(least, 4 * np.finfo(float).eps * condition)
    return least / np.log(10)


def _product(jacobians: np.ndarray, bits: int) -> tuple[flint.fmpz_mat, int, float]:
    """The product to so many bits of its largest entries, its exponent, and log2 of a bound of all norms."""
    m = jacobians.shape[1]
    product, exponent, norm_bits = flint.fmpz_mat(np.eye(m, dtype=int).tolist()), 0, 0.0
    for a in jacobians:
        step, e = integers(np.asarray(a, float))
        product, exponent = rounded(step * product, exponent + e, bits)
        norm_bits += float(np.log2(max(np.abs(a).max(), 1e-320))) + np.log2(m)
    return product, exponent, norm_bits


def _at_bits(jacobians: np.ndarray, rank: int, bits: int, vectors: bool) -> Reference | None:
    m = jacobians.shape[1]
    product, exponent, norm_bits = _product(jacobians, bits)
    if rank == 0:
        return Reference([], m, np.zeros((m, 0)), np.zeros((m, 0)), bits)
    p = floats(product, exponent)
    gram = floats(product.transpose() * product, 2 * exponent)
    if any(gram[i, i] < 0 for i in range(m)):
        return None
    try:
        factor = cholesky(gram, rank)
        # No singular value is larger than the smallest diagonal entry: what is not resolved needs no sweep.
        if not _resolved(norm_bits, min(max(abs(x) for x in row) for row in factor), bits):
            return None
        # The columns of R^T: graded, so that few sweeps are needed (Drmac and Veselic).
        # Columns at angles of 2^-200 have norms that are singular values to as much. Vectors to the last bit:
        # ``conditioning`` takes them through the chain, in which small errors grow.
        w = jacobi(factor.T.copy(), gmpy2.mpfr(2) ** -(bits - 32 if vectors else min(200, bits - 32)))
    except (ZeroDivisionError, ValueError, ArithmeticError):
        return None
    sigma = np.array([gmpy2.sqrt(c @ c) for c in w.T], dtype=object)
    order = sorted(range(rank), key=lambda j: -sigma[j])
    sigma, w = sigma[order], w[:, order]
    if any(gmpy2.is_nan(s) or s <= 0 for s in sigma):
        return None
    if not _resolved(norm_bits, sigma[-1], bits):
        return None
    if not vectors:
        return Reference(list(sigma), m - rank, None, None, bits)
    right = w / sigma
    return Reference(list(sigma), m - rank, (p @ right) / sigma, right, bits)


def _resolved(norm_bits: float, smallest: gmpy2.mpfr, bits: int) -> bool:
    """Whether so many bits leave a value of that size its digits."""
    return 2 * (norm_bits - _log2(smallest)) + 160 <= bits


def conditioning(jacobians: np.ndarray, ref: Reference) -> np.ndarray:
    """(r,) sum over t of |y_t|^T |A_t| |x_t| / sigma: what eps is multiplied by at best."""
    steps, _m, _ = jacobians.shape
    total = np.zeros(len(ref.sigma))
    with gmpy2.context(precision=ref.bits, emin=gmpy2.get_emin_min(), emax=gmpy2.get_emax_max()):
        assert ref.right is not None, "ask for the reference with vectors"
        assert ref.left is not None
        right, exponents_x = _fixed(ref.right, ref.bits)
        left, exponents_y = _fixed(ref.left, ref.bits)
        forward = [(right, exponents_x)]
        for a in jacobians[:-1]:
            step, e = integers(np.asarray(a, float))
            forward.append(rounded(step * forward[-1][0], forward[-1][1] + e, ref.bits))
        backward = (left, exponents_y)
        log_sigma = np.array([_log2(s) for s in ref.sigma])
        for t in reversed(range(steps)):
            x, log_x = _columns(*forward[t])
            y, log_y = _columns(*backward)
            middle = np.einsum("ir,ij,jr->r", np.abs(y), np.abs(jacobians[t]), np.abs(x))
            total += middle * np.exp2(log_x + log_y - log_sigma)
            step, e = integers(np.asarray(jacobians[t], float))
            backward = rounded(step.transpose() * backward[0], backward[1] + e, ref.bits)
    return total


def _fixed(vectors: np.ndarray, bits: int) -> tuple[flint.fmpz_mat, int]:
    entries = [int(gmpy2.rint(gmpy2.mul_2exp(v, bits))) for v in vectors.ravel()]
    return flint.fmpz_mat(*vectors.shape, entries), -bits


def _columns(matrix: flint.fmpz_mat, exponent: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns as float64 of unit largest entry, and log2 of what was taken out."""
    pairs = [_halved(int(x)) for x in matrix.entries()]
    shape = matrix.nrows(), matrix.ncols()
    mantissa = np.array([m for m, _ in pairs]).reshape(shape)
    bits = np.array([b for _, b in pairs]).reshape(shape)
    high = bits.max(axis=0, initial=-(10**7))
    values = np.ldexp(mantissa, np.maximum(bits - high, -2000))
    top = np.abs(values).max(axis=0, initial=0)
    top[top == 0] = 1
    return values / top, np.log2(top) + high + exponent


def _halved(x: int) -> tuple[float, int]:
    """(m, e) with x = m 2^e to the last place of float64, 0.5 <= |m| < 1; of 0 far below all else."""
    if not x:
        return 0.0, -(10**7)
    bits = x.bit_length()
    return math.ldexp(x >> (bits - 64) if bits > 64 else x, -min(bits, 64)), bits


def _log2(x: gmpy2.mpfr) -> float:
    """To float64: gmpy2's own takes the context's thousands of bits, and most of the time of a test."""
    exponent, mantissa = gmpy2.frexp(x)
    return exponent + math.log2(float(mantissa))
