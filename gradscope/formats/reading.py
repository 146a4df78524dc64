"""Files by their suffix: the one table of which function opens which, as named tensors or as one array."""

from __future__ import annotations

import importlib
import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from gradscope.custom_types import Array, PathLike
from gradscope.errors import InputError, listed, quoted, shown
from gradscope.formats.content import by_content
from gradscope.formats.numpy_files import split_key
from gradscope.formats.tensors import Tensors

# suffix -> module:function that opens such a file as named tensors, imported when one is read.
TENSOR_FILES = {
    ".npz": "gradscope.formats.numpy_files:open_npz",
    ".safetensors": "gradscope.formats.safetensors_file:open_safetensors",
    ".msgpack": "gradscope.formats.msgpack_file:open_msgpack",
    ".model": "gradscope.formats.dynet_file:open_dynet",
    ".pb": "gradscope.formats.frozen_graph:open_frozen",
} | dict.fromkeys((".pt", ".pth", ".bin", ".ckpt", ".jit", ".pkl"), "gradscope.formats.torch_file:open_torch")
# The same for files of one array.
ARRAY_FILES = {
    ".npy": "gradscope.formats.numpy_files:read_npy",
    ".csv": "gradscope.formats.csv_table:read_csv",
}
# What inputs and states may be in, of the first, and what is said to their openers: they are of an honest
# size, and --max-size is about checkpoints.
_OF_INPUTS: dict[str, dict[str, Any]] = {
    ".npz": {"remedy": "save it with numpy.savez, which does not compress"},
    ".safetensors": {},
}
ARRAY_KINDS = "a .npy, .npz, .safetensors or .csv file"


def suffix(path: PathLike) -> str:
    """By which a file is told."""
    return Path(path).suffix.lower()


def kind_of(path: PathLike) -> str:
    """The suffix that a checkpoint should have: what it begins with goes before the one that it has."""
    return by_content(path) or suffix(path)


def load(reference: str) -> Any:
    """The function of a ``module:function``, imported now."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def open_tensors(path: PathLike, max_size: int | None = None) -> AbstractContextManager[Tensors]:
    """The tensors of a file of ``TENSOR_FILES`` by name; max_size : bytes that it may unpack to."""
    opened: AbstractContextManager[Tensors] = load(TENSOR_FILES[kind_of(path)])(path, max_size)
    return opened


def read_array(path: PathLike, expected: str = ARRAY_KINDS) -> Array:
    """The array in a file as float64.

    path : a ``.npy``, a ``.npz`` or ``.safetensors`` that holds nothing else or is followed by
        ``:name``, or a ``.csv``, of shape (rows, columns); expected : what the message asks for
        where it is none of these.
    Raises InputError for whatever is not finite numbers.
    """
    file, key = split_key(path)
    if suffix(file) in _OF_INPUTS:
        with _open_inputs(file) as tensors:
            return tensors[_chosen(list(tensors), file, key)].values()
    if suffix(file) in ARRAY_FILES:
        array: Array = load(ARRAY_FILES[suffix(file)])(path)
        return array
    saved = "; a tensor of PyTorch is saved so by numpy.save('x.npy', x.cpu().numpy())"
    hint = saved if suffix(file) in (".pt", ".pth") else ""
    raise InputError(f"{quoted(os.fspath(path))}: expected {expected}{hint}")


def read_arrays(path: PathLike, alone: str) -> dict[str, Array]:
    """Every array in a file by its name; ``alone`` is the name of one that has none."""
    file, key = split_key(path)
    if suffix(file) in _OF_INPUTS and key is None:
        with _open_inputs(file) as tensors:
            return {name: tensor.values() for name, tensor in tensors.items()}
    return {alone: read_array(path)}


def _open_inputs(path: PathLike) -> AbstractContextManager[Tensors]:
    opened: AbstractContextManager[Tensors] = load(TENSOR_FILES[suffix(path)])(
        path, **_OF_INPUTS[suffix(path)]
    )
    return opened


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
