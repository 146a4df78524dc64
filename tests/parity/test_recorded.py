"""Layers on what they read in their own model, recorded in one forward pass, and the self-check.

The oracle is torch's own autograd, through the very inputs that each layer read.
"""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from oracles.models import log10_values
from oracles.recorded import refusal
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

import gradscope
from gradscope.cli.main import cli
from gradscope.errors import InputError

DOUBLE = {"dtype": torch.float64}
B, T, D, N = 2, 4, 3, 4


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def batch(*shape, seed=0):
    return torch.as_tensor(np.random.default_rng(seed).standard_normal(shape or (B, T, D)))


def alone(module, depth=0, suffix=""):
    """One layer and direction of a module as a module."""
    size = getattr(module, f"weight_ih_l{depth}{suffix}").shape[1]
    single = type(module)(size, module.hidden_size, **DOUBLE)
    if module.proj_size:
        single = nn.LSTM(size, module.hidden_size, proj_size=module.proj_size, **DOUBLE)
    for role in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr"):
        if hasattr(module, name := f"{role}_l{depth}{suffix}"):
            setattr(single, f"{role}_l0", nn.Parameter(getattr(module, name).detach().clone()))
    return single


def jacobian(module, x, state=()):
    """d(state after the last step)/d(state before the first) of one sequence (T, d); state : h, and c."""
    sizes = [getattr(module, "proj_size", 0) or module.hidden_size, module.hidden_size]
    sizes = sizes if isinstance(module, nn.LSTM | nn.LSTMCell) else sizes[1:]
    start = torch.cat([*state]) if len(state) else torch.zeros(sum(sizes), **DOUBLE)

    def run(parts):
        hx = parts.split(sizes)
        if isinstance(module, nn.RNNCellBase):
            for step in x:
                hx = module(step, hx if len(sizes) > 1 else hx[0])
                hx = hx if len(sizes) > 1 else (hx,)
            return torch.cat(hx)
        hx = tuple(part[None] for part in hx)
        _, last = module(x, hx if len(sizes) > 1 else hx[0])
        return torch.cat([one[0] for one in (last if len(sizes) > 1 else (last,))])

    return torch.autograd.functional.jacobian(run, start).numpy()


def check(checkpoint, expected, **choice):
    """The spectra of one layer's sequences are those of torch's Jacobians."""
    analysis = gradscope.analyze(checkpoint=checkpoint, **choice)
    assert len(analysis.full.spectra) == len(expected)
    for ours, theirs in zip(analysis.full.spectra, expected, strict=True):
        close(ours.log10_singular_values, log10_values(theirs))
    return analysis


def close(ours, theirs):
    """Equal as far as torch's product of float64 has digits."""
    there = theirs > -9
    assert there.any()
    np.testing.assert_allclose(ours[there], theirs[there], rtol=0, atol=1e-6)


class Between(nn.Module):
    """Two layers and what stands between them."""

    def __init__(self):
        super().__init__()
        self.lower = nn.LSTM(D, N, batch_first=True, **DOUBLE)
        self.dense = nn.Linear(N, 5, **DOUBLE)
        self.upper = nn.GRU(5, 3, batch_first=True, **DOUBLE)

    def read(self, x):
        return torch.relu(self.dense(self.lower(x)[0]))

    def forward(self, x):
        return self.upper(self.read(x))[0]


@pytest.fixture(scope="module")
def between():
    torch.manual_seed(0)
    return Between()


@pytest.mark.parametrize("kind", ["live", "file"])
def test_two_layers_with_a_dense_between(kind, between, tmp_path):
    x = batch()
    if kind == "live":
        choice = {"checkpoint": gradscope.from_torch(between, x)}
    else:
        torch.save(between.state_dict(), tmp_path / "x.pt")
        gradscope.record(between, x, tmp_path / "run.npz")
        choice = {"checkpoint": tmp_path / "x.pt", "inputs": tmp_path / "run.npz"}
    with torch.no_grad():
        y = between.read(x)
    check(expected=[jacobian(between.lower, one) for one in x], layer="lower", **choice)
    check(expected=[jacobian(between.upper, one) for one in y], layer="upper", **choice)
    both = gradscope.analyze(**choice).to_dict()
    jsonschema.validate(both, gradscope.schema())
    label = "recorded" if kind == "live" else str(tmp_path / "run.npz")
    assert both["problem"]["inputs"] == label
    assert both["problem"]["assumed"] == []
    assert [layer["problem"]["input_size"] for layer in both["layers"]] == [D, 5]


def test_the_command_line(between, tmp_path):
    torch.save(between.state_dict(), tmp_path / "x.pt")
    gradscope.record(between, batch(), str(tmp_path / "run.npz"))
    done = CliRunner().invoke(
        cli, ["analyze", str(tmp_path / "x.pt"), "--inputs", str(tmp_path / "run.npz"), "--json"]
    )
    ours = gradscope.analyze(checkpoint=gradscope.from_torch(between, batch())).to_dict()
    assert json.loads(done.stdout)["chains"] == json.loads(json.dumps(ours["chains"]))


class Translator(nn.Module):
    """An encoder, and a decoder that starts from its last state; the inputs have the time first."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.LSTM(D, N, **DOUBLE)
        self.decoder = nn.LSTM(2, N, **DOUBLE)

    def forward(self, source, target):
        state = self.encoder(source)[1]
        return self.decoder(target, state)[0]


def test_encoder_and_decoder():
    torch.manual_seed(1)
    model, source, target = Translator(), batch(T, B, D), batch(T - 1, B, 2)
    live = gradscope.from_torch(model, (source, target))
    by_name = gradscope.from_torch(model, {"target": target, "source": source})
    state = model.encoder(source)[1]
    expected = [
        jacobian(model.decoder, target[:, k], [part[0, k].detach() for part in state]) for k in range(B)
    ]
    for one in (live, by_name):
        analysis = check(one, expected, layer="decoder")
        assert analysis.to_dict()["problem"]["initial_state"] == "recorded"
        assert any("starts from where encoder ended" in said for said in analysis.problem["not_applied"])
    check(live, [jacobian(model.encoder, source[:, k]) for k in range(B)], layer="encoder")
    message = refusal(live)
    assert "not alike (encoder 2 of 4 steps, decoder 2 of 3 steps): choose with --layer" in message
    assert (
        len(gradscope.analyze(checkpoint=gradscope.from_torch(model, (source, batch(T, B, 2)))).layers) == 2
    )


class Cells(nn.Module):
    """PyTorch's example of time series: two cells in a loop, 1 -> 16 -> 16, and the forecast after it."""

    def __init__(self, future=0):
        super().__init__()
        self.future = future
        self.lstm1, self.lstm2 = nn.LSTMCell(1, 16, **DOUBLE), nn.LSTMCell(16, 16, **DOUBLE)
        self.linear = nn.Linear(16, 1, **DOUBLE)

    def forward(self, values):
        first = second = (torch.zeros(len(values), 16, **DOUBLE), torch.zeros(len(values), 16, **DOUBLE))
        out = []
        for step in values.split(1, dim=1):
            first = self.lstm1(step, first)
            second = self.lstm2(first[0], second)
            out.append(self.linear(second[0]))
        for _ in range(self.future):
            first = self.lstm1(out[-1], first)
            second = self.lstm2(first[0], second)
            out.append(self.linear(second[0]))
        return torch.cat(out, 1)


class Shared(nn.Module):
    """An encoder that is the decoder too."""

    def __init__(self):
        super().__init__()
        self.encoder = self.decoder = nn.LSTM(D, N, **DOUBLE)

    def forward(self, x):
        return self.decoder(x[2:], self.encoder(x[:2])[1])[0]


def test_a_module_that_has_two_names():
    """Its calls are one sequence, and so is what either name stands for."""
    torch.manual_seed(1)
    model, x = Shared(), batch(T, B, D)
    for name in ("encoder", "decoder"):
        expected = [jacobian(model.encoder, x[:, k]) for k in range(B)]
        check(gradscope.from_torch(model, x), expected, layer=name)


def test_a_loop_over_two_cells():
    torch.manual_seed(2)
    model, values = Cells(), batch(B, T)
    live = gradscope.from_torch(model, values)
    below = []
    for sequence in values:
        state, heights = (torch.zeros(16, **DOUBLE),) * 2, []
        for step in sequence:
            state = model.lstm1(step[None], state)
            heights.append(state[0].detach())
        below.append(torch.stack(heights))
    check(live, [jacobian(model.lstm1, one[:, None]) for one in values], layer="lstm1")
    check(live, [jacobian(model.lstm2, one) for one in below], layer="lstm2")

    def run(state, sequence):
        h1, c1, h2, c2 = state.split(16)
        for step in sequence:
            h1, c1 = model.lstm1(step[None], (h1, c1))
            h2, c2 = model.lstm2(h1, (h2, c2))
        return torch.cat([h1, c1, h2, c2])

    whole = [
        torch.autograd.functional.jacobian(lambda s, one=one: run(s, one), torch.zeros(64, **DOUBLE)).numpy()
        for one in values
    ]
    analysis = gradscope.analyze(checkpoint=live, reads="lstm2=lstm1")
    for ours, theirs in zip(analysis.full.spectra, whole, strict=True):
        close(ours.log10_singular_values, log10_values(theirs))
    assert analysis.to_dict()["problem"]["not_applied"] == []


def test_what_a_loop_feeds_back_is_said(tmp_path):
    model = Cells(future=2).requires_grad_(False)
    live = gradscope.from_torch(model, batch(B, T))
    gradscope.record(model, batch(B, T), tmp_path / "run.npz")
    torch.save(model.state_dict(), tmp_path / "x.pt")
    for choice in ({"checkpoint": live}, {"checkpoint": tmp_path / "x.pt", "inputs": tmp_path / "run.npz"}):
        (said,) = gradscope.analyze(**choice).to_dict()["problem"]["not_applied"]
        assert said.startswith("what it reads depends on what it put out at steps before")
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_loop_over_a_layer():
    """A decoder that calls nn.LSTM step by step, through two layers."""

    class Stepwise(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(D, N, 2, batch_first=True, **DOUBLE)

        def forward(self, x):
            state = None
            for step in x.split(1, dim=1):
                _, state = self.lstm(step, state)
            return state

    model = Stepwise()
    live = gradscope.from_torch(model, batch())
    check(live, [jacobian(alone(model.lstm), one) for one in batch()], layer="l0")
    at_once = gradscope.analyze(checkpoint=gradscope.from_torch(model.lstm, batch()))
    stepwise = gradscope.analyze(checkpoint=live)
    for one, other in zip(at_once.full.spectra, stepwise.full.spectra, strict=True):
        np.testing.assert_allclose(one.log10_singular_values, other.log10_singular_values, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["LSTM", *map(slow, ["GRU", "RNN"])])
@pytest.mark.parametrize("enforce_sorted", [False, slow(True)])
def test_packed_sequences_of_both_directions(kind, enforce_sorted, tmp_path):
    torch.manual_seed(3)
    module = getattr(nn, kind)(D, N, bidirectional=True, **DOUBLE)
    lengths = [4, 2, 3] if not enforce_sorted else [4, 3, 2]
    x, h0 = batch(T, 3, D), batch(2, 3, N, seed=1)
    state = (h0, batch(2, 3, N, seed=2)) if kind == "LSTM" else h0
    packed = pack_padded_sequence(x, lengths, enforce_sorted=enforce_sorted)
    live = gradscope.from_torch(module, (packed, state))
    torch.save(module, tmp_path / "x.pt")  # the whole module, which says what its RNN computes
    gradscope.record(module, (packed, state), tmp_path / "run.npz")
    for suffix, index in (("", 0), ("_reverse", 1)):
        single, expected = alone(module, suffix=suffix), []
        for k, length in enumerate(lengths):
            own = x[:length, k].flip(0) if suffix else x[:length, k]
            start = [part[index, k] for part in (state if kind == "LSTM" else (state,))]
            expected.append(jacobian(single, own, start))
        analysis = check(live, expected, layer=f"l0{suffix}")
        check(tmp_path / "x.pt", expected, layer=f"l0{suffix}", inputs=tmp_path / "run.npz")
        assert analysis.to_dict()["problem"]["lengths"] == lengths
    assert isinstance(packed, PackedSequence)


def test_a_packed_sequence_as_the_whole_batch():
    module = nn.GRU(D, N, **DOUBLE)
    packed = pack_padded_sequence(batch(T, B, D), [4, 2])
    check(
        gradscope.from_torch(module, packed),
        [jacobian(module, batch(T, B, D)[:n, k]) for k, n in enumerate((4, 2))],
    )


@pytest.mark.parametrize("projection", [0, slow(2)])
def test_both_directions_of_two_layers_with_the_time_first(projection):
    torch.manual_seed(4)
    module = nn.LSTM(D, N, 2, bidirectional=True, proj_size=projection, **DOUBLE)
    x = batch(T, B, D)
    live = gradscope.from_torch(nn.ModuleDict({"m": module}).get_submodule("m"), x)
    with torch.no_grad():
        down = [alone(module)(x)[0], alone(module, suffix="_reverse")(x.flip(0))[0].flip(0)]
    y = torch.cat(down, -1)
    for name, values in (("l0", x), ("l1", y)):
        depth = int(name[1])
        for suffix in ("", "_reverse"):
            own = values.flip(0) if suffix else values
            single = alone(module, depth, suffix)
            check(live, [jacobian(single, own[:, k]) for k in range(B)], layer=f"{name}{suffix}")
    assert len(gradscope.analyze(checkpoint=live).layers) == 4


# What is not torch's own


class Normed(nn.LSTMCell):
    """Layer normalisation inside of an LSTM."""

    def __init__(self, *sizes, **how):
        super().__init__(*sizes, **how)
        self.norm = nn.LayerNorm(4 * self.hidden_size, **how)

    def forward(self, x, state):
        gates = self.norm(x @ self.weight_ih.T + self.bias_ih + state[0] @ self.weight_hh.T + self.bias_hh)
        i, f, z, o = gates.chunk(4, -1)
        c = f.sigmoid() * state[1] + i.sigmoid() * z.tanh()
        return o.sigmoid() * c.tanh(), c


class Loop(nn.Module):
    def __init__(self, cell):
        super().__init__()
        self.cell = cell

    def forward(self, x):
        state = (torch.zeros(len(x), self.cell.hidden_size, **DOUBLE),) * 2
        for step in x.unbind(1):
            state = self.cell(step, state)
        return state


def test_a_layer_of_other_numbers_is_refused_with_them(tmp_path):
    torch.manual_seed(5)
    model, other = (Loop(nn.LSTMCell(D, N, **DOUBLE)) for _ in range(2))
    gradscope.record(model, batch(), tmp_path / "run.npz")
    torch.save(other.state_dict(), tmp_path / "x.pt")
    message = refusal(tmp_path / "x.pt", inputs=tmp_path / "run.npz")
    state = (torch.zeros(B, N, **DOUBLE),) * 2
    theirs, ours = (one.cell(batch()[:, 0], state)[0] for one in (model, other))
    unit = int((ours - theirs)[0].abs().argmax())
    assert message.startswith(
        f"layer cell puts out something else than cell lstm with its weights: {theirs[0, unit]:.6g} where "
        f"gradscope computes {ours[0, unit]:.6g}, at step 1 of sequence 0, unit {unit}; that is "
        f"{(ours - theirs)[0].abs().max():.2g} apart, and rounding explains "
    )


def test_a_layer_with_norms_is_differentiated_in_memory_and_in_a_file(tmp_path):
    torch.manual_seed(5)
    model = Loop(Normed(D, N, **DOUBLE))
    gradscope.record(model, batch(), tmp_path / "run.npz")
    torch.save(model.state_dict(), tmp_path / "x.pt")
    for checkpoint, inputs in (
        (gradscope.from_torch(model, batch()), {}),
        (tmp_path / "x.pt", {"inputs": tmp_path / "run.npz"}),
    ):
        found = check(checkpoint, [jacobian(model.cell, one) for one in batch()], **inputs)
        assert found.problem["jacobians"] == "torch"
        assert "computes something else than cell lstm" in found.problem["assumed"][0]


class Helped(nn.LSTM):
    """Torch's computation, with a method and a forward of its own."""

    def helper(self):
        return self.hidden_size

    def forward(self, x, state=None):
        out, state = super().forward(x, state)
        return out, state


class Mixed(nn.GRU):
    """Another computation with torch's own tensors alone."""

    def forward(self, x, state=None):
        out, state = super().forward(x, state)
        return out * 0.99, state


def test_the_numbers_decide_on_a_class_of_the_users_own():
    module = Helped(D, N, batch_first=True, **DOUBLE)
    assert "is a Helped, which computes in its own way" in refusal(gradscope.from_torch(module))
    check(gradscope.from_torch(module, batch()), [jacobian(module, one) for one in batch()])
    mixed = nn.Sequential(Mixed(D, N, batch_first=True, **DOUBLE))
    found = check(gradscope.from_torch(mixed, batch()), [jacobian(mixed[0], one) for one in batch()])
    assert found.problem["assumed"] == [
        "it computes something else than cell gru with its weights, so that torch's own derivatives are taken"
    ]


def test_inner_layers_are_told_by_their_last_states():
    class Inner(nn.GRU):
        def forward(self, x, state=None):
            out, last = super().forward(x, state)
            return out, last * torch.tensor([0.9, 1.0], **DOUBLE)[:, None, None]

    live = gradscope.from_torch(Inner(D, N, 2, batch_first=True, **DOUBLE), batch())
    message = refusal(live, layer="l0")
    assert f"at step {T} of sequence 0" in message


@pytest.mark.parametrize("place", ["after", "before"])
def test_hooks_that_change_something_are_found(place):
    module = nn.Sequential(nn.GRU(D, N, batch_first=True, **DOUBLE))
    expected, doubled = ([jacobian(module[0], k * one) for one in batch()] for k in (1, 2))
    handle = (
        module[0].register_forward_hook(lambda m, a, out: (out[0] + 0.1, out[1]))
        if place == "after"
        else module[0].register_forward_pre_hook(lambda m, a: (2 * a[0], *a[1:]))
    )
    live = gradscope.from_torch(module, batch())
    if place == "after":
        assert check(live, expected).problem["jacobians"] == "torch"
    else:  # is what the layer reads
        check(live, doubled)
    handle.remove()
    module[0].register_forward_hook(lambda *_: None)
    assert check(gradscope.from_torch(module, batch()), expected).problem["assumed"] == []


CHANGES = {
    "weight_norm": lambda m: parametrizations.weight_norm(m, "weight_hh_l0"),
    "orthogonal": lambda m: parametrizations.orthogonal(m, "weight_hh_l0"),
    "spectral": lambda m: parametrizations.spectral_norm(m, "weight_hh_l0"),
    "pruned": lambda m: prune.l1_unstructured(m, "weight_hh_l0", 0.5),
}


@pytest.mark.parametrize("change", ["weight_norm", *map(slow, ["orthogonal", "spectral", "pruned"])])
def test_weights_in_parts_are_those_that_it_runs_with(change):
    torch.manual_seed(6)
    module = nn.LSTM(D, N, batch_first=True, **DOUBLE)
    CHANGES[change](module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    live = gradscope.from_torch(module, batch())
    for name, value in module.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    check(live, [jacobian(module.eval(), one) for one in batch()])


# Calls that are no sequence


def test_the_model_is_as_it_was():
    model = nn.Sequential(
        nn.BatchNorm1d(T, **DOUBLE), nn.LSTM(D, N, 2, dropout=0.5, batch_first=True, **DOUBLE)
    )
    model[0].eval()
    model[1].weight_hh_l0.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen = torch.random.get_rng_state()
    gradscope.analyze(checkpoint=gradscope.from_torch(model, batch()))
    assert [part.training for part in model.modules()] == [True, False, True]
    assert not model[1].weight_hh_l0.requires_grad
    assert model[1].weight_ih_l0.requires_grad
    assert not model[1]._forward_hooks
    assert torch.equal(seen, torch.random.get_rng_state())
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


class Twice(nn.Module):
    """One layer called as ``how`` says, another that is never called."""

    def __init__(self, how):
        super().__init__()
        self.how, self.shared = how, nn.LSTM(D, N, batch_first=True, **DOUBLE)
        self.cell, self.spare = nn.GRUCell(D, N, **DOUBLE), nn.GRU(D, N, **DOUBLE)

    def forward(self, x):
        if self.how == "shared":
            self.shared(x)
        elif self.how == "reset":
            state = self.cell(x[:, 0])
            self.cell(x[:, 1], state * 0)
        elif self.how == "forced":
            self.cell(x[:, 0])
            self.cell(x[:, 1])
        else:
            self.cell(x[:, 0])
        return self.shared(x)


@pytest.mark.parametrize(("how", "name"), [("shared", "shared"), ("reset", "cell"), ("forced", "cell")])
def test_calls_that_are_no_sequence_are_refused_by_name(how, name):
    live = gradscope.from_torch(Twice(how), batch())
    message = refusal(live, layer=name)
    assert "is called 2 times in the forward pass, and call 2 does not start from the state" in message
    assert f"layer {name}: " in refusal(live)
    other = {"shared": "cell", "cell": "shared"}[name]
    if how != "shared":
        assert gradscope.analyze(checkpoint=live, layer=other).problem["batch"] == B


def test_a_layer_that_is_not_called():
    live = gradscope.from_torch(Twice("once"), batch())
    assert "is not called in the forward pass" in refusal(live, layer="spare")
    assert gradscope.analyze(checkpoint=live, layer="cell").problem["steps"] == 1


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # torch.compile looks at it
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_compiled_modules():
    module = nn.Sequential(nn.LSTM(D, N, batch_first=True, **DOUBLE))
    for compiled in (
        torch.jit.script(module),
        torch.jit.script(module[0]),
        torch.jit.trace(module[0], batch()),
    ):
        with pytest.raises(
            InputError, match=r"is compiled by torch\.jit, which shows no step of it: .* batch"
        ):
            gradscope.from_torch(compiled, batch())
    within = nn.Sequential(torch.jit.trace(module[0], batch()))
    assert "is compiled by torch.jit" in refusal(gradscope.from_torch(within, batch()))
    for wrapped in (torch.compile(module, backend="eager"), nn.DataParallel(module)):
        check(gradscope.from_torch(wrapped, batch()), [jacobian(module[0], one) for one in batch()])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch.export has several
def test_exported_programs():
    module = nn.Sequential(nn.LSTM(D, N, batch_first=True, **DOUBLE))
    exported = torch.export.export(module, (batch(),)).module()
    with pytest.raises(InputError, match=r"is a program of torch\.export"):
        gradscope.from_torch(exported, batch())


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_autocast_rounds_and_holds_nothing_back(kind):
    """Of a GRU it puts out float32, of numbers of 8 bits."""

    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = kind(D, N, batch_first=True)

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.layer(x)[0]

    for seed in range(3):
        torch.manual_seed(seed)
        model, x = Mixed(), batch().float()
        live = gradscope.from_torch(model, x)
        assert not live.recorded.layers["layer"].unlike
    analysis = gradscope.analyze(checkpoint=live)
    assert any("rounded to 8 bits" in sentence for sentence in analysis.problem["assumed"])
    module = model.layer.double()
    expected = [log10_values(jacobian(module, one.double()))[0] for one in x]
    found = [one.log10_singular_values[0] for one in analysis.full.spectra]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_a_forward_pass_that_fails(tmp_path):
    model = nn.Sequential(nn.LSTM(D, N, **DOUBLE)).train()
    with pytest.raises(InputError, match=r"^from_torch\(Sequential\): its forward pass fails on the batch"):
        gradscope.from_torch(model, torch.zeros(2, 2, 99))
    assert model.training
    assert not model[0]._forward_hooks
    with pytest.raises(InputError, match=r"^record\(Sequential\): its forward pass fails"):
        gradscope.record(model, (1, 2, 3), tmp_path / "run.npz")
    assert not (tmp_path / "run.npz").exists()


def test_numbers_that_are_not_finite():
    live = gradscope.from_torch(nn.GRU(D, N, **DOUBLE), batch() * np.nan)
    assert refusal(live).endswith("reads or puts out numbers that are not finite")


# Rounding


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, slow(torch.float16)], ids=str)
@pytest.mark.parametrize("kind", ["LSTM", *map(slow, ["GRU", "RNN"])])
def test_rounding_is_no_disagreement(kind, dtype):
    for seed in range(3):
        torch.manual_seed(seed)
        module = getattr(nn, kind)(D, 16, 2, bidirectional=True, dtype=dtype)
        live = gradscope.from_torch(module, batch(50, B, D, seed=seed).to(dtype))
        gradscope.analyze(checkpoint=live, top=1, only="verdict")


def chaotic(kind, factor):
    torch.manual_seed(7)
    module = getattr(nn, kind)(D, 32)
    with torch.no_grad():
        module.weight_hh_l0.mul_(factor)
    return module


def test_what_few_bits_may_hide_is_said():
    torch.manual_seed(0)
    model, x = nn.LSTM(D, N), batch(T, B, D)
    for dtype, said in (
        (torch.float32, ()),
        (torch.bfloat16, ("what the layer put out, rounded to 8 bits, ",)),
    ):
        found = gradscope.analyze(checkpoint=gradscope.from_torch(model.to(dtype), x.to(dtype)))
        for words, sentence in zip(said, found.problem["assumed"], strict=True):
            assert sentence.startswith(words)


class Casting(nn.LSTMCell):
    """Rounds what it puts out to bfloat16, and puts it out as float32."""

    def forward(self, x, state=None):
        h, c = super().forward(x, state)
        return h.bfloat16().float(), c


def test_a_cast_within_a_cell():
    """In float64 too it leaves float32, of which the next step is made again."""
    torch.manual_seed(0)

    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = Casting(D, N)

        def forward(self, x):
            state = (torch.zeros(B, N), torch.zeros(B, N))
            for step in x:
                state = self.cell(step, state)
            return state[0]

    model, x = Loop(), batch(T, B, D).float()
    plain = nn.LSTMCell(D, N)
    plain.load_state_dict(model.cell.state_dict())
    found = gradscope.analyze(checkpoint=gradscope.from_torch(model, x))
    assert found.problem["jacobians"] == "torch"
    for k, spectrum in enumerate(found.full.spectra):
        exact = log10_values(jacobian(plain.double(), x[:, k].double()))
        np.testing.assert_allclose(spectrum.log10_singular_values, exact, rtol=0, atol=1e-2)


@pytest.mark.parametrize(("kind", "factor"), [("RNN", 6), ("LSTM", 10), ("GRU", 10)])
def test_chaos_is_no_disagreement_and_is_said(kind, factor):
    live = gradscope.from_torch(chaotic(kind, factor), batch(150, B, D).float())
    (said,) = gradscope.analyze(checkpoint=live, top=1, only="verdict").to_dict()["problem"]["assumed"]
    assert "tells nothing of what gradscope computes from step" in said


def test_chaos_hides_no_other_computation():
    module = chaotic("RNN", 6)
    module.register_forward_hook(lambda m, a, out: (out[0] * 0.99, out[1]))
    assert "at step 1 of sequence 0" in refusal(gradscope.from_torch(module, batch(150, B, D).float()))


# What is asked beside it


def test_options_that_the_recording_answers(between, tmp_path):
    live = gradscope.from_torch(between, batch())
    assert "leave inputs out" in refusal(live, inputs=np.zeros((T, D)))
    assert "leave inputs out" in refusal(live, inputs="zeros")
    for name, value in {"lengths": [2, 2], "initial_state": {"h0": np.zeros(4)}, "time_major": True}.items():
        assert f"leave {name} out" in refusal(live, **{name: value})
    gradscope.record(between, batch(), tmp_path / "run.npz")
    assert "leave inputs out" in refusal(live, inputs=str(tmp_path / "run.npz"))
    assert "is a recording of a model's layers: give its checkpoint as well" in refusal(
        None, inputs=str(tmp_path / "run.npz")
    )
    assert "does not read what lower put out" not in refusal(live, reads="upper=lower")  # sizes first
    short = gradscope.analyze(checkpoint=live, layer="upper", steps=3)
    check(
        live,
        [jacobian(between.upper, one[:3]) for one in between.read(batch()).detach()],
        layer="upper",
        steps=3,
    )
    assert short.problem["steps"] == 3
    assert gradscope.analyze(checkpoint=live, layer="upper", gain=2.0).problem["gain"] == 2.0


def test_layers_that_do_not_read_each_other():
    model = nn.ModuleList([nn.GRU(D, D, **DOUBLE), nn.GRU(D, D, **DOUBLE)])
    model.forward = lambda x: model[1](torch.relu(model[0](x)[0]))
    live = gradscope.from_torch(model, batch())
    assert "layer 1 does not read what 0 put out: at step 1 of sequence 0" in refusal(live, reads="1=0")


def test_a_file_of_another_model(between, tmp_path):
    gradscope.record(between, batch(), run := tmp_path / "run.npz")
    trained = {name: value * 1.01 for name, value in between.state_dict().items()}
    torch.save(trained, tmp_path / "trained.pt")
    assert "other weights" in refusal(tmp_path / "trained.pt", inputs=run)
    torch.save(nn.ModuleDict({"other": nn.GRU(D, N)}).state_dict(), tmp_path / "other.pt")
    assert refusal(tmp_path / "other.pt", inputs=run).endswith(
        "is not in the recording, which has lower, upper"
    )
    torch.save(nn.ModuleDict({"upper": nn.GRU(7, 3)}).state_dict(), tmp_path / "wide.pt")
    assert "the recording has inputs of shape (2, 4, 5), expected (2, T, 7)" in refusal(
        tmp_path / "wide.pt", inputs=run
    )
    # As any file of arrays.
    torch.save(between.state_dict(), tmp_path / "x.pt")
    check(
        tmp_path / "x.pt",
        [jacobian(between.lower, one) for one in batch()],
        layer="lower",
        inputs=f"{run}:lower.inputs",
    )


DAMAGE = {
    "version": (lambda a: a | {"gradscope_recording": np.array(9.0)}, "of another version"),
    "key": (lambda a: a | {"upper.size": np.ones(2)}, "with an array 'upper.size'"),
    "axes": (lambda a: a | {"upper.inputs": np.ones(2)}, "upper.inputs has shape"),
    "batch": (lambda a: a | {"upper.outputs": np.ones((3, T, 3))}, "outputs of shape"),
    "outputs": (
        lambda a: {k: v for k, v in a.items() if k not in ("upper.outputs", "upper.last")},
        "lacks its outputs",
    ),
    "inputs": (lambda a: {k: v for k, v in a.items() if k != "upper.inputs"}, "has no inputs of it"),
    "lengths": (lambda a: a | {"upper.lengths": np.array([9, 1])}, "lengths do not fit"),
    "fractions": (lambda a: a | {"upper.lengths": np.array([1.5, 1])}, "no whole numbers"),
    "state": (lambda a: a | {"upper.c0": np.ones((B, 3))}, "c0 of shape"),
    "nan": (lambda a: a | {"upper.inputs": np.full((B, T, 5), np.nan)}, "expected finite numbers"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file(name, between, tmp_path):
    change, said = DAMAGE[name]
    gradscope.record(between, batch(), tmp_path / "run.npz")
    torch.save(between.state_dict(), tmp_path / "x.pt")
    with np.load(tmp_path / "run.npz") as arrays:
        changed = change(dict(arrays))
    np.savez(tmp_path / "run.npz", **changed)
    assert said in refusal(tmp_path / "x.pt", layer="upper", inputs=tmp_path / "run.npz")


def test_record_says_what_it_was_given(between, tmp_path):
    for arguments, said in {
        (between, None, "x.npz"): "was given no batch",
        (between, batch(), "x.npy"): "expected a .npz file",
        (3, batch(), "x.npz"): "record was given 3, expected a model of PyTorch",
        (between, batch(), "no/x.npz"): "cannot be written",
        (nn.Identity(), batch(), "x.npz"): "holds no recurrent layer",
    }.items():
        with pytest.raises(InputError, match=said):
            gradscope.record(*arguments[:2], tmp_path / arguments[2])


def test_padded_outputs_go_no_further():
    """What a model makes of packed outputs is no part of any layer."""
    module = nn.GRU(D, N, **DOUBLE)
    packed = module(pack_padded_sequence(batch(T, B, D), [4, 2]))[0]
    assert pad_packed_sequence(packed)[0].shape == (T, B, N)
