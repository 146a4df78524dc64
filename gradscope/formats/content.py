"""The format of a file by what it begins with: in strangers' names any suffix may stand for any of them."""

from __future__ import annotations

import re
import stat
from pathlib import Path

from gradscope.custom_types import PathLike

_HEAD = 512
# A class, a dict or a list in a pickle of text, as Python 2 wrote it.
_TEXT = re.compile(rb"c[\w.]+\n\w+\n|\([dl]p?\d*\n")
# The first member of an archive of each kind; PyTorch puts all of its in one folder.
_KERAS = ("metadata.json", "config.json", "model.weights.h5")
_TORCH = ("data.pkl", "data/", "version", "byteorder", "code/", "constants", "bytecode", "extra/", ".")


def by_content(path: PathLike) -> str:
    """The usual suffix of files that begin as this one does, "" where that does not tell or it is no file."""
    try:
        info = Path(path).stat()
        if not stat.S_ISREG(info.st_mode):
            return ""
        with Path(path).open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return ""
    if head.startswith(b"PK\x03\x04"):
        return _of_zip(head)
    if head.startswith(b"\x89HDF\r\n\x1a\n"):
        return ".h5"
    if _is_safetensors(head, info.st_size):  # whose length may begin as a pickle does
        return ".safetensors"
    if is_pickle(head):
        return ".pt"
    if head.startswith((b"#Parameter# ", b"#LookupParameter# ")):
        return ".model"
    return ""


def _is_safetensors(head: bytes, size: int) -> bool:
    """Whether a file of this size that begins so is the length of a JSON object, and the object."""
    return head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") <= size - 8


def is_pickle(head: bytes) -> bool:
    """Whether a file that begins so is a pickle: of protocol 2 or later, or of text."""
    return head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05") or bool(_TEXT.match(head))


def _of_zip(head: bytes) -> str:
    """The same of an archive, by the name of its first member."""
    name = head[30 : 30 + int.from_bytes(head[26:28], "little")].decode(errors="replace")
    if name.endswith(".npy"):
        return ".npz"
    if name in _KERAS:
        return ".keras"
    folder, _, inside = name.partition("/")
    return ".pt" if folder and inside.startswith(_TORCH) else ""
