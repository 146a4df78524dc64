"""What the tests of every framework's files have in common: a layer's outputs, and its spectrum."""

from __future__ import annotations

import functools

import jax
import numpy as np

import gradscope
from gradscope import checkpoints
from gradscope.cells import find
from gradscope.linearize.trajectory import forward

HIDDEN, INPUT, STEPS = 4, 3, 7


@functools.cache
def compiled(name):
    """The forward pass of a built-in cell, compiled once for all layers of the same sizes."""
    return jax.jit(functools.partial(forward, find(name)))


def read_layer(path, cell=None, layer=None, **choice):
    """One layer of a file: the one it has, or the one that is asked for."""
    model = checkpoints.read(path, cell, layers=() if layer is None else (layer,), **choice)
    (name,) = model.chosen
    return {one.name: one for one in model.layers}[name]


def outputs(layer, x):
    """h_1 ... h_T of a layer on x (T, d), in the order in which the layer reads them, in float64."""
    x = x[::-1] if layer.direction == "backward" else x
    with jax.enable_x64(True):
        states = np.asarray(compiled(layer.cell.name)(layer.parameters, x, layer.state))
    return states[1:, layer.cell.output(layer.hidden)]


def sequence(features=INPUT, seed=3):
    return np.random.default_rng(seed).standard_normal((STEPS, features))


def log10_values(jacobian):
    return np.log10(np.linalg.svd(np.asarray(jacobian, np.float64), compute_uv=False))


def check_spectrum(path, jacobian, **choice):
    """Singular values of d(last state)/d(first state) are those of the framework's own Jacobian.

    Over few steps, or the framework's product of float64 has no digits left of the smallest.
    """
    analysis = gradscope.analyze(checkpoint=path, **choice)
    ours = analysis.full.spectra[0].log10_singular_values
    np.testing.assert_allclose(ours, log10_values(jacobian), rtol=0, atol=1e-6)


def both_directions(forward_layer, backward_layer, x):
    assert (forward_layer.direction, backward_layer.direction) == ("forward", "backward")
    return np.concatenate([outputs(forward_layer, x), outputs(backward_layer, x)[::-1]], axis=1)
