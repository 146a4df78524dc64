"""The tensors of a ``.safetensors`` file, none of them read before it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ml_dtypes  # noqa: F401  # what lets safetensors name bfloat16
import numpy as np

from gradscope.custom_types import Array, PathLike
from gradscope.errors import InputError, quoted
from gradscope.formats.budget import Budget
from gradscope.formats.tensors import EXPECTED, Tensor, Tensors, opened

_DTYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}


@contextmanager
def open_safetensors(path: PathLike, max_size: int | None = None) -> Iterator[Tensors]:
    """The tensors in the file by name; max_size : bytes that it may have."""
    from safetensors import safe_open

    # The library checks that the header's claims tile the file exactly. Its other way to read, mmap,
    # is a bus error when a training run overwrites the file meanwhile.
    with opened(path, ".safetensors", max_size) as (_, budget):
        budget.unpack(budget.size)
        with safe_open(path, framework="np", backend="pread") as file:
            yield {key: _tensor(file, key, budget) for key in file.keys()}  # noqa: SIM118  # it is no dict


def _tensor(file: Any, key: str, budget: Budget) -> Tensor:
    budget.name(key)
    name = f"tensor {quoted(key)}"

    def load() -> Array:
        dtype = file.get_slice(key).get_dtype()
        if dtype not in _DTYPES:
            raise InputError(f"{name} has dtype {dtype}, {EXPECTED}: convert it to float32")
        return np.asarray(file.get_tensor(key))

    return Tensor(name, load)
