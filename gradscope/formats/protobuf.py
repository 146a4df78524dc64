"""Messages of protocol buffers: what is in them is paid for before the library makes it."""

from __future__ import annotations

from typing import Any

from gradscope.errors import InputError, quoted
from gradscope.formats.budget import Budget

# Objects' worth of memory of a message and its wrapper in Python: an empty one is two bytes of a file.
_MESSAGE = 4
# What the library reads.
_DEEPEST = 100
# FieldDescriptor.TYPE_STRING, which the library gives as bytes where it is no UTF-8.
_TEXT = 9
# Wire types, and the bytes of those of a fixed size.
_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}


def pay(data: bytes, kind: Any, budget: Budget) -> None:
    """Draw for every message and field in the bytes of a message of the descriptor ``kind``.

    Raises InputError where that is too much, nests too deep or has a name that is no text, IndexError where
    the bytes end too early.
    """
    _pay(data, 0, len(data), kind, budget, 0)


def _pay(data: bytes, at: int, end: int, kind: Any, budget: Budget, depth: int) -> None:
    if depth > _DEEPEST:
        raise InputError(f"has messages nested more than {_DEEPEST} deep: damaged")
    budget.draw(_MESSAGE)
    fields = kind.fields_by_number
    while at < end:
        budget.draw()
        tag, at = _varint(data, at)
        wire = tag & 7
        if wire == _BYTES:
            size, at = _varint(data, at)
            field = fields.get(tag >> 3)
            if field is not None and field.message_type is not None:
                _pay(data, at, min(at + size, end), field.message_type, budget, depth + 1)
            elif field is not None and field.type == _TEXT and field.name != "doc_string":
                _check_text(data[at : at + size])
            at += size
        elif wire == _VARINT:
            _, at = _varint(data, at)
        elif wire in _FIXED:
            at += _FIXED[wire]
        else:  # groups, which nothing has written for twenty years
            raise InputError(f"has a field of wire type {wire}: damaged")


def _check_text(name: bytes) -> None:
    try:
        name.decode()
    except UnicodeDecodeError as error:
        raise InputError(f"has a name that is not UTF-8 ({quoted(name)}): damaged") from error


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at a place and where it ends, of ten bytes at most."""
    number = shift = 0
    while data[at] > 127 and shift < 63:
        number |= (data[at] & 127) << shift
        at, shift = at + 1, shift + 7
    return number | data[at] << shift, at + 1
