"""All layers of a file at once: each on what those below it put out, and together as one Jacobian."""

from __future__ import annotations

import json

import jsonschema
import numpy as np
import pytest
from oracles import equations, layouts
from oracles.agreement import check_stack

import gradscope
from gradscope import checkpoints

D, N, T = 3, 4, 6


def sequences(batch=1, features=D, seed=1):
    return np.random.default_rng(seed).standard_normal((batch, T, features))


def saved(folder, name="model.pt", **parts):
    """A file of a module of these parts."""
    return layouts.saved(layouts.module(**parts), folder / name)


def stack_jacobian(kind, state, layers, x):
    """d(states of all layers at T)/d(those at 0) by complex steps, each layer as (c, h)."""
    weights = [layouts.equations_of(kind, state, f"_l{k}") for k in range(layers)]
    size = N * (2 if kind == "lstm" else 1)

    def run(start):
        states = np.split(start, layers)
        for below in x:
            for k, p in enumerate(weights):
                states[k] = equations.advance(kind, p, below, states[k])
                below = states[k][-N:]
        return np.concatenate(states)

    start = np.zeros(layers * size)
    return np.stack([run(one).imag / equations.H for one in equations.nudged(start)], axis=1)


@pytest.mark.parametrize(
    ("kind", "layers"), [("lstm", 2), pytest.param("gru", 2, marks=pytest.mark.slow), ("rnn", 3)]
)
def test_a_stack_has_the_jacobian_of_its_equations(kind, layers, tmp_path):
    # Far from zero, so that every block is seen.
    state = layouts.recurrent(kind, D, N, layers=layers, scale=1.7, dtype="float64")
    x = sequences()[:, :3]  # few steps, or float64 has no digits left of the smallest values
    path = layouts.saved(state, tmp_path / "model.safetensors")
    analysis = gradscope.analyze(checkpoint=path, inputs=x, cell="rnn" if kind == "rnn" else None)
    check_stack(analysis, stack_jacobian(kind, state, layers, x[0]), layers)


def test_top_values_of_a_block_are_those_of_the_block(tmp_path, monkeypatch):
    """Where all values are sooner, as without Jacobians (linearize/test_stack.py)."""
    monkeypatch.setattr("gradscope.measure.batch.sooner_without_jacobians", lambda _: False)
    path = saved(tmp_path, rnn=layouts.recurrent("lstm", D, N, layers=2, scale=1.7))
    np.save(tmp_path / "x.npy", sequences(1))
    whole, top = (
        gradscope.analyze(checkpoint=path, inputs=tmp_path / "x.npy", top=count) for count in (None, 2)
    )
    for one, other in zip(top.chains, whole.chains, strict=True):
        found, expected = (chain.spectra[0].log10_singular_values for chain in (one, other))
        np.testing.assert_allclose(found, expected[:2], atol=1e-9)


NAMES = ("encoder.l0", "encoder.l1", "decoder")


def two_modules(folder):
    parts = {
        "encoder": layouts.recurrent("lstm", D, N, layers=2, seed=3),
        "decoder": layouts.recurrent("gru", D, N, seed=4),
        "fc": {key.removeprefix("fc."): a for key, a in layouts.dense("fc", N, 2).items()},
    }
    return saved(folder, **parts)


def test_json_of_several_layers(run, tmp_path):
    path = two_modules(tmp_path)
    np.save(tmp_path / "x.npy", sequences(2))
    code, out, err = run("analyze", path, "--inputs", tmp_path / "x.npy", "--json")
    assert code == 0
    assert err.startswith(
        "gradscope: 3 layers (encoder.l0, encoder.l1, decoder), the stack of 2 (16 states), "
    )
    assert err.count("\n") == 1
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
    given = ("analyze", path, "--inputs", tmp_path / "x.npy")
    details, worst = (run(*given, *option)[1].splitlines() for option in (["--details"], []))
    assert [f"layer{k}" in details for k in range(3)] == [True] * 3
    (shown,) = (k for k in range(3) if f"layer{k}" in worst)
    assert f"layer{shown} is the worst of the layers; --details shows all of each." in worst
    norms = [abs(layer["chains"][0]["log10_norm"]["median"]) for layer in result["layers"]]
    levels = [layer["verdict"]["level"] for layer in result["layers"]]
    assert len(set(levels)) > 1 or norms[shown] == max(norms)


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
        "encoder": layouts.recurrent("lstm", D, N, layers=2, bidirectional=True),
        "text_encoder": layouts.recurrent("gru", D, N),
        "decoder": layouts.recurrent("gru", D, N),
    }
    path = saved(tmp_path, model=layouts.module(**parts))

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
    parts = {side: layouts.module(rnn=layouts.recurrent("lstm", D, N, layers=2)) for side in "ab"}
    path = saved(tmp_path, **parts)
    assert checkpoints.read(path, layers=["b.rnn"]).chosen == ("b.rnn.l0", "b.rnn.l1")
    assert checkpoints.read(path, layers=["b"]).chosen == ("b.rnn.l0", "b.rnn.l1")
    with pytest.raises(
        gradscope.InputError, match=r"layer 'rnn' is the end of several, expected one of a\.rnn\.l0"
    ):
        checkpoints.read(path, layers=["rnn"])
    one = saved(tmp_path, "one.pt", b=parts["b"], c=layouts.recurrent("gru", D, N))
    assert checkpoints.read(one, layers=["rnn"]).chosen == ("b.rnn.l0", "b.rnn.l1")


def test_exit_code_is_of_the_file_and_of_every_layer(run, tmp_path):
    """A stable layer beside one that vanishes: both can fail a check."""
    stable = layouts.recurrent("rnn", D, N)
    stable["weight_hh_l0"][...] = np.eye(N)
    stable["bias_hh_l0"][...] = 50.0
    path = saved(tmp_path, a=stable, b=layouts.recurrent("rnn", D, N, seed=1))
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
    with pytest.raises(
        gradscope.InputError, match=r"layer decoder: view 'cell'.*or choose others with --layer: encoder.l0$"
    ):
        gradscope.analyze(checkpoint=path, inputs=x, view="cell")
    view = gradscope.analyze(checkpoint=path, inputs=x, view="cell", layer=["encoder.l0", "encoder.l1"])
    assert [chain.name for chain in view.chains] == ["full", "layer0", "layer1"]
    assert view.full.size == 2 * N
    assert view.verdict.reasons[-1].startswith("The view of the cell takes every layer by itself")


@pytest.mark.slow
@pytest.mark.usefixtures("paths_alone")
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
    parts = {"encoder": layouts.recurrent("lstm", D, N), "decoder": layouts.recurrent("lstm", D + 2, N)}
    path = saved(tmp_path, **parts)
    with pytest.raises(
        gradscope.InputError, match=r"layer decoder: .* have 3.*or choose others with --layer: encoder$"
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


@pytest.mark.slow
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
