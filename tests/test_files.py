"""Files from strangers: whatever the bytes, numbers or one line that says what is wrong."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import zipfile
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save as safetensors_bytes

from gradscope import errors
from gradscope.errors import InputError
from gradscope.formats.numpy_files import open_npz, read_jacobians, read_npy
from gradscope.formats.safetensors_file import open_safetensors


def read_npz(path, choose=list, opened=open_npz):
    with opened(path) as tensors:
        return {key: tensors[key].values() for key in choose(list(tensors))}


def read_safetensors(path, choose=list):
    return read_npz(path, choose, open_safetensors)


READERS = {".npy": read_npy, ".npz": read_npz, ".safetensors": read_safetensors}


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


def refusal(read, path):
    with pytest.raises(InputError) as caught:
        read(path)
    message = str(caught.value)
    assert message.isprintable(), "one line, nothing that a terminal would obey"
    assert len(message) < 500 + len(str(path))
    return message


def write(folder, suffix, data):
    path = folder / f"given{suffix}"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_in_one_line(name, tmp_path):
    suffix, data, expected = HOSTILE[name]
    path = write(tmp_path, suffix, data)
    message = refusal(READERS[suffix], path)
    assert message.startswith(f"{path}: ")
    assert expected in message


@pytest.mark.parametrize("suffix", READERS)
def test_what_is_no_file(suffix, tmp_path):
    read = READERS[suffix]
    assert "No such file" in refusal(read, tmp_path / f"absent{suffix}")
    folder = tmp_path / f"folder{suffix}"
    folder.mkdir()
    assert "is a directory" in refusal(read, folder)
    pipe = tmp_path / f"pipe{suffix}"
    os.mkfifo(pipe)  # to open it would hang the test
    assert "is a pipe or a device" in refusal(read, pipe)
    assert "is a pipe or a device" in refusal(read, "/dev/zero")
    assert "not a sound" in refusal(read, f"nul\0byte{suffix}")
    loop = tmp_path / f"loop{suffix}"
    loop.symlink_to(loop)
    assert "not a sound" in refusal(read, loop)
    locked = write(tmp_path, suffix, b"secret")
    locked.chmod(0)
    with nobody():
        assert "Permission denied" in refusal(read, locked)


@contextmanager
def nobody():
    """Without the rights of root, who may read anything."""
    before = os.geteuid()
    os.seteuid(before or 65534)
    try:
        yield
    finally:
        os.seteuid(before)


def arrays():
    rng = np.random.default_rng(0)
    return {
        "W": rng.standard_normal((4, 3)),
        "R": rng.standard_normal((4, 4)).astype(np.float32),
        "b": np.zeros(4),
    }


SOUND = {
    ".npy": npy(np.random.default_rng(0).standard_normal((5, 3, 3))),
    ".npz": npz([(f"{k}.npy", npy(v)) for k, v in arrays().items()]),
    ".safetensors": safetensors_bytes(arrays()),
}


def numbers_or_refusal(suffix, path):
    try:
        result = READERS[suffix](path)
    except InputError as error:
        assert str(error).isprintable()  # noqa: PT017  # most bytes are refused, a few do not matter
        return
    for array in result.values() if isinstance(result, dict) else [result]:
        assert array.dtype == np.float64
        assert np.isfinite(array).all()


@pytest.mark.parametrize("suffix", SOUND)
def test_truncated_anywhere(suffix, tmp_path):
    data = SOUND[suffix]
    for tenth in range(10):
        refusal(READERS[suffix], write(tmp_path, suffix, data[: len(data) * tenth // 10]))
    refusal(READERS[suffix], write(tmp_path, suffix, data[:-1]))


@pytest.mark.parametrize("suffix", SOUND)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_flipped_bytes(suffix, tmp_path):
    rng = random.Random(suffix)
    for _ in range(600):
        data = bytearray(SOUND[suffix])
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        numbers_or_refusal(suffix, write(tmp_path, suffix, data))


@pytest.mark.parametrize(
    "array",
    [
        np.float16([0.1, -3]),
        np.float32([[0.1], [2]]),
        np.float64(7.25),
        np.longdouble([0.5]),
        np.arange(-3, 3, dtype=np.int8).reshape(2, 3),
        np.uint64([2**40]),
        np.array([True, False]),
        np.array([1.5, -2.0, 3e38], ml_dtypes.bfloat16),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(4.0).astype(">f4"),
        np.zeros((0, 3)),
    ],
    ids=lambda a: f"{a.dtype}{a.shape}",
)
def test_numbers_come_back_as_float64(array, tmp_path):
    expected = array.astype(np.float64)
    one = read_npy(write(tmp_path, ".npy", npy(array)))
    stored = read_npz(write(tmp_path, ".npz", npz([("x.npy", npy(array))], zipfile.ZIP_STORED)))["x"]
    for result in (one, stored):
        assert result.dtype == np.float64
        assert result.shape == expected.shape
        np.testing.assert_array_equal(result, expected)


def test_numpy_and_safetensors_files_of_every_dtype(tmp_path):
    given = {
        name: np.arange(6).reshape(2, 3).astype(name)
        for name in (
            "float64",
            "float32",
            "float16",
            "bfloat16",
            "int64",
            "int32",
            "int16",
            "int8",
            "uint8",
            "bool",
        )
    }
    path = write(tmp_path, ".safetensors", safetensors_bytes(given))
    for name, array in read_safetensors(path).items():
        np.testing.assert_array_equal(array, given[name].astype(np.float64))
    np.savez_compressed(tmp_path / "all.npz", **given)
    for name, array in read_npz(tmp_path / "all.npz").items():
        np.testing.assert_array_equal(array, given[name].astype(np.float64))


def test_a_long_double_beyond_float64_is_refused(tmp_path):
    huge = np.array([np.finfo(np.longdouble).max])
    assert "holds inf at index [0]" in refusal(read_npy, write(tmp_path, ".npy", npy(huge)))


def test_compressed_weights_pass_and_so_do_small_files_of_zeros(tmp_path):
    rng = np.random.default_rng(1)
    # float64 of float32 values, as a converted model has them: half of every number is zero bits.
    weights = rng.standard_normal((1500, 1500)).astype(np.float32).astype(np.float64)
    np.savez_compressed(tmp_path / "w.npz", W=weights, b=np.zeros(10**6), R=np.eye(1000))
    assert os.path.getsize(tmp_path / "w.npz") < (weights.nbytes + 16 * 10**6) / 2  # noqa: PTH202
    result = read_npz(tmp_path / "w.npz")
    np.testing.assert_array_equal(result["W"], weights)
    np.testing.assert_array_equal(result["R"], np.eye(1000))


def test_no_memory_is_taken_for_what_a_header_claims(tmp_path, monkeypatch):
    def no_reading(*_):
        raise AssertionError("the size was not checked first")

    monkeypatch.setattr(np, "frombuffer", no_reading)
    claims = npy_with_header(header("<f8", (10**10,)), EIGHT)
    assert "declares" in refusal(read_npy, write(tmp_path, ".npy", claims))
    assert "declares" in refusal(read_npz, write(tmp_path, ".npz", npz([("W.npy", claims)])))


def test_a_file_that_is_cut_off_while_it_is_read(tmp_path):
    path = write(tmp_path, ".safetensors", safetensors_bytes({"w": np.ones(10**6)}))

    def choose(names):
        os.truncate(path, 4096)
        return names

    assert "not a sound .safetensors file" in refusal(lambda p: read_safetensors(p, choose), path)


def test_only_what_is_chosen_is_read(tmp_path):
    np.savez(tmp_path / "mixed.npz", x=np.ones(2), label=np.array(["cat"]))
    assert list(read_npz(tmp_path / "mixed.npz", lambda names: ["x"])) == ["x"]
    assert "array 'label' has dtype <U3" in refusal(read_npz, tmp_path / "mixed.npz")


def test_lists_of_names_stay_short(tmp_path):
    assert errors.listed(["a", "b"]) == "a, b"
    assert errors.listed([str(k) for k in range(1000)]) == "0, 1, 2, 3, 4, 5, 6, 7, ... (1000 in all)"
    assert errors.listed(["a\x1b[2J", "x" * 999]) == r"'a\x1b[2J', " + "x" * 80


def test_jacobians(tmp_path):
    stack = np.random.default_rng(2).standard_normal((5, 3, 3))
    np.testing.assert_array_equal(read_jacobians(write(tmp_path, ".npy", npy(stack))), stack)


@pytest.mark.parametrize("shape", [(3, 3), (5, 3, 4), (0, 3, 3), (5, 0, 0), (2, 5, 3, 3), ()])
def test_jacobians_of_another_shape(shape, tmp_path):
    message = refusal(read_jacobians, write(tmp_path, ".npy", npy(np.zeros(shape))))
    assert f"got shape {shape}, expected (T, m, m)" in message
