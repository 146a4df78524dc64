"""Array files from strangers: sizes are checked before memory is taken, nothing is ever unpickled."""

from __future__ import annotations

import importlib
import math
import os
import re
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from gradscope.custom_types import Array, PathLike
from gradscope.errors import InputError, about, quoted, reason, shown

# A file may unpack to EXPANSION times its size plus ALLOWANCE bytes. Compressed weights shrink by
# less than 3, a bomb of zeros by 1000; the allowance is for small files of zeros and identities.
EXPANSION = 16
ALLOWANCE = 64 * 2**20
MEMBERS = 4096

# A file of several arrays and the name of one of them.
_KEYED = re.compile(r"(.+\.(?:npz|safetensors)):(.*)", re.IGNORECASE | re.DOTALL)
EXPECTED = "expected real numbers (float, int or bool)"
# np.save keeps bfloat16 as two nameless bytes.
_BFLOAT16 = (np.dtype("V2"), np.dtype(ml_dtypes.bfloat16))
# Version 3 is for names of fields, which are no real numbers.
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class Tensor:
    """An array in an open file, not read yet.

    called : what messages call it; load : its values as they are stored; size : how many bytes it says
        they are, where that is known before.
    """

    called: str
    load: Callable[[], Array]
    size: int = 0

    def values(self) -> Array:
        """The values as float64; raises InputError for anything but finite numbers."""
        return as_float64(self.load(), self.called)


Tensors = dict[str, Tensor]


def read_npy(path: PathLike) -> Array:
    """The array in a ``.npy`` file as float64; raises InputError for anything but finite numbers."""
    with opened(path, ".npy") as (file, size):
        return as_float64(_array(file, size, "the array"), "the array")


@contextmanager
def open_npz(path: PathLike, max_size: int | None = None, *, remedy: str = "") -> Iterator[Tensors]:
    """The arrays in a ``.npz`` file by name.

    max_size : bytes that the file may unpack to, by default EXPANSION times its size plus ALLOWANCE.
    remedy : what to do where it unpacks to more, if that is not to say --max-size.
    """
    with opened(path, ".npz") as (file, size), zipfile.ZipFile(file) as archive:
        names = {
            m.filename.removesuffix(".npy"): m for m in members(archive, allowed(size, max_size), remedy)
        }
        if len(names) < len(archive.infolist()):
            raise InputError("holds two arrays of the same name")
        yield {key: _npz_tensor(archive, member, f"array {quoted(key)}") for key, member in names.items()}


def split_key(path: PathLike) -> tuple[str, str | None]:
    """File and name of an array: ``x.npz:key`` is the array ``key`` in ``x.npz``."""
    match = _KEYED.fullmatch(os.fspath(path))
    return (match[1], match[2]) if match else (os.fspath(path), None)


def read_jacobians(path: PathLike) -> Array:
    """A stack of one-step Jacobians (T, m, m) from a ``.npy`` file, the first step first."""
    stack = read_npy(path)
    if stack.ndim != 3 or stack.shape[1] != stack.shape[2] or 0 in stack.shape:
        raise InputError(
            f"{shown(path)}: got shape {stack.shape}, expected (T, m, m): T >= 1 Jacobians of m >= 1 states"
        )
    return stack


def as_float64(values: Any, name: str) -> Array:
    """A float64 copy of real, finite numbers; else an InputError that starts with ``name``."""
    try:
        array = np.asarray(values)
    except Exception as error:  # ragged lists, tensors on a device, whatever claims to be an array
        raise InputError(f"{name} is no array ({reason(error)}), {EXPECTED}") from error
    _check_real(array.dtype, name)
    if array.dtype.kind == "V":
        array = array.view(ml_dtypes.bfloat16)
    with np.errstate(over="ignore"):  # a long double beyond float64 is found below
        result = np.array(array, dtype=np.float64)
    finite = np.isfinite(result)
    if not finite.all():
        where = tuple(map(int, np.unravel_index(np.argmin(finite), result.shape)))
        raise InputError(f"{name} holds {result[where]} at index {list(where)}, expected finite numbers")
    return result


def allowed(size: int, max_size: int | None) -> int:
    """Bytes that a file of ``size`` bytes may unpack to."""
    return EXPANSION * size + ALLOWANCE if max_size is None else max_size


def check_size(unpacked: int, limit: int, remedy: str = "") -> None:
    """Raise InputError, with what to do, before so much memory is taken."""
    if unpacked > limit:
        remedy = remedy or f"if you trust it, say --max-size {unpacked}"
        raise InputError(f"unpacks to {unpacked} bytes, more than the {limit} allowed: {remedy}")


def library(name: str, extra: str, path: PathLike) -> Any:
    """The module that reads such a file; raises InputError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{shown(path)}: {name} reads it: pip install 'gradscope[{extra}]'") from error


@contextmanager
def opened(path: PathLike, kind: str) -> Iterator[tuple[IO[bytes], int]]:
    """A regular file and its size; whatever goes wrong inside becomes an InputError with its path."""
    with about(path):
        try:
            info = Path(path).stat()
            if not stat.S_ISREG(info.st_mode):  # to open a pipe would be to wait for ever
                got = "a directory" if stat.S_ISDIR(info.st_mode) else "a pipe or a device"
                raise InputError(f"is {got}, expected a {kind} file")
            if not info.st_size:
                raise InputError(f"is empty, expected a {kind} file")
            with Path(path).open("rb") as file:
                yield file, info.st_size
        except InputError:
            raise
        except (FileNotFoundError, PermissionError) as error:
            raise InputError(f"{error.strerror}, expected a readable {kind} file") from error
        except MemoryError as error:
            raise InputError("too large for the memory of this machine") from error
        except Exception as error:  # zipfile, zlib, NumPy, safetensors fail on bad bytes in a dozen ways
            raise InputError(f"not a sound {kind} file ({reason(error)}): save it again") from error


def _check_real(dtype: np.dtype[Any], name: str) -> None:
    if dtype.kind not in "fiub" and dtype not in _BFLOAT16:
        raise InputError(f"{name} has dtype {shown(dtype)[:80]}, {EXPECTED}")


def _array(file: IO[bytes], size: int, name: str) -> Array:
    """The array of a .npy stream of ``size`` bytes, if its header says exactly what follows it."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise InputError(f"{name} is in version {version[0]} of .npy, expected 1 or 2")
    shape, fortran, dtype = _HEADERS[version](file)
    if dtype.hasobject:
        raise InputError(f"{name} is of pickled Python objects, which are never read: save plain numbers")
    _check_real(dtype, name)
    declared, held = math.prod(shape) * dtype.itemsize, size - file.tell()
    if declared != held:
        raise InputError(f"{name} declares {declared} bytes and the file holds {held}: truncated or damaged")
    data = np.frombuffer(file.read(declared), dtype)
    return data.reshape(shape, order="F" if fortran else "C")


def members(archive: zipfile.ZipFile, limit: int, remedy: str = "") -> list[zipfile.ZipInfo]:
    """The members of a zip file, if what they say of themselves is sane."""
    found = archive.infolist()
    if not found or len(found) > MEMBERS:
        raise InputError(f"holds {len(found)} arrays, expected 1 to {MEMBERS}")
    check_size(sum(member.file_size for member in found), limit, remedy)
    return found


def _npz_tensor(archive: zipfile.ZipFile, member: zipfile.ZipInfo, name: str) -> Tensor:
    def load() -> Array:
        # Of zip's methods only these two unpack piece by piece, within the declared size.
        if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise InputError(f"{name} is packed by a method NumPy does not write: save with numpy.savez")
        with archive.open(member) as file:
            return _array(file, member.file_size, name)

    return Tensor(name, load)
