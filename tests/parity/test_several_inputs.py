"""Models of several inputs: every layer reads what the file says, and what is given is for it alone."""

from __future__ import annotations

import keras
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from oracles.keras_cells import saved
from oracles.models import HIDDEN, INPUT, STEPS, sequence

import gradscope
from gradscope.errors import InputError
from gradscope.report.inspection import inspect

# Keras reads an attribute of NumPy that is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
L = keras.layers
IDS = np.array([[1, 2, 3, 4, 5, 6, 7]])


def translator(*, shared):
    """An encoder and a decoder that starts where it ends, of an embedding each, or of one."""
    source, target = (keras.Input((STEPS,), dtype="int32", name=name) for name in ("source", "target"))
    first = L.Embedding(9, INPUT, name="words")
    second = first if shared else L.Embedding(9, INPUT, name="other")
    _, h, c = L.LSTM(HIDDEN, return_state=True, name="encoder")(first(source))
    model = keras.Model(
        [source, target], L.LSTM(HIDDEN, name="decoder")(second(target), initial_state=[h, c])
    )
    rng = np.random.default_rng(5)
    model.set_weights([rng.standard_normal(w.shape) * 0.5 for w in model.get_weights()])
    return model


STATE = {"decoder.h0": np.zeros(HIDDEN), "decoder.c0": np.zeros(HIDDEN)}


@pytest.mark.parametrize("shared", [False, True])
def test_an_encoder_and_a_decoder(shared, tmp_path):
    model = translator(shared=shared)
    table = {"encoder": "words", "decoder": "words" if shared else "other"}
    for checkpoint in (saved(model, tmp_path / "x.keras"), gradscope.from_keras(model)):
        choice = {"checkpoint": checkpoint, "inputs": IDS, "initial_state": STATE}
        second = "words" if shared else "other"
        words = f"decoder read {second} of target, encoder read words of source: choose with --layer"
        with pytest.raises(InputError, match=words):
            gradscope.analyze(**choice, embedding="words")
        for name, embedding in table.items():
            state = STATE if name == "decoder" else None
            own = {"checkpoint": checkpoint, "layer": name, "initial_state": state}
            found = gradscope.analyze(**own, inputs=IDS, embedding=embedding).full
            rows = np.asarray(model.get_layer(embedding).embeddings)[IDS]
            straight = gradscope.analyze(**own, inputs=rows)
            assert found.log10_norm == straight.full.log10_norm
            begun = any("the way back through its start" in one for one in straight.problem["not_applied"])
            assert begun == (name == "decoder")
    if not shared:
        with pytest.raises(InputError, match="layer decoder reads embedding other, not embedding words/"):
            gradscope.analyze(**choice, layer="decoder", embedding="words")


def test_inspect_tells_them_apart(tmp_path):
    layers = inspect(saved(translator(shared=False), tmp_path / "x.keras")).to_dict()["layers"]
    told = {layer["name"]: (layer["reads"], layer["embedding"]) for layer in layers}
    assert told == {"encoder": ("words of source", "words"), "decoder": ("other of target", "other")}


def test_two_inputs_are_not_fed_the_same():
    first, second = (keras.Input((STEPS, INPUT), name=name) for name in ("left", "right"))
    a, b = L.GRU(HIDDEN, name="a")(first), L.GRU(HIDDEN, name="b")(second)
    live = gradscope.from_keras(keras.Model([first, second], [a, b]))
    with pytest.raises(InputError, match="layers read different ones: a read left, b read right: choose"):
        gradscope.analyze(checkpoint=live, inputs=sequence())
    assert gradscope.analyze(checkpoint=live, inputs=sequence(), layer="b").problem["layer"] == "b"
    assert len(gradscope.analyze(checkpoint=live, steps=3).layers) == 2  # made up, each may read the same


def test_two_inputs_of_onnx(tmp_path):
    rng, value = np.random.default_rng(7), helper.make_tensor_value_info
    shapes = {"W": (1, 4 * HIDDEN, INPUT), "R": (1, 4 * HIDDEN, HIDDEN)}
    arrays = [
        numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), n) for n, s in shapes.items()
    ]
    nodes = [
        helper.make_node("LSTM", [x, "W", "R"], [f"Y{x}"], name=f"of_{x}", hidden_size=HIDDEN) for x in "ab"
    ]
    inputs = [value(x, TensorProto.FLOAT, (STEPS, 1, INPUT)) for x in "ab"]
    graph = helper.make_graph(nodes, "g", inputs, [value("Ya", TensorProto.FLOAT, None)], arrays)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 14)]), tmp_path / "x.onnx")
    with pytest.raises(InputError, match="of_a read a, of_b read b: choose"):
        gradscope.analyze(checkpoint=tmp_path / "x.onnx", inputs=sequence())
    found = gradscope.analyze(checkpoint=tmp_path / "x.onnx", inputs=sequence(), layer="of_b")
    assert found.problem["layer"] == "of_b"
