"""The largest gain over any stretch: against every stretch, and said where the end of a sequence hides it."""

from __future__ import annotations

import numpy as np
import pytest
from oracles import chains

import gradscope
from gradscope.product_svd.largest_gain import log10_largest_gain
from gradscope.product_svd.spectrum import spectrum


def by_brute_force(chain):
    largest = -np.inf
    for end in range(1, len(chain) + 1):
        largest = max(largest, spectrum(chain[:end], by_lag=True).log10_norm_by_lag.max())
    return largest


@pytest.mark.parametrize(
    "name", ["tanh", "lstm", "gaussian", "jordan", "both-scaled", "dead both", "orthogonal"]
)
def test_largest_gain_is_that_of_all_stretches(name):
    chain = chains.CHAINS[name](6, 20, 0)
    # Two directions that grow over the same steps are mixed: no more than a factor of the size.
    assert -0.8 <= log10_largest_gain(chain) - by_brute_force(chain) <= 1e-9


def test_largest_gain_in_the_middle_beyond_float64():
    chain = np.concatenate([np.full((400, 2, 2), 3.0), np.full((900, 2, 2), 1e-3)])
    expected = 400 * np.log10(6)
    assert log10_largest_gain(chain) == pytest.approx(expected, abs=1e-6)
    assert log10_largest_gain(chain[::-1]) == pytest.approx(expected, abs=1e-6)


def test_nothing_gets_through():
    assert log10_largest_gain(np.zeros((3, 2, 2))) == -np.inf


def chaotic(nudge, tmp_path):
    """A tanh RNN with 200 free steps in its chaotic regime, then 34 that saturate it."""
    rng, n = np.random.default_rng(0), 24
    x = np.concatenate([0.1 * rng.normal(size=(200, n)), 5 * np.sign(rng.normal(size=(34, n)))]) + nudge
    weights = {"W": np.eye(n), "R": 3 * rng.normal(size=(n, n)) / np.sqrt(n), "b": np.zeros(n)}
    path = tmp_path / "rnn.npz"
    np.savez(path, **weights)
    return gradscope.analyze(checkpoint=path, cell="rnn", inputs=x[None])


def test_chaos_on_the_way_is_said(tmp_path):
    here, there = (chaotic(nudge, tmp_path) for nudge in (0, 1e-15))
    moved = abs(here.full.log10_norm.median - there.full.log10_norm.median)
    assert moved > 1e3 * here.full.log10_norm_error  # the estimate is about the computed trajectory
    assert here.full.log10_largest_gain.median > 12
    assert any("amplifies the forward pass's rounding" in note for note in here.verdict.notes)
    assert here.to_dict()["chains"][0]["log10_largest_gain"]["median"] > 12


def test_no_chaos_is_not_said(tmp_path):
    found = gradscope.analyze(cell="gru", hidden=6, steps=40)
    assert found.full.log10_largest_gain.median < 12
    assert not any("rounding too" in note for note in found.verdict.notes)
