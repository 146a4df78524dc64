"""What may stand before a layer of named tensors is asked about where the sizes agree, and only there."""

import json

import numpy as np
import pytest
from oracles import layouts
from safetensors.numpy import save_file

import gradscope
from gradscope import checkpoints
from gradscope.errors import InputError

D, N = 3, 4
FRONTS = {
    "linear": {"front.weight": (D, D), "front.bias": (D,)},
    "two linears": {"front.0.weight": (7, D), "front.2.weight": (D, 7)},
    "convolution": {"front.weight": (D, D, 5)},
    "norm": {"front.weight": (D,), "front.bias": (D,)},
    "scaler": {"input_mean": (D,), "input_std": (D,)},
    "positions": {"pos_embedding": (1, 9, D)},
    "positions of an embedding": {"positional.weight": (50, D)},
}
# Of other sizes, embeddings, and a bias alone.
OTHERS = {
    "narrower": {"front.weight": (D, 2)},
    "one way": {"front.weight": (7, D)},
    "embedding": {"front.weight": (50, D)},
    "bias": {"front.bias": (D,)},
    "nothing": {},
}


def saved(folder, arrays):
    path = folder / "x.safetensors"
    save_file(arrays, path)
    return path


def in_order(folder, arrays):
    """A file that keeps its tensors in the order in which modules were made."""
    np.savez(folder / "x.npz", **arrays)
    return folder / "x.npz"


def model(front):
    rnn = layouts.recurrent("gru", D, N, prefix="rnn.")
    return {key: np.full(shape, 0.5, np.float32) for key, shape in front.items()}, rnn


def before(path):
    (layer,) = checkpoints.read_all(path).layers
    return layer.before


@pytest.mark.parametrize("name", FRONTS)
def test_what_may_stand_before_is_asked_about(name, tmp_path):
    front, rnn = model(FRONTS[name])
    path = saved(tmp_path, front | rnn)
    weights = tuple(sorted(key for key in front if not key.endswith("bias")))
    assert tuple(sorted(before(path))) == weights
    given = {"checkpoint": path, "inputs": np.ones((5, D)), "only": "gain"}
    with pytest.raises(InputError, match=rf"what {weights[0]}.* does not say: .*--layer rnn; else"):
        gradscope.analyze(**given)
    assert gradscope.analyze(**given, layer="rnn").problem["steps"] == 5
    assert gradscope.analyze(checkpoint=path, steps=5, only="gain").problem["steps"] == 5


@pytest.mark.parametrize("name", OTHERS)
def test_what_cannot_is_not(name, tmp_path):
    front, rnn = model(OTHERS[name])
    assert before(saved(tmp_path, front | rnn)) == ()


def test_the_order_of_the_file_tells_a_head_from_a_front(tmp_path):
    head, rnn = model({"head.weight": (D, D)})
    assert before(in_order(tmp_path, rnn | head)) == ()
    assert before(in_order(tmp_path, head | rnn)) == ("head.weight",)


def test_inspect_says_it(tmp_path, run):
    front, rnn = model(FRONTS["linear"])
    code, out, _ = run("inspect", saved(tmp_path, front | rnn), "--json")
    (layer,) = json.loads(out)["layers"]
    assert (code, layer["open"]) == (
        0,
        "may read what front.weight makes of the inputs, which the file does not say",
    )
