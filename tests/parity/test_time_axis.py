"""Which axis is time: what torch.nn's own modules take, in memory and in files, and what is said of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracles.refusals import told
from torch import nn

import gradscope

T, B = 12, 3


def gradient(module, x):
    """log10 sigma_1 of d(state at the end)/d(state at the start) of every sequence, by autograd."""
    values = []
    for k in range(x.shape[0 if module.batch_first else 1]):
        alone = torch.as_tensor(x[k] if module.batch_first else x[:, k])

        def last(h, alone=alone):
            return module(alone, h[None])[1][0]

        jacobian = torch.autograd.functional.jacobian(last, torch.zeros(4, dtype=torch.float64))
        values.append(np.log10(np.linalg.norm(jacobian.numpy(), 2)))
    return values


def measured(analysis):
    return [s.log10_singular_values[0] for s in analysis.full.spectra]


def refusal(**asked):
    return told(gradscope.analyze, **asked)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("kind", ["live", "whole", "compiled"])
def test_the_module_says_which_axis_is_time(kind, first, tmp_path):
    torch.manual_seed(0)
    module = nn.GRU(2, 4, batch_first=first, dtype=torch.float64)
    x = np.random.default_rng(0).standard_normal((B, T, 2) if first else (T, B, 2))
    checkpoint = tmp_path / "x.pt"
    if kind == "live":
        checkpoint = gradscope.from_torch(nn.Sequential(module))
    elif kind == "whole":
        torch.save(module, checkpoint)
    else:
        torch.jit.save(torch.jit.script(module), checkpoint)
    analysis = gradscope.analyze(checkpoint=checkpoint, inputs=x)
    np.testing.assert_allclose(measured(analysis), gradient(module, x), rtol=0, atol=1e-9)
    said = [] if first else ["axis 0 of the inputs is time, as the model takes them, (T, B, d): "]
    assert [one[: len(said[0])] for one in analysis.to_dict()["problem"]["assumed"]] == said
    assert analysis.to_dict()["problem"]["steps"] == T
    if first:
        assert "said to be (T, B, d), but the model takes (B, T, d): leave --time-major out" in refusal(
            checkpoint=checkpoint, inputs=x, time_major=True
        )
    else:
        same = gradscope.analyze(checkpoint=checkpoint, inputs=x, time_major=True)
        assert measured(same) == measured(analysis)
        assert same.to_dict()["problem"]["assumed"] == []


@pytest.mark.parametrize("stacked", [False, True])
def test_one_sequence_has_its_axes_in_one_order(stacked):
    module = nn.LSTM(2, 3, num_layers=1 + stacked)
    problem = gradscope.analyze(checkpoint=gradscope.from_torch(module), inputs=np.ones((5, 2))).to_dict()[
        "problem"
    ]
    assert (problem["steps"], problem["batch"], problem["assumed"]) == (5, 1, [])
    made = gradscope.analyze(checkpoint=gradscope.from_torch(module), steps=4)
    assert made.to_dict()["problem"]["steps"] == 4


def test_a_stack_says_it_once():
    live = gradscope.from_torch(nn.LSTM(2, 3, num_layers=2))
    problem = gradscope.analyze(checkpoint=live, inputs=np.ones((5, 2, 2))).to_dict()["problem"]
    assert (problem["steps"], problem["batch"]) == (5, 2)
    assert problem["assumed"] == [
        "axis 0 of the inputs is time, as the model takes them, (T, B, d): 2 sequences of 5 steps"
    ]


def test_token_ids_are_in_the_order_of_the_module():
    parts = {"words": nn.Embedding(5, 2), "gru": nn.GRU(2, 3)}
    ids = np.arange(T * B).reshape(T, B) % 5
    live = gradscope.from_torch(nn.ModuleDict(parts))
    analysis = gradscope.analyze(checkpoint=live, inputs=ids, embedding="words")
    assert analysis.to_dict()["problem"]["batch"] == B


def test_layers_of_both_orders_cannot_read_the_same():
    live = gradscope.from_torch(nn.ModuleDict({"a": nn.GRU(2, 2), "b": nn.GRU(2, 2, batch_first=True)}))
    said = refusal(checkpoint=live, inputs=np.ones((4, 2, 2)))
    assert "layer a takes (T, B, d) and b (B, T, d): the same inputs cannot be both, choose with" in said
    assert gradscope.analyze(checkpoint=live, layer="b", inputs=np.ones((4, 2, 2))).full.steps == 2


def test_inputs_that_look_transposed(tmp_path):
    torch.save(nn.GRU(2, 3).state_dict(), tmp_path / "x.pt")
    x = np.random.default_rng(1).standard_normal((32, 4, 2))

    def assumed(**asked):
        return gradscope.analyze(**asked).to_dict()["problem"].get("assumed")

    said = "axis 0 of the inputs is the batch: 32 sequences of 4 steps; if it is time, add --time-major"
    assert assumed(checkpoint=tmp_path / "x.pt", inputs=x) == [said]
    assert assumed(checkpoint=tmp_path / "x.pt", inputs=x, time_major=True) == []
    assert assumed(checkpoint=tmp_path / "x.pt", inputs=x[:31]) == []
    assert assumed(cell="rnn", hidden=2, inputs=x) == [said]
    assert assumed(cell="rnn", hidden=2, inputs=x[:31]) is None
    live = gradscope.from_torch(nn.GRU(2, 3))
    assert assumed(checkpoint=live, inputs=x.swapaxes(0, 1)) == [
        "axis 0 of the inputs is time, as the model takes them, (T, B, d): 32 sequences of 4 steps; "
        "if it is the batch, swap axes 0 and 1"
    ]


@pytest.mark.parametrize("first", [False, True])
def test_a_model_that_was_run_on_what_looks_transposed(first):
    module = nn.GRU(2, 4, batch_first=first, dtype=torch.float64)
    x = torch.zeros((24, 2, 2) if first else (2, 24, 2), dtype=torch.float64)
    (said,) = gradscope.analyze(checkpoint=gradscope.from_torch(module, x), only="gain").problem["assumed"]
    assert said.startswith("the model was run on 24 sequences of 2 steps, and ")
    assert ("batch_first=True" in said) != first
    ordinary = gradscope.from_torch(module, x.swapaxes(0, 1))
    assert not gradscope.analyze(checkpoint=ordinary, only="gain").problem["assumed"]


def test_lengths_that_would_fit_the_other_way():
    x, lengths = np.ones((9, 4, 2)), [9, 8, 7, 6]
    hint = "; if axis 0 of the inputs is time, add --time-major"
    assert refusal(cell="gru", inputs=x, lengths=lengths).endswith(f"for 9 sequences: they must agree{hint}")
    assert gradscope.analyze(cell="gru", hidden=2, inputs=x, lengths=lengths, time_major=True).full.steps == 9
    square = refusal(cell="gru", inputs=x[:4], lengths=[4, 4, 4, 5])
    assert square.endswith("but the inputs have 4 steps")
    live = gradscope.from_torch(nn.GRU(2, 3))
    said = refusal(checkpoint=live, inputs=x.swapaxes(0, 1), lengths=lengths)
    assert said.endswith("swap axes 0 and 1: they were read as (T, B, d)")
