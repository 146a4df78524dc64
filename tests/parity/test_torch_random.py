"""Random models of torch, saved in every way: what is read computes what torch does, or it is refused."""

from __future__ import annotations

import contextlib
import pickle
import random
import re

import numpy as np
import pytest
import torch
from oracles.models import HIDDEN, INPUT, outputs, sequence
from torch import nn
from torch.jit.frontend import FrontendError
from torch.nn.utils import parametrizations, prune

import gradscope
from gradscope import checkpoints
from gradscope.errors import InputError

DRAWS = 12


class Halved(nn.GRU):
    def forward(self, x, state=None):
        out, last = super().forward(x, state)
        return out / 2, last


class Named(nn.LSTM):
    """A class of its own that computes what torch's does."""


def leaky(hidden):
    return hidden * 0.9


class Leaky(nn.LSTMCell):
    def forward(self, x, state=None):
        h, c = super().forward(x, state)
        return leaky(h), c


def drawn_layer(rng):
    """A layer or a cell, and whether files of its tensors alone can not tell that it is not torch's."""
    kinds = (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell, Halved, Named, Leaky)
    kind = rng.choice(kinds)
    how = {"dtype": torch.float64, "bias": rng.random() < 0.8}
    if issubclass(kind, nn.RNN | nn.RNNCell):
        how["nonlinearity"] = rng.choice(("tanh", "relu"))
    if issubclass(kind, nn.RNNBase):
        how |= {"num_layers": rng.choice((1, 2)), "bidirectional": rng.random() < 0.3}
        how |= {
            "batch_first": rng.random() < 0.5,
            "dropout": rng.choice((0.0, 0.5)) * (how["num_layers"] > 1),
        }
    return kind(INPUT, HIDDEN, **how), kind in (Halved, Leaky)


def changed(layer, rng):
    """Its recurrent weights in parts, as training libraries keep them, or as they are."""
    name = "weight_hh_l0" if isinstance(layer, nn.RNNBase) else "weight_hh"
    changes = {
        "as it is": lambda: None,
        "weight norm": lambda: parametrizations.weight_norm(layer, name),
        "old weight norm": lambda: nn.utils.weight_norm(layer, name),
        "orthogonal": lambda: parametrizations.orthogonal(layer, name),
        "spectral norm": lambda: parametrizations.spectral_norm(layer, name),
        "old spectral norm": lambda: nn.utils.spectral_norm(layer, name),
        "pruned": lambda: prune.random_unstructured(layer, name, 0.3),
        "extra": lambda: layer.register_buffer("mask", torch.ones(2)),
    }
    changes[rng.choice([*changes, *["as it is"] * 6])]()
    return layer.eval()


def saved(model, rng, path):
    """What gradscope is given, and whether that has the classes in it."""
    way = rng.choice(
        ("live", "state", "old", "whole", "old whole", "compiled", "pickle", "arrays", "lightning")
    )
    state = model.state_dict()
    if way == "live":
        return gradscope.from_torch(model), True
    if way == "compiled":
        torch.jit.save(torch.jit.script(model), path)
    elif way in ("pickle", "arrays"):
        value = {name: tensor.numpy() for name, tensor in state.items()} if way == "arrays" else state
        path.write_bytes(pickle.dumps(value, rng.choice((2, 4))))
    elif way == "lightning":
        beside = {
            "hyper_parameters": {"act": torch.relu, "dropout": 0.1},
            "optimizer_states": [{"state": {}}],
        }
        torch.save({"state_dict": state, **beside}, path)
    else:
        value = model if "whole" in way else state
        torch.save(value, path, _use_new_zipfile_serialization="old" not in way)
    return path, "whole" in way or way == "compiled"


def theirs(layer, x):
    """What torch puts out."""
    x = torch.as_tensor(x)
    with torch.no_grad():
        if isinstance(layer, nn.RNNBase):
            return layer(x[None] if layer.batch_first else x[:, None])[0].reshape(len(x), -1).numpy()
        state, out = None, []
        for step in x:
            state = layer(step, state)
            out.append((state[0] if isinstance(state, tuple) else state).numpy())
        return np.array(out)


def ours(model, x):
    """What gradscope's layers put out, each on what those below it did."""
    put_out = {}
    for layer in model.layers:
        read = np.concatenate([put_out[n] for n in layer.below], axis=1) if layer.below else x
        out = outputs(layer, read)
        put_out[layer.name] = out[::-1] if layer.direction == "backward" else out
    read = {name for layer in model.layers for name in layer.below or ()}
    return np.concatenate([put_out[layer.name] for layer in model.layers if layer.name not in read], axis=1)


def is_torchs(layer):
    """Whether it has torch's class and tensors and no others: then it is not to be refused."""
    plain = re.compile(r"(weight|bias)_(ih|hh)(_l\d(_reverse)?)?")
    own = type(layer).__module__ == "torch.nn.modules.rnn"
    return own and all(map(plain.fullmatch, layer.state_dict()))


# How torch says that it cannot save a module in one of the ways.
UNSAVED = (RuntimeError, NotImplementedError, pickle.PicklingError, AttributeError, FrontendError)


def saved_layer(rng, folder):
    """A layer, whether it computes otherwise than torch's, what was saved, and whether with its classes.

    Where torch does not save what was drawn in the way that was drawn, both are drawn again.
    """
    while True:
        layer, own = drawn_layer(rng)
        changed(layer, rng)
        parts = {"words": nn.Embedding(5, 2), "rnn": layer, "head": nn.Linear(2, 2)}
        path = folder / rng.choice(("x", "x.pt", "x.ckpt", "x.bin", "x.h5"))
        with contextlib.suppress(*UNSAVED):
            return layer, own, *saved(nn.ModuleDict(parts), rng, path)


MORE = (pytest.param(seed, marks=pytest.mark.slow) for seed in range(DRAWS, 400))


def outcome(seed, folder):
    """Why a drawn model is refused, "right" where what is read computes the same; else AssertionError."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    layer, own, given, classes = saved_layer(rng, folder)
    cell = None if classes else {"tanh": "rnn", "relu": "rnn-relu"}.get(getattr(layer, "nonlinearity", None))
    try:
        model = checkpoints.read(given, cell)
    except InputError as error:
        assert not is_torchs(layer), error  # noqa: PT017  # right or refused: both will do
        return "refused"
    if classes or not own:  # of a class of their own without it there are torch's tensors alone
        np.testing.assert_allclose(ours(model, sequence()), theirs(layer, sequence()), rtol=0, atol=1e-12)
    return "right"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("seed", [*range(DRAWS), *MORE])
def test_right_or_refused(seed, tmp_path):
    assert outcome(seed, tmp_path)
