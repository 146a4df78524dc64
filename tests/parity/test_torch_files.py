"""PyTorch's own files: the layers, outputs and Jacobians of torch, wherever in the file they are."""

from __future__ import annotations

import argparse
import collections
import datetime
import pathlib
import sys
import types

import numpy as np
import pytest
import torch
from oracles.models import HIDDEN, INPUT, both_directions, check_spectrum, outputs, read_layer, sequence
from safetensors.numpy import save_file

from gradscope import checkpoints

TORCH = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}


def torch_jacobian(module, x, layer=0, backward=False):
    """d(c_T, h_T)/d(c_0, h_0) of one layer and direction by autograd."""
    sides = 2 if module.bidirectional else 1
    index, count = layer * sides + backward, module.num_layers * sides
    parts = 2 if isinstance(module, torch.nn.LSTM) else 1

    def run(state):
        zeros = torch.zeros(count, module.hidden_size, dtype=torch.float64)
        filled = [torch.cat([zeros[:index], s[None], zeros[index + 1 :]]) for s in state.chunk(parts)]
        given = tuple(filled[::-1]) if parts == 2 else filled[0]
        last = module(torch.as_tensor(x), given)[1]
        last = [last[1], last[0]] if parts == 2 else [last]
        return torch.cat([part[index] for part in last])

    start = torch.zeros(parts * module.hidden_size, dtype=torch.float64)
    return torch.autograd.functional.jacobian(run, start).numpy()


def torch_wrappers():
    def nested(key):
        return lambda state: {"epoch": 3, key: state, "optimizer": {"state": {0: {"step": torch.ones(2)}}}}

    def prefixed(prefix):
        return lambda state: {prefix + name: value for name, value in state.items()}

    yield from ((key, nested(key), "") for key in ("state_dict", "model_state_dict", "model"))
    for prefix in ("module.", "_orig_mod.", "model.", "_forward_module.", "module._orig_mod.encoder.lstm."):
        yield prefix, prefixed(prefix), prefix.rstrip(".")


@pytest.mark.parametrize(
    ("wrap", "name"), [w[1:] for w in torch_wrappers()], ids=[w[0] for w in torch_wrappers()]
)
def test_torch_state_dicts_wherever_they_are(wrap, name, tmp_path):
    torch.manual_seed(0)
    module = torch.nn.LSTM(INPUT, HIDDEN, dtype=torch.float64)
    torch.save(wrap(module.state_dict()), tmp_path / "x.pt")
    layer = read_layer(tmp_path / "x.pt")
    assert layer.name == name
    expected = module(torch.as_tensor(sequence()))[0].detach().numpy()
    np.testing.assert_allclose(outputs(layer, sequence()), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("suffix", "bias"),
    [(".pt", False), (".pth", True), (".bin", True), (".ckpt", True), (".safetensors", True)],
)
@pytest.mark.parametrize("kind", TORCH)
def test_torch_stack_of_two_in_both_directions(kind, bias, suffix, tmp_path):
    torch.manual_seed(1)
    module = TORCH[kind](INPUT, HIDDEN, num_layers=2, bidirectional=True, bias=bias, dtype=torch.float64)
    path = tmp_path / f"model{suffix}"
    state = {f"enc.{name}": value for name, value in module.state_dict().items()}
    save_file({k: v.numpy() for k, v in state.items()}, path) if suffix == ".safetensors" else torch.save(
        state, path
    )
    found = checkpoints.read_all(path).layers
    assert [layer.name for layer in found] == ["enc.l0", "enc.l0_reverse", "enc.l1", "enc.l1_reverse"]
    assert [layer.depth for layer in found] == [0, 0, 1, 1]
    cell = "rnn" if kind == "rnn" else None
    layers = {layer.name: read_layer(path, cell, layer=layer.name) for layer in found}
    x = sequence()
    both = module(torch.as_tensor(x))[0].detach().numpy()
    below = both_directions(layers["enc.l0"], layers["enc.l0_reverse"], x)
    ours = both_directions(layers["enc.l1"], layers["enc.l1_reverse"], below)
    np.testing.assert_allclose(ours, both, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("kind", "bias"), [("lstm", True), ("gru", False), ("rnn", True)])
def test_torch_jacobians_of_a_stack(kind, bias, tmp_path):
    torch.manual_seed(1)
    module = TORCH[kind](INPUT, HIDDEN, num_layers=2, bidirectional=True, bias=bias, dtype=torch.float64)
    torch.save(module.state_dict(), tmp_path / "x.pt")
    x, cell = sequence()[:2], "rnn" if kind == "rnn" else None
    for depth, backward in ((0, True), (1, False), (1, True)):
        choice = {"cell": cell, "layer": f"l{depth}" + "_reverse" * backward, "inputs": x}
        check_spectrum(tmp_path / "x.pt", torch_jacobian(module, x, depth, backward), **choice)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", TORCH)
def test_torch_file_in_lower_precision_is_read_exactly(kind, dtype, tmp_path):
    torch.manual_seed(2)
    module = TORCH[kind](INPUT, HIDDEN, dtype=dtype)
    torch.save(module.state_dict(), tmp_path / "x.pt")
    layer = read_layer(tmp_path / "x.pt", "rnn" if kind == "rnn" else None)
    assert layer.dtype == str(dtype).removeprefix("torch.")
    expected = module.double()(torch.as_tensor(sequence()))[0].detach().numpy()
    np.testing.assert_allclose(outputs(layer, sequence()), expected, rtol=0, atol=1e-12)


def test_torch_parameters_buffers_and_views(tmp_path):
    """Parameters as such, a transposed and an expanded tensor, and numbers that are none of ours."""
    torch.manual_seed(3)
    module = torch.nn.GRU(INPUT, HIDDEN, dtype=torch.float64)
    state = dict(module.named_parameters())
    state["weight_hh_l0"] = state["weight_hh_l0"].detach().T.contiguous().T
    state["bias_hh_l0"] = torch.tensor(0.25, dtype=torch.float64).expand(3 * HIDDEN)
    with torch.no_grad():
        module.bias_hh_l0.copy_(state["bias_hh_l0"])
    state |= {"phase": torch.zeros(2, dtype=torch.complex64), "ids": torch.arange(3), "loss": np.float64(1.5)}
    torch.save(state, tmp_path / "x.pt")
    layer = read_layer(tmp_path / "x.pt", "gru")
    expected = module(torch.as_tensor(sequence()))[0].detach().numpy()
    np.testing.assert_allclose(outputs(layer, sequence()), expected, rtol=0, atol=1e-12)


def test_torch_checkpoint_with_what_a_training_script_keeps(tmp_path, monkeypatch):
    """Settings and statistics of classes that are named and never made."""
    lightning = types.ModuleType("lightning_fabric")
    lightning.AttributeDict = type("AttributeDict", (dict,), {"__module__": "lightning_fabric"})
    monkeypatch.setitem(sys.modules, "lightning_fabric", lightning)
    module = torch.nn.LSTM(INPUT, HIDDEN)
    checkpoint = {
        "state_dict": module.state_dict(),
        "hyper_parameters": lightning.AttributeDict(lr=1e-3),
        "arguments": argparse.Namespace(path=pathlib.Path("x"), layers=[1, 2]),
        "history": collections.defaultdict(list, loss=[np.float32(1.5), np.arange(3)]),
        "when": datetime.datetime(2026, 1, 1),
        "kinds": {torch.float16, torch.bfloat16},
        "device": torch.device("cpu"),
        "size": torch.Size([3]),
        (1, 2): "a key that is no name",
    }
    torch.save(checkpoint, tmp_path / "x.ckpt")
    monkeypatch.delitem(sys.modules, "lightning_fabric")
    layer = read_layer(tmp_path / "x.ckpt")
    np.testing.assert_array_equal(layer.parameters["R_i"], module.weight_hh_l0[:HIDDEN].detach().double())


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_torch_file_with_another_pickle_protocol(protocol, tmp_path):
    module = torch.nn.LSTM(INPUT, HIDDEN)
    torch.save(module.state_dict(), tmp_path / "x.pt", pickle_protocol=protocol)
    np.testing.assert_array_equal(
        read_layer(tmp_path / "x.pt").parameters["R_i"], module.weight_hh_l0[:HIDDEN].detach().double()
    )


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("how", ["old", "parametrization", "all at once", "columns"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
def test_torch_weight_norm(how, suffix, tmp_path):
    torch.manual_seed(4)
    module = torch.nn.GRU(INPUT, HIDDEN, dtype=torch.float64)
    dim = {"all at once": None, "columns": 1}.get(how, 0)
    norm = torch.nn.utils.weight_norm if how == "old" else torch.nn.utils.parametrizations.weight_norm
    for name in ("weight_hh_l0", "weight_ih_l0"):
        norm(module, name, dim=dim)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith(("_g", "original0")):
                parameter.mul_(1.3)
    path = tmp_path / f"x{suffix}"
    state = {name: value.detach() for name, value in module.state_dict().items()}
    torch.save(state, path) if suffix == ".pt" else save_file({k: v.numpy() for k, v in state.items()}, path)
    layer = read_layer(path)
    expected = module(torch.as_tensor(sequence()))[0].detach().numpy()
    np.testing.assert_allclose(outputs(layer, sequence()), expected, rtol=0, atol=1e-12)
