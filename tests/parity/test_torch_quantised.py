"""Models of torch's quantize_dynamic: weights as the numbers that they stand for, from files and live."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from oracles.models import HIDDEN, INPUT, outputs, sequence

import gradscope
from gradscope import checkpoints
from gradscope.errors import InputError

pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning", "ignore::FutureWarning"),
]
QUANTISED = {
    torch.nn.LSTM,
    torch.nn.GRU,
    torch.nn.LSTMCell,
    torch.nn.GRUCell,
    torch.nn.RNNCell,
    torch.nn.Linear,
}


def model(**parts):
    torch.manual_seed(0)
    own = {
        "both": torch.nn.LSTM(INPUT, HIDDEN, 2, bidirectional=True),
        "deep": torch.nn.LSTM(INPUT, HIDDEN, 2),
        "gru": torch.nn.GRU(INPUT, HIDDEN),
        "cell": torch.nn.GRUCell(INPUT, HIDDEN),
        "rnn": torch.nn.RNNCell(INPUT, HIDDEN, nonlinearity="relu"),
        "head": torch.nn.Linear(HIDDEN, 2),
    }
    return torch.nn.ModuleDict(parts or own)


def quantised(plain, dtype):
    return torch.ao.quantization.quantize_dynamic(plain, QUANTISED, dtype=dtype)


def rounded(plain, whole):
    """The float model with torch's own dequantised weights."""
    result = copy.deepcopy(plain).double()
    with torch.no_grad():
        for name, part in result.items():
            other = whole[name]
            if name == "head":
                values = {"weight": other.weight(), "bias": other.bias()}
            else:
                values = {**other.get_weight(), **other.get_bias()}
            for key, value in values.items():
                getattr(part, key).copy_(value.dequantize() if value.is_quantized else value)
    return result


@pytest.mark.parametrize("source", ["state dict", "module", "live"])
@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16])
def test_layers(dtype, source, tmp_path):
    plain = model()
    whole = quantised(plain, dtype)
    path = tmp_path / "x.pt"
    torch.save(whole if source == "module" else whole.state_dict(), path)
    read = gradscope.from_torch(whole) if source == "live" else path
    expected = rounded(plain, whole)
    found = checkpoints.read_all(read, also=["head"])
    layers = {layer.name: layer for layer in found.layers}
    assert list(layers) == [
        "both.l0",
        "both.l0_reverse",
        "both.l1",
        "both.l1_reverse",
        "deep.l0",
        "deep.l1",
        "gru",
        "cell",
        "rnn",
    ]
    np.testing.assert_array_equal(found.arrays["head"].values, expected["head"].weight.detach())
    relu = {} if layers["rnn"].cells == ("rnn-relu",) else {"activation": "relu"}
    x = sequence()
    with torch.no_grad():
        tensor = torch.tensor(x)[:, None]
        both, deep, gru = (expected[name](tensor)[0][:, 0].numpy() for name in ("both", "deep", "gru"))
        theirs = whole["gru"](tensor.float())[0][:, 0].numpy()
        state = torch.zeros(1, HIDDEN, dtype=torch.float64)
        rnn = np.concatenate([state := expected["rnn"](step, state) for step in tensor])
    ours = {name: layer.settle(**(relu if name == "rnn" else {})) for name, layer in layers.items()}
    first = np.hstack([outputs(ours["both.l0"], x), outputs(ours["both.l0_reverse"], x)[::-1]])
    second = np.hstack([outputs(ours["both.l1"], first), outputs(ours["both.l1_reverse"], first)[::-1]])
    for one, other in (
        (second, both),
        (outputs(ours["deep.l1"], outputs(ours["deep.l0"], x)), deep),
        (outputs(ours["gru"], x), gru),
        (outputs(ours["rnn"], x), rnn),
    ):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-6)
    # Torch rounds what it multiplies with them as well.
    np.testing.assert_allclose(outputs(ours["gru"], x), theirs, rtol=0, atol=0.03)
    assert all("stand for" in layer.assumed[-1] for layer in ours.values())
    assert all("rounds as well" in layer.not_applied[-1] for layer in ours.values())


@pytest.mark.parametrize("both", [False, True])
def test_two_layers_or_two_directions(both, tmp_path):
    """Of as many inputs as units a state dict does not tell, the module does."""
    plain = model(deep=torch.nn.GRU(HIDDEN, HIDDEN, 2 - both, bidirectional=both))
    whole = quantised(plain, torch.qint8)
    torch.save(whole.state_dict(), tmp_path / "x.pt")
    with pytest.raises(
        InputError, match="of two layers or of two directions, which a state dict does not say"
    ):
        checkpoints.read_all(tmp_path / "x.pt")
    torch.save(whole, tmp_path / "y.pt")
    for read in (tmp_path / "y.pt", gradscope.from_torch(whole)):
        names = [layer.name for layer in checkpoints.read_all(read).layers]
        assert names == (["deep.l0", "deep.l0_reverse"] if both else ["deep.l0", "deep.l1"])


def test_a_scale_for_every_row(tmp_path):
    weights = {name: value.detach() for name, value in torch.nn.GRU(INPUT, HIDDEN).state_dict().items()}
    for name in ("weight_ih_l0", "weight_hh_l0"):
        scales, zeros = torch.rand(3 * HIDDEN) / 50, torch.randint(-3, 3, (3 * HIDDEN,))
        weights[name] = torch.quantize_per_channel(weights[name], scales, zeros, 0, torch.qint8)
    torch.save(weights, tmp_path / "x.pt")
    (layer,) = checkpoints.read(tmp_path / "x.pt").layers
    matrix = weights["weight_hh_l0"].dequantize().numpy()
    np.testing.assert_array_equal(layer.parameters["R_z"], matrix[HIDDEN : 2 * HIDDEN])


def test_a_batch_is_refused_by_what_it_rounds():
    model = torch.ao.quantization.quantize_dynamic(torch.nn.Sequential(torch.nn.LSTM(3, 4)), QUANTISED)
    live = gradscope.from_torch(model, torch.randn(5, 2, 3))
    with pytest.raises(InputError, match="as quantised modules do: leave the batch out"):
        gradscope.analyze(checkpoint=live)
