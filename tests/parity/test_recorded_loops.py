"""Loops and modules that torch differentiates, through ``record`` and the command line."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import nn

import gradscope
from gradscope.errors import InputError
from parity.test_torch_loops import DOUBLE, KINDS, LSTM, Loop, N, Plain, batch, drawn, log10_values, whole


def values(analysis):
    return analysis.to_dict()["chains"][0]["log10_singular_values"]


def same(ours, theirs):
    """None is a value of zero."""
    np.testing.assert_allclose(np.array(ours, float), np.array(theirs, float), rtol=0, atol=1e-12)


@pytest.fixture
def told(run, tmp_path):
    """The JSON of a command that must succeed."""

    def call(*arguments):
        code, out, err = run(*arguments, "--json")
        assert code == 0, err
        return json.loads(out)

    return call


@pytest.mark.parametrize("name", ["Plain", "LSTM", "InPlace", "MaskedCell", "Delayed", "Normed"])
def test_the_file_has_what_memory_has(name, told, tmp_path):
    model, x = drawn(KINDS[name]), batch()
    file, run = tmp_path / "model.pt", tmp_path / "run.npz"
    torch.save(model.state_dict(), file)
    gradscope.record(model, x, run)
    live = gradscope.analyze(checkpoint=gradscope.from_torch(model, x))
    for checkpoint, inputs in ((file, run), (run, None)):
        analysis = gradscope.analyze(checkpoint=checkpoint, **({"inputs": str(inputs)} if inputs else {}))
        same(values(analysis), values(live))
        differing = {key for key, said in live.problem.items() if analysis.problem[key] != said}
        assert differing <= {"source", "inputs", "initial_state"}
        assert analysis.problem["jacobians"] == "torch"
        assert {c.name: c.log10_norm for c in analysis.chains} == {c.name: c.log10_norm for c in live.chains}
    shell = told("analyze", file, "--inputs", run)
    assert shell["problem"]["jacobians"] == "torch"
    same(shell["chains"][0]["log10_singular_values"], values(live))


def test_against_autograd(told, tmp_path):
    """From the shell alone, of the whole loop; and a loss, whose readout the checkpoint has."""
    model, x = drawn(LSTM), batch()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    gradscope.record(model, x, tmp_path / "run.npz")
    (layer,) = told("inspect", tmp_path / "run.npz")["layers"]
    assert (layer["kind"], layer["hidden"], layer["input_size"]) == ("LSTM", N, 3)
    both = tmp_path / "model.pt", "--inputs", tmp_path / "run.npz"
    found = told("analyze", *both)
    for ours, theirs in zip(found["chains"][0]["log10_singular_values"], whole(model, x), strict=True):
        np.testing.assert_allclose(ours[:4], log10_values(theirs)[:4], rtol=0, atol=1e-9)
    lossy = told("analyze", *both, "--readout", "head", "--readout-at", "last")
    live = gradscope.analyze(
        checkpoint=gradscope.from_torch(model, x), readout="head", readout_at="last"
    ).to_dict()
    assert lossy["loss"] == live["loss"]


class Both(Loop):
    """A layer of torch's own before a loop."""

    def build(self):
        self.gru = nn.GRU(3, 3, batch_first=True, **DOUBLE)

    def run(self, x, h):
        return Plain.run(self, self.gru(x)[0], h)


def test_beside_a_layer_that_is_read_from_the_checkpoint(told, run, tmp_path):
    model, x = drawn(Both), batch()
    file, recording = tmp_path / "model.pt", tmp_path / "run.npz"
    torch.save({"state_dict": {f"net.{name}": value for name, value in model.state_dict().items()}}, file)
    gradscope.record(model, x, recording)
    live = gradscope.analyze(checkpoint=gradscope.from_torch(model, x))
    found = told("analyze", file, "--inputs", recording)
    assert [one["problem"]["jacobians"] for one in found["layers"]] == ["torch", "own"]
    for one, other in zip(found["layers"], live.layers, strict=True):
        same(one["chains"][0]["log10_singular_values"], values(other))
    # The recording alone has not all; what it has can be chosen.
    code, _, err = run("analyze", recording)
    assert (code, "its weights are in its checkpoint" in err, "--layer" in err) == (2, True, True)
    assert [one["problem"] is None for one in told("inspect", recording)["layers"]] == [True, False]


def test_other_weights_than_were_recorded(run, told, tmp_path):
    """It says so, and both ways out that it names lead somewhere."""
    model, x = drawn(Plain), batch()
    gradscope.record(model, x, tmp_path / "run.npz")
    with torch.no_grad():
        model.b.weight *= 1.01
    torch.save(model.state_dict(), tmp_path / "model.pt")
    code, _, err = run("analyze", tmp_path / "model.pt", "--inputs", tmp_path / "run.npz")
    assert code == 2
    assert "was recorded with other weights: b.weight is not in this file" in err
    told(*err.strip().partition("analyse what was recorded as it was: gradscope ")[2].split())
    gradscope.record(model, x, tmp_path / "run.npz")
    assert told("analyze", tmp_path / "model.pt", "--inputs", tmp_path / "run.npz")


def test_another_head_is_no_other_loop(told, tmp_path):
    """What no state is made of may be trained on."""
    model, x = drawn(Plain), batch()
    gradscope.record(model, x, tmp_path / "run.npz")
    with torch.no_grad():
        model.head.weight *= 1.01
    torch.save(model.state_dict(), tmp_path / "model.pt")
    assert told("analyze", tmp_path / "model.pt", "--inputs", tmp_path / "run.npz")


def test_what_stands_without_its_half_leads_to_the_other(run, told, tmp_path):
    model, x = drawn(Plain), batch()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    code, _, err = run("analyze", tmp_path / "model.pt")
    assert (code, "gradscope.record(model, batch, 'run.npz')" in err) == (2, True)
    gradscope.record(model, x, tmp_path / "run.npz")
    code, _, err = run("analyze", "--inputs", tmp_path / "run.npz")
    assert code == 2
    told(*err.strip().partition(": say gradscope ")[2].split())
    code, _, err = run("analyze", tmp_path / "run.npz", "--readout", "head")
    assert (code, "give the checkpoint" in err) == (2, True)


def test_it_is_as_large_as_is_said(tmp_path, capfd):
    model, x, file = drawn(Plain), batch(), tmp_path / "run.npz"
    with pytest.raises(InputError, match="would take 0 MiB, and at most 0 are written: give fewer"):
        gradscope.record(model, x, file, max_size=1000)
    assert not file.exists()
    gradscope.record(model, x, file, max_size=10_000)
    assert file.stat().st_size < 10_000
    assert capfd.readouterr().err == ""


def changed(told, **values):
    said = json.loads(bytes(told.astype(np.uint8))) | values
    return np.frombuffer(json.dumps(said).encode(), np.uint8)


DAMAGE = {
    "text": (lambda a: a | {"told": a["told"][:-1]}, "is damaged"),
    "numbers": (lambda a: a | {"told": np.array([1e9])}, "is damaged"),
    "deep": (lambda a: a | {"told": np.frombuffer(b"[" * 100_000, np.uint8)}, "damaged"),
    "list": (lambda a: a | {"told": np.frombuffer(b"[]", np.uint8)}, "is damaged"),
    "escapes": (lambda a: a | {"told": changed(a["told"], kind="\x1b[31m")}, "(kind) is damaged"),
    "framework": (lambda a: a | {"told": changed(a["told"], by="mine")}, "(by) is damaged"),
    "parts": (lambda a: a | {"told": changed(a["told"], parts=[["h", 2], ["h", 2]])}, "(parts) is damaged"),
    "sizes": (lambda a: a | {"told": changed(a["told"], parts=[["h", 5]])}, "has Jacobians of shape"),
    "paths": (lambda a: a | {"told": changed(a["told"], paths=["a", "a"])}, "has Jacobians of shape"),
    "weights": (lambda a: a | {"told": changed(a["told"], weights=3)}, "(weights) is damaged"),
    "lacks": (lambda a: {k: v for k, v in a.items() if k != "states"}, "lacks states"),
    "axes": (lambda a: a | {"jacobians": a["jacobians"][0]}, "jacobians has shape"),
    "steps": (lambda a: a | {"states": a["states"][:, 1:]}, "has Jacobians of shape"),
    "nan": (lambda a: a | {"states": a["states"] * np.nan}, "expected finite numbers"),
    "lengths": (lambda a: a | {"lengths": np.array([9, 1])}, "lengths that do not fit"),
    "sequences": (lambda a: a | {"lengths": np.array([1])}, "lengths that do not fit"),
    "mask": (lambda a: a | {"mask": np.ones((2, 9))}, "mask does not fit"),
    "rounding": (lambda a: a | {"rounding": np.array(-1.0)}, "rounding is -1"),
}


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    file = tmp_path_factory.mktemp("recording") / "run.npz"
    gradscope.record(drawn(Plain), batch(), file)
    with np.load(file) as arrays:
        return dict(arrays)


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file(name, recording, tmp_path):
    change, said = DAMAGE[name]
    np.savez(tmp_path / "run.npz", **change(recording))
    with pytest.raises(InputError) as caught:
        gradscope.analyze(checkpoint=tmp_path / "run.npz")
    assert said in str(caught.value)
    assert str(caught.value).isprintable()
