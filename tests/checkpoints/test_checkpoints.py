"""Layers from files: the same outputs as the framework's own, or one line that says what is wrong."""

from __future__ import annotations

import random

import h5py
import jax
import msgpack
import numpy as np
import pytest
from oracles import equations, layouts
from oracles.few import few
from oracles.models import read_layer
from oracles.refusals import told
from safetensors.numpy import save_file

from gradscope.cells import CELLS, find
from gradscope.errors import InputError
from gradscope.linearize.trajectory import forward

HIDDEN, INPUT, STEPS = 5, 3, 7


def refusal(path, cell=None):
    return told(read_layer, path, cell)


def outputs(layer, x):
    """h_1 ... h_T of a layer on x (T, d): the last component of the state, in float64."""
    with jax.enable_x64(True):
        states = np.asarray(forward(layer.cell, layer.parameters, jax.numpy.asarray(x), layer.state))
    return states[1:, -layer.hidden :]


# PyTorch's names


@pytest.mark.parametrize("suffix", few([".pt", ".safetensors"], ".safetensors"))
@pytest.mark.parametrize("bias", few([True, False], True))
@pytest.mark.parametrize("kind", layouts.GATES)
def test_layers_of_a_state_dict_follow_their_equations(kind, bias, suffix, tmp_path):
    """Two layers in both directions, each on the sequence as it reads it."""
    options = {"layers": 2, "bidirectional": True, "bias": bias, "prefix": "enc.", "dtype": "float64"}
    state = layouts.recurrent(kind, INPUT, HIDDEN, **options, scale=2)
    path = layouts.saved(state, tmp_path / f"x{suffix}")
    cell = "rnn" if kind == "rnn" else None
    for end, reads in (("0", INPUT), ("0_reverse", INPUT), ("1", 2 * HIDDEN), ("1_reverse", 2 * HIDDEN)):
        layer = read_layer(path, cell, layer=f"enc.l{end}")
        assert (layer.cell.name, layer.hidden, layer.input_size) == (kind, HIDDEN, reads)
        assert layer.direction == ("backward" if "reverse" in end else "forward")
        zero_biases = {
            f"enc.bias_{role}_l{end}": np.zeros(len(state[f"enc.weight_ih_l{end}"])) for role in ("ih", "hh")
        }
        named = {key.removeprefix("enc."): a for key, a in (zero_biases | state).items()}
        x = np.random.default_rng(3).standard_normal((STEPS, reads))
        start = np.zeros(HIDDEN * len(layer.cell.components))
        states, _ = equations.trajectory_jacobian(
            kind, layouts.equations_of(kind, named, f"_l{end}"), x, start
        )
        np.testing.assert_allclose(outputs(layer, x), states[:, -HIDDEN:], rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_lower_precision_is_read_exactly(dtype, tmp_path):
    state = layouts.recurrent("lstm", INPUT, HIDDEN, dtype=dtype)
    layer = read_layer(layouts.saved(state, tmp_path / "x.pt"))
    assert layer.dtype == dtype
    np.testing.assert_array_equal(
        layer.parameters["R_f"], state["weight_hh_l0"][HIDDEN : 2 * HIDDEN].astype(float)
    )


REFUSED_TORCH = {
    "one of two open": (
        layouts.module(
            enc=layouts.recurrent("lstm", 3, 5),
            dec={key.removesuffix("_l0"): a for key, a in layouts.recurrent("rnn", 3, 5).items()},
        ),
        "layer dec: holds a torch RNN, whose nonlinearity is not in the file: add --cell rnn or --cell "
        "rnn-relu; or choose others with --layer: enc",
    ),
}


@pytest.mark.parametrize("name", REFUSED_TORCH)
def test_torch_models_that_are_not_one_plain_layer(name, tmp_path):
    state, expected = REFUSED_TORCH[name]
    assert expected in refusal(layouts.saved(state, tmp_path / "model.safetensors"))


@pytest.mark.parametrize(
    ("kind", "cell", "expected"),
    [
        ("rnn", None, "nonlinearity is not in the file: add --cell rnn or --cell rnn-relu"),
        ("rnn", "lstm", "holds a layer that is rnn or rnn-relu, not --cell lstm"),
        ("lstm", "gru", "holds a layer that is lstm, not --cell gru"),
        ("lstm", "lstm-peephole", "not --cell lstm-peephole"),
        ("gru", "gru-reset-before", "holds a layer that is gru, not --cell gru-reset-before"),
        ("lstm", "lstmm", "unknown cell 'lstmm': did you mean"),
    ],
)
def test_cell_that_contradicts_a_torch_file(kind, cell, expected, tmp_path):
    assert expected in refusal(layouts.saved(layouts.recurrent(kind, 3, 5), tmp_path / "x.safetensors"), cell)


def lstm_state(**changes):
    state = {
        "weight_ih_l0": np.ones((20, 3)),
        "weight_hh_l0": np.ones((20, 5)),
        "bias_ih_l0": np.ones(20),
        "bias_hh_l0": np.ones(20),
    } | changes
    return {key: value for key, value in state.items() if value is not None}


REFUSED_STATES = {
    "no recurrent weight": (lstm_state(weight_hh_l0=None), "expected weight_ih and weight_hh"),
    "no input weight": (lstm_state(weight_ih_l0=None), "expected weight_ih and weight_hh"),
    "one bias": (lstm_state(bias_hh_l0=None), "bias_ih and bias_hh or neither"),
    "two gates": (
        lstm_state(weight_hh_l0=np.ones((10, 5))),
        "weight_hh has shape (10, 5), expected (4 H, H)",
    ),
    "ragged": (lstm_state(weight_hh_l0=np.ones((21, 5))), "weight_hh has shape (21, 5)"),
    "flat": (lstm_state(weight_hh_l0=np.ones(20)), "weight_hh has shape (20,)"),
    "no units": (lstm_state(weight_hh_l0=np.ones((0, 0))), "weight_hh has shape (0, 0)"),
    "other rows": (
        lstm_state(weight_ih_l0=np.ones((15, 3))),
        "weight_ih has shape (15, 3), expected 2 axes and 20",
    ),
    "flat input": (lstm_state(weight_ih_l0=np.ones(20)), "weight_ih has shape (20,), expected 2 axes"),
    "no inputs": (lstm_state(weight_ih_l0=np.ones((20, 0))), "none of them empty"),
    "deep bias": (lstm_state(bias_ih_l0=np.ones((20, 1))), "bias_ih has shape (20, 1), expected 1 axes"),
    "nan": (lstm_state(bias_ih_l0=np.full(20, np.nan)), "tensor 'bias_ih_l0' holds nan at index [0]"),
    "sum beyond float64": (
        lstm_state(bias_ih_l0=np.full(20, 1.7e308), bias_hh_l0=np.full(20, 1.7e308)),
        "the sum of the two biases holds inf at index [0]",
    ),
    "half a weight norm": (
        lstm_state(weight_hh_l0=None, weight_hh_l0_g=np.ones((20, 1))),
        "weight_hh has a part of a weight norm or of pruning (g), expected both",
    ),
    "weight and its norm": (
        lstm_state(weight_hh_l0_g=np.ones((20, 1)), weight_hh_l0_v=np.ones((20, 5))),
        "weight_hh has a part of a weight norm",
    ),
    "weight norm of another shape": (
        lstm_state(weight_hh_l0=None, weight_hh_l0_g=np.ones((5, 1)), weight_hh_l0_v=np.ones((20, 5))),
        "weight norm of shapes (5, 1) and (20, 5), which do not fit",
    ),
    "a mask of another shape": (
        lstm_state(weight_hh_l0=None, weight_hh_l0_orig=np.ones((20, 5)), weight_hh_l0_mask=np.ones((20, 1))),
        "weight_hh of shape (20, 5) is pruned by a mask of shape (20, 1)",
    ),
    "a mask that scales": (
        lstm_state(
            weight_hh_l0=None, weight_hh_l0_orig=np.ones((20, 5)), weight_hh_l0_mask=np.full((20, 5), 0.5)
        ),
        "expected its shape and entries of 0 and 1",
    ),
    "pruned without its mask": (
        lstm_state(weight_hh_l0=None, weight_hh_l0_orig=np.ones((20, 5))),
        "keeps weight_hh_l0 as weight_hh_l0_orig, of which only the module itself can make it",
    ),
    "pruned beside the weight": (
        lstm_state(weight_hh_l0_orig=np.ones((20, 5)), weight_hh_l0_mask=np.ones((20, 5))),
        "there are weight_hh_l0_mask, weight_hh_l0_orig, which no layer of torch's has",
    ),
    "weight norm without direction": (
        lstm_state(weight_hh_l0=None, weight_hh_l0_g=np.ones((20, 1)), weight_hh_l0_v=np.zeros((20, 5))),
        "weight_hh has a weight norm whose direction is 0",
    ),
    # An Equinox cell: its one bias must not be dropped as if it were another module's.
    "equinox": (
        {"cell.weight_ih": np.ones((20, 3)), "cell.weight_hh": np.ones((20, 5)), "cell.bias": np.ones(20)},
        "cell.bias beside cell.weight_",
    ),
    # Nothing of a large model that has no such layer is read: its NaN is never seen.
    "no layer": ({"fc.weight": np.full((2, 2), np.nan)}, "gradscope's names, but fc.weight: save the model"),
}


@pytest.mark.parametrize("name", REFUSED_STATES)
def test_state_dicts_that_do_not_fit(name, tmp_path):
    state, expected = REFUSED_STATES[name]
    save_file(state, tmp_path / "x.safetensors")
    message = refusal(tmp_path / "x.safetensors")
    assert message.startswith(str(tmp_path / "x.safetensors"))
    assert expected in message


# Names of Keras and Flax


def test_a_layer_of_keras_follows_its_equations(tmp_path):
    """Kernels (d, 4 n) and (n, 4 n), gates i, f, c, o, one bias."""
    rng = np.random.default_rng(4)
    kernel, recurrent, bias = (
        rng.standard_normal(s) for s in ((INPUT, 4 * HIDDEN), (HIDDEN, 4 * HIDDEN), 4 * HIDDEN)
    )
    with h5py.File(tmp_path / "x.weights.h5", "w") as file:
        for number, values in enumerate((kernel, recurrent, bias)):
            file[f"layers/lstm/cell/vars/{number}"] = values
    p = {}
    for letter, values in (("W", kernel.T), ("R", recurrent.T), ("b", bias)):
        p |= {f"{letter}_{gate}": part for gate, part in zip("ifzo", np.split(values, 4), strict=True)}
    check_equations(read_layer(tmp_path / "x.weights.h5", "lstm"), "lstm", p)


def test_a_cell_of_flax_follows_its_equations(tmp_path):
    """A Dense layer for every gate's input (ii, if, ig, io); one, with the bias, for its state (hi, ...)."""
    rng = np.random.default_rng(5)
    tree, p = {}, {}
    for gate, ours in zip("ifgo", "ifzo", strict=True):
        w, r, b = (
            rng.standard_normal(s).astype(np.float32) for s in ((INPUT, HIDDEN), (HIDDEN, HIDDEN), HIDDEN)
        )
        tree |= {f"i{gate}": {"kernel": packed(w)}, f"h{gate}": {"kernel": packed(r), "bias": packed(b)}}
        p |= {f"{key}_{ours}": a.T.astype(float) for key, a in (("W", w), ("R", r), ("b", b))}
    (tmp_path / "x.msgpack").write_bytes(msgpack.packb({"params": {"cell": tree}}))
    check_equations(read_layer(tmp_path / "x.msgpack", "lstm"), "lstm", p)


def packed(array):
    """An array as flax.serialization packs it."""
    return msgpack.ExtType(1, msgpack.packb((array.shape, array.dtype.name, array.tobytes())))


def check_equations(layer, name, p):
    x = np.random.default_rng(6).standard_normal((STEPS, INPUT))
    states, _ = equations.trajectory_jacobian(name, p, x, np.zeros(HIDDEN * len(layer.cell.components)))
    np.testing.assert_allclose(outputs(layer, x), states[:, -HIDDEN:], rtol=0, atol=1e-12)


# Native files

# By their keys alone some are one of several; the rest tell themselves.
AMBIGUOUS = [{name for name in CELLS if equations.keys(name) == keys} for keys in map(equations.keys, CELLS)]


def native(name, seed=0):
    rng = np.random.default_rng(seed)
    return {k: rng.standard_normal(s) for k, s in find(name).parameters(HIDDEN, INPUT).items()}


def stored(folder, arrays, suffix=".npz"):
    path = folder / f"weights{suffix}"
    if suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file(arrays, path)
    return path


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.parametrize("name", CELLS)
def test_native_round_trip(name, suffix, tmp_path):
    arrays = native(name)
    rng = np.random.default_rng(9)
    states = {f"{c}0": rng.standard_normal(HIDDEN) for c in find(name).components}
    layer = read_layer(stored(tmp_path, arrays | states, suffix), name)
    assert (layer.cell.name, layer.name, layer.hidden, layer.input_size) == (name, "", HIDDEN, INPUT)
    assert list(layer.parameters) == list(find(name).parameters(HIDDEN, INPUT))
    for key, array in arrays.items():
        np.testing.assert_array_equal(layer.parameters[key], array)
    np.testing.assert_array_equal(
        layer.state, np.concatenate([states[f"{c}0"] for c in layer.cell.components])
    )


@pytest.mark.parametrize("name", CELLS)
def test_cell_is_inferred_from_the_keys_or_asked_for(name, tmp_path):
    path = stored(tmp_path, native(name))
    alike = next((group for group in AMBIGUOUS if name in group), {name})
    if alike == {name}:
        layer = read_layer(path)
        assert layer.cell.name == name
        np.testing.assert_array_equal(layer.state, np.zeros(HIDDEN * len(layer.cell.components)))
    else:
        message = refusal(path)
        assert "say which one, as in --cell" in message
        assert alike <= set(message.replace(",", " ").replace(":", " ").split())


@pytest.mark.parametrize("name", CELLS)
def test_biases_may_be_left_out_together(name, tmp_path):
    arrays = {k: v for k, v in native(name).items() if k[0] in "WRp"}
    layer = read_layer(stored(tmp_path, arrays), name)
    for key, array in layer.parameters.items():
        np.testing.assert_array_equal(array, arrays.get(key, np.zeros(HIDDEN)))


def test_without_biases_the_two_grus_look_alike(tmp_path):
    arrays = {k: v for k, v in native("gru").items() if k[0] in "WR"}
    assert "the keys are those of gru, gru-reset-before: say which one, as in --cell gru" in refusal(
        stored(tmp_path, arrays)
    )


REFUSED_NATIVE = {
    "missing": ("lstm", {"R_f": None}, "missing R_f: cell lstm has the keys W_z, W_i,"),
    "one bias missing": ("lstm", {"b_f": None}, "missing b_f"),
    "missing peephole": ("lstm-peephole", {"p_o": None}, "missing p_o"),
    "unknown": ("gru", {"W_q": np.ones((5, 3))}, "unknown W_q: cell gru has the keys"),
    "other cell's": ("lstm", {"p_i": np.ones(5)}, "unknown p_i"),
    "c0 without a cell state": ("rnn", {"c0": np.ones(5)}, "unknown c0"),
    "wrong shape": (
        "lstm",
        {"R_f": np.ones((5, 4))},
        "R_f has shape (5, 4), expected (5, 5) for 5 units and 3",
    ),
    "transposed": (
        "rnn",
        {"W": np.ones((3, 5))},
        "R has shape (5, 5), expected (3, 3) for 3 units and 5 inputs",
    ),
    "flat": ("rnn", {"W": np.ones(5)}, "W has shape (5,), expected 2 axes"),
    "empty": ("rnn", {"W": np.ones((5, 0))}, "W has shape (5, 0), expected 2 axes, none of them empty"),
    "wrong bias": ("lstm", {"b_f": np.ones(())}, "b_f has shape (), expected 1 axes"),
    "wrong state": ("lstm", {"h0": np.ones((1, 5))}, "h0 has shape (1, 5), expected (5,)"),
    "strings": ("rnn", {"W": np.array(["a"])}, "array 'W' has dtype <U1"),
    "infinite": ("rnn", {"R": np.full((5, 5), np.inf)}, "array 'R' holds inf at index [0, 0]"),
}


@pytest.mark.parametrize("name", REFUSED_NATIVE)
def test_native_files_that_do_not_fit(name, tmp_path):
    cell, changes, expected = REFUSED_NATIVE[name]
    arrays = {k: v for k, v in (native(cell) | changes).items() if v is not None}
    path = stored(tmp_path, arrays)
    message = refusal(path, cell)
    assert message.startswith(f"{path}: ")
    assert expected in message


def test_keys_of_no_cell_are_compared_with_the_nearest(tmp_path):
    arrays = native("lstm")
    del arrays["R_f"]
    message = refusal(stored(tmp_path, arrays))
    assert "the keys are of no built-in cell; the nearest: missing R_f: cell lstm has" in message
    assert "holds no LSTM, GRU or RNN of" in refusal(stored(tmp_path, {"arr_0": np.ones(3)}))


@pytest.mark.parametrize("cell", [None, "lstm"])
def test_a_model_without_a_recurrent_layer_is_told_what_is_looked_for(cell, tmp_path):
    arrays = {f"layers.{k}.{part}": np.ones(3) for k in range(3) for part in ("weight", "bias")}
    message = refusal(stored(tmp_path, arrays), cell)
    assert "nor one under gradscope's names, but layers.0.weight, " in message
    assert "(6 in all): save the model that has one, or say what its arrays are" in message


CELL_OF_THEIR_OWN = """
import gradscope.cells.cell as base

def decay():
    def parameters(hidden, input_size):
        return {"W": (hidden, input_size), "R": (hidden,), "tau": (hidden,)}
    return base.Cell("decay", parameters, lambda p, x, h: p["tau"] * h + p["R"] * h + p["W"] @ x)

def shapeless():
    return base.Cell("shapeless", lambda hidden, input_size: {"R": (hidden, hidden)}, lambda p, x, h: h)
"""


@pytest.fixture
def own_cells(tmp_path, monkeypatch):
    (tmp_path / "cells_of_their_own.py").write_text(CELL_OF_THEIR_OWN)
    monkeypatch.syspath_prepend(tmp_path)
    return "cells_of_their_own"


def test_a_cell_of_ones_own(own_cells, tmp_path):
    arrays = {"W": np.ones((4, 2)), "R": np.zeros(4), "tau": np.full(4, 0.5), "h0": np.arange(4.0)}
    path = stored(tmp_path, arrays)
    layer = read_layer(path, f"{own_cells}:decay")
    assert (layer.hidden, layer.input_size) == (4, 2)
    np.testing.assert_array_equal(layer.state, np.arange(4.0))
    np.testing.assert_array_equal(outputs(layer, np.zeros((1, 2))), [np.arange(4.0) / 2])
    assert read_layer(path, layer.cell).cell is layer.cell
    del arrays["tau"]
    assert "missing tau" in refusal(stored(tmp_path, arrays), f"{own_cells}:decay")
    path = stored(tmp_path, {"R": np.eye(3)})
    assert "no array whose shape tells" in refusal(path, f"{own_cells}:shapeless")


# Formats


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("absent.eqx", "No such file"),
        ("absent.PB", "No such file"),
        (
            "model",
            ".safetensors, .msgpack, .model, .pb, .pt, .pth, .bin, .ckpt, .jit, .pkl, .keras, .h5, .hdf5",
        ),
        ("lstm", "for a fresh cell say --cell lstm"),
        ("absent.npz", "No such file"),
        ("absent.safetensors", "No such file"),
        ("absent.pt", "No such file"),
        ("absent.keras", "No such file"),
        ("absent.h5", "No such file"),
        ("absent.onnx", "No such file"),
        ("absent.msgpack", "No such file"),
    ],
)
def test_formats_and_the_way_out(name, expected):
    assert expected in refusal(name)


def test_a_file_without_names(tmp_path):
    path = tmp_path / "model.eqx"
    path.write_bytes(bytes(8))
    assert "an .eqx file has no names: save its arrays with numpy.savez" in refusal(path)


def test_suffix_in_capitals(tmp_path):
    stored(tmp_path, native("lstm")).rename(tmp_path / "W.NPZ")
    assert read_layer(tmp_path / "W.NPZ").cell.name == "lstm"


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_flipped_bytes_give_a_layer_or_a_refusal(suffix, tmp_path):
    path = stored(tmp_path, native("lstm") if suffix == ".npz" else lstm_state(), suffix)
    sound = path.read_bytes()
    rng = random.Random(suffix)
    refused = 0
    for _ in range(300):
        data = bytearray(sound)
        # Mostly the zip's and tensors' descriptions of themselves, which lie at the ends.
        at = rng.choice((rng.randrange(400), rng.randrange(len(data)), -1 - rng.randrange(400)))
        data[at] = rng.randrange(256)
        path.write_bytes(data)
        try:
            layer = read_layer(path)
        except InputError:
            refused += 1
        else:
            assert all(np.isfinite(array).all() for array in layer.parameters.values())
    assert refused
