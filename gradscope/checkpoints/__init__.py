"""Recurrent layers in files: one reader per format, each returns a ``Layer``."""

from __future__ import annotations

import os
from pathlib import Path

from gradscope.cells import CELLS, find
from gradscope.cells.base import Cell
from gradscope.checkpoints import native, torch_state
from gradscope.checkpoints.layer import Layer
from gradscope.errors import InputError
from gradscope.files import shown

__all__ = ["Layer", "read"]

_READERS = {".npz": native.read, ".safetensors": torch_state.read}

_ARRAYS = "save its arrays with numpy.savez under the names W_z, R_z, b_z, ..."
_STATE_DICT = "convert it with safetensors.torch.save_file(model.state_dict(), 'model.safetensors')"
_CONVERSIONS = dict.fromkeys((".pt", ".pth", ".ckpt", ".bin"), _STATE_DICT) | dict.fromkeys(
    (".h5", ".hdf5", ".keras", ".onnx", ".msgpack", ".eqx"), _ARRAYS
)


def read(path: str | os.PathLike[str], cell: str | Cell | None = None) -> Layer:
    """The recurrent layer in a checkpoint: ``.npz`` (native keys) or ``.safetensors`` (also PyTorch's).

    cell : name of a built-in cell, ``package.module:factory`` or a Cell; needed where the file fits
        more than one. Raises InputError for a file that is damaged, or is not one layer of that cell.
    """
    reader = _READERS.get(Path(path).suffix.lower())
    if reader is None:
        raise _unknown_format(path)
    return reader(path, find(cell) if isinstance(cell, str) else cell)


def _unknown_format(path: str | os.PathLike[str]) -> InputError:
    if str(path) in CELLS:
        return InputError(f"checkpoint {path}: expected a file; for a fresh cell say --cell {path}")
    hint = _CONVERSIONS.get(Path(path).suffix.lower(), f"{_STATE_DICT}, or {_ARRAYS}")
    return InputError(f"checkpoint {shown(path)}: expected a .npz or .safetensors file: {hint}")
