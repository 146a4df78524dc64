"""PyTorch files as they are found: old formats, whole modules, compiled programs, pickles, any suffix."""

from __future__ import annotations

import argparse
import collections
import functools
import os
import pickle
import warnings
import zipfile

import keras
import numpy as np
import pytest
import torch
from oracles.models import HIDDEN, INPUT, outputs, read_layer, sequence
from oracles.refusals import told
from safetensors.numpy import save_file
from torch import nn

from gradscope import checkpoints
from gradscope.errors import InputError

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:torch", "ignore::DeprecationWarning:keras"
)


def theirs(module, x):
    with torch.no_grad():
        return module.double()(torch.as_tensor(x))[0].numpy()


def check(path, module, **choice):
    layer = read_layer(path, **choice)
    np.testing.assert_allclose(outputs(layer, sequence()), theirs(module, sequence()), rtol=0, atol=1e-12)
    return layer


def refusal(path, **choice):
    return told(read_layer, path, **choice)


def old(value, path):
    torch.save(value, path, _use_new_zipfile_serialization=False)


class Model(nn.Module):
    """A class of the user's own around layers of torch's."""

    def __init__(self, **how):
        super().__init__()
        self.words = nn.Embedding(5, INPUT)
        self.steps = nn.RNN(INPUT, HIDDEN, num_layers=2, nonlinearity="relu", dropout=0.25, **how)
        self.cell = nn.GRUCell(HIDDEN, HIDDEN)
        self.register_buffer("mask", torch.ones(2))
        self.nothing = None

    def forward(self, x):
        return self.steps(x)[0]


class Doubled(nn.GRU):
    def forward(self, x: torch.Tensor):
        return x


# The format before PyTorch 1.6


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_old_state_dict(dtype, tmp_path):
    torch.manual_seed(0)
    module = nn.GRU(INPUT, HIDDEN, dtype=dtype)
    old({"epoch": 1, "state_dict": module.state_dict(), "ids": torch.arange(3)}, tmp_path / "x.pt")
    assert check(tmp_path / "x.pt", module).dtype == str(dtype).removeprefix("torch.")


@pytest.mark.parametrize("save", [torch.save, old])
def test_views_of_one_storage_among_others(save, tmp_path):
    torch.manual_seed(1)
    module = nn.LSTM(INPUT, HIDDEN, dtype=torch.float64)
    flat = torch.cat([parameter.detach().ravel() for parameter in module.parameters()])
    state, start = {"flags": torch.ones(3, dtype=torch.bool), "q": torch.zeros(2, dtype=torch.complex64)}, 0
    for name, parameter in module.named_parameters():
        state[f"lstm.{name}"] = flat[start : start + parameter.numel()].view(parameter.shape)
        start += parameter.numel()
    save(state | {"more": torch.arange(7, dtype=torch.int16)}, tmp_path / "x.pt")
    check(tmp_path / "x.pt", module)


# Whole modules


@pytest.mark.parametrize("save", [torch.save, old])
def test_whole_module(save, tmp_path):
    torch.manual_seed(2)
    module = nn.LSTM(INPUT, HIDDEN, batch_first=True)
    save(module, tmp_path / "x.pt")
    layer = check(tmp_path / "x.pt", module)
    assert (layer.name, layer.time_major) == ("", False)


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code:UserWarning")
@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: {"model": m, "epoch": 3}, lambda m: [1, {"net": m}]])
@pytest.mark.parametrize("save", [torch.save, old])
def test_whole_model_says_what_a_state_dict_does_not(save, wrap, tmp_path):
    torch.manual_seed(3)
    save(wrap(Model()), tmp_path / "x.pt")
    found = {f.name.rpartition("net.")[2]: f for f in checkpoints.read_all(tmp_path / "x.pt").layers}
    assert list(found) == ["steps.l0", "steps.l1", "cell"]
    assert [f.cells for f in found.values()] == [("rnn-relu",), ("rnn-relu",), ("gru",)]
    assert [f.open or f.problem for f in found.values()] == [""] * 3
    assert [f.time_major for f in found.values()] == [True, True, None]
    assert [bool(f.not_applied) for f in found.values()] == [False, True, False]
    assert found["steps.l1"].not_applied == (
        "dropout 0.25 in training of what it reads of the layer below, not from step to step",
    )


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code:UserWarning")
@pytest.mark.parametrize("save", [torch.save, old])
def test_whole_module_of_the_users_own_class(save, tmp_path):
    save(nn.ModuleDict({"own": Doubled(2, 2)}), tmp_path / "x.pt")
    assert refusal(tmp_path / "x.pt") == (
        f"{tmp_path / 'x.pt'}: is a {Doubled.__module__}.Doubled, which computes in its own way: if that is "
        "what torch's does all the same, add --cell gru"
    )
    assert read_layer(tmp_path / "x.pt", "gru").hidden == 2


class Settings(dict):
    """As Lightning keeps hyper-parameters."""


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_objects_beside_the_weights_are_named_and_not_made(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(4)
    module = nn.GRU(INPUT, HIDDEN)
    settings = Settings(
        dropout=0.3, act=functools.partial(torch.relu), gradient_clip_val=1, lr=1e-3, drop=False
    )
    checkpoint = {
        "state_dict": module.state_dict(),
        "hyper_parameters": settings,
        "args": argparse.Namespace(zoneout=0.1, dropout_p=0.0, name="x"),
        "evil": Evil(),
        "queue": collections.deque([1]),
        "counts": collections.Counter("aab"),
        "function": np.linalg.norm,
    }
    torch.save(checkpoint, tmp_path / "x.ckpt")
    layer = check(tmp_path / "x.ckpt", module)
    assert not (tmp_path / "pwned").exists()
    assert layer.not_applied == (
        "by the file's hyper-parameters, in training: dropout = 0.3, gradient_clip_val = 1, zoneout = 0.1 "
        "(--zoneout measures it)",
    )


# Compiled programs


class Around(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.a = inner

    def forward(self, x):
        return self.a(x)


def traced(module):
    with warnings.catch_warnings(action="ignore"):
        return torch.jit.trace(module, torch.ones(3, INPUT))


@pytest.mark.parametrize("compile_", [torch.jit.script, traced])
def test_compiled_layer(compile_, tmp_path):
    torch.manual_seed(5)
    module = nn.LSTM(INPUT, HIDDEN)
    torch.jit.save(compile_(module), tmp_path / "x.jit")
    check(tmp_path / "x.jit", module)


@pytest.mark.parametrize("first", [False, True])
def test_compiled_model_says_what_a_state_dict_does_not(first, tmp_path):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.own, self.other, self.model = (
                Doubled(2, 2),
                nn.RNN(2, 2, batch_first=True),
                Model(batch_first=first),
            )

        def forward(self, x: torch.Tensor):
            return self.model(x)

    torch.jit.save(torch.jit.script(Two()), tmp_path / "x.pt")
    found = {f.name: f for f in checkpoints.read_all(tmp_path / "x.pt").layers}
    assert "is a " in found["own"].open
    assert "Doubled, which computes in its own way" in found["own"].open
    del found["own"]
    assert [f.open or f.problem for f in found.values()] == [""] * 4
    assert {name: (f.label, f.time_major) for name, f in found.items()} == {
        "other": ("rnn", False),
        "model.steps.l0": ("rnn-relu", not first),
        "model.steps.l1": ("rnn-relu", not first),
        "model.cell": ("gru", None),
    }
    assert "dropout 0.25" in found["model.steps.l1"].not_applied[0]


@pytest.mark.parametrize("kind", ["tanh", "relu"])
@pytest.mark.parametrize("make", [nn.RNN, nn.RNNCell])
def test_traced_rnn_says_its_nonlinearity(make, kind, tmp_path):
    torch.jit.save(traced(Around(make(INPUT, 2, nonlinearity=kind))), tmp_path / "x.pt")
    layer = read_layer(tmp_path / "x.pt")
    assert (layer.name, layer.cell.name) == ("a", {"tanh": "rnn", "relu": "rnn-relu"}[kind])


# Plain pickles


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("kind", ["tensors", "arrays", "module"])
def test_plain_pickle(kind, protocol, tmp_path):
    torch.manual_seed(6)
    module = nn.GRU(INPUT, HIDDEN)
    state = {f"enc.{name}": value for name, value in module.state_dict().items()}
    arrays = {name: np.asfortranarray(value.numpy()) for name, value in state.items()}
    value = {"tensors": state, "arrays": arrays, "module": nn.ModuleDict({"enc": module})}[kind]
    (tmp_path / "x.pkl").write_bytes(pickle.dumps({"model": value, "n": 1}, protocol))
    assert check(tmp_path / "x.pkl", module).name == "enc"


def test_pickled_arrays_that_are_none_of_ours(tmp_path):
    state = {name: value.numpy() for name, value in nn.GRU(2, 2).state_dict().items()}
    state |= {
        "big": np.ones(2, ">f4"),
        "names": np.array(["a"]),
        "objects": np.array([None]),
        "none": np.ones(0),
    }
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(state))
    contents = checkpoints.read_all(tmp_path / "x.pkl", also=["big"])
    assert contents.layers[0].doubt  # what else is under the layer's own prefix
    np.testing.assert_array_equal(contents.arrays["big"].values, np.ones(2))
    with pytest.raises(InputError, match=r"tensor 'names' has 'a dtype of its own', expected real numbers"):
        checkpoints.read_all(tmp_path / "x.pkl", also=["names"])


# Any name


def layer_files(folder):
    torch.manual_seed(7)
    module = nn.GRU(INPUT, HIDDEN)
    state = module.state_dict()
    torch.save(state, folder / "archive")
    old(state, folder / "old")
    torch.jit.save(torch.jit.script(module), folder / "compiled")
    save_file({name: value.numpy() for name, value in state.items()}, folder / "safe")
    np.savez(folder / "arrays.npz", **{name: value.numpy() for name, value in state.items()})
    (folder / "arrays.npz").rename(folder / "arrays")
    return module


@pytest.mark.parametrize("suffix", ["", ".jit", ".pkl", ".pth.tar", ".h5", ".onnx", ".bin", ".model"])
def test_torch_formats_by_their_content(suffix, tmp_path):
    module = layer_files(tmp_path)
    for path in list(tmp_path.iterdir()):
        check(path.rename(f"{path}{suffix}"), module)


def test_keras_formats_by_their_content(tmp_path):
    model = keras.Sequential([keras.Input((5, INPUT)), keras.layers.GRU(HIDDEN, name="steps")])
    for suffix, other in ((".keras", "x"), (".weights.h5", "y.bin")):
        model.save(tmp_path / f"a{suffix}") if suffix == ".keras" else model.save_weights(
            tmp_path / f"a{suffix}"
        )
        path = (tmp_path / f"a{suffix}").rename(tmp_path / other)
        assert read_layer(path, "gru").hidden == HIDDEN


def test_an_archive_of_another_kind_goes_by_its_suffix(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.keras", "w") as archive:
        archive.writestr("assets/words.txt", "a")
    assert "lacks config.json, model.weights.h5" in refusal(tmp_path / "x.keras")


# Only the model is a model


def weights(value):
    return {name: torch.full_like(tensor, value) for name, tensor in nn.GRU(2, 2).state_dict().items()}


def named(prefix, state):
    return {f"{prefix}.{name}": value for name, value in state.items()}


MODELS = {
    "optimiser by parameter": (
        {"net": named("gru", weights(1)), "optimizer": {"exp_avg": named("gru", weights(2)), "step": 3}},
        "net.gru",
        "",
    ),
    "moments beside": (named("gru", weights(1)) | named("exp_avg_sq.gru", weights(2)), "gru", ""),
    "gradients beside": (named("gru", weights(1)) | named("grad.gru", weights(2)), "gru", ""),
    "optimiser state of JAX": (
        {"params": named("gru", weights(1)), "opt_state": {"mu": named("gru", weights(2))}},
        "params.gru",
        "",
    ),
    "model and ema": (
        {"ema": weights(2), "model": weights(1), "optimizer": {"exp_avg": weights(3)}},
        "",
        "of models or averages of one in the file (model, ema) model is read",
    ),
    "two models": (
        {"state_dict": weights(1), "critic": weights(2)},
        "",
        "of models in the file (state_dict, critic) state_dict is read",
    ),
    "scores and random states beside": (
        {
            "state_dict": weights(1),
            "callbacks": {"best_model_score": torch.tensor(0.5)},
            "rng": torch.zeros(9, dtype=torch.uint8),
        },
        "",
        "",
    ),
    "ema alone": ({"params_ema": named("gru", weights(1))}, "params_ema.gru", ""),
    "ema of a wrapper": (
        named("online.gru", weights(1)) | named("ema_model.module.gru", weights(2)),
        "online.gru",
        "ema_model in the file holds averages of the weights, which are not read",
    ),
    "shadow of a shadow": (
        {"net": {"gru": weights(1)}, "shadow": {"gru": weights(2)}},
        "net.gru",
        "shadow in the file holds averages of the weights, which are not read",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_only_the_model_is_a_model(name, tmp_path):
    state, place, said = MODELS[name]
    torch.save(state, tmp_path / "x.pt")
    contents = checkpoints.read_all(tmp_path / "x.pt")
    (found,) = contents.layers
    assert (found.name, found.open, found.assumed) == (place, "", (said,) if said else ())
    assert found.settle().parameters["R_r"][0, 0] == 1
    assert contents.others == ()


def test_an_average_of_something_else_is_a_module(tmp_path):
    torch.save(named("ema.gru", weights(1)) | named("net.cell", weights(2)), tmp_path / "x.pt")
    assert [f.name for f in checkpoints.read_all(tmp_path / "x.pt").layers] == ["ema.gru", "net.cell"]


def test_an_optimiser_alone_is_no_model(tmp_path):
    torch.save({"optimizer": {"exp_avg": weights(1)}}, tmp_path / "x.pt")
    assert "which an optimiser keeps: save the model itself" in refusal(tmp_path / "x.pt")


def test_moments_by_the_numbers_of_parameters_are_offered_as_none(tmp_path):
    gru = nn.GRU(2, 2)
    optimiser = torch.optim.Adam(gru.parameters())
    gru(torch.ones(3, 2))[0].sum().backward()
    optimiser.step()
    torch.save(optimiser.state_dict(), tmp_path / "x.pt")
    assert "exp_avg" not in refusal(tmp_path / "x.pt")


UNREAD = {
    "torch.float8_e5m2": lambda tensor: tensor.to(torch.float8_e5m2),
    "sparse tensor": lambda tensor: tensor.to_sparse(),
    "meta tensor no storage": lambda tensor: tensor.to("meta"),
}


@pytest.mark.parametrize("kind", UNREAD)
@pytest.mark.filterwarnings("ignore:Sparse")
def test_tensors_that_are_not_read_say_what_they_are(kind, tmp_path):
    torch.save({name: UNREAD[kind](one) for name, one in weights(1).items()}, tmp_path / "x.pt")
    assert f"tensor 'weight_ih_l0' has '{kind}', expected real numbers" in refusal(tmp_path / "x.pt")


def test_whole_numbers_of_eight_bits_are_no_weights(tmp_path):
    """Of other sizes they are what they say."""
    for dtype, sound in ((torch.int8, False), (torch.int64, True)):
        torch.save({name: one.to(dtype) for name, one in weights(1).items()}, tmp_path / "x.pt")
        (found,) = checkpoints.read_all(tmp_path / "x.pt").layers
        assert found.problem.startswith("has weights of int8, which stand for other numbers") != sound


def test_optimiser_tensors_are_no_embedding(tmp_path):
    state = weights(1) | {"optimizer.state.words.weight": torch.ones(3, 2)}
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(
        InputError, match="holds no tensor 'words', nor any but those of its recurrent layers"
    ):
        checkpoints.read_all(tmp_path / "x.pt", also=["words"])


# Tensors with something around them: to leave one out would be to read a layer without it


class Own(nn.Parameter):
    """A parameter that is pickled in a way of its own."""

    def __reduce_ex__(self, protocol):
        return Own.made, (self.data,)

    @staticmethod
    def made(data):
        return Own(data)


def biases(module, make):
    """The module with something in the place of each of its biases."""
    for name in ("bias_ih_l0", "bias_hh_l0"):
        module._parameters[name] = make(module._parameters[name])
    return module


def tagged(parameter):
    parameter.no_weight_decay = True
    return parameter


class Tensor(torch.Tensor):
    """A tensor of the user's own."""


@pytest.mark.parametrize("save", [torch.save, old])
@pytest.mark.parametrize("kind", ["module", "parameters", "subclass"])
def test_what_is_around_a_tensor_is_not_the_tensor(save, kind, tmp_path):
    module = biases(nn.LSTM(INPUT, HIDDEN), tagged)
    parameters = dict(module.named_parameters())
    theirs = {name: one.detach().as_subclass(Tensor) for name, one in parameters.items()}
    save({"module": module, "parameters": parameters, "subclass": theirs}[kind], tmp_path / "x.pt")
    check(tmp_path / "x.pt", module)


@pytest.mark.parametrize("whole", [True, False], ids=["module", "dict"])
def test_an_object_in_the_place_of_a_bias_is_no_bias_less_layer(whole, tmp_path):
    module = biases(nn.LSTM(INPUT, HIDDEN), Own)
    torch.save(module if whole else dict(module._parameters), tmp_path / "x.pt")
    assert "keeps bias_ih_l0, bias_hh_l0, of a class that is not torch's" in refusal(tmp_path / "x.pt")
    torch.save(module.state_dict() | {"args": argparse.Namespace(lr=1)}, tmp_path / "x.pt")
    check(tmp_path / "x.pt", module)


def test_a_view_whose_sign_is_yet_to_be_turned_is_not_read(tmp_path):
    weights = nn.LSTM(INPUT, HIDDEN).state_dict()
    turned = torch.complex(weights["weight_hh_l0"], weights["weight_hh_l0"]).conj().imag
    assert turned.is_neg()
    torch.save(weights | {"weight_hh_l0": turned}, tmp_path / "x.pt")
    assert "tensor 'weight_hh_l0' has 'neg view'" in refusal(tmp_path / "x.pt")
