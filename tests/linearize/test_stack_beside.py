"""A step of a stack without each of its blocks, against the matrices that it stands for."""

import numpy as np
import pytest

from gradscope.linearize.stack_beside import StackBeside

FIRST, SECOND = slice(0, 2), slice(2, 5)


@pytest.mark.parametrize("rows", ["all and noise", "combinations"])
def test_it_is_what_the_blocks_multiply_to(rows):
    """Rows of a product so far, of which a layer's see no later one's states; or fewer that see all."""
    rng = np.random.default_rng(0)
    first, second, read = rng.normal(size=(2, 2)), rng.normal(size=(3, 3)), rng.normal(size=(3, 2))
    step = np.block([[first, np.zeros((2, 3))], [read @ first, second]])
    blocks = [(FIRST, FIRST), (SECOND, SECOND), (SECOND, FIRST)]
    named = [((0, 0),), ((1, 1),), ((0, 1),)]
    beside = StackBeside(
        lambda: step, (FIRST, SECOND), [(SECOND, FIRST, read)], ([first], [second]), named, 10.0
    )
    y = rng.normal(size=(3, 3 if rows == "combinations" else 5 + 2, 5))
    if rows != "combinations":
        y[:, FIRST, SECOND] = 0.0
    out = np.zeros_like(y)
    beside.times(y, out)
    for chain, block in enumerate(blocks):
        expected = step.copy()
        expected[block] = 0.0
        np.testing.assert_allclose(out[chain], y[chain] @ expected, atol=1e-13)
        np.testing.assert_allclose(beside.back(y)[chain], y[chain] @ expected.T, atol=1e-13)
        np.testing.assert_allclose(beside.columns[chain], np.linalg.norm(expected, axis=0))
