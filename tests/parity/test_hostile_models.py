"""Model files from strangers that take a framework to write: ONNX, and what torch.save itself makes."""

from __future__ import annotations

import io
import itertools
import pickle
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import quantize_dynamic
from oracles.hostile import all_read, damage, refusal, stranger, truncated


def torch_saved(value, **how):
    buffer = io.BytesIO()
    torch.save(value, buffer, **how)
    return buffer.getvalue()


def state_dict():
    torch.manual_seed(0)
    return torch.nn.LSTM(3, 4, num_layers=2).state_dict()


def onnx_model(**changes):
    """An LSTM operator with weights, one of which may be changed."""
    rng = np.random.default_rng(1)
    shapes = {"W": (1, 16, 3), "R": (1, 16, 4), "B": (1, 32)}
    tensors = {
        k: numpy_helper.from_array(rng.standard_normal(s).astype(np.float32), k) for k, s in shapes.items()
    }
    for tensor, change in changes.items():
        change(tensors[tensor])
    node = helper.make_node("LSTM", ["X", "W", "R", "B"], ["Y"], name="lstm", hidden_size=4)
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [value("X", TensorProto.FLOAT, (7, 1, 3))],
        [value("Y", TensorProto.FLOAT, (7, 1, 1, 4))],
        list(tensors.values()),
    )
    return helper.make_model(graph).SerializeToString()


def crowded_onnx():
    """Two thousand operators that share one set of weights."""
    model = onnx.ModelProto.FromString(onnx_model())
    shapes = {"W": (1, 256, 64), "R": (1, 256, 64), "B": (1, 512)}
    tensors = [numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in shapes.items()]
    del model.graph.initializer[:]
    model.graph.initializer.extend(tensors)
    model.graph.node.extend([model.graph.node[0]] * 2000)
    return model.SerializeToString()


MAKE = helper.make_node


def made(*nodes, functions=(), **constants):
    """The model with a W that is made by these nodes of these constants."""
    model = onnx.ModelProto.FromString(onnx_model())
    kept = [tensor for tensor in model.graph.initializer if tensor.name != "W"]
    kept += [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    operator = model.graph.node[0]
    del model.graph.initializer[:], model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend([*nodes, operator])
    model.functions.extend(functions)
    return model.SerializeToString()


def calling(times, depth):
    """A function that calls the one below it so many times, down to one of an LSTM."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    last = MAKE("LSTM", ["x", "W", "R"], ["y"], hidden_size=4)
    functions = [helper.make_function("own", "F0", ["x", "W", "R"], ["y"], [last], opsets)]
    for k in range(1, depth):
        calls = [MAKE(f"F{k - 1}", ["x", "W", "R"], ["y"], domain="own") for _ in range(times)]
        functions.append(helper.make_function("own", f"F{k}", ["x", "W", "R"], ["y"], calls, opsets))
    call = MAKE(f"F{depth - 1}", ["X", "B", "R"], ["Z"], domain="own")
    return made(call, functions=functions)


def itself():
    """A function that calls itself, beside an LSTM."""
    nodes = [MAKE("LSTM", ["x", "W", "R"], ["y"]), MAKE("F", ["x", "W", "R"], ["z"], domain="own")]
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    function = helper.make_function("own", "F", ["x", "W", "R"], ["y"], nodes, opsets)
    return made(MAKE("F", ["X", "B", "R"], ["Z"], domain="own"), functions=[function])


def doubled(times):
    """W beside itself, and the result beside itself, and so on."""
    names = ["a", *(f"b{k}" for k in range(times - 1)), "W"]
    nodes = [MAKE("Concat", [x, x], [y], axis=1) for x, y in itertools.pairwise(names)]
    return made(*nodes, a=np.ones((1, 16, 3), np.float32))


def elsewhere(location, **entries):
    def change(tensor):
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **entries}.items():
            tensor.external_data.add(key=key, value=str(value))

    return change


def dims(*sizes):
    def change(tensor):
        del tensor.dims[:]
        tensor.dims.extend(sizes)

    return change


def hostile():
    """name -> (suffix, bytes, what the message must say)."""
    return {
        "a tensor": (".pt", torch_saved(torch.ones(2)), "holds a single tensor, expected a state dict: save"),
        "a parameter": (
            ".pt",
            torch_saved(torch.nn.Parameter(torch.ones(2))),
            "holds a single tensor, expec",
        ),
        "a size": (".pt", torch_saved(torch.Size([2])), "holds a Python object torch.Size, expected"),
        "outside the folder": (".onnx", onnx_model(W=elsewhere("../secret")), "outside the model's folder"),
        "absolute path": (".onnx", onnx_model(W=elsewhere("/etc/passwd")), "outside the model's folder"),
        "by a link": (".onnx", onnx_model(W=elsewhere("link")), "outside the model's folder"),
        "absent": (".onnx", onnx_model(W=elsewhere("absent")), "no such file beside the model"),
        "a pipe": (".onnx", onnx_model(W=elsewhere("pipe")), "no such file beside the model"),
        "short": (".onnx", onnx_model(W=elsewhere("short")), "declares 192 bytes and has 9"),
        "offset": (".onnx", onnx_model(W=elsewhere("short", offset=2**40)), "declares 192 bytes and has 0"),
        "negative offset": (".onnx", onnx_model(W=elsewhere("short", offset=-5)), "not a sound .onnx file"),
        "4 TB": (".onnx", onnx_model(W=dims(1, 10**6, 10**6)), "unpacks to 4000000000"),
        "other dimensions": (".onnx", onnx_model(W=dims(1, 16, 4)), "declares 256 bytes and has 192"),
        "negative dimensions": (
            ".onnx",
            onnx_model(W=dims(-1, -16, 3)),
            "has dimensions -1, -16, 3: damaged",
        ),
        "made of a terabyte": (
            ".onnx",
            made(MAKE("ConstantOfShape", ["s"], ["W"]), s=[1, 10**6, 10**6]),
            "bytes of memory allowed",
        ),
        "made of less than nothing": (
            ".onnx",
            made(MAKE("ConstantOfShape", ["s"], ["W"]), s=[1, -16, 3]),
            "value 'W' by ConstantOfShape: ",
        ),
        "expanded": (
            ".onnx",
            made(MAKE("Expand", ["a", "s"], ["W"]), a=np.ones(1, np.float32), s=[10**6, 10**6, 10**6]),
            "bytes of memory allowed",
        ),
        "doubled": (".onnx", doubled(30), "bytes of memory allowed"),
        "made of itself": (
            ".onnx",
            made(MAKE("Identity", ["V"], ["W"]), MAKE("Identity", ["W"], ["V"])),
            "weights that the graph computes ('W' by Identity)",
        ),
        "gathered from nowhere": (
            ".onnx",
            made(MAKE("Gather", ["R", "k"], ["W"]), k=[7]),
            "value 'W' by Gather: ",
        ),
        "sliced in steps of nothing": (
            ".onnx",
            made(MAKE("Slice", ["R", "a", "b", "a", "a"], ["W"]), a=[0], b=[1]),
            "value 'W' by Slice: ",
        ),
        "without inputs": (".onnx", made(MAKE("Transpose", [], ["W"])), "value 'W' by Transpose: "),
        "cast to what there is not": (
            ".onnx",
            made(MAKE("Cast", ["R"], ["W"], to=77)),
            "value 'W' by Cast: ",
        ),
        "a function in itself": (".onnx", itself(), "functions and bodies 33 deep"),
        "functions that double": (".onnx", calling(2, 30), "bytes of memory allowed"),
        "many operators": (".onnx", crowded_onnx(), "bytes, more than the"),
        "no operator": (
            ".onnx",
            onnx.ModelProto().SerializeToString() or b"\x08\x07",
            "holds no operator LSTM",
        ),
        "no protobuf": (".onnx", b"\xff" * 40, "has a field of wire type 7: damaged"),
    }


HOSTILE = hostile()


def compiled():
    buffer = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(torch.nn.LSTM(3, 4)), buffer)
    return buffer.getvalue()


def bodies():
    """An ONNX graph with a layer in a branch of an If, whose weights other nodes make of constants."""
    rng = np.random.default_rng(0)
    wide, back = rng.normal(size=(1, 3, 16)), rng.normal(size=(1, 16, 4))
    body = helper.make_graph(
        [
            helper.make_node("Transpose", ["wide"], ["W"], perm=[0, 2, 1]),
            helper.make_node("Concat", ["back0", "back1"], ["R"], axis=1),
            helper.make_node("LSTM", ["X", "W", "R"], ["y"], name="inner", hidden_size=4),
        ],
        "body",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
    )
    choice = helper.make_node("If", ["yes"], ["Y"], name="choice", then_branch=body, else_branch=body)
    graph = helper.make_graph(
        [choice],
        "g",
        [
            helper.make_tensor_value_info("X", TensorProto.FLOAT, (5, 1, 3)),
            helper.make_tensor_value_info("yes", TensorProto.BOOL, ()),
        ],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(array.astype(np.float32), name)
            for name, array in (("wide", wide), ("back0", back[:, :8]), ("back1", back[:, 8:]))
        ],
    )
    return helper.make_model(graph, ir_version=8).SerializeToString()


def quantised():
    """One whose weights are whole numbers of 8 bits."""
    with tempfile.TemporaryDirectory() as folder:
        plain, path = Path(folder, "plain.onnx"), Path(folder, "quantised.onnx")
        plain.write_bytes(onnx_model())
        quantize_dynamic(plain, path)
        return path.read_bytes()


SOUND = {
    ".pt": torch_saved({"state_dict": state_dict(), "epoch": 1}),
    ".old.pt": torch_saved({"state_dict": state_dict()}, _use_new_zipfile_serialization=False),
    ".module.pt": torch_saved(torch.nn.LSTM(3, 4)),
    ".compiled.pt": compiled(),
    ".tensors.pkl": pickle.dumps(state_dict()),
    ".arrays.pkl": pickle.dumps({name: value.numpy() for name, value in state_dict().items()}, 3),
    ".onnx": onnx_model(),
    ".bodies.onnx": bodies(),
    ".quantised.onnx": quantised(),
}


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_hostile_model_is_refused_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path, words = stranger(tmp_path, HOSTILE[name])
    assert words in refusal(path)
    assert not (tmp_path / "pwned").exists()


def test_hostile_models_take_little_memory_and_time(tmp_path):
    assert not all_read(tmp_path, HOSTILE, "safetensors onnx")


@pytest.mark.parametrize("suffix", SOUND)
def test_models_truncated_anywhere(suffix, tmp_path):
    truncated(SOUND[suffix], tmp_path / f"model{suffix}")


@pytest.mark.parametrize("suffix", SOUND)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_damaged_models(suffix, tmp_path):
    assert damage(SOUND[suffix], 300, 0, tmp_path / f"model{suffix}")


@pytest.mark.slow
@pytest.mark.parametrize("suffix", SOUND)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_thousands_of_damaged_models(suffix, tmp_path):
    assert damage(SOUND[suffix], 2_000, 1, tmp_path / f"model{suffix}")
