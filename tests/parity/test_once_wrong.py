"""Files that were once read as another model, or refused: the gain of each, or the question that it raises.

The values are products of one-step Jacobians of the models' own equations by float64 autograd.
"""

from pathlib import Path

import pytest

import gradscope
from gradscope.errors import InputError

CASES = Path(__file__).parents[1] / "cases"
X8, X20 = CASES / "x8.npy", CASES / "x20.npy"
MAP = "W_r,W_z,W_h=enc_w_ih; R_r,R_z,R_h=enc_w_hh; b_r,b_z,b_h=enc_b_ih; c_r,c_z,c_h=enc_b_hh"
RIGHT = {
    "lncell.pt": (-1.2484934533, {"inputs": X8, "cell": "lstm-layernorm"}),
    "masked.keras": (-0.2177244038, {"inputs": CASES / "ids200.npy", "embedding": "emb"}),
    "awd_salesforce.pt": (-5.8427773378, {"inputs": X8}),
    "legacy.pt": (-5.3413009145, {"inputs": X8}),
    "whole.pt": (-6.3489032743, {"inputs": X8}),
    "scripted.pt": (-5.4189591883, {"inputs": X8}),
    "lstm_relu.keras": (-1.9295526328, {"inputs": X20}),
    "cudnn.hdf5": (-3.3165097105, {"inputs": X8, "cell": "lstm"}),
    "foreign.npz": (-5.1563765798, {"inputs": X8, "map": MAP}),
}
ASKED = {
    "lncell.pt": (X8, "cell.ln_ih.weight.* add --cell lstm-layernorm"),
    "td.keras": (X20, "reads time_distributed, which gradscope does not compute"),
    "orth.pt": (X8, r"from_torch\(model\)"),
    "cudnn.hdf5": (X8, "two in one, as CuDNNLSTM has it: add --layout"),
    "foreign.npz": (X8, "GRU in the order of PyTorch or Flax --map 'W_r,W_z,W_h=enc_w_ih;"),
    "cells.pt": (CASES / "x1.npy", "if it reads what lstm1 puts out, add --reads lstm2=lstm1"),
}


@pytest.mark.parametrize("name", RIGHT)
def test_right(name):
    right, settings = RIGHT[name]
    found = gradscope.analyze(checkpoint=CASES / name, only="gain", **settings)
    assert found.full.log10_norm.median == pytest.approx(right, abs=2e-10)


@pytest.mark.parametrize("name", ASKED)
def test_asked(name):
    inputs, question = ASKED[name]
    with pytest.raises(InputError, match=question):
        gradscope.analyze(checkpoint=CASES / name, inputs=inputs)


def test_dropout_in_the_config_is_said():
    found = gradscope.analyze(checkpoint=CASES / "gru_rdrop.keras", inputs=X8, only="gain").to_dict()
    assert found["problem"]["not_applied"][0].startswith("recurrent_dropout of 0.5 in training")
