"""An analysis against what is known of it, whoever knows it: equations by complex steps, or a framework."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest

import gradscope
from oracles.eigenvalues import log10_singular_values
from oracles.models import log10_values


def check_stack(analysis, jacobian, count):
    """Every value of ``count`` layers together and of each, by their whole Jacobian; shares add up."""
    found = analysis.full.spectra[0].log10_singular_values
    np.testing.assert_allclose(found, log10_values(jacobian), rtol=0, atol=1e-6)
    layers = range(count)
    names = [f"layer{k}" for k in layers] + [f"{i}->{j}" for j in layers for i in range(j)]
    assert set(analysis.shares) == set(names)
    np.testing.assert_allclose(sum(analysis.shares.values()), 1, rtol=0, atol=1e-9)
    size = len(jacobian) // count
    for k, layer in enumerate(analysis.layers):
        block = jacobian[k * size : (k + 1) * size, k * size : (k + 1) * size]
        own = layer.full.spectra[0].log10_singular_values
        np.testing.assert_allclose(own, log10_values(block), rtol=0, atol=1e-6)
        in_stack = analysis.chain(f"layer{k}").log10_norm.median
        assert in_stack == pytest.approx(layer.full.log10_norm.median, abs=1e-10)


def check_every_value(analysis, jacobians, decades):
    """Of one sequence, against the product of one-step Jacobians in that many decades."""
    (spectrum,) = analysis.full.spectra
    reference = log10_singular_values(jacobians, decades)
    assert reference[-1] > -decades, "the reference needs more digits"
    errors = np.abs(spectrum.log10_singular_values - reference)
    assert errors[0] <= 1e-12
    assert errors.max() <= min(1e-6, 10 * spectrum.log10_error)


def check_shorter_sequence(loss, alone, length):
    """The second sequence of a batch has what it has ``alone``, and nothing beyond its length."""
    lags = loss.log10_norm[1]
    np.testing.assert_allclose(lags[: length + 1], alone.log10_norm[0], rtol=0, atol=1e-12)
    assert np.isnan(lags[length + 1 :]).all()
    np.testing.assert_allclose(loss.deltas["dz"][1, :length], alone.deltas["dz"][0], rtol=1e-11)
    for names in loss.kinds.values():
        assert sum(map(loss.share, names)) == pytest.approx(1)


def check_schema(analysis):
    """Its JSON is what the schema says, without NaN."""
    jsonschema.validate(json.loads(json.dumps(analysis.to_dict(), allow_nan=False)), gradscope.schema())
