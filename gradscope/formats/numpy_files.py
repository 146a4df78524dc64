"""NumPy's files, .npy and .npz: their headers are read first, nothing is ever unpickled."""

from __future__ import annotations

import math
import os
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np

from gradscope.custom_types import Array, PathLike
from gradscope.errors import InputError, quoted
from gradscope.formats.budget import Budget
from gradscope.formats.tensors import Tensor, Tensors, as_float64, check_real, members, opened

# A file of several arrays and the name of one of them.
_KEYED = re.compile(r"(.+\.(?:npz|safetensors)):(.*)", re.IGNORECASE | re.DOTALL)
# Version 3 is for names of fields, which are no real numbers.
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


def read_npy(path: PathLike) -> Array:
    """The array in a ``.npy`` file as float64; raises InputError for anything but finite numbers."""
    with opened(path, ".npy") as (file, budget):
        return as_float64(npy_array(file, budget.size, "the array", budget), "the array")


@contextmanager
def open_npz(path: PathLike, max_size: int | None = None, *, remedy: str = "") -> Iterator[Tensors]:
    """The arrays in a ``.npz`` file by name.

    max_size : bytes that the file may unpack to, by default EXPANSION times its size plus ALLOWANCE.
    remedy : what to do where it unpacks to more, if that is not to say --max-size.
    """
    with opened(path, ".npz", max_size, remedy) as (file, budget), zipfile.ZipFile(file) as archive:
        names = {m.filename.removesuffix(".npy"): m for m in members(archive, budget)}
        yield {
            key: _npz_tensor(archive, member, f"array {quoted(key)}", budget) for key, member in names.items()
        }


def split_key(path: PathLike) -> tuple[str, str | None]:
    """File and name of an array: ``x.npz:key`` is the array ``key`` in ``x.npz``."""
    match = _KEYED.fullmatch(os.fspath(path))
    return (match[1], match[2]) if match else (os.fspath(path), None)


def npy_array(file: IO[bytes], size: int, name: str, budget: Budget) -> Array:
    """The array of a .npy stream of ``size`` bytes, if its header says exactly what follows it."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise InputError(f"{name} is in version {version[0]} of .npy, expected 1 or 2")
    shape, fortran, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise InputError(f"{name} is of pickled Python objects, which are never read: save plain numbers")
    check_real(dtype, name)
    declared, held = math.prod(shape) * dtype.itemsize, size - file.tell()
    if declared != held:
        raise InputError(f"{name} declares {declared} bytes and the file holds {held}: truncated or damaged")
    budget.draw(size=8 * math.prod(shape))  # as float64
    data = np.frombuffer(file.read(declared), dtype)
    return data.reshape(shape, order="F" if fortran else "C")


def _npz_tensor(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str, budget: Budget) -> Tensor:
    budget.name(member.filename)

    def load() -> Array:
        # Of zip's methods only these two unpack piece by piece, within the declared size.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{name} is packed by a method NumPy does not write: save with numpy.savez")
        with archive.open(member) as file:
            return npy_array(file, member.file_size, name, budget)

    return Tensor(name, load)
