"""Norms and radii from a few vectors against all singular values and eigenvalues."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gradscope.cells import spectra
from gradscope.cells.spectra import recurrent_matrices, spectral_norm, spectral_radius

N = 90
RNG = np.random.default_rng(0)
DRAWN = RNG.standard_normal((N, N)) / math.sqrt(N)
SIGNS = np.where(np.arange(N) % 2, 1.0, -1.0)
MATRICES = {
    "random": DRAWN,
    "outlier": DRAWN + 3.0 / N,
    "orthogonal": np.linalg.qr(DRAWN)[0],
    "symmetric": DRAWN + DRAWN.T,
    "low rank": DRAWN[:, :2] @ DRAWN[:2],
    "plus and minus": np.diag(SIGNS * np.linspace(0.5, 1.0, N)),
    "identity": np.eye(N),
    "large": DRAWN * 1e300,
    "tiny": DRAWN * 1e-300,
    "zero": np.zeros((N, N)),
}


@pytest.fixture(autouse=True)
def _few(monkeypatch):
    """As of matrices of hundreds, in the time of small ones."""
    monkeypatch.setattr(spectra, "_SMALL", 50)
    monkeypatch.setattr(spectra, "_KEPT", 40)


@pytest.mark.parametrize("name", MATRICES)
@pytest.mark.parametrize("most", [50, 1024])
def test_against_all_of_them(name, most, monkeypatch):
    monkeypatch.setattr(spectra, "_LARGE", most)
    matrix = MATRICES[name]
    scale = np.abs(matrix).max() or 1.0
    assert spectral_norm(matrix) == pytest.approx(
        scale * np.linalg.svd(matrix / scale, compute_uv=False)[0], rel=1e-12
    )
    radius = spectral_radius(matrix)
    expected = scale * np.abs(np.linalg.eigvals(matrix / scale)).max()
    assert radius == pytest.approx(expected, rel=1e-9) or (most == 50 and math.isnan(radius))
    if name in ("random", "outlier", "symmetric", "plus and minus", "large", "tiny", "zero"):
        assert radius == pytest.approx(expected, rel=1e-9)


def test_what_is_far_from_normal_is_computed_in_full_or_not_at_all(monkeypatch):
    nilpotent = np.diag(np.ones(N - 1), 1)  # rounding moves its eigenvalues by eps^(1/n)
    assert spectral_radius(nilpotent) == 0.0
    monkeypatch.setattr(spectra, "_LARGE", 50)
    assert math.isnan(spectral_radius(nilpotent))


def test_norms_of_what_is_not_square():
    for matrix in (DRAWN[:, :60], DRAWN[:60]):
        assert spectral_norm(matrix) == pytest.approx(np.linalg.svd(matrix)[1][0], rel=1e-12)


def test_beyond_the_range_of_float64():
    found = recurrent_matrices({"R": np.full((4, 4), 1e308), "W": np.ones((4, 4))}, all_values=True)
    assert found.keys() == {"R"}
    assert found["R"]["spectral_norm"] == found["R"]["spectral_radius"] == math.inf
    (matrix,) = recurrent_matrices({"R_f": np.ones((2, 3))}, all_values=False).values()
    assert matrix == {"spectral_norm": pytest.approx(math.sqrt(6)), "spectral_radius": None}
