"""Convolutional LSTMs in a file are named, with the way out."""

import h5py
import numpy as np
import pytest
from safetensors.numpy import save_file

from gradscope import checkpoints
from gradscope.errors import InputError


def test_gates_of_a_convlstm_of_torch_are_named(tmp_path):
    save_file({"cell_list.0.conv.weight": np.ones((64, 19, 3, 3))}, tmp_path / "x.safetensors")
    with pytest.raises(
        InputError, match=r"of shape \(64, 19, 3, 3\) is as that of a ConvLSTM's .*from_torch[(]"
    ):
        checkpoints.read_all(tmp_path / "x.safetensors")


@pytest.mark.parametrize("shape", [(64, 16, 3, 3), (62, 19, 3, 3), (64, 19)])
def test_other_convolutions_are_not_taken_for_one(shape, tmp_path):
    save_file(
        {"cell.conv.weight": np.ones(shape), "conv.weight": np.ones((8, 9, 3, 3))}, tmp_path / "x.safetensors"
    )
    with pytest.raises(InputError, match="holds no LSTM, GRU or RNN of PyTorch or Flax"):
        checkpoints.read_all(tmp_path / "x.safetensors")


def test_a_convlstm_of_keras_is_named(tmp_path):
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        for k, shape in enumerate([(3, 3, 3, 16), (3, 3, 4, 16), (16,)]):
            file[f"layers/conv_lstm2d/cell/vars/{k}"] = np.ones(shape)
    (found,) = checkpoints.read_all(tmp_path / "x.weights.h5").layers
    assert found.problem.startswith(
        "is a ConvLSTM (kernels (3, 3, 3, 16) and (3, 3, 4, 16)), for which gradscope"
    )
