"""Tensors of PyTorch as views into storages, which lie in archives, in old files or in a pickle itself."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import IO, Any

import ml_dtypes
import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError, listed, quoted
from gradscope.formats.budget import Budget
from gradscope.formats.pickles import Call, Clipped, Name, read_pickle
from gradscope.formats.tensors import EXPECTED
from gradscope.formats.torch_tree import REBUILD

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
# Whole numbers that stand for others, by a scale and a zero point.
_QUANTISED = {"torch.QInt8Storage": "i1", "torch.QUInt8Storage": "u1", "torch.QInt32Storage": "i4"}
# Of those that are no numbers of ours only the size matters: what follows them in a file is found by it.
_SIZES = {name: np.dtype(dtype).itemsize for name, dtype in _STORAGES.items()}
_SIZES |= {name: np.dtype(dtype).itemsize for name, dtype in _QUANTISED.items()}
_SIZES |= {"torch.UntypedStorage": 1}
# What is to be done with a file that is not read.
SAVE = "save torch.save(model.state_dict(), 'model.pt')"
# What an old file begins with, as a pickle of its own.
_MAGIC = 0x1950A86A20F9469CFC6C
_FROM_BYTES = "torch.storage._load_from_bytes"


@dataclass(frozen=True)
class Storage:
    """Bytes in a file: how many there are, and how to read so many from a place on."""

    size: int
    read: Callable[[int, int], bytes]


# By key, the storage that a persistent reference stands for.
Storages = Mapping[str, Storage]


def check_order(little: bool) -> None:
    """Raise InputError for a file of a machine whose numbers have their bytes in another order."""
    if not little:
        raise InputError(f"has byte order big, expected little: {SAVE} on another machine")


def read_old(file: IO[bytes], size: int, budget: Budget) -> tuple[Any, Storages]:
    """What a file from before PyTorch 1.6 holds, pickles and then the storages, or any other pickle."""
    clipped, references = Clipped(file, size), list[Call]()
    first = read_pickle(clipped, budget)
    if first != _MAGIC:
        return first, {}
    read_pickle(clipped, budget)  # the version of the protocol
    system = read_pickle(clipped, budget)
    check_order(not isinstance(system, dict) or system.get("little_endian", True) is True)
    whole, keys = read_pickle(clipped, budget, references), read_pickle(clipped, budget)
    sizes: dict[str, int] = {}
    for reference in references:
        match reference.arguments:
            case ("storage", Name(kind), str(key), *_) if kind in _SIZES:
                sizes[key] = _SIZES[kind]
    storages = {}
    for key in keys if isinstance(keys, list) else ():
        budget.draw(8)
        each = sizes.get(key) if isinstance(key, str) else None
        count = int.from_bytes(clipped.read(8), "little", signed=True)
        if each is None or not 0 <= count * each <= size - file.tell():
            raise InputError(f"has a storage of {count} numbers: truncated or damaged")
        storages[key] = _in_file(file, file.tell(), count * each)
        file.seek(count * each, io.SEEK_CUR)
    return whole, storages


def _in_file(file: IO[bytes], place: int, size: int) -> Storage:
    def read(start: int, count: int) -> bytes:
        file.seek(place + start)
        return file.read(count)

    return Storage(size, read)


@dataclass(frozen=True)
class View:
    """A strided view into a storage, checked to lie within it."""

    called: str
    storage: Storage
    dtype: np.dtype[Any]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        whole = (self.offset, *self.shape, *self.strides)
        if not all(type(n) is int for n in whole):
            raise InputError(f"{self.called} has a shape that is not of numbers: damaged")
        if len(self.shape) != len(self.strides) or len(self.shape) > 32 or min(whole) < 0:
            kinds = f"shape {self.shape!r:.80} and strides {self.strides!r:.80}"
            raise InputError(f"{self.called} has {kinds}: damaged")
        if (self.offset + self.extent) * self.dtype.itemsize > self.storage.size:
            held = f"its storage of {self.storage.size} bytes"
            raise InputError(f"{self.called} reaches beyond {held}: damaged")

    @property
    def extent(self) -> int:
        """Numbers of the storage from the first to the last of the tensor."""
        steps = sum((n - 1) * stride for n, stride in zip(self.shape, self.strides, strict=True))
        return 0 if 0 in self.shape else steps + 1

    @property
    def size(self) -> int:
        """Bytes of the tensor; one that repeats its storage has more than that."""
        return math.prod(self.shape) * self.dtype.itemsize

    def load(self, budget: Budget) -> Array:
        """The numbers."""
        budget.draw(size=8 * math.prod(self.shape))  # as float64
        size = self.dtype.itemsize
        data = np.frombuffer(self.storage.read(self.offset * size, self.extent * size), self.dtype)
        strides = tuple(stride * size for stride in self.strides)
        return np.lib.stride_tricks.as_strided(data, self.shape, strides, writeable=False)


@dataclass(frozen=True)
class Unread:
    """A tensor of numbers that are none of ours, which is an error where it is asked for."""

    called: str
    kind: str
    size: int = 0

    def load(self, _: Budget) -> Array:
        """The error."""
        raise InputError(f"{self.called} has {quoted(self.kind)}, {EXPECTED}: convert it to float32")


@dataclass(frozen=True)
class Quantised:
    """A view of whole numbers q that stand for (q - zero) scale, computed in float32 as torch does."""

    whole: View
    scale: Callable[[Budget], Array]
    zero: Callable[[Budget], Array]

    @property
    def called(self) -> str:
        """As that of the view."""
        return self.whole.called

    @property
    def size(self) -> int:
        """Bytes of the numbers in float32."""
        return 4 * math.prod(self.whole.shape)

    def load(self, budget: Budget) -> Array:
        """The numbers that they stand for."""
        numbers = self.whole.load(budget).astype(np.float32)
        return np.multiply(numbers - self.zero(budget), self.scale(budget))


@dataclass
class Embedded:
    """Files within a file, as which plain pickles keep storages."""

    budget: Budget
    done: dict[int, tuple[Call, Storages]] = field(default_factory=dict)

    def storage(self, packed: Any) -> tuple[Call, Storages]:
        """The reference to the one storage that is packed so; many tensors may have one."""
        if id(packed) not in self.done:
            data = _bytes(packed, self.budget) or b""
            whole, storages = read_old(io.BytesIO(data), len(data), self.budget)
            self.done[id(packed)] = (whole if isinstance(whole, Call) else Call("", ()), storages)
        return self.done[id(packed)]


def view(call: Call, storages: Storages, embedded: Embedded, called: str) -> View | Quantised | Unread:
    """What a call that makes a tensor or an array stands for."""
    if call.function.startswith("numpy."):
        return _array(call, called, embedded.budget)
    if call.function not in REBUILD:
        return Unread(called, _other(call))
    match call.arguments:
        case (Call(_, _) as reference, offset, tuple(shape), tuple(strides), *_):
            pass
        case _:
            raise InputError(f"{called} is described in a way torch.save does not write: {SAVE}")
    if turned := _turned(call.arguments):
        return Unread(called, turned)
    if reference.function == _FROM_BYTES and reference.arguments:
        reference, storages = embedded.storage(reference.arguments[0])
    match reference.arguments:
        case ("storage", Name(kind), str(key), *rest):
            if kind not in _STORAGES | _QUANTISED:
                return Unread(called, kind)
            if key not in storages:
                raise InputError(f"{called} has no data in the file: truncated or damaged")
            match rest:  # old files know views of storages
                case (_, _, (_, int(start), _)):
                    offset = offset + start
            plain = np.dtype((_STORAGES | _QUANTISED)[kind])
            whole = View(called, storages[key], plain, offset, shape, strides)
            return whole if kind in _STORAGES else _dequantised(whole, call.arguments, storages, embedded)
    raise InputError(f"{called} is described in a way torch.save does not write: {SAVE}")


def _turned(arguments: tuple[Any, ...]) -> str:
    """What is yet to be done to the numbers of a view, as torch keeps it beside them: "" where nothing is."""
    match arguments:
        case (_, _, _, _, _, _, dict(said)):
            return listed([f"{name} view" for name in ("neg", "conj") if said.get(name)])
    return ""


def _other(call: Call) -> str:
    """What a tensor of another kind is: its dtype of 8 bits, or as torch calls what makes it."""
    eights = (one.text for one in call.arguments if isinstance(one, Name) and "float8" in one.text)
    return next(eights, call.function.rpartition("_rebuild_")[2].replace("_", " "))


def _dequantised(whole: View, arguments: Any, storages: Storages, embedded: Embedded) -> Quantised | Unread:
    """The view of numbers with the scale and the zero point of all, or of each place in an axis."""
    match arguments[4:5]:
        case ((Name("torch.per_tensor_affine"), float(scale), int(zero)),):
            return Quantised(whole, *(partial(_one, n) for n in (scale, zero)))
        case ((Name("torch.per_channel_affine"), Call() as scales, Call() as zeros, int(axis)),):
            parts = [view(part, storages, embedded, whole.called) for part in (scales, zeros)]
            if 0 <= axis < len(whole.shape) and all(_fits(part, whole.shape[axis]) for part in parts):
                along = tuple(-1 if k == axis else 1 for k in range(len(whole.shape)))
                return Quantised(whole, *(partial(_along, part, along) for part in parts))
    return Unread(whole.called, "a way of quantisation of its own")


def _one(number: float, _: Budget) -> Array:
    return np.array(number, np.float32)


def _fits(part: Any, count: int) -> bool:
    return isinstance(part, View) and part.shape == (count,)


def _along(part: Any, axes: tuple[int, ...], budget: Budget) -> Array:
    """A number for each place of an axis."""
    values: Array = part.load(budget)
    return values.astype(np.float32).reshape(axes)


def _array(call: Call, called: str, budget: Budget) -> View | Unread:
    """An array of NumPy, of which a pickle has bytes, dtype, shape and order."""
    match call:
        case Call(_, _, (_, tuple(shape), Call() as dtype, fortran, packed)):  # multiarray._reconstruct
            pass
        case Call(_, (packed, Call() as dtype, tuple(shape), str(order))):  # numeric._frombuffer
            fortran = order == "F"
        case _:
            return Unread(called, "an array of Python objects")
    data = _bytes(packed, budget)
    if data is None:
        return Unread(called, "an array of Python objects")
    match dtype:
        case Call("numpy.dtype", (str(kind), *_), state) if re.fullmatch(r"[fiub]\d", kind):
            swapped = isinstance(state, tuple) and state[1:2] == (">",)
        case _:
            return Unread(called, "a dtype of its own")
    read = np.dtype((">" if swapped else "<") + kind)
    sizes = shape[::-1] if fortran else shape
    strides = tuple(math.prod(sizes[k + 1 :]) for k in range(len(sizes))) if _sound(shape) else ()
    storage = Storage(len(data), lambda start, count: data[start : start + count])
    return View(called, storage, read, 0, shape, strides[::-1] if fortran else strides)


def _bytes(value: Any, budget: Budget) -> bytes | None:
    """The bytes that a pickle holds, before protocol 3 as a text to encode; None of anything else."""
    match value:
        case bytes(data) | bytearray(data):
            budget.draw(size=len(data))
            return bytes(data)
        case str(text) | Call("_codecs.encode", (str(text), "latin1")):  # the first is of Python 2
            budget.draw(size=len(text))  # many arrays may be of one text
            return text.encode("latin1")
    return None


def _sound(shape: tuple[Any, ...]) -> bool:
    return len(shape) <= 32 and all(type(n) is int and n >= 0 for n in shape)
