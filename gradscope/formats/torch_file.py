"""PyTorch's own files (``.pt``, ``.pth``, ``.bin``, ``.ckpt``), read without PyTorch."""

from __future__ import annotations

import math
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO, Any

import ml_dtypes
import numpy as np

from gradscope.custom_types import Array, PathLike
from gradscope.errors import InputError, quoted
from gradscope.formats.pickles import Call, Name, leaves, read_pickle
from gradscope.formats.tensors import EXPECTED, Tensor, Tensors, allowed, check_size, members, opened

_STORAGES: dict[str, Any] = {
    "torch.DoubleStorage": "f8",
    "torch.FloatStorage": "f4",
    "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": ml_dtypes.bfloat16,
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "?",
    "torch.ComplexFloatStorage": "c8",  # no weight of ours, but not the fault of the file
    "torch.ComplexDoubleStorage": "c16",
}
_TENSOR, _PARAMETER = "torch._utils._rebuild_tensor_v2", "torch._utils._rebuild_parameter"
# Data that training scripts keep beside the weights: named, never made. What else there may be is not
# made either, but a file that asks for it is no state dict, and is refused.
_HARMLESS = re.compile(
    r"torch\.(\w+Storage|Size|device|u?int\d+|b?float\d+|bool|double|half|long|strided)"
    r"|torch\.(storage\.\w*Storage|serialization\._get_layout)"
    r"|collections\.(OrderedDict|defaultdict|Counter|deque)|argparse\.Namespace|_codecs\.encode"
    r"|(builtins|__builtin__)\.(set|frozenset|list|dict|tuple|int|float|complex|bytearray|slice|range)"
    r"|numpy\.(dtype|ndarray|dtypes\.\w+)|numpy\.(_core|core)\.multiarray\.(scalar|_reconstruct)"
    r"|(pytorch_)?lightning(_fabric|_utilities)?(\.\w+)+"
    r"|pathlib\.\w*Path|datetime\.(datetime|date|timedelta)|torch\._utils\._rebuild_(tensor_v[23]|parameter)"
)
# Under these keys training scripts and Lightning keep the weights, beside those of the optimiser.
_NESTED = ("state_dict", "model_state_dict", "model")
_SAVE = "save torch.save(model.state_dict(), 'model.pt') in PyTorch 1.6 or later"
_VALUES = 2**16


@contextmanager
def open_torch(path: PathLike, max_size: int | None = None) -> Iterator[Tensors]:
    """The tensors of a state dict by name, wherever in the file it is.

    max_size : bytes the tensors may have together, by default a small multiple of the file's size.
    """
    with opened(path, "PyTorch") as (file, size):
        limit = allowed(size, max_size)
        with _archive(file) as archive:
            yield _tensors(archive, limit)


def _archive(file: IO[bytes]) -> zipfile.ZipFile:
    if not zipfile.is_zipfile(file):
        raise InputError(f"is a pickle of an old PyTorch, or damaged, or no PyTorch file: {_SAVE}")
    return zipfile.ZipFile(file)


def _tensors(archive: zipfile.ZipFile, limit: int) -> Tensors:
    found = {member.filename: member for member in members(archive, limit)}
    roots = [name.removesuffix("data.pkl") for name in found if re.fullmatch(r"[^/]*/data\.pkl", name)]
    if len(roots) != 1:
        raise InputError(f"holds {len(roots)} state dicts (data.pkl), expected one: {_SAVE}")
    if any(name.startswith((f"{roots[0]}code/", f"{roots[0]}constants.pkl")) for name in found):
        raise InputError(f"is a TorchScript program: torch.jit.load it and {_SAVE}")
    if any(member.compress_type != zipfile.ZIP_STORED for member in found.values()):
        raise InputError(f"is compressed, which PyTorch does not do: {_SAVE}")
    order = archive.read(f"{roots[0]}byteorder") if f"{roots[0]}byteorder" in found else b"little"
    if order != b"little":
        raise InputError(f"has byte order {quoted(order)}, expected little: {_SAVE} on another machine")
    tree = read_pickle(archive.read(f"{roots[0]}data.pkl"), lambda name: bool(_HARMLESS.fullmatch(name)))
    if not isinstance(tree, dict):
        raise InputError(f"holds {_in_words(tree)}, expected a state dict: {_SAVE}")
    storages = {name.removeprefix(f"{roots[0]}data/"): member for name, member in found.items()}
    views = {name: view for name, value in _weights(tree) if (view := _view(value, storages, name))}
    check_size(sum(view.size for view in views.values()), limit)
    return {n: Tensor(view.called, partial(view.load, archive), view.size) for n, view in views.items()}


def _weights(tree: dict[Any, Any]) -> list[tuple[str, Any]]:
    """The leaves of the model's own state dict where there are others as well, else of all."""
    for key in _NESTED:
        nested = tree.get(key)
        if isinstance(nested, dict) and any(isinstance(value, Call) for _, value in leaves(nested, _VALUES)):
            return list(leaves(nested, _VALUES))
    return list(leaves(tree, _VALUES))


def _in_words(value: Any) -> str:
    """What a file holds in place of a dict."""
    if isinstance(value, Call) and value.function in (_TENSOR, _PARAMETER):
        return "a single tensor"
    return "a list" if isinstance(value, list | tuple) else "a single Python object"


class _View:
    """A strided view into a storage, checked to lie within it."""

    def __init__(self, called: str, member: zipfile.ZipInfo, dtype: Any, place: tuple[Any, ...]) -> None:
        offset, shape, strides = place
        whole = (offset, *shape, *strides)
        if len(shape) != len(strides) or len(shape) > 32 or any(type(n) is not int or n < 0 for n in whole):
            raise InputError(f"{called} has shape {shape!r:.80} and strides {strides!r:.80}: damaged")
        self.called, self.member = called, member
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.offset: int = offset
        self.shape: tuple[int, ...] = shape
        self.strides: tuple[int, ...] = strides
        steps = sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True))
        self.extent = 0 if 0 in shape else steps + 1
        if (offset + self.extent) * self.dtype.itemsize > member.file_size:
            raise InputError(f"{called} reaches beyond its storage of {member.file_size} bytes: damaged")

    @property
    def size(self) -> int:
        """Bytes of the tensor; one that repeats its storage has more than that."""
        return math.prod(self.shape) * self.dtype.itemsize

    def load(self, archive: zipfile.ZipFile) -> Array:
        size = self.dtype.itemsize
        with archive.open(self.member) as file:
            file.seek(self.offset * size)
            data = np.frombuffer(file.read(self.extent * size), self.dtype)
        strides = tuple(stride * size for stride in self.strides)
        return np.lib.stride_tricks.as_strided(data, self.shape, strides, writeable=False)


def _view(value: Any, storages: dict[str, zipfile.ZipInfo], name: str) -> _View | None:
    """The tensor that a call in the pickle stands for, None if it stands for none."""
    if isinstance(value, Call) and value.function == _PARAMETER and value.arguments:
        value = value.arguments[0]
    if not isinstance(value, Call) or value.function != _TENSOR:
        return None
    called = f"tensor {quoted(name)}"
    match value.arguments:
        case (Call("", ("storage", Name(kind), str(key), *_)), offset, tuple(shape), tuple(strides), *_):
            if kind not in _STORAGES:
                raise InputError(f"{called} has {quoted(kind)}, {EXPECTED}: convert it to float32")
            if key not in storages:
                raise InputError(f"{called} has no data in the file: truncated or damaged")
            return _View(called, storages[key], _STORAGES[kind], (offset, shape, strides))
    raise InputError(f"{called} is described in a way torch.save does not write: {_SAVE}")
