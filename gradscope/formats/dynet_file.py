"""Models that DyNet saves as text: a line that describes each parameter, then its numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO

import numpy as np

from gradscope.custom_types import Array, PathLike
from gradscope.errors import InputError, quoted
from gradscope.formats.budget import Budget
from gradscope.formats.tensors import Tensor, Tensors, opened

_HEADER = re.compile(rb"#(Lookup)?Parameter# (\S+) \{(\d+(?:,\d+)*)\} (\d+) (ZERO_GRAD|FULL_GRAD)\n")
_LONGEST_LINE = 1024


@contextmanager
def open_dynet(path: PathLike, max_size: int | None = None) -> Iterator[Tensors]:
    """The parameters by name, as DyNet has them: an LSTM's W and R (4 n, d) with gates i f o z, b (4 n,).

    max_size : bytes that they may have together, by default a small multiple of the file's.
    """
    with opened(path, "DyNet", max_size) as (file, budget):
        tensors = dict(_parameters(file, budget))
        budget.unpack(sum(tensor.size for tensor in tensors.values()))
        yield tensors


def _parameters(file: IO[bytes], budget: Budget) -> Iterator[tuple[str, Tensor]]:
    while line := file.readline(_LONGEST_LINE):
        match = _HEADER.fullmatch(line)
        if match is None:
            raise InputError(f"has {quoted(line[:40])} in place of the next parameter: truncated or damaged")
        name, length = match[2].decode("latin1"), int(match[4])
        shape = tuple(map(int, match[3].split(b",")))
        budget.draw(2, len(line))
        called, start = f"parameter {quoted(name)}", file.tell()
        if start + length > budget.size:
            raise InputError(f"{called} has {length} bytes and the file ends before: truncated")
        yield name, Tensor(called, partial(_values, file, start, length, shape, called), 8 * math.prod(shape))
        # Gradients, where they are kept, are as long as the values.
        file.seek(start + length * (1 + (match[5] == b"FULL_GRAD")))


def _values(file: IO[bytes], start: int, length: int, shape: tuple[int, ...], called: str) -> Array:
    """The numbers, which stand column by column."""
    file.seek(start)
    numbers = file.read(length).split()
    if len(numbers) != math.prod(shape):
        raise InputError(f"{called} has {len(numbers)} numbers, expected {shape}: truncated or damaged")
    return np.array(numbers, np.float64).reshape(shape, order="F").astype(np.float32)
