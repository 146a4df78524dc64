"""Files of libraries no longer around, written by hand: DyNet's text, TensorFlow's graphs, Python 2."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

Arrays = Mapping[str, np.ndarray]


def dynet_text(arrays: Arrays, kind: str = "Parameter") -> bytes:
    """What DyNet's TextFileSaver writes: a line of name, extents, bytes, gradient; the numbers by column."""
    parts = []
    for name, values in arrays.items():
        numbers = "".join(f"{x:+.8e} " for x in values.ravel(order="F"))[:-1] + "\n"
        extents = ",".join(map(str, values.shape))
        parts.append(f"#{kind}# {name} {{{extents}}} {len(numbers)} ZERO_GRAD\n{numbers}")
    return "".join(parts).encode()


def varint(number: int) -> bytes:
    low, rest = number & 127, number >> 7
    return bytes([low | 128]) + varint(rest) if rest else bytes([low])


def field(number: int, value: bytes | int) -> bytes:
    """A field of a protocol buffer: a number, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def tensor_proto(values: np.ndarray, dtype: int = 1, packed: bool = False) -> bytes:
    """tensor.proto: dtype 1, shape 2 (of axes 2, each of size 1), tensor_content 4 or float_val 5."""
    shape = b"".join(field(2, field(1, size)) for size in values.shape)
    return field(1, dtype) + field(2, shape) + field(5 if packed else 4, values.tobytes())


def constant(name: str, tensor: bytes) -> bytes:
    """graph.proto: a node 1 with name 1, op 2 and attributes 5 (key 1, value 2, of which a tensor is 8)."""
    attribute = field(1, b"value") + field(2, field(8, tensor))
    return field(1, field(1, name.encode()) + field(2, b"Const") + field(5, attribute))


def frozen_graph(arrays: Arrays, **how: bool) -> bytes:
    """The constants of a graph, beside a node of another kind."""
    other = field(1, field(1, b"x") + field(2, b"Placeholder"))
    float32 = {name: np.asarray(values, np.float32) for name, values in arrays.items()}
    return other + b"".join(constant(name, tensor_proto(a, **how)) for name, a in float32.items())


def python_2(arrays: Arrays) -> bytes:
    """A dict of NumPy's arrays as Python 2 pickled it by default: text, and bytes as text."""
    parts = ["(dp0\n"]
    for name, values in arrays.items():
        data = repr(np.asarray(values, "<f4").tobytes())[1:]
        shape = "".join(f"I{size}\n" for size in values.shape)
        parts.append(
            f"S'{name}'\ncnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(I0\ntS'b'\ntR(I1\n({shape}t"
            f"cnumpy\ndtype\n(S'f4'\nI0\nI1\ntR(I3\nS'<'\nNNNI-1\nI-1\nI0\ntbI00\nS{data}\ntbs"
        )
    return "".join([*parts, "."]).encode("latin1")
