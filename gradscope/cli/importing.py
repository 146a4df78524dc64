"""How JAX is imported, which takes most of a start: where something is measured, and nowhere else."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing(*, compile_cache: bool = True) -> Iterator[None]:
    """Within, nothing is garbage, and what there is at the end never will be.

    compile_cache : whether compiled programs are kept between runs. Looking for garbage among all that JAX
    imports takes a tenth of the start. Raises MemoryError where JAX has no room.
    """
    from gradscope.machine import check_room, use_compilation_cache

    check_room()
    gc.disable()
    try:
        if compile_cache:
            use_compilation_cache()
        yield
    finally:
        gc.freeze()
        gc.enable()
