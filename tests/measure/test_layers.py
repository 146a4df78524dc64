"""All layers of a file at once: each on what those below it put out, and together as torch's own Jacobian."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest
import torch
from oracles.models import log10_values

import gradscope
from gradscope import checkpoints

D, N, T = 3, 4, 6
KINDS = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "rnn": torch.nn.RNN}


def saved(folder, module, name="model.pt"):
    torch.save(module.state_dict(), folder / name)
    return folder / name


def made(kind, layers=2, **options):
    torch.manual_seed(7)
    module = KINDS[kind](D, N, num_layers=layers, dtype=torch.float64, **options)
    with torch.no_grad():  # far from zero, so that every block is seen
        for parameter in module.parameters():
            parameter.mul_(1.7)
    return module


def sequences(batch=1, features=D, seed=1):
    return np.random.default_rng(seed).standard_normal((batch, T, features))


def columns(state, like):
    """States of all layers, layer after layer, each (c, h) or h, as torch's (layers, n) of each part."""
    parts = state.reshape(like, -1, N)
    return tuple(parts[:, k, None].contiguous() for k in range(parts.shape[1]))


def whole_jacobian(module, x):
    """d(states of all layers at T)/d(those at 0) by autograd, in the order layer by layer, (c, h)."""
    count, parts = module.num_layers, 2 if isinstance(module, torch.nn.LSTM) else 1

    def run(state):
        given = columns(state, count)  # (c, h) or (h,)
        last = module(torch.from_numpy(x)[:, None], given[::-1] if parts == 2 else given[0])[1]
        ends = last[::-1] if parts == 2 else (last,)
        return torch.stack([end[:, 0] for end in ends], dim=1).reshape(-1)

    return torch.autograd.functional.jacobian(run, torch.zeros(count * parts * N, dtype=torch.float64))


@pytest.mark.parametrize(("kind", "layers"), [("lstm", 2), ("gru", 2), ("rnn", 3)])
def test_a_stack_has_the_jacobian_of_torch(kind, layers, tmp_path):
    module, x = made(kind, layers), sequences()
    path = saved(tmp_path, module)
    analysis = gradscope.analyze(checkpoint=path, inputs=x, cell="rnn" if kind == "rnn" else None)
    jacobian = whole_jacobian(module, x[0]).numpy()
    found = analysis.full.spectra[0].log10_singular_values
    np.testing.assert_allclose(found, log10_values(jacobian), rtol=0, atol=1e-6)
    numbers = range(layers)
    names = [f"layer{k}" for k in numbers] + [f"{i}->{j}" for j in numbers for i in range(j)]
    assert set(analysis.shares) == set(names)
    np.testing.assert_allclose(sum(analysis.shares.values()), 1, rtol=0, atol=1e-9)
    size = len(jacobian) // layers
    for k, layer in enumerate(analysis.layers):
        block = jacobian[k * size : (k + 1) * size, k * size : (k + 1) * size]
        own = layer.full.spectra[0].log10_singular_values
        np.testing.assert_allclose(own, log10_values(block), rtol=0, atol=1e-6)
        in_stack = analysis.chain(f"layer{k}").log10_norm.median
        assert in_stack == pytest.approx(layer.full.log10_norm.median, abs=1e-10)


def direction_jacobian(module, x, backward):
    """Of the two layers of one direction, the outputs of the other direction held as they are."""
    side = "_reverse" if backward else ""
    first, second = torch.nn.LSTMCell(D, N).double(), torch.nn.LSTMCell(2 * N, N).double()
    for k, cell in enumerate((first, second)):
        own = {name: getattr(module, f"{name}_l{k}{side}") for name in dict(cell.named_parameters())}
        cell.load_state_dict(own)
    one = torch.nn.LSTM(D, N, bidirectional=True, dtype=torch.float64)
    one.load_state_dict({k: v for k, v in module.state_dict().items() if "_l0" in k})
    with torch.no_grad():
        other = one(torch.from_numpy(x)[:, None])[0][:, 0, :N] if backward else None
        other = one(torch.from_numpy(x)[:, None])[0][:, 0, N:] if other is None else other

    def run(state):
        c0, h0, c1, h1 = state.reshape(4, 1, N)
        for t in reversed(range(T)) if backward else range(T):
            h0, c0 = first(torch.from_numpy(x[t : t + 1]), (h0, c0))
            both = (other[t : t + 1], h0) if backward else (h0, other[t : t + 1])
            h1, c1 = second(torch.cat(both, dim=1), (h1, c1))
        return torch.cat([c0, h0, c1, h1]).reshape(-1)

    return torch.autograd.functional.jacobian(run, torch.zeros(4 * N, dtype=torch.float64)).numpy()


def test_two_directions_stand_side_by_side(tmp_path):
    module, x = made("lstm", bidirectional=True), sequences()
    analysis = gradscope.analyze(checkpoint=saved(tmp_path, module), inputs=x)
    sides = [direction_jacobian(module, x[0], backward) for backward in (False, True)]
    expected = np.sort(np.concatenate([log10_values(side) for side in sides]))[::-1]
    spectrum = analysis.full.spectra[0]
    known = expected > -13  # below, float64 products mean nothing
    np.testing.assert_allclose(spectrum.log10_singular_values[known], expected[known], rtol=0, atol=1e-6)
    assert [layer.problem["layer"] for layer in analysis.layers] == ["l0", "l0_reverse", "l1", "l1_reverse"]
    assert list(analysis.shares) == ["layer0", "layer1", "layer2", "layer3", "0->2", "1->3"]
    np.testing.assert_allclose(sum(analysis.shares.values()), 1, rtol=0, atol=1e-9)
    # The top vectors are of the whole, block diagonal Jacobian, the forward layers first.
    top = np.zeros(8 * N)
    top[: 4 * N], top[4 * N :] = sides[0] @ spectrum.right[: 4 * N], sides[1] @ spectrum.right[4 * N :]
    np.testing.assert_allclose(top, 10 ** spectrum.log10_singular_values[0] * spectrum.left, atol=1e-12)
    assert "side by side" in analysis.verdict.reasons[-1]


NAMES = ("encoder.l0", "encoder.l1", "decoder")


def two_modules(folder):
    torch.manual_seed(3)
    parts = {
        "encoder": torch.nn.LSTM(D, N, num_layers=2),
        "decoder": torch.nn.GRU(D, N),
        "fc": torch.nn.Linear(N, 2),
    }
    return saved(folder, torch.nn.ModuleDict(parts))


def test_json_of_several_layers(run, tmp_path):
    path = two_modules(tmp_path)
    np.save(tmp_path / "x.npy", sequences(2))
    code, out, err = run("analyze", path, "--inputs", tmp_path / "x.npy", "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    jsonschema.validate(result, gradscope.schema())
    assert [layer["problem"]["layer"] for layer in result["layers"]] == list(NAMES)
    names = [chain["name"] for chain in result["chains"]]
    assert names == ["full", "layer0", "layer1", "layer2", "0->1"]
    assert result["chains"][0]["size"] == 5 * N
    assert (result["problem"]["cell"], result["problem"]["batch"]) == ("lstm, gru", 2)
    assert result["layers"][1]["problem"]["inputs"] == "outputs of encoder.l0"
    norms = [chain["log10_norm"]["max"] for chain in result["chains"]]
    assert norms[0] >= max(norm for norm in norms[1:] if norm is not None) - 1e-12
    code, table, _ = run("analyze", path, "--inputs", tmp_path / "x.npy")
    assert [f"layer{k}" in table.splitlines() for k in range(3)] == [True] * 3


def test_layers_are_chosen_one_by_one(run, tmp_path):
    path = two_modules(tmp_path)
    np.save(tmp_path / "x.npy", sequences())
    given = ("analyze", path, "--inputs", tmp_path / "x.npy", "--json")
    whole = json.loads(run(*given)[1])
    alone = json.loads(run(*given, "--layer", "l1")[1])
    # What is below is computed, though nobody asked for its figures.
    assert alone["problem"]["layer"] == "encoder.l1"
    assert alone["chains"] == whole["layers"][1]["chains"]
    assert "layers" not in alone
    some = json.loads(run(*given, "--layer", "decoder", "--layer", "l1")[1])
    assert [layer["problem"]["layer"] for layer in some["layers"]] == ["encoder.l1", "decoder"]
    assert [chain["name"] for chain in some["chains"]] == ["full", "layer0", "layer1"]


def test_a_module_is_all_its_layers(tmp_path):
    parts = {
        "encoder": torch.nn.LSTM(D, N, num_layers=2, bidirectional=True),
        "text_encoder": torch.nn.GRU(D, N),
        "decoder": torch.nn.GRU(D, N),
    }
    model = torch.nn.ModuleDict({"model": torch.nn.ModuleDict(parts)})
    path = saved(tmp_path, model)

    def chosen(*names):
        return checkpoints.read(path, layers=names).chosen

    encoder = tuple(f"model.encoder.{place}" for place in ("l0", "l0_reverse", "l1", "l1_reverse"))
    assert chosen("model.encoder") == encoder
    assert chosen("decoder") == ("model.decoder",)
    assert chosen("model.encoder", "decoder") == (*encoder, "model.decoder")
    assert chosen("model") == (*encoder, "model.text_encoder", "model.decoder")
    assert chosen("encoder") == encoder  # not text_encoder, of whose name it is a piece
    assert chosen("t_encoder") == ("model.text_encoder",)
    for name in ("", "model.", "coder", "model.enc", "enc"):
        with pytest.raises(gradscope.InputError, match=r"is the end of several|is no recurrent layer"):
            chosen(name)


def test_the_end_of_a_modules_name_is_of_one_alone(tmp_path):
    parts = {side: torch.nn.ModuleDict({"rnn": torch.nn.LSTM(D, N, num_layers=2)}) for side in "ab"}
    path = saved(tmp_path, torch.nn.ModuleDict(parts))
    assert checkpoints.read(path, layers=["b.rnn"]).chosen == ("b.rnn.l0", "b.rnn.l1")
    assert checkpoints.read(path, layers=["b"]).chosen == ("b.rnn.l0", "b.rnn.l1")
    with pytest.raises(
        gradscope.InputError, match=r"layer 'rnn' is the end of several, expected one of a\.rnn\.l0"
    ):
        checkpoints.read(path, layers=["rnn"])
    one = saved(tmp_path, torch.nn.ModuleDict({"b": parts["b"], "c": torch.nn.GRU(D, N)}), "one.pt")
    assert checkpoints.read(one, layers=["rnn"]).chosen == ("b.rnn.l0", "b.rnn.l1")


def test_exit_code_is_of_the_file_and_of_every_layer(run, tmp_path):
    """A stable layer beside one that vanishes: both can fail a check."""
    torch.manual_seed(0)
    stable = torch.nn.RNN(D, N, nonlinearity="relu")
    with torch.no_grad():
        stable.weight_hh_l0.copy_(torch.eye(N))
        stable.bias_hh_l0.fill_(50.0)
    path = saved(tmp_path, torch.nn.ModuleDict({"a": stable, "b": torch.nn.RNN(D, N)}))
    arguments = ("analyze", path, "--cell", "rnn-relu", "--steps", 60, "--quiet")
    assert run(*arguments, "--fail-on", "exploding")[0] == 0
    assert run(*arguments, "--fail-on", "stable")[0] == 1
    assert (
        run("analyze", path, "--activation", "tanh", "--steps", 60, "--quiet", "--fail-on", "vanishing")[0]
        == 1
    )


def test_cuts_biases_and_views_of_several_layers(tmp_path):
    path, x = two_modules(tmp_path), sequences()
    cut = gradscope.analyze(checkpoint=path, inputs=x, cut=["0->1"])
    assert "0->1" not in cut.shares
    assert cut.problem["cut"] == ["0->1"]
    # Without what leads from one to the other the stack falls apart into its layers.
    both = np.concatenate([layer.full.spectra[0].log10_singular_values for layer in cut.layers])
    np.testing.assert_allclose(cut.full.spectra[0].log10_singular_values, np.sort(both)[::-1], atol=1e-9)
    with pytest.raises(gradscope.InputError, match="cut R_o of several layers: expected one of layer0"):
        gradscope.analyze(checkpoint=path, inputs=x, cut="R_o")
    forgetful = gradscope.analyze(checkpoint=path, inputs=x, biases={"b_f": -20.0})
    assert forgetful.layers[0].gates["f"]["mean"] < 1e-6
    assert forgetful.layers[2].gates == gradscope.analyze(checkpoint=path, inputs=x).layers[2].gates
    with pytest.raises(gradscope.InputError, match="no bias b_q"):
        gradscope.analyze(checkpoint=path, inputs=x, biases={"b_q": 1.0})
    with pytest.raises(gradscope.InputError, match=r"layer decoder: view 'cell'.*or choose others"):
        gradscope.analyze(checkpoint=path, inputs=x, view="cell")
    view = gradscope.analyze(checkpoint=path, inputs=x, view="cell", layer=["encoder.l0", "encoder.l1"])
    assert [chain.name for chain in view.chains] == ["full", "layer0", "layer1"]
    assert view.full.size == 2 * N


@pytest.mark.slow
def test_top_values_of_several_layers(tmp_path):
    path, x = two_modules(tmp_path), sequences(2)
    every, top = (gradscope.analyze(checkpoint=path, inputs=x, top=top) for top in ("all", 5))
    for name in ("full", "layer0", "layer1", "layer2"):
        all_values, some = every.chain(name).spectra, top.chain(name).spectra
        for one, other in zip(all_values, some, strict=True):
            found = other.log10_singular_values
            np.testing.assert_allclose(found, one.log10_singular_values[: len(found)], atol=1e-9)
    assert len(top.full.spectra[0].log10_singular_values) == 5
    assert len(top.layers[2].full.spectra[0].log10_singular_values) == N  # it has no more


def test_layers_that_inputs_do_not_fit(tmp_path):
    parts = {"encoder": torch.nn.LSTM(D, N), "decoder": torch.nn.LSTM(D + 2, N)}
    path = saved(tmp_path, torch.nn.ModuleDict(parts))
    with pytest.raises(
        gradscope.InputError, match=r"layer decoder: .* have 3.*or choose others of encoder, decoder"
    ):
        gradscope.analyze(checkpoint=path, inputs=sequences())
    assert gradscope.analyze(checkpoint=path, steps=5).problem["inputs"] == "normal"
    with pytest.raises(gradscope.InputError, match="input_size is 3, but the checkpoint brings its own"):
        gradscope.analyze(checkpoint=path, input_size=3)
    # No other layer would do for what is wrong in itself.
    with pytest.raises(gradscope.InputError, match=r"^gain is nan, expected [^;]*$"):
        gradscope.analyze(checkpoint=path, gain=float("nan"))


def test_made_up_inputs_reach_every_layer(tmp_path):
    analysis = gradscope.analyze(checkpoint=two_modules(tmp_path), steps=5, batch=2, seed=4)
    assert [layer.problem["inputs"] for layer in analysis.layers] == [
        "normal",
        "outputs of encoder.l0",
        "normal",
    ]
    assert [layer.problem["steps"] for layer in analysis.layers] == [5, 5, 5]
    # Lower layers see the same sequence whether or not others are analysed with them.
    alone = gradscope.analyze(checkpoint=two_modules(tmp_path), steps=5, batch=2, seed=4, layer="decoder")
    assert alone.full.log10_norm == analysis.layers[2].full.log10_norm


def test_a_loss_of_a_stack_has_the_gradients_of_torch(tmp_path):
    module, x = made("lstm", batch_first=True), sequences(2)
    head = torch.nn.Linear(N, 2, dtype=torch.float64)
    path = saved(tmp_path, torch.nn.ModuleDict({"rnn": module, "fc": head}))
    loss = gradscope.analyze(checkpoint=path, inputs=x, readout="fc").loss
    states = torch.zeros(2, 2, N, dtype=torch.float64, requires_grad=True)
    cells = torch.zeros_like(states, requires_grad=True)
    head(module(torch.from_numpy(x), (states, cells))[0][:, -1]).sum().backward()
    for k in range(2):
        for ours, theirs in (("R", "weight_hh"), ("W", "weight_ih")):
            gradients = getattr(module, f"{theirs}_l{k}").grad.chunk(4)
            for gate, gradient in zip("ifzo", gradients, strict=True):
                expected = np.log10(torch.linalg.norm(gradient).item())
                assert loss.log10_gradients[f"layer{k}.{ours}_{gate}"] == pytest.approx(expected, abs=1e-9)
    at_start = torch.cat([states.grad, cells.grad], dim=2).square().sum(dim=(0, 2)).sqrt()
    np.testing.assert_allclose(loss.log10_norm[:, -1], np.log10(at_start.numpy()), rtol=0, atol=1e-9)


def test_a_loss_reads_one_stack(tmp_path):
    path = two_modules(tmp_path)
    with pytest.raises(
        gradscope.InputError, match=r"choose of encoder\.l0, encoder\.l1, decoder with --layer"
    ):
        gradscope.analyze(checkpoint=path, inputs=sequences(), readout="fc")
    layers = ["encoder.l0", "encoder.l1"]
    analysis = gradscope.analyze(checkpoint=path, inputs=sequences(), readout="fc", layer=layers)
    assert analysis.problem["readout"] == "fc.weight"
    assert "loss" in analysis.to_dict()
    assert all(layer.loss is None for layer in analysis.layers)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_loss_of_two_directions_is_followed_back_in_each(layers, tmp_path):
    module, x = made("lstm", layers, batch_first=True, bidirectional=True), sequences(2)
    head = torch.nn.Linear(2 * N, 3, dtype=torch.float64)
    path = saved(tmp_path, torch.nn.ModuleDict({"rnn": module, "fc": head}))
    head(module(torch.from_numpy(x))[0]).sum().backward()
    analysis = gradscope.analyze(checkpoint=path, inputs=x, readout="fc", readout_at="every")
    adjoint = np.broadcast_to(head.weight.detach().numpy().sum(axis=0), (2, T, 2 * N))
    again = gradscope.analyze(checkpoint=path, inputs=x, adjoint=adjoint)
    tops = [k for k, layer in enumerate(analysis.layers) if layer.loss]
    assert tops == [2 * layers - 2, 2 * layers - 1]
    assert analysis.loss is None
    for k, side in zip(tops, ("", "_reverse"), strict=True):
        gradients = getattr(module, f"weight_hh_l{layers - 1}{side}").grad.chunk(4)
        for gate, gradient in zip("ifzo", gradients, strict=True):
            expected = pytest.approx(np.log10(torch.linalg.norm(gradient).item()), abs=1e-9)
            assert analysis.layers[k].loss.log10_gradients[f"R_{gate}"] == expected
            assert again.layers[k].loss.log10_gradients[f"R_{gate}"] == expected
    jsonschema.validate(analysis.to_dict(), gradscope.schema())
    with pytest.raises(gradscope.InputError, match="the first of the other: say --readout-at every"):
        gradscope.analyze(checkpoint=path, inputs=x, readout="fc")
    with pytest.raises(gradscope.InputError, match=r"adjoint has shape \(8,\), expected \(2, 6, 8\)"):
        gradscope.analyze(checkpoint=path, inputs=x, adjoint=np.ones(8))
