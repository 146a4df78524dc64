"""Gradients of a loss are those that torch's backward leaves in the weights."""

import json

import jsonschema
import numpy as np
import pytest
import torch
from oracles.agreement import check_schema, check_shorter_sequence

import gradscope
from gradscope.cli.main import main

B, T, N = 2, 9, 4


class Model(torch.nn.Module):
    """What --readout is for: y = head(lstm(x)), and both directions of another."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        self.lstm = torch.nn.LSTM(3, N, batch_first=True, bidirectional=True, dtype=torch.float64)
        self.head = torch.nn.Linear(N, 2, dtype=torch.float64)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loss")
    made = Model()
    torch.save(made.state_dict(), folder / "model.pt")
    np.save(folder / "x.npy", np.random.default_rng(3).standard_normal((B, T, 3)))
    return made, folder


def check_weights(loss, lstm, suffix):
    """Norms of the gradients are those that torch's backward has left."""
    for kind, array in (("R", "weight_hh_l0"), ("W", "weight_ih_l0"), ("b", "bias_hh_l0")):
        for gate, part in zip("ifzo", getattr(lstm, array + suffix).grad.chunk(4), strict=True):
            assert loss[f"{kind}_{gate}"] == pytest.approx(np.log10(part.norm().item()), abs=1e-11)


@pytest.mark.parametrize("at", ["last", "every"])
def test_readout_of_a_torch_model(at, model, capsys):
    """What ``y.sum().backward()`` leaves in the weights; the JSON holds to its schema."""
    made, folder = model
    made.zero_grad()
    y = made.head(made.lstm(torch.tensor(np.load(folder / "x.npy")))[0][..., :N])
    (y[:, -1] if at == "last" else y).sum().backward()
    files = [str(folder / "model.pt"), "--layer", "lstm.l0", "--inputs", str(folder / "x.npy")]
    assert main(["analyze", *files, "--readout", "head", "--readout-at", at, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    jsonschema.validate(told, gradscope.schema())
    assert (told["problem"]["readout"], told["problem"]["readout_at"]) == ("head.weight", at)
    assert told["loss"]["at"] == at
    check_weights({g["name"]: g["log10_norm"] for g in told["loss"]["gradients"]}, made.lstm, "")
    for kind in "RW":
        shares = [share for name, share in told["loss"]["share"].items() if name[0] == kind]
        assert np.sum(shares) == pytest.approx(1)


def test_adjoint_of_a_backward_layer(model, tmp_path):
    """The time of an adjoint of every step is that of the inputs, whichever way the layer reads them."""
    made, folder = model
    made.zero_grad()
    seeds = np.random.default_rng(4).standard_normal((B, T, N))
    out, _ = made.lstm(torch.tensor(np.load(folder / "x.npy")))
    (out[..., N:] * torch.tensor(seeds)).sum().backward()
    np.save(tmp_path / "adjoint.npy", seeds)
    analysis = gradscope.analyze(
        checkpoint=folder / "model.pt",
        layer="lstm.l0_reverse",
        inputs=folder / "x.npy",
        adjoint=tmp_path / "adjoint.npy",
    )
    check_weights(analysis.loss.log10_gradients, made.lstm, "_reverse")


@pytest.mark.parametrize("every", [False, True])
def test_each_sequence_over_its_own_length(every, model):
    """Gradients add up; lags are counted from the end of each; beyond its length nothing is known."""
    made, folder = model
    made.zero_grad()
    seeds = np.random.default_rng(6).standard_normal((B, T, N) if every else (B, N))
    x, lengths = np.load(folder / "x.npy"), [T, 5]
    for sequence, seed, length in zip(x, seeds, lengths, strict=True):
        out = made.lstm(torch.tensor(sequence[None, :length]))[0][0, :, N:]
        # The backward direction's own last step is the first of the sequence.
        (out * torch.tensor(seed[:length]) if every else out[0] * torch.tensor(seed)).sum().backward()
    options = {"checkpoint": folder / "model.pt", "layer": "lstm.l0_reverse"}
    found = gradscope.analyze(**options, inputs=x, lengths=lengths, adjoint=seeds)
    check_weights(found.loss.log10_gradients, made.lstm, "_reverse")
    alone = gradscope.analyze(**options, inputs=x[1, :5], adjoint=seeds[1, :5] if every else seeds[1])
    check_shorter_sequence(found.loss, alone.loss, length=5)
    check_schema(found)
