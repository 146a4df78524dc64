"""A path that some step does not let through: its gain is zero, its lags are those of the steps after it."""

import numpy as np
import pytest

from gradscope.linearize.cell_chain import CellChain
from gradscope.linearize.paths import UnitPath
from gradscope.measure.all_values import JacobianChains
from gradscope.measure.chains import Ask
from gradscope.product_svd.error_estimate import EPS

STEPS, UNITS = 12, 5
LAGS = 7  # after the last step that is zero


@pytest.mark.parametrize("saturated", [1.0, 1e-60])
@pytest.mark.parametrize("floor", [-np.inf, -2.0])
def test_lags_end_where_a_step_is_zero(floor, saturated):
    rng = np.random.default_rng(0)
    slopes = rng.uniform(0.2, 0.5, size=(2, STEPS, 1, UNITS))
    slopes[0, :, :, 0] *= saturated  # whether a plain product has all the digits or not
    slopes[0, [0, STEPS - LAGS - 1]] = 0.0
    matrices = rng.normal(size=(2, UNITS, UNITS))
    names = ("R_f", "R_i")
    paths = tuple(UnitPath(*one) for one in zip(names, slopes, (0, 0), matrices, strict=True))
    chain = CellChain(paths, STEPS, UNITS)
    chains = JacobianChains(lambda _: chain, [0], STEPS)
    (found,) = chains.spectra("R_f", Ask(EPS, floor))
    product, norms = np.eye(UNITS), []
    for slope in slopes[0, ::-1, 0][:LAGS]:
        product = product @ (slope[:, None] * matrices[0])
        norms.append(np.log10(np.linalg.norm(product, 2)))
    lags = found.log10_norm_by_lag
    assert np.isneginf(lags[LAGS:]).all()
    known = np.array(norms) >= floor
    np.testing.assert_allclose(lags[:LAGS][known], np.array(norms)[known], rtol=0, atol=1e-12)
    assert (lags[:LAGS] >= np.array(norms) - 1e-12).all()  # bounds from above
    assert (lags[:LAGS][~known] < floor).all()
    assert np.isneginf(found.log10_singular_values).all()
    assert (found.exact_zeros, found.lost, found.log10_error) == (UNITS, 0, 0.0)
    errors = found.log10_norm_error_by_lag
    assert len(lags) == STEPS
    assert errors is None or len(errors) == STEPS
    assert not found.left.any()
    assert not found.right.any()
