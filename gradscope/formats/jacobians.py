"""A stack of one-step Jacobians from a .npy: a file, or what is piped in."""

from __future__ import annotations

import io
import os
import stat
import sys
from pathlib import Path
from typing import IO

from gradscope.custom_types import Array, PathLike
from gradscope.errors import InputError, about, reason, shown
from gradscope.formats.budget import Budget
from gradscope.formats.content import by_content
from gradscope.formats.numpy_files import npy_array, read_npy
from gradscope.formats.reading import TENSOR_FILES, suffix
from gradscope.formats.tensors import as_float64
from gradscope.machine import available

# How a .npy begins, and bytes that are read at a time; of memory a stream may take one part in so many.
_MAGIC, _PIECE, _PART_OF_MEMORY = b"\x93NUMPY", 2**20, 8
# Suffixes of models, besides those of named tensors.
_MODELS = {*TENSOR_FILES, ".keras", ".h5", ".onnx"}


def read_jacobians(path: PathLike) -> Array:
    """A stack of one-step Jacobians (T, m, m) from a ``.npy`` file or a pipe, the first step first.

    path : ``-`` is stdin. Raises InputError for anything else, a model too.
    """
    stack = _piped(path) if is_pipe(path) else _of_file(path)
    if stack.ndim != 3 or stack.shape[1] != stack.shape[2] or 0 in stack.shape:
        raise InputError(
            f"{shown(path)}: got shape {stack.shape}, expected (T, m, m): T >= 1 Jacobians of m >= 1 states"
        )
    return stack


def is_pipe(path: PathLike) -> bool:
    """Whether it is stdin, or what can only be read once from its start: a pipe, ``<(command)``."""
    if os.fspath(path) == "-":
        return True
    try:
        return stat.S_ISFIFO(Path(path).stat().st_mode)
    except OSError:
        return False


def _of_file(path: PathLike) -> Array:
    kind = by_content(path) or suffix(path)
    if kind in _MODELS and Path(path).is_file():
        raise InputError(
            f"{shown(path)}: is a {kind} file, expected a .npy of Jacobians (T, m, m); for a model say "
            f"gradscope analyze {shown(path)}"
        )
    return read_npy(path)


def _piped(path: PathLike) -> Array:
    """The array of a .npy stream, of which no more is held than memory has room for."""
    stdin = os.fspath(path) == "-"
    with about("stdin" if stdin else path):
        if stdin and (sys.stdin is None or sys.stdin.isatty()):
            raise InputError("is no pipe, expected a .npy from one, as in: gradscope chain - < FILE.npy")
        with open(0 if stdin else path, "rb", closefd=not stdin) as stream:
            whole = _all_of(stream, available() // _PART_OF_MEMORY)
        try:
            array = npy_array(io.BytesIO(whole), len(whole), "the array", Budget(len(whole)))
            return as_float64(array, "the array")
        except InputError:
            raise
        except Exception as error:  # as of files
            raise InputError(f"not a sound .npy ({reason(error)}): write it by numpy.save") from error


def _all_of(stream: IO[bytes], most: int) -> bytes:
    found = bytearray(stream.read(len(_MAGIC)))
    if found != _MAGIC:
        raise InputError("does not begin as a .npy does, expected one of Jacobians (T, m, m)")
    while piece := stream.read(_PIECE):
        found += piece
        if len(found) > most:
            raise InputError(
                f"is more than {most >> 20} MiB, for which memory has no room: save it as a file"
            )
    return bytes(found)
