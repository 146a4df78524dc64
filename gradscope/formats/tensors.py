"""Array files from strangers: sizes are checked before memory is taken, nothing is ever unpickled."""

from __future__ import annotations

import importlib
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import ml_dtypes
import numpy as np

from gradscope.custom_types import Array, PathLike
from gradscope.errors import InputError, about, reason, shown
from gradscope.formats.budget import Budget

MEMBERS = 4096

EXPECTED = "expected real numbers (float, int or bool)"
# np.save keeps bfloat16 as two nameless bytes.
_BFLOAT16 = (np.dtype("V2"), np.dtype(ml_dtypes.bfloat16))


@dataclass(frozen=True)
class Tensor:
    """An array in an open file, not read yet.

    called : what messages call it; load : its values as they are stored; size : how many bytes it says
        they are, where that is known before.
    """

    called: str
    load: Callable[[], Array]
    size: int = 0

    def values(self) -> Array:
        """The values as float64; raises InputError for anything but finite numbers."""
        return as_float64(self.load(), self.called)


Tensors = dict[str, Tensor]


def as_float64(values: Any, name: str) -> Array:
    """A float64 copy of real, finite numbers; else an InputError that starts with ``name``."""
    if np.ma.is_masked(values):
        raise InputError(f"{name} is a masked array, {EXPECTED}: leave masked steps out, or fill them")
    try:
        array = np.asarray(values)
    except Exception as error:  # ragged lists, tensors on a device, whatever claims to be an array
        raise InputError(f"{name} is no array ({reason(error)}), {EXPECTED}") from error
    check_real(array.dtype, name)
    if array.dtype.kind == "V":
        array = array.view(ml_dtypes.bfloat16)
    with np.errstate(over="ignore"):  # a long double beyond float64 is found below
        result = np.array(array, dtype=np.float64)
    finite = np.isfinite(result)
    if not finite.all():
        where = tuple(map(int, np.unravel_index(np.argmin(finite), result.shape)))
        raise InputError(f"{name} holds {result[where]} at index {list(where)}, expected finite numbers")
    return result


def library(name: str, extra: str) -> Any:
    """The module that reads the file which is ``opened``; raises InputError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f"{name} reads it: pip install 'gradscope[{extra}]'") from error


@contextmanager
def opened(
    path: PathLike, kind: str, max_size: int | None = None, remedy: str = ""
) -> Iterator[tuple[IO[bytes], Budget]]:
    """A regular file and what reading it may take; whatever goes wrong becomes an InputError with its path.

    max_size, remedy : as of Budget.
    """
    with about(path):
        try:
            info = Path(path).stat()
            if not stat.S_ISREG(info.st_mode):  # to open a pipe would be to wait for ever
                got = "a directory" if stat.S_ISDIR(info.st_mode) else "a pipe or a device"
                raise InputError(f"is {got}, expected a {kind} file")
            if not info.st_size:
                raise InputError(f"is empty, expected a {kind} file")
            with Path(path).open("rb") as file:
                yield file, Budget(info.st_size, max_size, remedy)
        except InputError:
            raise
        except (FileNotFoundError, PermissionError) as error:
            raise InputError(f"{error.strerror}, expected a readable {kind} file") from error
        except MemoryError as error:
            raise InputError("too large for the memory of this machine") from error
        except Exception as error:  # zipfile, zlib, NumPy, safetensors fail on bad bytes in a dozen ways
            raise InputError(f"not a sound {kind} file ({reason(error)}): save it again") from error


def check_real(dtype: np.dtype[Any], name: str) -> None:
    """Raise InputError for a dtype of anything but real numbers."""
    if dtype.kind not in "fiub" and dtype not in _BFLOAT16:
        remedy = ": convert it with .astype(float)" if dtype.kind == "O" else ""
        raise InputError(f"{name} has dtype {shown(dtype)[:80]}, {EXPECTED}{remedy}")


def members(archive: zipfile.ZipFile, budget: Budget) -> list[zipfile.ZipInfo]:
    """The members of a zip file, if what they say of themselves is sane."""
    found = archive.infolist()
    if not found or len(found) > MEMBERS:
        raise InputError(f"holds {len(found)} arrays, expected 1 to {MEMBERS}")
    if len({member.filename.removesuffix(".npy") for member in found}) < len(found):
        raise InputError("holds two arrays of the same name")
    budget.unpack(sum(member.file_size for member in found))
    return found
