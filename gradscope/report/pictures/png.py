"""A picture of a few colours as PNG, a pixel for every cell (ISO/IEC 15948)."""

from __future__ import annotations

import base64
import struct
import zlib

import numpy as np

from gradscope.custom_types import Array


def data_uri(cells: Array, palette: Array) -> str:
    """cells : (h, w) places in the palette, of which the first is transparent; palette : (k, 3), k <= 256."""
    height, width = cells.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each begins with its filter, none
    rows[:, 1:] = cells
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", np.asarray(palette, np.uint8).tobytes()),
        (b"tRNS", b"\0"),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    data = b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, inside) for kind, inside in parts)
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


def _chunk(kind: bytes, inside: bytes) -> bytes:
    return struct.pack(">I", len(inside)) + kind + inside + struct.pack(">I", zlib.crc32(kind + inside))
