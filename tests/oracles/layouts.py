"""Weights as PyTorch names and arranges them, and its files written by hand: what torch would be needed for.

Names and order of gates are those of the documentation of torch.nn.LSTM, GRU and RNN; the comparison with
torch itself is in tests/parity.
"""

from __future__ import annotations

import io
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

GATES = {"lstm": "ifzo", "gru": "rzh", "rnn": ("",)}
Arrays = dict[str, np.ndarray]


def drawn(shapes: Mapping[str, tuple[int, ...]], limit: float, seed: int, dtype: Any = "float32") -> Arrays:
    """Uniform between -limit and limit, as PyTorch's recurrent layers begin."""
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(-limit, limit, shape).astype(dtype) for name, shape in shapes.items()}


def recurrent(
    kind: str,
    features: int,
    hidden: int,
    *,
    layers: int = 1,
    bidirectional: bool = False,
    bias: bool = True,
    projection: int = 0,
    prefix: str = "",
    scale: float = 1.0,
    seed: int = 0,
    dtype: Any = "float32",
) -> Arrays:
    """The state dict of torch.nn.LSTM, GRU or RNN, as arrays."""
    rows, out = len(GATES[kind]) * hidden, projection or hidden
    shapes: dict[str, tuple[int, ...]] = {}
    for number in range(layers):
        reads = features if number == 0 else out * (1 + bidirectional)
        for side in ("", "_reverse")[: 1 + bidirectional]:
            end = f"_l{number}{side}"
            shapes |= {f"{prefix}weight_ih{end}": (rows, reads), f"{prefix}weight_hh{end}": (rows, out)}
            shapes |= {f"{prefix}bias_{role}{end}": (rows,) for role in ("ih", "hh") if bias}
            shapes |= {f"{prefix}weight_hr{end}": (projection, hidden)} if projection else {}
    return drawn(shapes, scale / np.sqrt(hidden), seed, dtype)


def dense(name: str, features: int, outputs: int, *, seed: int = 0, dtype: Any = "float32") -> Arrays:
    """The state dict of torch.nn.Linear under a name."""
    shapes = {f"{name}.weight": (outputs, features), f"{name}.bias": (outputs,)}
    return drawn(shapes, 1 / np.sqrt(features), seed, dtype)


def equations_of(kind: str, state: Arrays, end: str = "_l0") -> Arrays:
    """A layer's parameters under the names of the equations."""
    found = {}
    for letter, role in (("W", "weight_ih"), ("R", "weight_hh"), ("b", "bias_ih"), ("c", "bias_hh")):
        blocks = np.split(state[role + end].astype(float), len(GATES[kind]))
        found |= {f"{letter}_{gate}".rstrip("_"): a for gate, a in zip(GATES[kind], blocks, strict=True)}
    for gate in GATES[kind]:
        key = f"_{gate}".rstrip("_")
        if (kind, gate) != ("gru", "h"):  # the candidate's two biases stay apart
            found["b" + key] = found["b" + key] + found.pop("c" + key)
    return found


class Global:
    """A name that a pickle calls: written without being imported, called or there."""

    def __init__(self, module: str, name: str, arguments: tuple[Any, ...] | None = None) -> None:
        self.module, self.name, self.arguments = module, name, arguments

    def __call__(self, *arguments: Any) -> Global:
        return Global(self.module, self.name, arguments)


class Storage:
    """The bytes that tensors of a .pt file are views of."""

    def __init__(self, values: np.ndarray) -> None:
        self.values = values


KINDS = {
    "float64": "DoubleStorage",
    "float32": "FloatStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
}


class Pickler(pickle._Pickler):
    """What torch.save pickles, arrays standing for tensors; the pure Python class can be overridden."""

    def __init__(self, file: io.BytesIO, protocol: int = 2) -> None:
        super().__init__(file, protocol)
        self.storages: list[np.ndarray] = []

    def persistent_id(self, value: Any) -> Any:
        if not isinstance(value, Storage):
            return None
        self.storages.append(value.values)
        kind = Global("torch", KINDS[value.values.dtype.name])
        return ("storage", kind, str(len(self.storages) - 1), "cpu", value.values.size)

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, np.ndarray):
            strides = tuple(stride // value.itemsize for stride in np.ascontiguousarray(value).strides)
            storage = Storage(np.ascontiguousarray(value).ravel())
            arguments = (storage, 0, value.shape, strides, False, Global("collections", "OrderedDict")())
            return Global("torch._utils", "_rebuild_tensor_v2"), arguments
        if isinstance(value, Global) and value.arguments is not None:
            return Global(value.module, value.name), value.arguments
        return NotImplemented

    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        if isinstance(value, Global) and value.arguments is None:
            self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
        else:
            super().save(value, save_persistent_id)


def zipped(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def torch_bytes(value: Any, protocol: int = 2) -> bytes:
    """A .pt file as torch.save writes it since 1.6: a zip of a pickle and of every tensor's bytes."""
    buffer = io.BytesIO()
    pickler = Pickler(buffer, protocol)
    pickler.dump(value)
    members = {"archive/data.pkl": buffer.getvalue(), "archive/byteorder": b"little"}
    members |= {f"archive/data/{k}": values.tobytes() for k, values in enumerate(pickler.storages)}
    return zipped(members | {"archive/version": b"3\n"})


def saved(state: Arrays, path: Path) -> Path:
    """The state dict as a .pt or .safetensors file."""
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        path.write_bytes(torch_bytes(state))
    return path


def module(**parts: Arrays) -> Arrays:
    """The state dict of a ModuleDict."""
    return {f"{name}.{key}": value for name, state in parts.items() for key, value in state.items()}
