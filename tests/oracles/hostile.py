"""Model files that lie, harm or never end, and sound ones to damage: bytes by name."""

from __future__ import annotations

import json
import os
import pickle
import random
import struct
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import h5py
import msgpack
import numpy as np

from gradscope import checkpoints
from gradscope.checkpoints.derivatives import OwnSteps
from gradscope.checkpoints.found import Found
from gradscope.checkpoints.recorded_steps import RecordedSteps
from gradscope.checkpoints.recording_file import write_recording
from gradscope.errors import InputError
from oracles import layouts
from oracles.foreign import constant, dynet_text, field, frozen_graph, python_2
from oracles.layouts import Global, torch_bytes, zipped
from oracles.models import read_layer
from oracles.refusals import told

# What a reader says that has drawn all that a file may take.
TOO_MUCH = "bytes of memory allowed for its"


class Evil:
    """Unpickled, it would make a file."""

    def __reduce__(self):
        return os.system, ("touch pwned",)


def state_dict():
    return layouts.recurrent("lstm", 3, 4, layers=2)


def torch_zip(pickled, **members):
    return zipped({"x/data.pkl": pickled, "x/version": b"3\n"} | {f"x/{k}": v for k, v in members.items()})


def tensor_pickle(offset=0, shape=(1,), strides=(1,), kind="FloatStorage", key="0"):
    """The pickle of {"weight_hh_l0": tensor}, as torch.save would write it, by hand."""

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    def number(value):
        return b"\x8a\x08" + struct.pack("<q", value)

    def numbers(values):
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = (
        b"("
        + text("storage")
        + b"ctorch\n"
        + kind.encode()
        + b"\n"
        + text(key)
        + text("cpu")
        + number(1)
        + b"tQ"
    )
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(shape) + numbers(strides)
    )
    return b"\x80\x02}" + text("weight_hh_l0") + tensor + b"\x89}tRs."


def h5(fill, **how):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.h5"
        with h5py.File(path, "w", **how) as file:
            fill(file, Path(folder))
        return path.read_bytes()


def cell_group(file):
    return file.create_group("layers/lstm/cell/vars")


def keras_weights(file, _=None):
    rng = np.random.default_rng(0)
    group = cell_group(file)
    for name, shape in {"0": (3, 16), "1": (4, 16), "2": (16,)}.items():
        group.create_dataset(name, data=rng.standard_normal(shape).astype(np.float32))
    file["layers/lstm"].create_group("vars").attrs["name"] = "first"


def external(file, folder):
    secret = folder / "secret"
    secret.write_bytes(bytes(64 * 4))
    cell_group(file).create_dataset("1", (4, 16), "f4", external=[(str(secret), 0, 256)])


def virtual(file, folder):
    layout = h5py.VirtualLayout((4, 16), "f4")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "x", (4, 16))
    cell_group(file).create_virtual_dataset("1", layout)


def cycle(file, _):
    keras_weights(file)
    file["layers/lstm/again"] = file["layers"]


def links(file, _):
    file["layers/lstm/cell/vars/1"] = h5py.ExternalLink("/etc/passwd", "/")
    file["layers/lstm/cell/vars/0"] = h5py.SoftLink("/layers")


def laughs(file, _):
    for k in range(25):
        file.create_group(f"g{k}")
    for k in range(24):
        for name in "ab":
            file[f"g{k}/{name}"] = file[f"g{k + 1}"]


KERAS_CONFIG = {
    "class_name": "Sequential",
    "config": {"layers": [{"class_name": "LSTM", "config": {"name": "first", "activation": "tanh"}}]},
}


def keras_file(config=None, weights=None, compression=zipfile.ZIP_STORED):
    text = json.dumps(KERAS_CONFIG).encode() if config is None else config
    return zipped({"config.json": text, "model.weights.h5": weights or h5(keras_weights)}, compression)


def nested_config(levels):
    return b'{"class_name":"Bidirectional","config":{"layer":' * levels + b"{}" + b"}}" * levels


def crowd():
    """Twenty thousand layers that share one set of weights."""
    cell = {k.removesuffix("_l0"): a for k, a in layouts.recurrent("rnn", 1, 1).items()}
    return {f"{k}.{name}": value for k in range(20_000) for name, value in cell.items()}


def packed(shape=(2, 4), dtype="float32", data=bytes(32)):
    return msgpack.ExtType(1, msgpack.packb([shape, dtype, data]))


def flax_tree(**changes):
    rng = np.random.default_rng(2)

    def array(*shape):
        return packed(shape, "float32", rng.standard_normal(shape).astype(np.float32).tobytes())

    cell = {"dense_i": {"kernel": array(3, 16)}, "dense_h": {"kernel": array(4, 16), "bias": array(16)}}
    return msgpack.packb({"rnn": {"cell": cell | changes}})


# (y, y) of the y on top of the stack, sixty times over: what walks or hashes it takes 2^60 steps.
DOUBLED = b"q\x00h\x00\x86" * 60


STORAGE = {"data/0": bytes(4)}
PARAMETER = Global("torch._utils", "_rebuild_parameter")(
    np.ones(2, np.float32), False, Global("collections", "OrderedDict")()
)


def text(value):
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def old_torch(pickled=None, keys=("0",), **system):
    """A file of PyTorch before 1.6 up to its storages: a reference to one, or what is given."""
    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x01tQ"
    head = (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True} | system)
    whole = b"\x80\x02" + storage + b"." if pickled is None else pickled
    return b"".join(pickle.dumps(part, 2) for part in head) + whole + pickle.dumps(list(keys), 2)


def ordered(count):
    """OrderedDicts of one list of many pairs, or one of a list of many references to a long list."""
    pairs = b"](" + b"](K\x01K\x02e" * count + b"eq\x00"
    many = b"\x80\x02(" + pairs + b"ccollections\nOrderedDict\nq\x01" + b"h\x01h\x00\x85R" * count + b"l."
    return many, b"\x80\x02" + pairs + b"ccollections\nOrderedDict\n](" + b"h\x00" * count + b"e\x85R."


def within(count, packed):
    """Tensors in a plain pickle, each of whose storages is packed anew from the same text."""
    rebuild, load = b"ctorch._utils\n_rebuild_tensor_v2\n", b"ctorch.storage\n_load_from_bytes\n"
    data = text(packed.decode("latin1"))
    one = b"h\x00(h\x01h\x02h\x03h\x04\x86R\x85RK\x00K\x01\x85K\x01\x85tR"
    memo = rebuild + b"q\x00" + load + b"q\x01" + b"c_codecs\nencode\nq\x02" + data + b"q\x03"
    each = b"".join(text(f"{k}.w") + one for k in range(count))
    return b"\x80\x02(" + memo + text("latin1") + b"q\x04}(" + each + b"ut."


def array_pickle(shape=b"K\x01\x85", dtype="f4", data=bytes(4)):
    """An array of NumPy as a plain pickle has it."""
    head = b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01" + shape
    packed = b"cnumpy\ndtype\n" + text(dtype) + b"\x85R\x89B" + struct.pack("<I", len(data)) + data
    return b"\x80\x03}" + text("weight_hh_l0") + head + packed + b"tbs."


def hostile():
    """name -> (suffix, bytes, what the message must say)."""
    expected = "expected a state dict: save torch.save(model.state_dict(), 'model.pt')"
    system = f"holds a Python object posix.system, {expected}"
    no_layer = "holds no LSTM, GRU or RNN of PyTorch or Flax, nor one under gradscope's names, but "
    outside = "kept outside the file, which Keras does not do"
    yield from {
        "os.system": (".pt", torch_zip(pickle.dumps(Evil(), 2)), system),
        "eval by stack global": (
            ".pt",
            torch_zip(pickle.dumps(eval, 4)),
            f"holds a Python object builtins.eval, {expected}",
        ),
        "bare pickle": (".bin", pickle.dumps(Evil()), system),
        "no dict": (".pt", torch_bytes([1, 2]), "holds a list, expected a state dict"),
        "a tensor": (
            ".pt",
            torch_bytes(np.ones(2, np.float32)),
            "holds a single tensor, expected a state dict: save",
        ),
        "a parameter": (
            ".pt",
            torch_bytes(PARAMETER),
            "holds a single tensor, expec",
        ),
        "a size": (
            ".pt",
            torch_bytes(Global("torch", "Size")((2,))),
            "holds a Python object torch.Size, expected",
        ),
        "no layer": (
            ".ckpt",
            torch_bytes({"w": np.ones(2, np.float32)}),
            f"{no_layer}w: save the model",
        ),
        "nothing": (".pt", torch_bytes({}), "holds no tensors, expected a state dict: save"),
        "two state dicts": (".pt", zipped({"a/data.pkl": b"", "b/data.pkl": b""}), "holds 2 state dicts"),
        "memo of 4 G": (".pt", torch_zip(b"\x80\x02}r\xff\xff\xff\xff."), "holds no tensors"),
        "endless hash": (
            ".pt",
            torch_zip(b"\x80\x02})" + DOUBLED + b"K\x00s."),
            "holds no tensors",
        ),
        "endless lists": (
            ".pt",
            torch_zip(b"\x80\x02}X\x01\x00\x00\x00a]" + DOUBLED + b"s."),
            "nests more than 24 deep",
        ),
        "list in itself": (
            ".pt",
            torch_zip(b"\x80\x02}X\x01\x00\x00\x00a]q\x00h\x00as."),
            "holds no tensors",
        ),
        "long integer": (".pt", torch_zip(b"\x80\x02L" + b"9" * 10**6 + b"L\n."), "not a sound PyTorch file"),
        "millions of dicts": (
            ".pt",
            torch_zip(b"\x80\x02" + b"}" * 3 * 10**6 + b"."),
            TOO_MUCH,
        ),
        "long names": (
            ".pt",
            torch_bytes({"w" * 2000: {"w": np.ones(1, np.float32)}}),
            "a name of more than 1024",
        ),
        "many layers": (
            ".pt",
            torch_bytes(crowd()),
            TOO_MUCH,
        ),
        "string of 4 GB": (".pt", torch_zip(b"\x80\x02X\xff\xff\xff\xff."), "not a sound PyTorch file"),
        "no stop": (".pt", torch_zip(b"\x80\x02}"), "not a sound PyTorch file"),
        "opcode": (".pt", torch_zip(b"\x80\x02\x82\x01."), "has the pickle opcode EXT1"),
        "beyond storage": (
            ".pt",
            torch_zip(tensor_pickle(shape=(9,)), **STORAGE),
            "reaches beyond its storage of 4",
        ),
        "before storage": (
            ".pt",
            torch_zip(tensor_pickle(offset=-1), **STORAGE),
            "has shape (1,) and strides (1,)",
        ),
        "wide strides": (
            ".pt",
            torch_zip(tensor_pickle(0, (2,), (2**40,)), **STORAGE),
            "reaches beyond its storage",
        ),
        "axes": (
            ".pt",
            torch_zip(tensor_pickle(0, (1, 1), (1,)), **STORAGE),
            "has shape (1, 1) and strides (1,)",
        ),
        "expanded": (
            ".pt",
            torch_zip(tensor_pickle(0, (10**9,), (0,)), **STORAGE),
            "unpacks to 4000000000 bytes",
        ),
        "no storage": (".pt", torch_zip(tensor_pickle(key="../1"), **STORAGE), "has no data in the file"),
        "quantised": (
            ".pt",
            torch_zip(tensor_pickle(kind="QInt8Storage"), **STORAGE),
            "a way of quantisation of its own",
        ),
        "dicts of one list": (".pt", torch_zip(ordered(4000)[0]), TOO_MUCH),
        "dict of long lists": (".pt", torch_zip(ordered(4000)[1]), "holds no tensors"),
        "long number as a key": (
            ".pt",
            torch_zip(b"\x80\x02}(\x8b" + struct.pack("<I", 10**5) + b"\x7f" * 10**5 + b"K\x01u."),
            "holds no tensors",
        ),
        "name of tuples": (
            ".pt",
            torch_zip(b"\x80\x04})" + DOUBLED + text("x") + b"\x93" + b"0."),
            "holds no tensors",
        ),
        "shape of tuples": (
            ".pt",
            torch_zip(
                tensor_pickle().replace(b"(\x8a\x08" + bytes([1]) + bytes(7) + b"t", b")" + DOUBLED, 1),
                **STORAGE,
            ),
            "has a shape that is not of numbers",
        ),
        "objects by the hundred thousand": (
            ".pt",
            torch_zip(b"\x80\x02ca\nb\nq\x00(" + b"h\x00)\x81}b" * 3 * 10**5 + b"l."),
            TOO_MUCH,
        ),
        "long name above many": (
            ".pt",
            torch_zip(b"\x80\x02}" + text("k" * 1000) + b"](" + b")\x85" * 6 * 10**5 + b"es."),
            TOO_MUCH,
        ),
        "module in itself": (
            ".pt",
            torch_zip(
                b"\x80\x02cx\ny\n)\x81q\x00}("
                + text("_parameters")
                + b"}"
                + text("_modules")
                + b"}"
                + text("m")
                + b"h\x00sub."
            ),
            "holds a Python object x.y",
        ),
        "module of no dicts": (
            ".pt",
            torch_zip(
                b"\x80\x02cx\ny\n)\x81}(" + text("_parameters") + b"K\x01" + text("_modules") + b"Nub."
            ),
            "holds a Python object x.y",
        ),
        "old, storage of 2^62": (".pt", old_torch() + b"\xff" * 7 + b"\x3f", "has a storage of"),
        "old, storage of less than nothing": (".pt", old_torch() + b"\xff" * 8, "has a storage of -1"),
        "old, no storage": (".pt", old_torch(), "holds a Python object"),
        "old, unknown storages": (".pt", old_torch(keys=["1"]), "has a storage of 0 numbers"),
        "old, keys of tuples": (
            ".pt",
            old_torch()[: -len(pickle.dumps(["0"], 2))] + b"\x80\x02])" + DOUBLED + b"a.",
            "has a storage of 0 numbers",
        ),
        "old, big endian": (".pt", old_torch(little_endian=False), "has byte order big"),
        "old, tensor beyond its storage": (
            ".pt",
            old_torch(tensor_pickle(shape=(9,))) + struct.pack("<q", 1) + bytes(4),
            "reaches beyond its storage of 4",
        ),
        "pickled string of 1 TB": (".pkl", b"\x80\x04\x8d" + struct.pack("<Q", 2**40), "but only 0 remain"),
        "pickled line": (".pkl", b"\x80\x02c" + b"a" * 10**6, "not a sound PyTorch file"),
        "storage many times over": (
            ".pkl",
            within(3000, old_torch() + struct.pack("<q", 10**4) + bytes(4 * 10**4)),
            TOO_MUCH,
        ),
        "array of too little": (".pkl", array_pickle(b"K\x02\x85"), "reaches beyond its storage of 4"),
        "array of tuples": (".pkl", array_pickle(b")" + DOUBLED), "has a shape that is not of numbers"),
        "array of objects": (".pkl", array_pickle(dtype="O8"), "has 'a dtype of its own', expected real"),
        "array of negative size": (".pkl", array_pickle(b"J\xff\xff\xff\xff\x85"), "has shape (-1,)"),
        "big endian": (".pt", torch_zip(b"\x80\x02}.", byteorder=b"big"), "has byte order big"),
        "bomb": (
            ".pt",
            zipped({"x/data.pkl": bytes(10**8)}, zipfile.ZIP_DEFLATED),
            "unpacks to 100000000 bytes",
        ),
        "deflated": (".pt", zipped({"x/data.pkl": bytes(9)}, zipfile.ZIP_DEFLATED), "is compressed"),
        "external data set": (".h5", h5(external), outside),
        "virtual data set": (".h5", h5(virtual), outside),
        "packed data set": (
            ".weights.h5",
            h5(lambda f, _: cell_group(f).create_dataset("1", data=np.zeros((4, 16)), compression="gzip")),
            outside,
        ),
        "data set of 1e16 bytes": (
            ".h5",
            h5(lambda f, _: cell_group(f).create_dataset("1", (10**8, 10**7), "f8")),
            "unpacks to 8000000000000000",
        ),
        "links out of the file": (".h5", h5(links), "of a kind that Keras does not write"),
        "group in itself": (".h5", h5(cycle), "has groups that hold themselves"),
        "groups shared": (".h5", h5(laughs), TOO_MUCH),
        "newest HDF5": (".h5", h5(keras_weights, libver="latest"), "of a kind that Keras does not write"),
        "user block out of place": (".h5", bytes(500) + h5(keras_weights), "does not begin as HDF5 does"),
        "user block in itself": (".h5", bytes(512) + h5(external), outside),
        "empty HDF5": (".h5", h5(lambda *_: None), "holds no LSTM, GRU or SimpleRNN of Keras (nothing)"),
        "text": (".h5", b"hello" * 10, "does not begin as HDF5 does"),
        "config of a thousand levels": (".keras", keras_file(nested_config(10**3)), ""),
        "config of a million levels": (".keras", keras_file(b"[" * 10**6), TOO_MUCH),
        "config of a hundred levels": (
            ".keras",
            keras_file(nested_config(100)),
            "a config of more than 50 levels",
        ),
        "config no JSON": (".keras", keras_file(b"{{"), "not a sound .keras file"),
        "no weights": (".keras", zipped({"config.json": b"{}"}), "lacks model.weights.h5"),
        "bomb of a config": (
            ".keras",
            keras_file(b" " * 10**8, compression=zipfile.ZIP_DEFLATED),
            "unpacks to 1000",
        ),
        "no zip": (".keras", b"hello", "not a sound .keras file"),
        "list of 4 G": (
            ".msgpack",
            b"\x81\xa1a\xdd\xff\xff\xff\xff",
            "ends at byte 8 in the middle",
        ),
        "map of 4 G": (".msgpack", b"\xdf\xff\xff\xff\xff", "ends at byte 5 in the middle"),
        "thousand deep": (".msgpack", b"\x81\xa1a" * 1000 + b"\xc0", "nests more than 24 deep"),
        "million deep": (".msgpack", b"\x81\xa1a" * 10**6 + b"\xc0", "nests more than 24 deep"),
        "a list": (".msgpack", msgpack.packb([1]), "holds a list, expected a tree of parameters"),
        "two trees": (".msgpack", flax_tree() * 2, "goes on after its end at byte"),
        "claims more": (
            ".msgpack",
            flax_tree(dense_i={"kernel": packed((2**40, 16))}),
            "truncated or damaged",
        ),
        "objects": (".msgpack", flax_tree(dense_i={"kernel": packed((4,), "object")}), "has dtype 'object'"),
        "another extension": (
            ".msgpack",
            flax_tree(dense_i={"kernel": msgpack.ExtType(7, b"x")}),
            "has msgpack extension 7",
        ),
        "negative shape": (
            ".msgpack",
            flax_tree(dense_i={"kernel": packed((-2, -4))}),
            "shape (-2, -4): damaged",
        ),
    }.items()
    yield from foreign_files().items()


def foreign_files():
    """The same of DyNet, TensorFlow 1 and Python 2."""
    kernel = {"gru_cell/gates/kernel": np.ones((7, 8))}
    huge = field(1, 1) + field(2, field(2, field(1, 2**40)) * 2) + field(4, bytes(8))
    line = b"#Parameter# /vanilla-lstm-builder/_0 "
    return {
        "DyNet of 1e18 numbers": (
            ".model",
            line + b"{1000000000,1000000000} 4 ZERO_GRAD\n+1 \n",
            "unpacks to 8",
        ),
        "DyNet of 1e18 bytes": (".model", line + b"{2,2} 999999999999999999 ZERO_GRAD\n+1 \n", "truncated"),
        "DyNet of too few numbers": (".model", line + b"{2,2} 4 ZERO_GRAD\n+1 \n", ""),
        "DyNet of words": (".model", line + b"{1} 6 ZERO_GRAD\nhello\n", ""),
        "DyNet of a long line": (".model", b"#Parameter# " + b"x" * 10**6, "in place of the next parameter"),
        "DyNet of no line": (".model", b"hello", "in place of the next parameter"),
        "DyNet of a hundred thousand names": (
            ".model",
            b"".join(b"#Parameter# /x%d {1} 3 ZERO_GRAD\n+1\n" % k for k in range(10**5)),
            "",
        ),
        "graph of 1e24 numbers": (".pb", constant("x", huge), "unpacks to"),
        "graph of too few bytes": (".pb", frozen_graph(kernel)[:-4], ""),
        "graph of nested nothing": (".pb", b"\x0a\x00" * 10**6, ""),
        "graph of many fields": (".pb", field(1, b"\x08\x01" * 10**6), ""),
        "number without an end": (".pb", b"\xff" * 40, "number without an end"),
        "graph with groups": (".pb", b"\x0b" * 40, "no graph of TensorFlow, or damaged"),
        "graph of text": (".pb", b"hello" * 10, ""),
        "graph without constants": (".pb", field(1, field(2, b"Placeholder")), "model.save_weights("),
        "SavedModel": (".pb", field(1, 1) + field(2, field(2, frozen_graph(kernel))), "model.save_weights("),
        "system in a pickle of text": (".pkl", b"cposix\nsystem\n(S'touch pwned'\ntR.", "posix.system"),
        "pickle of text without an end": (".pkl", b"(dp0\nS'x'\n", ""),
        "array of text that is too short": (
            ".pkl",
            python_2({"weight_hh_l0": np.ones(4)})[:-20] + b"'\ntbs.",
            "",
        ),
    }


def sound():
    """A file of every format to damage."""
    return {
        ".pt": torch_bytes({"state_dict": state_dict(), "epoch": 1}),
        ".weights.h5": h5(keras_weights),
        ".keras": keras_file(),
        ".msgpack": flax_tree(),
        ".model": dynet_text(
            {f"/vanilla-lstm-builder/_{k}": np.ones(s) for k, s in enumerate(((16, 3), (16, 4), 16))}
        ),
        ".pb": frozen_graph(
            {f"basic_rnn_cell/{k}": np.ones(s) for k, s in (("kernel", (7, 4)), ("bias", 4))}
        ),
        ".pkl": python_2({key.removesuffix("_l0"): a for key, a in layouts.recurrent("gru", 3, 4).items()}),
        ".npz": recording(),
    }


def recording():
    """What ``gradscope.record`` writes of a layer that its framework differentiates."""
    own = OwnSteps(("R",), np.ones((1, 3, 1, 2, 2)), np.ones((1, 4, 2)), {"h": 2}, 3, 2.0**-52)
    steps = RecordedSteps("torch", "Mine", own, {}, ())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.npz"
        write_recording(path, [("", Found("", {}, kind="Mine", derivatives=steps))], 2**20)
        return path.read_bytes()


# What the tests of strangers' files do with them


def refusal(path, **choice):
    message = told(read_layer, path, **choice)
    assert message.startswith(f"{path}: ")
    assert len(message) < 700 + len(str(path))
    return message


def stranger(folder, case):
    """The file, in a folder with what it may try to reach."""
    suffix, data, words = case
    (folder / "models").mkdir()
    (folder / "secret").write_bytes(bytes(192))
    (folder / "models" / "link").symlink_to(folder / "secret")
    (folder / "models" / "short").write_bytes(bytes(9))
    os.mkfifo(folder / "models" / "pipe")
    path = folder / "models" / f"model{suffix}"
    path.write_bytes(data)
    return path, words


IN_LITTLE_MEMORY = """
import resource, sys
from gradscope import checkpoints
from gradscope.checkpoints.derivatives import OwnSteps
from gradscope.checkpoints.found import Found
from gradscope.checkpoints.recorded_steps import RecordedSteps
from gradscope.checkpoints.recording_file import write_recording
from gradscope.errors import InputError
import importlib
for name in sys.argv[1].split():
    importlib.import_module(name)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 300 * 2**20
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
for path in sys.argv[2:]:
    try:
        checkpoints.read_all(path)
    except InputError as error:
        assert "too large for the memory" not in str(error), error
print("all read")
"""


def all_read(folder, cases, libraries="safetensors"):
    """Read every file in a process of 300 MiB beside its libraries, and a minute: '' or what went wrong."""
    paths = []
    for k, case in enumerate(cases.values()):
        (folder / str(k)).mkdir()
        paths.append(stranger(folder / str(k), case)[0])
    command = [sys.executable, "-c", IN_LITTLE_MEMORY, libraries, *paths]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.stdout == "all read\n" else done.stderr


def truncated(data, path):
    """A sound file is read, and cut off anywhere it is refused."""
    path.write_bytes(data)
    assert checkpoints.read_all(path).layers
    for tenth in range(10):
        path.write_bytes(data[: len(data) * tenth // 10])
        refusal(path, cell="lstm", layer=None)
    path.write_bytes(data[:-1])
    refusal(path, cell="lstm")


def damage(data, count, seed, path):
    """Mutations of a sound file, most at its ends, which describe it: refused, or layers of numbers."""
    rng = random.Random(f"{path.suffix} {seed}")
    refused = 0
    for _ in range(count):
        mutated = bytearray(data)
        for _ in range(rng.choice((1, 1, 2, 8))):
            size = len(mutated)
            places = (
                rng.randrange(min(size, 4000)),
                rng.randrange(size),
                size - 1 - rng.randrange(min(size, 2000)),
            )
            at = rng.choice(places)
            mutated[at] = rng.choice((rng.randrange(256), 0, 255, mutated[at] ^ 1 << rng.randrange(8)))
        if rng.random() < 0.1:
            start = rng.randrange(len(mutated))
            del mutated[start : start + rng.choice((1, 4, 64))]
        path.write_bytes(mutated)
        try:
            layers = checkpoints.read_all(path).layers
        except InputError as error:
            assert str(error).isprintable()  # noqa: PT017  # most are refused, in some the bytes do not matter
            refused += 1
            continue
        for layer in layers:
            assert all(np.isfinite(array).all() for array in layer.arrays.values())
    return refused
