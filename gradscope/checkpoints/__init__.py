"""Recurrent layers in files: a reader per format opens the tensors, a module per library knows the names."""

from __future__ import annotations

import importlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from gradscope.cells import CELLS, find
from gradscope.cells.base import Cell
from gradscope.checkpoints import flax_tree, native, torch_state
from gradscope.checkpoints.found import ACTIVATIONS, Contents, Found
from gradscope.checkpoints.layer import Layer
from gradscope.errors import InputError
from gradscope.files import Tensors, about, listed, quoted, shown

__all__ = ["ACTIVATIONS", "Contents", "Found", "Layer", "read", "read_all"]

# suffix -> module:function that opens such a file, imported when one is read.
_TREES = {
    ".npz": "gradscope.files:open_npz",
    ".safetensors": "gradscope.checkpoints.safetensors_file:open_safetensors",
    ".msgpack": "gradscope.checkpoints.msgpack_tree:open_msgpack",
} | dict.fromkeys((".pt", ".pth", ".bin", ".ckpt"), "gradscope.checkpoints.torch_file:open_torch")
# suffix -> module:function that reads a file which says more than the names of its tensors.
_MODELS = {
    ".keras": "gradscope.checkpoints.keras_file:read_keras",
    ".h5": "gradscope.checkpoints.keras_file:read_hdf5",
    ".hdf5": "gradscope.checkpoints.keras_file:read_hdf5",
    ".onnx": "gradscope.checkpoints.onnx_graph:read_onnx",
}
_HINTS = {
    ".eqx": "an .eqx file has no names: save its arrays with numpy.savez under W_z, R_z, b_z, ...",
    ".pb": "a SavedModel: load it in TensorFlow and model.save_weights('model.weights.h5')",
}


def read_all(
    path: str | os.PathLike[str], cell: Cell | None = None, *, max_size: int | None = None
) -> Contents:
    """Every recurrent layer in a checkpoint, whether or not gradscope can analyse it.

    cell : whose names a native file's arrays have, needed where it is not a built-in one.
    max_size : bytes the file may unpack to, by default a small multiple of its size.
    Raises InputError for a file that is damaged, too large, or holds no recurrent layer.
    """
    suffix = Path(path).suffix.lower()
    if suffix in _MODELS:
        contents: Contents = _load(_MODELS[suffix])(path, max_size)
        return contents
    if suffix not in _TREES:
        raise _unknown_format(path)
    with _load(_TREES[suffix])(path, max_size) as tensors:
        return _layers_by_name(tensors, cell)


def read(
    path: str | os.PathLike[str],
    cell: str | Cell | None = None,
    *,
    layer: str | None = None,
    activation: str | None = None,
    max_size: int | None = None,
) -> Layer:
    """One recurrent layer of a checkpoint.

    layer : its name, or the end of it if no other layer's name ends so; needed if there are several.
    cell : a built-in name, ``package.module:factory`` or a Cell; activation : one of ACTIVATIONS. They
        decide what the file leaves open, and must not contradict it.
    Raises InputError for what ``read_all`` refuses, and for a layer that gradscope has no cell for.
    """
    wanted = find(cell) if isinstance(cell, str) else cell
    if activation is not None and activation not in ACTIVATIONS:
        raise InputError(f"activation is {quoted(activation)}, expected one of {', '.join(ACTIVATIONS)}")
    found = read_all(path, wanted, max_size=max_size).layers
    with about(path):
        return replace(_chosen(found, layer).settle(wanted, activation), source=os.fspath(path))


def _layers_by_name(tensors: Tensors, cell: Cell | None) -> Contents:
    """Layers told by the names of their tensors: PyTorch's, Flax', else our own."""
    found = (*torch_state.layers(tensors), *flax_tree.layers(tensors)) or (native.layer(tensors, cell),)
    return Contents.of(found, tensors)


def _chosen(found: tuple[Found, ...], name: str | None) -> Found:
    names = [layer.name for layer in found]
    if name is None:
        if len(found) > 1:
            raise InputError(
                f"holds {len(found)} recurrent layers ({listed(names)}): choose one, "
                f"as in --layer {shown(names[0])}"
            )
        return found[0]
    fitting = [layer for layer in found if layer.name == name] or [
        layer for layer in found if layer.name.endswith(name)
    ]
    if len(fitting) != 1:
        several = "is the end of several" if fitting else "is no recurrent layer"
        raise InputError(f"layer {quoted(name)} {several}, expected one of {listed(names)}")
    return fitting[0]


def _load(reference: str) -> Any:
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def _unknown_format(path: str | os.PathLike[str]) -> InputError:
    if str(path) in CELLS:
        return InputError(f"checkpoint {path}: expected a file; for a fresh cell say --cell {path}")
    hint = _HINTS.get(
        Path(path).suffix.lower(),
        "of another kind, numpy.savez its arrays under the names W_z, R_z, b_z, ...",
    )
    return InputError(f"checkpoint {shown(path)}: expected a file {', '.join(_TREES | _MODELS)}; {hint}")
