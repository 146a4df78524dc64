"""Values and vectors of graded products, against the same product in thousands of bits."""

import mpmath
import numpy as np
import pytest

from gradscope.product_svd.graded_lu import Graded
from gradscope.product_svd.jacobi_svd import decomposed

SIZE = 6
# log2 of d: within the range of squares, and far beyond it.
DIAGONALS = {
    "near": [3, 0, -1, -40, -40, -90],
    "far": [0, -1, -400, -900, -2000, -2001],
    "apart": [0, 0, 0, -1500, -1500, -4000],
    "one": [0, 0, 0, 0, 0, 0],
}


def graded(kind: str, sides: str) -> Graded:
    """Well conditioned x and y about a diagonal; "cancelling": what is left of the first two d is smaller."""
    rng, exponent = np.random.default_rng(5), np.array(DIAGONALS[kind])
    mantissa = rng.uniform(0.5, 1.0, SIZE) * rng.choice([-1, 1], SIZE)
    if sides == "cancelling":  # so that the largest value is not in the block of the largest d
        x, y = np.eye(SIZE), np.eye(SIZE)
        x[1, :2], y[1, :2] = (0.9, 0.44), (-0.9, 0.44)
        return Graded(x, np.array([0.5, 0.5, 0.45, 0.4, 0.35, 0.3]), exponent, y)
    x, y = np.eye(SIZE) + 0.4 * rng.normal(size=(2, SIZE, SIZE))
    return Graded(x, mantissa, exponent, y)


def exact(one: Graded) -> mpmath.matrix:
    """The product itself."""
    d = [
        mpmath.mpf(float(m)) * mpmath.mpf(2) ** int(e)
        for m, e in zip(one.mantissa, one.exponent, strict=True)
    ]
    return mpmath.matrix(one.x.T.tolist()) * mpmath.diag(d) * mpmath.matrix(one.y.tolist())


@pytest.mark.parametrize("pairs", [0, 1, None])
@pytest.mark.parametrize("sides", ["mixed", "cancelling"])
@pytest.mark.parametrize("kind", DIAGONALS)
def test_values_and_vectors(kind: str, sides: str, pairs: int | None) -> None:
    one = graded(kind, sides)
    found = decomposed(one, pairs)
    count = SIZE if pairs is None else pairs
    assert found.x.shape == found.y.shape == (count, SIZE)
    with mpmath.workprec(9000):
        product = exact(one)
        true = sorted(mpmath.svd_r(product, compute_uv=False), reverse=True)
        sigma = [
            mpmath.mpf(float(m)) * mpmath.mpf(2) ** int(e)
            for m, e in zip(found.mantissa, found.exponent, strict=True)
        ]
        for ours, theirs in zip(sigma, true, strict=True):
            assert abs(ours / theirs - 1) < 1e-13
        for left, right, size in zip(found.x.tolist(), found.y.tolist(), sigma, strict=False):
            # What is left of a larger value in a small one's vector is multiplied by that.
            missed = product * mpmath.matrix(right) - size * mpmath.matrix(left)
            assert mpmath.norm(missed) < 1e-13 * sigma[0]
    np.testing.assert_allclose(found.x @ found.x.T, np.eye(count), atol=1e-14)
    np.testing.assert_allclose(found.y @ found.y.T, np.eye(count), atol=1e-14)
