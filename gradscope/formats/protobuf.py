"""Messages of protocol buffers: what is in them is paid for before the library makes it."""

from __future__ import annotations

from typing import Any

from gradscope.errors import InputError
from gradscope.formats.budget import Budget

# Objects' worth of memory of a message and its wrapper in Python: an empty one is two bytes of a file.
_MESSAGE = 4
# Wire types, and the bytes of those of a fixed size.
_VARINT, _BYTES = 0, 2
_FIXED = {1: 8, 5: 4}


def pay(data: memoryview, kind: Any, budget: Budget) -> None:
    """Draw for every message and field in the bytes of a message of the descriptor ``kind``.

    Raises InputError where that is too much, IndexError where the bytes end too early.
    """
    waiting = [(data, kind)]
    while waiting:
        data, kind = waiting.pop()
        budget.draw(_MESSAGE)
        fields, at = kind.fields_by_number, 0
        while at < len(data):
            budget.draw()
            tag, at = _varint(data, at)
            wire = tag & 7
            if wire == _BYTES:
                size, at = _varint(data, at)
                inside = getattr(fields.get(tag >> 3), "message_type", None)
                if inside is not None:
                    waiting.append((data[at : at + size], inside))
                at += size
            elif wire == _VARINT:
                _, at = _varint(data, at)
            elif wire in _FIXED:
                at += _FIXED[wire]
            else:  # groups, which nothing has written for twenty years
                raise InputError(f"has a field of wire type {wire}: damaged")


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at a place, and where it ends."""
    number = data[at] & 127
    shift = 0
    while data[at] > 127:
        at, shift = at + 1, shift + 7
        number |= (data[at] & 127) << shift
    return number, at + 1
