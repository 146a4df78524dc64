"""Files that are small and would take much: by name, how to make one of about so many bytes."""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Callable

import msgpack
import numpy as np

from oracles.hostile import h5, keras_file, keras_weights, ordered, tensor_pickle, text, torch_zip
from oracles.hostile_arrays import npy, npz, safetensors

Bomb = Callable[[int], bytes]
# The whole pickle of a tensor without what is around it, and one of no numbers in msgpack.
TENSOR = tensor_pickle()[len(b"\x80\x02}" + text("weight_hh_l0")) : -2]
EMPTY = msgpack.ExtType(1, b"")
CELL = {"hi": {"kernel": EMPTY}, "ii": {"kernel": EMPTY}}


# Names


def named(name: Callable[[int], str], each: int) -> tuple[str, Bomb]:
    """Empty tensors of many names in .safetensors; each : bytes of an entry."""
    entry = {"dtype": "F32", "shape": [0, 0], "data_offsets": [0, 0]}
    return ".safetensors", lambda size: safetensors({name(k): entry for k in range(max(1, size // each))})


def crowded(k: int) -> str:
    """Two thousand layers in one module, and after them whatever else."""
    side = "_reverse" if k >= 1000 else ""
    return f"weight_hh_l{k % 1000}{side}" if k < 2000 else f"x{k}"


def tied(name: Callable[[int], str], each: int) -> tuple[str, Bomb]:
    """Many tensors in a .pt, all of them one view of one storage."""

    def make(size: int) -> bytes:
        rest = b"".join(text(name(k)) + b"h\x00" for k in range(1, size // each))
        body = b"\x80\x02}(" + text(name(0)) + TENSOR + b"q\x00" + rest + b"u."
        return torch_zip(body, **{"data/0": bytes(4)})

    return ".pt", make


# Pickles


def pickled(body: Callable[[int], bytes]) -> tuple[str, Bomb]:
    return ".pt", lambda size: torch_zip(b"\x80\x02" + body(size) + b".")


def held_by_many_keys(size: int) -> bytes:
    """A dict of many keys, under each of which is the same long list."""
    long = text("a") + b"](" + b")\x85" * (size // 4) + b"eq\x00"
    return b"}(" + long + b"".join(text(f"{k}") + b"h\x00" for k in range(size // 24)) + b"u"


def one_list_under_many_keys(size: int) -> bytes:
    """As many keys as the list that all of them hold has numbers."""
    n = size // 16
    keys = b"".join(b"X\x06\x00\x00\x00%06dh\x00" % k for k in range(n))
    return b"}(X\x01\x00\x00\x00_]q\x00(" + b"K\x01" * n + b"e" + keys + b"u"


def tripled(size: int) -> bytes:
    """(y, y, y) of the y on top of the stack, many times over."""
    return b"}" + text("a") + b"])q\x00" + b"h\x00h\x00h\x00\x87q\x00" * (size // 9) + b"as"


def two_long_strings(size: int) -> bytes:
    """Classes that are called by strings of the memo."""
    return (
        b"("
        + text("m" * 1024)
        + b"q\x00"
        + text("n" * 1024)
        + b"q\x01"
        + b"h\x00h\x01\x93" * (size // 5)
        + b"l"
    )


def views(size: int) -> bytes:
    """Tensors whose hundred thousand entries are all the one number there is."""
    view = tensor_pickle(0, (10**5,), (0,))[len(b"\x80\x02}" + text("weight_hh_l0")) : -2]
    items = b"".join(text(f"l{k}.weight_hh_l0") + view for k in range(size // 150))
    return torch_zip(b"\x80\x02}(" + items + b"u.", **{"data/0": bytes(4)})


def arrays_of_one_text(size: int) -> bytes:
    """Arrays in a plain pickle whose bytes are one long text, encoded anew for each."""
    head = b"cnumpy.core.multiarray\n_reconstruct\nq\x00cnumpy\ndtype\n" + text("f4") + b"\x85Rq\x01"
    head += b"c_codecs\nencode\nq\x02" + text("a" * (size // 2)) + b"q\x03" + text("latin1") + b"q\x04"
    one = b"h\x00)R(K\x01K\x01\x85h\x01\x89h\x02h\x03h\x04\x86Rtb"
    return b"\x80\x02" + head + b"}(" + b"".join(text(f"{k}.w") + one for k in range(size // 90)) + b"u."


def compiled(size: int) -> bytes:
    """Modules of one class, whose code is a megabyte of nothing."""
    weights = text("weight_ih_l0") + b"h\x00" + text("weight_hh_l0") + b"h\x00"
    modules = (text(f"m{k}") + b"c__torch__.a\nK\n)\x81}(" + weights + b"ub" for k in range(size // 100))
    whole = b"c__torch__.a\nT\n)\x81}(" + text("x") + TENSOR + b"q\x00" + b"".join(modules) + b"ub."
    code = b"class K(Module):\n" + b"  a : Final[int] = 1\n" * 49_000
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + whole)
        archive.writestr("x/data/0", bytes(4))
        archive.writestr("x/code/__torch__/a.py", code, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()


# Keras


def config(body: str) -> bytes:
    return keras_file(body.encode(), compression=zipfile.ZIP_DEFLATED)


def sequential(layers: str) -> bytes:
    return config('{"class_name":"Sequential","config":{"layers":[' + layers + "]}}")


def empty_objects(size: int) -> bytes:
    return config("[" + "{}," * min(size * 250, 2_700_000) + "{}]")


def equal_layers(size: int) -> bytes:
    layer = '{"class_name":"LSTM","config":{"name":"a"}}'
    return sequential(",".join([layer] * min(size * 6, 190_000)))


def below_a_long_name(size: int) -> bytes:
    layers = [f'{{"class_name":"LSTM","config":{{"name":"{k}"}}}}' for k in range(min(size // 4, 150_000))]
    name = '{"class_name":"X","config":{"name":"' + "n" * 1000
    return sequential(name + '","layers":[' + ",".join(layers) + "]}}")


def directions_in_directions(_: int) -> bytes:
    return config('{"class_name":"Bidirectional","config":{"layer":' * 45 + "{}" + "}}" * 45)


def reading_all_before(size: int) -> bytes:
    """A graph of layers each of which reads two hundred before it."""
    nodes = []
    for k in range(min(size // 100, 400)):
        reads = [[[f"{j}", 0, 0, {}] for j in range(max(0, k - 200), k)]]
        layer = {"class_name": "Concatenate", "config": {"name": f"{k}", "axis": -1}}
        nodes.append(layer | {"name": f"{k}", "inbound_nodes": reads})
    return config(json.dumps({"class_name": "Model", "config": {"layers": nodes}}))


def hdf5_layers(size: int) -> bytes:
    def fill(file, _):
        for k in range(max(1, size // 3500)):
            file.create_group(f"layers/lstm_{k}/cell/vars").create_dataset("1", data=np.zeros((1, 4), "f4"))

    return h5(fill)


def attributes_of_one_group(size: int) -> bytes:
    """Layers whose names are sought in one group of many long attributes."""

    def fill(file, _):
        keras_weights(file)
        group = file["layers/lstm/vars"]
        for k in range(30):
            group.attrs[f"a{k}"] = "x" * 1500
        for k in range(max(1, size // 1200)):
            file[f"layers/l{k}/vars"] = group

    return h5(fill)


# ONNX


def field(number: int, data: bytes) -> bytes:
    """A field of bytes in a message of protocol buffers."""

    def varint(value: int) -> bytes:
        return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)

    return varint(number << 3 | 2) + varint(len(data)) + data


def graph(number: int, parts: Callable[[int], bytes], each: int) -> tuple[str, Bomb]:
    """A model whose graph has many of one field."""
    return ".onnx", lambda size: field(7, b"".join(field(number, parts(k)) for k in range(size // each)))


def node(kind: bytes, reads: bytes = b"", makes: bytes = b"", rest: bytes = b"") -> bytes:
    return field(1, reads) + field(2, makes) + field(4, kind) + rest


def bodies(size: int) -> bytes:
    """Recurrent nodes at the bottom of thirty bodies, each with a long name."""
    inside = field(1, field(4, b"RNN")) * (size // 7)
    for _ in range(30):
        attribute = field(1, b"then_branch" * 9) + field(6, inside)
        inside = field(1, field(3, b"n" * 99) + field(4, b"If") + field(5, attribute))
    return field(7, inside)


# Arrays


def zeros(size: int) -> bytes:
    """A recurrent layer of zeros, packed to a thousandth, as large as is allowed."""
    n = int(min(size * 1000 / 8, 64 * 2**20 / 8) ** 0.5) - 10
    return npz(
        [("R.npy", npy(np.zeros((n, n)))), ("W.npy", npy(np.zeros((n, 1)))), ("b.npy", npy(np.zeros(n)))]
    )


def zeros_of_one_byte(size: int) -> bytes:
    member = npy(np.zeros((1000, 1000), "i1"))
    return npz([(f"{name}.npy", member) for name in ("W", "R", *range(min(60, size // 1000)))])


def one_member_many_times(size: int) -> bytes:
    """A zip of which many members are one and the same bytes."""
    data = npz([("a0.npy", npy(np.zeros((1000, 1000))))])
    at, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    count = min(4000, size // 60)
    entries = b"".join(data[at:end].replace(b"a0.npy", f"{k:06}".encode()) for k in range(count))
    return (
        data[:at] + entries + struct.pack("<4s4HIIH", b"PK\x05\x06", 0, 0, count, count, len(entries), at, 0)
    )


BOMBS: dict[str, tuple[str, Bomb]] = {
    "names of layers": named(lambda k: f"a{k}.weight_ih_l0", 80),
    "names deep inside": named(lambda k: "a." * 60 + f"a{k}.weight_hh_l0", 200),
    "modules in one another": named(lambda k: "a." * (k % 200) + f"b{k}.weight_ih_l0", 280),
    "much beside many layers": named(crowded, 60),
    "names of cells of Flax": named(lambda k: f"a{k // 2}/{('hi', 'ii')[k % 2]}/kernel", 80),
    "names of averages": named(lambda k: "ema." * (k % 2) + f"a{k // 2}.weight_hh_l0", 85),
    "names of nothing": named(lambda k: f"R_{k}", 60),
    "long names of dots": named(lambda k: "." * 4000 + f"{k}.bias", 4080),
    "tied weights": tied(lambda k: f"{k}.weight_ih_l0", 25),
    "opcodes of one byte": pickled(lambda size: b"(" + b"}" * size + b"l"),
    "objects": pickled(lambda size: b"ca\nb\nq\x00(" + b"h\x00)\x81}b" * (size // 6) + b"l"),
    "dicts of one list": (".pt", lambda size: torch_zip(ordered(size // 16)[0])),
    "one list under many keys": pickled(one_list_under_many_keys),
    "references to one list": (".pt", lambda size: torch_zip(ordered(size // 8)[1])),
    "list held by many keys": pickled(held_by_many_keys),
    "tuples of tuples": pickled(tripled),
    "classes of two long strings": pickled(two_long_strings),
    "long key above many": pickled(
        lambda size: b"}" + text("k" * 1000) + b"](" + b")\x85" * (size // 2) + b"es"
    ),
    "views of one number": (".pt", views),
    "arrays of one text": (".pkl", arrays_of_one_text),
    "code of many modules": (".pt", compiled),
    "cells of Flax": (".msgpack", lambda size: msgpack.packb({f"{k}": CELL for k in range(size // 35)})),
    "long key above many arrays": (
        ".msgpack",
        lambda size: msgpack.packb({"k" * 1000: [EMPTY] * (size // 3)}),
    ),
    "items of one byte": (".msgpack", lambda size: msgpack.packb({"a": [0] * size})),
    "config of empty objects": (".keras", empty_objects),
    "config of equal layers": (".keras", equal_layers),
    "config below a long name": (".keras", below_a_long_name),
    "config of directions": (".keras", directions_in_directions),
    "config of many reads": (".keras", reading_all_before),
    "layers in HDF5": (".h5", hdf5_layers),
    "attributes of one group": (".h5", attributes_of_one_group),
    "empty nodes": graph(1, lambda _: b"", 2),
    "recurrent nodes": graph(1, lambda _: node(b"RNN", b"x", b"y"), 13),
    "chain of recurrent nodes": graph(1, lambda k: node(b"RNN", b"%d" % k, b"%d" % (k + 1)), 24),
    "recurrent nodes in bodies": (".onnx", bodies),
    "empty constants": graph(5, lambda _: b"\x10\x01", 4),
    "attributes of nothing": (
        ".onnx",
        lambda size: field(7, field(1, node(b"LSTM", rest=field(5, b"") * (size // 2)))),
    ),
    "zeros": (".npz", zeros),
    "zeros of one byte": (".npz", zeros_of_one_byte),
    "one member many times": (".npz", one_member_many_times),
}
