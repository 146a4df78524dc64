"""Array files that lie, harm or never end: bytes by name."""

from __future__ import annotations

import io
import json
import struct
import zipfile

import numpy as np
from safetensors.numpy import save as safetensors_bytes


def npy(array, **how):
    buffer = io.BytesIO()
    np.save(buffer, array, **how)
    return buffer.getvalue()


def npy_with_header(header, data=b"", version=(1, 0)):
    text = header if isinstance(header, bytes) else header.encode()
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + data


def npz(members, compression=zipfile.ZIP_DEFLATED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return buffer.getvalue()


def safetensors(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def zip_with_directory(data, offset, format_, value):
    """The zip file with a field of its first central directory entry set to a lie."""
    at = data.index(b"PK\x01\x02") + offset
    return data[:at] + struct.pack(format_, value) + data[at + struct.calcsize(format_) :]


def header(descr, shape, fortran=False):
    return repr({"descr": descr, "fortran_order": fortran, "shape": shape})


EIGHT = bytes(64)
PICKLE = npy(np.array([print], dtype=object), allow_pickle=True)
SMALL = npz([("W.npy", npy(np.arange(6.0).reshape(2, 3))), ("b.npy", npy(np.ones(2)))])

# name -> (suffix, bytes, what the message must say)
HOSTILE = {
    "empty": (".npy", b"", "is empty"),
    "text": (".npy", b"hello", "not a sound .npy"),
    "zip named npy": (".npy", SMALL, "not a sound .npy"),
    "npy named npz": (".npz", npy(np.ones(3)), "not a sound .npz"),
    "npy named safetensors": (".safetensors", npy(np.ones(3)), "not a sound .safetensors"),
    "bare pickle": (".npy", b"\x80\x04\x95.", "not a sound .npy"),
    "pickled objects": (".npy", PICKLE, "pickled Python objects, which are never read"),
    "pickled member": (".npz", npz([("W.npy", PICKLE)]), "array 'W' is of pickled Python objects"),
    "strings": (".npy", npy(np.array(["a", "b"])), "dtype <U1, expected real numbers"),
    "bytes": (".npy", npy(np.array([b"ab"])), "dtype |S2, expected real numbers"),
    "dates": (".npy", npy(np.array(["2020-01-01"], "M8[D]")), "dtype datetime64[D]"),
    "complex": (".npy", npy(np.ones(2, complex)), "dtype complex128"),
    "structured": (".npy", npy(np.zeros(2, [("a", "u1"), ("b", "u1")])), "expected real numbers"),
    "void": (".npy", npy(np.zeros(2, "V4")), "expected real numbers"),
    "subarray": (".npy", npy_with_header(header(("|u1", (2,)), (32,)), EIGHT), "expected real numbers"),
    "nan": (".npy", npy(np.array([[1.0, 2.0], [3.0, np.nan]])), "nan at index [1, 1]"),
    "infinite scalar": (".npy", npy(np.array(-np.inf)), "-inf at index []"),
    "nan in a member": (
        ".npz",
        npz([("R.npy", npy(np.array([0, np.nan])))]),
        "array 'R' holds nan at index [1]",
    ),
    "nan in a tensor": (
        ".safetensors",
        safetensors_bytes({"w": np.array([np.inf])}),
        "'w' holds inf at index [0]",
    ),
    "claims 75 GB": (".npy", npy_with_header(header("<f8", (10**10,)), EIGHT), "declares 80000000000 bytes"),
    "claims less": (".npy", npy_with_header(header("<f8", (7,)), EIGHT), "declares 56 bytes"),
    "overflows": (".npy", npy_with_header(header("<f8", (2**62, 2**62)), EIGHT), "declares"),
    "zero by huge": (".npy", npy_with_header(header("<f8", (0, 2**70))), "not a sound .npy"),
    "negative": (".npy", npy_with_header(header("<f8", (-2, -4)), EIGHT), "not a sound .npy"),
    "negative once": (".npy", npy_with_header(header("<f8", (-1,)), EIGHT), "declares -8 bytes"),
    "float shape": (".npy", npy_with_header(header("<f8", (8.0,)), EIGHT), "not a sound .npy"),
    "header is code": (".npy", npy_with_header("__import__('os').abort()", EIGHT), "not a sound .npy"),
    "header nests": (".npy", npy_with_header("(" * 9000, EIGHT), "not a sound .npy"),
    "header is long": (".npy", npy_with_header(" " * 60000 + header("<f8", (8,)), EIGHT), "not a sound .npy"),
    "header runs out": (
        ".npy",
        npy_with_header(header("<f8", (8,)), version=(2, 0))[:40],
        "not a sound .npy",
    ),
    "header of 4 GB": (".npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff{", "not a sound .npy"),
    "version 9": (
        ".npy",
        npy_with_header(header("<f8", (8,)), EIGHT, (9, 0)),
        "in version 9 of .npy, expected 1 or 2",
    ),
    "no dtype": (".npy", npy_with_header(header("<q9", (8,)), EIGHT), "not a sound .npy"),
    "member claims": (
        ".npz",
        npz([("W.npy", npy_with_header(header("<f8", (10**10,)), EIGHT))]),
        "array 'W' declares 80000000000 bytes and the file holds 64",
    ),
    "bomb of zeros": (
        ".npz",
        npz([("W.npy", npy(np.zeros(10**7)))]),
        "unpacks to 80000128 bytes, more than the",
    ),
    "bombs together": (".npz", npz([(f"{k}.npy", npy(np.zeros(2 * 10**6))) for k in range(5)]), "unpacks to"),
    "bomb in bzip2": (".npz", npz([("W.npy", npy(np.zeros(9)))], zipfile.ZIP_BZIP2), "packed by a method"),
    "bomb in lzma": (".npz", npz([("W.npy", npy(np.zeros(9)))], zipfile.ZIP_LZMA), "packed by a method"),
    "size too large": (".npz", zip_with_directory(SMALL, 24, "<I", 10**6), "array 'W' declares"),
    "size too small": (".npz", zip_with_directory(SMALL, 24, "<I", 100), "not a sound .npz"),
    "wrong checksum": (".npz", zip_with_directory(SMALL, 16, "<I", 1), "not a sound .npz"),
    "encrypted": (".npz", zip_with_directory(SMALL, 8, "<H", 1), "not a sound .npz"),
    "wrong place": (".npz", zip_with_directory(SMALL, 42, "<I", 5), "not a sound .npz"),
    "no members": (".npz", npz([]), "holds 0 arrays"),
    "many members": (
        ".npz",
        npz([(str(k), b"") for k in range(5000)]),
        "holds 5000 arrays, expected 1 to 4096",
    ),
    "same name twice": (".npz", npz([("W.npy", npy(np.ones(1))), ("W", npy(np.ones(1)))]), "the same name"),
    "not an array": (".npz", npz([("W.npy", b"hello")]), "not a sound .npz"),
    "name of two lines": (
        ".npz",
        npz([("a\nb\x1b[31m", npy(np.array([np.nan])))]),
        r"array 'a\nb\x1b[31m' holds nan",
    ),
    "name of 60 kB": (".npz", npz([("W" * 60000, npy(np.array([np.nan])))]), "holds nan"),
    "name of 1 MB": (".safetensors", safetensors_bytes({"w" * 10**6: np.array([np.nan])}), "holds nan"),
    "many fields": (
        ".npy",
        npy(np.zeros(1, [("field" * 20 + str(k), "f8") for k in range(80)])),
        "expected real",
    ),
    "header too long": (".safetensors", struct.pack("<Q", 2**62) + b"{}", "not a sound .safetensors"),
    "header not JSON": (".safetensors", safetensors(b"{{{{"), "not a sound .safetensors"),
    "JSON nests": (".safetensors", safetensors(b"[" * 10**5), "not a sound .safetensors"),
    "tensor beyond file": (
        ".safetensors",
        safetensors({"w": {"dtype": "F64", "shape": [10**12], "data_offsets": [0, 8 * 10**12]}}, EIGHT),
        "not a sound .safetensors",
    ),
    "shape overflows": (
        ".safetensors",
        safetensors({"w": {"dtype": "F64", "shape": [2**62, 2**62], "data_offsets": [0, 64]}}, EIGHT),
        "not a sound .safetensors",
    ),
    "tensors overlap": (
        ".safetensors",
        safetensors({k: {"dtype": "F64", "shape": [8], "data_offsets": [0, 64]} for k in "ab"}, EIGHT),
        "not a sound .safetensors",
    ),
    "complex tensor": (".safetensors", safetensors_bytes({"w": np.ones(2, np.complex64)}), "dtype C64"),
    "eight-bit floats": (
        ".safetensors",
        safetensors({"w": {"dtype": "F8_E4M3", "shape": [8], "data_offsets": [0, 8]}}, bytes(8)),
        "tensor 'w' has dtype F8_E4M3, expected real numbers (float, int or bool): convert it to float32",
    ),
}
