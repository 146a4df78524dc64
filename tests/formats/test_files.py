"""Files from strangers: whatever the bytes, numbers or one line that says what is wrong."""

from __future__ import annotations

import os
import random
import zipfile
from contextlib import contextmanager

import ml_dtypes
import numpy as np
import pytest
from oracles.hostile_arrays import EIGHT, HOSTILE, header, npy, npy_with_header, npz
from oracles.refusals import refused
from safetensors.numpy import save as safetensors_bytes

from gradscope import errors
from gradscope.errors import InputError
from gradscope.formats.content import by_content
from gradscope.formats.jacobians import read_jacobians
from gradscope.formats.numpy_files import open_npz, read_npy
from gradscope.formats.safetensors_file import open_safetensors


def read_npz(path, choose=list, opened=open_npz):
    with opened(path) as tensors:
        return {key: tensors[key].values() for key in choose(list(tensors))}


def read_safetensors(path, choose=list):
    return read_npz(path, choose, open_safetensors)


READERS = {".npy": read_npy, ".npz": read_npz, ".safetensors": read_safetensors}


def write(folder, suffix, data):
    path = folder / f"given{suffix}"
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_file_is_refused_in_one_line(name, tmp_path):
    suffix, data, expected = HOSTILE[name]
    path = write(tmp_path, suffix, data)
    message = refused(READERS[suffix], path)
    assert message.startswith(f"{path}: ")
    assert expected in message


@pytest.mark.parametrize("suffix", READERS)
def test_what_is_no_file(suffix, tmp_path):
    read = READERS[suffix]
    assert "No such file" in refused(read, tmp_path / f"absent{suffix}")
    folder = tmp_path / f"folder{suffix}"
    folder.mkdir()
    assert "is a directory" in refused(read, folder)
    pipe = tmp_path / f"pipe{suffix}"
    os.mkfifo(pipe)  # to open it would hang the test
    assert "is a pipe or a device" in refused(read, pipe)
    assert "is a pipe or a device" in refused(read, "/dev/zero")
    assert "not a sound" in refused(read, f"nul\0byte{suffix}")
    loop = tmp_path / f"loop{suffix}"
    loop.symlink_to(loop)
    assert "not a sound" in refused(read, loop)
    locked = write(tmp_path, suffix, b"secret")
    locked.chmod(0)
    with nobody():
        assert "Permission denied" in refused(read, locked)


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
        return False
    for array in result.values() if isinstance(result, dict) else [result]:
        assert array.dtype == np.float64
        assert np.isfinite(array).all()
    return True


@pytest.mark.parametrize("suffix", SOUND)
def test_truncated_anywhere(suffix, tmp_path):
    data = SOUND[suffix]
    for tenth in range(10):
        refused(READERS[suffix], write(tmp_path, suffix, data[: len(data) * tenth // 10]))
    refused(READERS[suffix], write(tmp_path, suffix, data[:-1]))


@pytest.mark.parametrize("suffix", SOUND)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::SyntaxWarning")
def test_flipped_bytes(suffix, tmp_path):
    rng = random.Random(suffix)
    read = 0
    for _ in range(600):
        data = bytearray(SOUND[suffix])
        for _ in range(rng.choice((1, 1, 2, 8))):
            data[rng.randrange(len(data))] = rng.randrange(256)
        read += numbers_or_refusal(suffix, write(tmp_path, suffix, data))
    assert 0 < read < 600


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
    assert "holds inf at index [0]" in refused(read_npy, write(tmp_path, ".npy", npy(huge)))


@pytest.mark.slow
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
    assert "declares" in refused(read_npy, write(tmp_path, ".npy", claims))
    assert "declares" in refused(read_npz, write(tmp_path, ".npz", npz([("W.npy", claims)])))


def test_a_file_that_is_cut_off_while_it_is_read(tmp_path):
    path = write(tmp_path, ".safetensors", safetensors_bytes({"w": np.ones(10**6)}))

    def choose(names):
        os.truncate(path, 4096)
        return names

    assert "not a sound .safetensors file" in refused(lambda p: read_safetensors(p, choose), path)


def test_only_what_is_chosen_is_read(tmp_path):
    np.savez(tmp_path / "mixed.npz", x=np.ones(2), label=np.array(["cat"]))
    assert list(read_npz(tmp_path / "mixed.npz", lambda names: ["x"])) == ["x"]
    assert "array 'label' has dtype <U3" in refused(read_npz, tmp_path / "mixed.npz")


def test_lists_of_names_stay_short(tmp_path):
    assert errors.listed(["a", "b"]) == "a, b"
    assert errors.listed([str(k) for k in range(1000)]) == "0, 1, 2, 3, 4, 5, 6, 7, ... (1000 in all)"
    assert errors.listed(["a\x1b[2J", "x" * 999]) == r"'a\x1b[2J', " + "x" * 80


def test_jacobians(tmp_path):
    stack = np.random.default_rng(2).standard_normal((5, 3, 3))
    np.testing.assert_array_equal(read_jacobians(write(tmp_path, ".npy", npy(stack))), stack)


@pytest.mark.parametrize("shape", [(3, 3), (5, 3, 4), (0, 3, 3), (5, 0, 0), (2, 5, 3, 3), ()])
def test_jacobians_of_another_shape(shape, tmp_path):
    message = refused(read_jacobians, write(tmp_path, ".npy", npy(np.zeros(shape))))
    assert f"got shape {shape}, expected (T, m, m)" in message


@pytest.mark.parametrize("length", [0x0280, 0x0380, 0x0480, 0x0580])
def test_a_safetensors_whose_length_begins_as_a_pickle_does(length, tmp_path):
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(length)
    path = tmp_path / "m.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + header + np.float32(1.5).tobytes())
    assert by_content(path) == ".safetensors"
