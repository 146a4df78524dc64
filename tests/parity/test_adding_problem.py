"""The adding problem's training script, in PyTorch, makes the networks that are kept."""

import re

import numpy as np
import pytest
import torch
from oracles.models import read_layer
from oracles.program import EXAMPLES, module_of
from safetensors.torch import load_file

import gradscope

FOLDER = EXAMPLES / "adding_problem"
README = (FOLDER / "README.md").read_text("utf-8")


@pytest.fixture
def script():
    return module_of(FOLDER, "train")


def shown(first):
    """The block of the README that begins with ``first``."""
    return re.search(rf"```text\n({first}.*?)```", README, re.DOTALL)[1]


def test_adding_problem_losses_are_those_of_the_networks_kept(script):
    inputs, answers = script.unseen()
    np.testing.assert_array_equal(np.load(FOLDER / "sequences.npy"), inputs[:4])
    losses = {}
    for kind, updates in script.KEPT.items():
        for update in updates:
            model = script.Adder(kind)
            model.load_state_dict(load_file(FOLDER / f"{kind}_{update}.safetensors"))
            with torch.no_grad():
                losses[kind, update] = script.loss(model, inputs, answers).item()
    told = re.findall(r"(\w+) +update +(\d+) +loss (\S+)", shown("always"))
    assert {(kind, int(update)): float(loss) for kind, update, loss in told} == {
        key: pytest.approx(loss, abs=6e-5) for key, loss in losses.items()
    }
    assert float(re.search(r"answer 1: loss (\S+)", README)[1]) == pytest.approx(
        (answers - 1).square().mean().item(), abs=6e-5
    )


@pytest.mark.slow
def test_adding_problem_training_starts_from_the_first_networks(script, tmp_path):
    for kind in script.KEPT:
        script.train(kind, (0, 2), seed=4, folder=tmp_path)
        first, later = (load_file(tmp_path / f"{kind}_{update}.safetensors") for update in (0, 2))
        kept = load_file(FOLDER / f"{kind}_0.safetensors")
        assert all(torch.equal(first[name], kept[name]) for name in kept | first)
        assert not any(torch.equal(first[name], later[name]) for name in first)
        assert read_layer(tmp_path / f"{kind}_2.safetensors", kind).hidden == script.HIDDEN


@pytest.mark.slow
def test_adding_problem_is_learned_by_the_lstm_alone(script, monkeypatch, tmp_path, capsys):
    """Another machine's rounding leads elsewhere, but to the same end; of the updates kept, half show it."""
    monkeypatch.setattr("sys.argv", ["train.py", "--to", str(tmp_path)])
    monkeypatch.setattr(script, "KEPT", {"lstm": (3000,), "rnn": (3000,)})
    script.main()
    losses = dict(re.findall(r"(\w+) +update 3000 +loss (\S+)", capsys.readouterr().out))
    assert float(losses["lstm"]) < 0.01 < 0.12 < float(losses["rnn"])
    sequences = np.load(tmp_path / "sequences.npy")
    after = gradscope.analyze(checkpoint=tmp_path / "lstm_3000.safetensors", inputs=sequences)
    assert after.full.horizon.median == 100
    assert after.mean_shares["carousel"] > 0.9
