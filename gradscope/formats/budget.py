"""What reading a file may take: every reader draws on one purse before it makes anything."""

from __future__ import annotations

from gradscope.errors import InputError

# A file may unpack to EXPANSION times its size plus ALLOWANCE bytes. Compressed weights shrink by
# less than 3, a bomb of zeros by 1000; the allowance is for small files of zeros and identities.
EXPANSION = 16
ALLOWANCE = 64 * 2**20
# Bytes that an object of Python takes; the time for each is a few microseconds.
OBJECT = 64
# Objects' worth of a tensor that is named: it may be of a layer, with sentences about it.
_TENSOR = 32


class Budget:
    """What one file may take: bytes of its arrays as it keeps them, and as many for all else.

    size : bytes of the file.
    limit : bytes that its arrays may have together, by default EXPANSION times the size plus ALLOWANCE.
    remedy : what to do where it takes more, if that is not to say --max-size.
    spent : bytes drawn so far for objects, names and copies; they may be ``limit``, or what is usual if that
        is more.
    """

    def __init__(self, size: int, max_size: int | None = None, remedy: str = "") -> None:
        usual = EXPANSION * size + ALLOWANCE
        self.size = size
        self.limit = usual if max_size is None else max_size
        self.remedy = remedy
        self.spent = 0
        self._room = max(usual, self.limit)

    def unpack(self, size: int) -> None:
        """Raise InputError, with what to do, where its arrays are of so many bytes and that is too many."""
        if size > self.limit:
            raise InputError(
                f"unpacks to {size} bytes, more than the {self.limit} allowed: {self._way_out(size)}"
            )

    def draw(self, objects: int = 1, size: int = 0) -> None:
        """Pay for objects that are about to be made or looked at, and for ``size`` bytes in them."""
        self.spent += OBJECT * objects + size
        if self.spent > self._room:
            raise InputError(
                f"takes more than the {self._room} bytes of memory allowed for its {self.size}, as no sound "
                f"file does: {self._way_out(4 * self._room)}"
            )

    def name(self, name: str) -> None:
        """Pay for a tensor of this name."""
        self.draw(_TENSOR, len(name))

    def _way_out(self, size: int) -> str:
        return self.remedy or f"if you trust it, say --max-size {size}"
