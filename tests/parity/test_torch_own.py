"""Modules that are not quite torch's: the user's own classes, and weights that are in parts or twice."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from oracles.models import HIDDEN, INPUT, outputs, read_layer, sequence
from oracles.refusals import told
from torch import nn
from torch.nn.utils import parametrizations, prune

import gradscope
from gradscope import checkpoints
from gradscope.cells import find


def saved(folder, module):
    torch.save(module.state_dict(), folder / "x.pt")
    return folder / "x.pt"


def theirs(module, x):
    with torch.no_grad():
        return module.eval()(torch.as_tensor(x))[0].numpy()


def refusal(checkpoint, **choice):
    return told(read_layer, checkpoint, **choice)


class NormedCell(nn.LSTMCell):
    """Layer normalisation inside of an LSTM, as people write it."""

    def __init__(self, *sizes, **how):
        super().__init__(*sizes, **how)
        self.ln_ih, self.ln_hh = (nn.LayerNorm(4 * self.hidden_size, **how) for _ in "ih")

    def forward(self, x, state):
        gates = self.ln_ih(x @ self.weight_ih.T + self.bias_ih) + self.ln_hh(state[0] @ self.weight_hh.T)
        i, f, z, o = gates.chunk(4, -1)
        c = f.sigmoid() * state[1] + i.sigmoid() * z.tanh()
        return o.sigmoid() * c.tanh(), c


class Zoneout(nn.GRU):
    """Another computation with torch's own tensors alone."""

    def forward(self, x, state=None):
        return super().forward(x, state)[0] * 0.9, None


class Initialised(nn.LSTM):
    """Torch's computation, from weights of its own."""

    gain: float

    def __init__(self, *sizes, **how):
        super().__init__(*sizes, **how)
        self.log = nn.Linear(2, 2)

    def reset_parameters(self):
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1, 1)

    def extra_repr(self):
        return "own"


class Still(nn.GRU):
    """As Zoneout, for torch.jit, which knows no super()."""

    def forward(self, x: torch.Tensor):
        return x


class Mixin:
    def forward(self, x):
        return 2 * super().forward(x)


class Mixed(Mixin, nn.GRUCell):
    pass


def replaced():
    module = nn.LSTM(INPUT, HIDDEN)
    module.forward = lambda x: x
    return module


OWN = {
    "NormedCell": (lambda: NormedCell(INPUT, HIDDEN), "lstm"),
    "Zoneout": (lambda: Zoneout(INPUT, HIDDEN), "gru"),
    "Mixed": (lambda: Mixed(INPUT, HIDDEN), "gru"),
    "LSTM": (replaced, "lstm"),
}


@pytest.mark.parametrize("name", OWN)
def test_a_class_of_the_users_own_is_never_read_as_torchs(name):
    make, cell = OWN[name]
    live = gradscope.from_torch(nn.ModuleDict({"enc": make()}))
    assert refusal(live) == (
        f"from_torch(ModuleDict): is a {name}, which computes in its own way: if that is what torch's does "
        f"all the same, add --cell {cell}"
    )
    assert checkpoints.read_all(live).layers[0].open
    assert read_layer(live, cell).cell.name == cell


def test_an_activation_does_not_make_a_class_torchs():
    class Own(nn.RNN):
        def forward(self, x):
            return x

    live = gradscope.from_torch(Own(INPUT, HIDDEN, nonlinearity="relu"))
    assert "is a Own" in refusal(live, activation="relu")
    assert refusal(live).endswith("add --cell rnn-relu")
    assert read_layer(live, "rnn-relu").cell.name == "rnn-relu"


@pytest.mark.parametrize("weight_norm", [False, True])
def test_a_subclass_that_changes_no_computation_is_torchs(weight_norm):
    torch.manual_seed(0)
    module = Initialised(INPUT, HIDDEN, dtype=torch.float64)
    if weight_norm:
        parametrizations.weight_norm(module, "weight_hh_l0")
    layer = read_layer(gradscope.from_torch(module))
    np.testing.assert_allclose(outputs(layer, sequence()), theirs(module, sequence()), rtol=0, atol=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("loaded", [False, True])
def test_compiled_modules(loaded):
    """What torch.jit leaves of a class is its name."""
    torch.manual_seed(1)
    gru = nn.GRU(INPUT, HIDDEN, dtype=torch.float64)
    made = torch.jit.script(nn.ModuleDict({"own": Still(INPUT, HIDDEN), "gru": gru, "two": nn.GRU(2, 2)}))
    if loaded:
        torch.jit.save(made, buffer := io.BytesIO())
        buffer.seek(0)
        made = torch.jit.load(buffer)
    live = gradscope.from_torch(made)
    assert "is a Still, which computes in its own way" in refusal(live, layer="own")
    layer = read_layer(live, layer="gru")
    np.testing.assert_allclose(outputs(layer, sequence()), theirs(gru, sequence()), rtol=0, atol=1e-12)


def test_hooks_are_said_to_change_nothing():
    model = nn.Sequential(nn.GRU(INPUT, HIDDEN), nn.GRU(HIDDEN, HIDDEN))
    model[1].register_forward_hook(lambda *_: None)
    model[1].register_forward_pre_hook(lambda *_: None)
    prune.l1_unstructured(model[0], "weight_hh_l0", 0.5)
    said = [found.assumed for found in checkpoints.read_all(gradscope.from_torch(model)).layers]
    assert said == [(), ("the hooks on it (2) change nothing that it computes",)]


def test_a_module_in_two_places():
    gru = nn.GRU(INPUT, HIDDEN)
    live = gradscope.from_torch(nn.ModuleDict({"a": gru, "b": gru}))
    assert [found.open for found in checkpoints.read_all(live).layers] == ["", ""]


@pytest.mark.parametrize("place", ["", "model.cell."])
def test_a_file_with_more_than_torchs_tensors_asks(place, tmp_path):
    state = NormedCell(INPUT, HIDDEN).state_dict()
    torch.save({place + name: value for name, value in state.items()}, tmp_path / "x.pt")
    assert refusal(tmp_path / "x.pt") == (
        f"{tmp_path / 'x.pt'}: beside {place}weight_ih there are {place}ln_ih.weight, {place}ln_ih.bias, "
        f"{place}ln_hh.weight, {place}ln_hh.bias, which no layer of torch's has: it may be of a class of the "
        f"user's own; if {place}ln_ih.weight, {place}ln_hh.weight are LayerNorms of W x + b_ih and of R h + "
        "b_hh, add --cell lstm-layernorm-gates; if it computes what torch's does all the same, add "
        "--cell lstm"
    )
    assert read_layer(tmp_path / "x.pt", "lstm").cell.name == "lstm"


def test_an_activation_does_not_answer_for_a_file_either(tmp_path):
    torch.save(nn.RNNCell(2, 2).state_dict() | {"norm.weight": torch.ones(2)}, tmp_path / "x.pt")
    assert "norm.weight" in refusal(tmp_path / "x.pt", activation="tanh")
    assert read_layer(tmp_path / "x.pt", "rnn-relu", activation="relu").cell.name == "rnn-relu"


def test_modules_beside_a_layer_raise_no_question(tmp_path):
    parts = {
        "rnn": nn.GRU(2, 2, 2),
        "rnn_norm": nn.LayerNorm(2),
        "rnn2": nn.ModuleDict({"cell": nn.LSTMCell(2, 2), "norm": nn.LayerNorm(2)}),
        "weight_head": nn.Linear(2, 2),
    }
    path = saved(tmp_path, nn.ModuleDict({"model": nn.ModuleDict(parts)}))
    layers = checkpoints.read_all(path).layers
    assert [f.name for f in layers] == ["model.rnn.l0", "model.rnn.l1", "model.rnn2.cell"]
    assert not any(f.question or f.doubt or f.problem for f in layers)
    assert [f.before for f in layers] == [(), (), ("model.rnn_norm.weight",)]


# Weights in parts


def orthogonal(module):
    return parametrizations.orthogonal(module, "weight_hh_l0")


def spectral(module):
    return nn.utils.spectral_norm(module, "weight_hh_l0")


def chained(module):
    parametrizations.weight_norm(module, "weight_hh_l0")
    return parametrizations.spectral_norm(module, "weight_hh_l0")


PARTS = {
    orthogonal: "parametrizations.weight_hh_l0.original, parametrizations.weight_hh_l0.0.base",
    spectral: "weight_hh_l0_orig, weight_hh_l0_u",
    chained: "parametrizations.weight_hh_l0.1._u, parametrizations.weight_hh_l0.1._v",
}


@pytest.mark.filterwarnings("ignore:.*spectral_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("change", PARTS, ids=lambda change: change.__name__)
def test_parts_that_a_module_alone_can_put_together(change, tmp_path):
    torch.manual_seed(2)
    module = change(nn.LSTM(INPUT, HIDDEN, num_layers=2, dtype=torch.float64))
    module(torch.as_tensor(sequence()))
    path = saved(tmp_path, module)
    message = refusal(path, layer="l0")
    assert f"keeps weight_hh_l0 as {PARTS[change]}" in message
    assert message.endswith("give that, as in gradscope.analyze(checkpoint=gradscope.from_torch(model))")
    upper = checkpoints.read_all(path).layers[1]
    assert (upper.name, upper.open, upper.problem) == ("l1", "", "")

    before = {name: value.clone() for name, value in module.state_dict().items()}
    model = checkpoints.read(gradscope.from_torch(module))
    lower, upper = model.layers
    ours = outputs(upper, outputs(lower, sequence()))
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    np.testing.assert_allclose(ours, theirs(module, sequence()), rtol=0, atol=1e-12)


def test_what_pruning_leaves_is_read_of_a_file(tmp_path):
    """Twice, both directions and a bias: of the state dict as of the module, both to the last bit."""
    module = nn.LSTM(INPUT, HIDDEN, bidirectional=True)
    for name in ("weight_hh_l0", "weight_ih_l0_reverse", "bias_hh_l0_reverse"):
        prune.l1_unstructured(module, name, 0.5)
        prune.random_unstructured(module, name, 0.2)
    weights = {name: getattr(module, name).detach().clone() for name in module._flat_weights_names}
    assert not weights["weight_hh_l0"].all()
    torch.save(module.state_dict(), tmp_path / "pruned.pt")
    torch.save(weights, tmp_path / "weights.pt")
    expected = checkpoints.read_all(tmp_path / "weights.pt").layers
    for given in (tmp_path / "pruned.pt", gradscope.from_torch(module)):
        found = checkpoints.read_all(given).layers
        assert [(f.name, f.open, f.assumed) for f in found] == [(f.name, f.open, f.assumed) for f in expected]
        for one, other in zip(found, expected, strict=True):
            assert one.arrays.keys() == other.arrays.keys()
            for key in one.arrays:
                np.testing.assert_array_equal(one.arrays[key], other.arrays[key])


# Weights twice


class WeightDrop(nn.Module):
    """As in AWD-LSTM (Salesforce): the weights before dropout are the layer's, or the wrapper's (fastai)."""

    def __init__(self, layer, *, outside):
        super().__init__()
        self.module = layer
        weight = layer.weight_hh_l0
        holder = self if outside else layer
        holder.register_parameter("weight_hh_l0_raw", nn.Parameter(weight.detach().clone()))
        if not outside:
            del layer._parameters["weight_hh_l0"]
        self.holder = [holder]

    def forward(self, x):
        raw = self.holder[0].weight_hh_l0_raw
        dropped = nn.functional.dropout(raw, 0.5, self.training)
        if "weight_hh_l0" in self.module._parameters:
            self.module._parameters["weight_hh_l0"].data = dropped.data
        else:
            self.module.weight_hh_l0 = dropped
        return self.module(x)


@pytest.mark.filterwarnings("ignore:RNN module weights:UserWarning")
@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("outside", [False, True])
def test_weight_drop_is_read_as_it_is_before_the_drop(outside, in_memory, tmp_path):
    torch.manual_seed(3)
    drop = WeightDrop(nn.LSTM(INPUT, HIDDEN, dtype=torch.float64), outside=outside)
    model = nn.ModuleDict({"rnns": nn.ModuleList([drop])})
    drop(torch.as_tensor(sequence()))  # a training step leaves the dropped weights in the layer
    (found,) = checkpoints.read_all(saved(tmp_path, model)).layers
    layer = read_layer(gradscope.from_torch(model) if in_memory else tmp_path / "x.pt")
    raw = "rnns.0.weight_hh_l0_raw" if outside else "rnns.0.module.weight_hh_l0_raw"
    assert layer.name == found.name == "rnns.0.module"
    assert layer.not_applied == (
        f"{raw} is read, as it is before weight drop: what training drops out of it is not dropped",
    )
    np.testing.assert_allclose(outputs(layer, sequence()), theirs(drop, sequence()), rtol=0, atol=1e-12)


def test_a_raw_weight_alone_is_no_layer(tmp_path):
    torch.save({"x.weight_hh_l0_raw": torch.ones(8, 2)}, tmp_path / "x.pt")
    assert "holds x.weight_hh_l0_raw alone, expected weight_ih" in refusal(tmp_path / "x.pt")


def test_adapters_around_a_layer_ask(tmp_path):
    """LoRA keeps the layer as base_layer, and what it adds to its weights beside that."""
    inner = {f"net.rnn.base_layer.{name}": value for name, value in nn.LSTM(2, 2).state_dict().items()}
    torch.save(inner | {"net.head.weight": torch.ones(2, 2)}, tmp_path / "plain.pt")
    assert read_layer(tmp_path / "plain.pt").cell.name == "lstm"
    torch.save(inner | {"net.rnn.lora_A.default.weight": torch.ones(1, 2)}, tmp_path / "x.pt")
    assert "there are net.rnn.lora_A.default.weight, which no layer" in refusal(tmp_path / "x.pt")
    for name in ("lora", "adapter_state", "masks"):
        torch.save({"model": inner, name: {"A": torch.ones(1, 2)}, "epoch": 3}, tmp_path / "x.pt")
        said = f"is of model, and {name} is beside it in the file, of which the model may make its weights"
        assert said in refusal(tmp_path / "x.pt")


class Adapted(nn.Module):
    """A layer whose recurrent weights are those of the file and a product, as the model calls it."""

    def __init__(self):
        super().__init__()
        self.base, self.head = nn.GRU(3, 4, batch_first=True), nn.Linear(4, 4)
        self.down, self.up = nn.Parameter(torch.ones(2, 4)), nn.Parameter(torch.ones(12, 2))
        self.start = nn.Parameter(torch.zeros(1, 4))

    def forward(self, x):
        weight = self.base.weight_hh_l0 + self.up @ self.down
        return torch.func.functional_call(self.base, {"weight_hh_l0": weight}, (x,))


def test_what_may_be_added_to_weights_is_asked_about(tmp_path):
    model = Adapted()
    torch.save(model.state_dict(), tmp_path / "x.pt")
    for checkpoint in (tmp_path / "x.pt", gradscope.from_torch(model)):
        message = refusal(checkpoint)
        assert "beside base.weight_ih_l0 there are down, up, as large as its matrices" in message
        assert "if it reads its weights as they are, add --cell gru" in message
        assert read_layer(checkpoint, find("gru")).cell.name == "gru"
    del model.up
    assert read_layer(gradscope.from_torch(model)).cell.name == "gru"
