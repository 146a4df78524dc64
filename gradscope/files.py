"""Files written in one move: what was under a name is there until all of the new one is."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:  # it imports NumPy, and the help does not
    from gradscope.custom_types import PathLike


@contextlib.contextmanager
def writing(path: PathLike) -> Iterator[BinaryIO]:
    """A stream whose content becomes the file ``path`` where all of it could be written.

    Raises OSError. Pipes and devices are written as they are, and so is a file in a read-only folder.
    """
    place = behind_links(path)
    if _in_place(Path(path), place):
        with place.open("wb") as stream:
            yield stream
        return
    mode = place.stat().st_mode & 0o777 if place.exists() else 0o666 & ~_umask()
    handle, name = tempfile.mkstemp(dir=place.parent, prefix=".gradscope.")
    scratch = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            yield stream
        scratch.chmod(mode)
        scratch.replace(place)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def write_whole(path: PathLike, data: bytes) -> None:
    """Write all of a file; raises OSError."""
    with writing(path) as stream:
        stream.write(data)


def behind_links(path: PathLike) -> Path:
    """The file behind symbolic links: they are to stay."""
    return Path(os.path.realpath(path))


def _in_place(path: Path, place: Path) -> bool:
    special = any(p.is_relative_to(root) for p in (path.absolute(), place) for root in ("/dev", "/proc"))
    return special or (place.exists() and not place.is_file()) or not os.access(place.parent, os.W_OK)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
