"""Files by their suffix: which module opens them, as named tensors or as one array."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

from gradscope.custom_types import Array, PathLike
from gradscope.errors import InputError, listed, quoted, shown
from gradscope.formats.csv_table import read_csv
from gradscope.formats.numpy_files import open_npz, read_npy, split_key
from gradscope.formats.safetensors_file import open_safetensors
from gradscope.formats.tensors import Tensors

_FORMATS = "a .npy, .npz, .safetensors or .csv file"
# Of an honest size; --max-size is about checkpoints.
_UNPACKED = "save it with numpy.savez, which does not compress"
_TREES: dict[str, Callable[[PathLike], AbstractContextManager[Tensors]]] = {
    ".npz": partial(open_npz, remedy=_UNPACKED),
    ".safetensors": open_safetensors,
}


def read_array(path: PathLike, expected: str = _FORMATS) -> Array:
    """The array in a file as float64.

    path : a ``.npy``, a ``.npz`` or ``.safetensors`` that holds nothing else or is followed by
        ``:name``, or a ``.csv``, of shape (rows, columns); expected : what the message asks for
        where it is none of these.
    Raises InputError for whatever is not finite numbers.
    """
    file, key = split_key(path)
    suffix = Path(file).suffix.lower()
    if suffix in _TREES:
        with _TREES[suffix](file) as tensors:
            return tensors[_chosen(list(tensors), file, key)].values()
    if suffix == ".npy":
        return read_npy(path)
    if suffix == ".csv":
        return read_csv(path)
    raise InputError(f"{quoted(os.fspath(path))}: expected {expected}")


def read_arrays(path: PathLike, alone: str) -> dict[str, Array]:
    """Every array in a file by its name; ``alone`` is the name of one that has none."""
    file, key = split_key(path)
    suffix = Path(file).suffix.lower()
    if suffix in _TREES and key is None:
        with _TREES[suffix](file) as tensors:
            return {name: tensor.values() for name, tensor in tensors.items()}
    return {alone: read_array(path)}


def _chosen(names: list[str], file: str, key: str | None) -> str:
    if key is not None and key not in names:
        raise InputError(f"holds no array {quoted(key)}, expected one of {listed(names)}")
    if not names:
        raise InputError("holds no array")
    if key is None and len(names) > 1:
        raise InputError(
            f"holds {len(names)} arrays ({listed(names)}): say which, as in {shown(file)}:{listed(names[:1])}"
        )
    return names[0] if key is None else key
