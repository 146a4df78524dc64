"""Norms of recurrent matrices are those that torch finds."""

import numpy as np
import pytest
import torch

from gradscope.cells.spectra import recurrent_matrices


def test_recurrent_matrices_against_torch():
    rng = np.random.default_rng(0)
    parameters = {
        "R_f": rng.normal(size=(6, 6)),
        "W_f": rng.normal(size=(6, 6)),
        "R_z": np.diag([3.0, 1, 1, 1, 1, -4]),
    }
    found = recurrent_matrices(parameters, all_values=True)
    assert list(found) == ["R_f", "R_z"]
    for name, numbers in found.items():
        matrix = torch.tensor(parameters[name])
        assert numbers["spectral_norm"] == pytest.approx(
            torch.linalg.matrix_norm(matrix, 2).item(), rel=1e-13
        )
        assert numbers["spectral_radius"] == pytest.approx(
            torch.linalg.eigvals(matrix).abs().max().item(), rel=1e-12
        )
        np.testing.assert_allclose(numbers["singular_values"], torch.linalg.svdvals(matrix), rtol=1e-12)
