"""Which layer reads which, said by the user: the chain of all states is that of the loop in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles.models import check_spectrum, log10_values
from torch import nn

import gradscope
from gradscope import checkpoints
from gradscope.errors import InputError

X = np.random.default_rng(0).standard_normal((3, 2))


class Loop(nn.Module):
    """Two cells, the second on the first's output of the same step, as the time series examples have it."""

    def __init__(self):
        super().__init__()
        self.second = nn.GRUCell(4, 3, dtype=torch.float64)
        self.first = nn.LSTMCell(2, 4, dtype=torch.float64)

    def jacobian(self, x):
        """d(state at the end)/d(state at the start) of (c, h) of the first and h of the second."""

        def run(state):
            c, h, top = state.split((4, 4, 3))
            for step in torch.as_tensor(x):
                h, c = self.first(step, (h, c))
                top = self.second(h, top)
            return torch.cat([c, h, top])

        return torch.autograd.functional.jacobian(run, torch.zeros(11, dtype=torch.float64)).numpy()


@pytest.fixture(scope="module")
def loop():
    torch.manual_seed(0)
    return Loop()


@pytest.mark.parametrize("live", [False, True])
def test_a_loop_of_cells(live, loop, tmp_path):
    torch.save(loop.state_dict(), tmp_path / "x.pt")
    checkpoint = gradscope.from_torch(loop) if live else tmp_path / "x.pt"
    check_spectrum(checkpoint, loop.jacobian(X), inputs=X, reads="second=first")
    analysis = gradscope.analyze(checkpoint=checkpoint, inputs=X, reads=["second=first"])
    assert [chain.name for chain in analysis.chains] == ["full", "layer0", "layer1", "0->1"]
    assert [layer.problem["layer"] for layer in analysis.layers] == ["first", "second"]
    assert analysis.problem["assumed"] == []
    with pytest.raises(InputError, match="; if it reads what first puts out, add --reads second=first; or"):
        gradscope.analyze(checkpoint=checkpoint, inputs=X)


def test_modules_of_several_layers_and_directions(tmp_path):
    torch.manual_seed(1)
    enc = nn.LSTM(2, 4, num_layers=2, bidirectional=True, dtype=torch.float64)
    dec = nn.GRU(8, 3, num_layers=2, dtype=torch.float64)
    torch.save(nn.ModuleDict({"dec": dec, "enc": enc}).state_dict(), tmp_path / "x.pt")
    model = checkpoints.read(tmp_path / "x.pt", reads=["dec=enc"])
    below = {layer.name: (layer.below, layer.depth) for layer in model.layers}
    assert below["dec.l0"] == (("enc.l1", "enc.l1_reverse"), 2)
    assert below["dec.l1"] == (("dec.l0",), 3)
    with torch.no_grad():
        inner = enc(torch.as_tensor(X))[0]

    def run(state):
        return dec(inner, torch.stack([state, torch.zeros(3, dtype=torch.float64)]))[1][0]

    jacobian = torch.autograd.functional.jacobian(run, torch.zeros(3, dtype=torch.float64))
    analysis = gradscope.analyze(checkpoint=tmp_path / "x.pt", inputs=X, reads="dec=enc", layer="dec.l0")
    ours = analysis.full.spectra[0].log10_singular_values
    np.testing.assert_allclose(ours, log10_values(jacobian), rtol=0, atol=1e-6)


def test_unconnected_modules_are_said_to_read_the_inputs(tmp_path):
    both = nn.GRU(2, 2, num_layers=2, bidirectional=True)
    parts = {"a": both, "b": nn.GRUCell(2, 2), "c": nn.GRUCell(2, 2)}
    torch.save(nn.ModuleDict(parts).state_dict(), tmp_path / "x.pt")
    said = "reads the inputs, for the file does not say what reads what: --reads LAYER=BELOW does"

    def assumed(**asked):
        model = checkpoints.read(tmp_path / "x.pt", **asked)
        return [layer.name for layer in model.layers if layer.assumed == (said,)]

    assert assumed() == ["a.l0", "a.l0_reverse", "b", "c"]
    assert assumed(layers=["a"]) == []
    assert assumed(reads=["b=c", "a=b"]) == []
    assert assumed(reads=["b=c"]) == ["a.l0", "a.l0_reverse", "c"]


WRONG = {
    "no sign": (["b"], "reads is 'b', expected LAYER=BELOW, as in c=a.l0"),
    "nobody": (["b="], "expected LAYER=BELOW"),
    "unknown": (["b=x"], "layer 'x' is no recurrent layer, expected one of a.l0, a.l1, b, c"),
    "twice": (["b=c", "b=c"], "reads says twice what b reads"),
    "sizes": (["b=a,c"], "layer b has 2 inputs, and a.l1, c put out 3 + 2: they must agree"),
    "known": (["a.l1=c"], "the file says what layer a.l1 reads: a.l0; leave it out of --reads"),
    "circle": (["b=c", "c=b"], "layers b, c read one another in a circle"),
    "itself": (["b=b"], "layers b read one another in a circle"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_so(name, tmp_path):
    reads, expected = WRONG[name]
    parts = {"a": nn.GRU(2, 3, num_layers=2), "b": nn.GRUCell(2, 2), "c": nn.GRUCell(2, 2)}
    torch.save(nn.ModuleDict(parts).state_dict(), tmp_path / "x.pt")
    with pytest.raises(InputError) as caught:
        checkpoints.read(tmp_path / "x.pt", reads=reads)
    assert expected in str(caught.value)


def test_reads_is_about_a_checkpoint():
    with pytest.raises(InputError, match=r"reads is 'a=b', but that is about a checkpoint"):
        gradscope.analyze(reads="a=b")


def test_in_the_shell(run, loop, tmp_path):
    torch.save(loop.state_dict(), tmp_path / "x.pt")
    np.save(tmp_path / "x.npy", X)
    asked = ("--inputs", tmp_path / "x.npy", "--reads", "second=first")
    code, out, _ = run("analyze", tmp_path / "x.pt", *asked)
    assert code == 0
    assert "layer1  second" in out
