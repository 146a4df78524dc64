"""What is asked of a model that was given with a batch, whatever its library."""

from __future__ import annotations

import numpy as np

import gradscope
from oracles.refusals import told


def check(checkpoint, expected, **choice):
    """The JSON of its analysis, whose values are those expected (B, m) of every sequence, in log10."""
    analysis = gradscope.analyze(checkpoint=checkpoint, **choice)
    for ours, theirs in zip(analysis.full.spectra, expected, strict=True):
        there = theirs > -2.5  # what a product of float32 has digits of
        assert there.any()
        np.testing.assert_allclose(ours.log10_singular_values[there], theirs[there], rtol=0, atol=1e-3)
    return analysis.to_dict()


def refusal(checkpoint, **choice):
    """Why its analysis is refused."""
    return told(gradscope.analyze, checkpoint=checkpoint, **choice)
