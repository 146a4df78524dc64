"""Token ids through a model's own embedding: Jacobians of PyTorch, tables of Keras."""

from __future__ import annotations

import jsonschema
import keras
import numpy as np
import pytest
import torch
from oracles.models import log10_values
from safetensors.numpy import save_file

import gradscope
from gradscope.checkpoints import read

IDS = np.array([[3, 0, 4, 1], [2, 2, 0, 4]])


def language_model(folder, suffix=".pt"):
    torch.manual_seed(0)
    model = torch.nn.ModuleDict(
        {"tokens": torch.nn.Embedding(5, 3), "rnn": torch.nn.LSTM(3, 4, batch_first=True)}
    ).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    if suffix == ".pt":
        torch.save(model.state_dict(), folder / "m.pt")
    else:
        save_file(
            {name: tensor.numpy() for name, tensor in model.state_dict().items()}, folder / "m.safetensors"
        )
    return folder / f"m{suffix}", model


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_token_ids_go_through_the_models_own_embedding(suffix, tmp_path):
    path, model = language_model(tmp_path, suffix)
    ids = IDS[:, :3]  # few steps, or torch's product has no digits left of the smallest values

    def last(state):  # of the second sequence
        c, h = state[None, None].chunk(2, dim=2)
        _, (h, c) = model["rnn"](model["tokens"](torch.as_tensor(ids[1:])), (h, c))
        return torch.cat([c[0, 0], h[0, 0]])

    jacobian = torch.autograd.functional.jacobian(last, torch.zeros(8, dtype=torch.float64))
    analysis = gradscope.analyze(checkpoint=path, inputs=ids, embedding="tokens")
    ours = analysis.full.spectra[1].log10_singular_values
    np.testing.assert_allclose(ours, log10_values(jacobian), rtol=0, atol=1e-6)
    assert analysis.problem["embedding"] == "tokens.weight"
    jsonschema.validate(analysis.to_dict(), gradscope.schema())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_token_ids_of_keras(tmp_path):
    model = keras.Sequential([keras.layers.Embedding(5, 3, name="words"), keras.layers.GRU(4)])
    model(IDS)
    model.save(tmp_path / "m.keras")
    table = np.asarray(model.layers[0].embeddings)
    contents = read(tmp_path / "m.keras", also=("words", "words/vars/0"))
    for named in contents.arrays.values():
        np.testing.assert_array_equal(named.values, table)
