"""Data sets of an HDF5 file that lie in the file itself, as Keras writes them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from gradscope.errors import InputError
from gradscope.files import MEMBERS, Tensor, Tensors, check_size, quoted

_DEEPEST = 32


def tensors(h5: Any, limit: int) -> Tensors:
    """The data sets of an open ``h5py.File`` by path; limit : bytes they may have together."""
    import h5py

    found = {name: item for name, item in _items(h5) if isinstance(item, h5py.Dataset)}
    numbers = {name: item for name, item in found.items() if item.dtype.kind in "fiubV"}
    check_size(sum(item.nbytes for item in numbers.values()), limit)
    return {
        name: Tensor(f"array {quoted(name)}", partial(_load, item, name)) for name, item in numbers.items()
    }


def names(h5: Any) -> dict[str, str]:
    """The attribute ``name`` of every group ``vars``, by the path above it: what Keras 3 calls the layer."""
    found = {}
    for path, item in _items(h5):
        if path.endswith("/vars") and (name := attribute(item, "name")):
            found[path.removesuffix("/vars")] = name
    return found


def attribute(item: Any, name: str) -> str | None:
    """An attribute that is one string, None if there is no such."""
    import h5py

    if name not in item.attrs:
        return None
    stored = h5py.h5a.open(item.id, name.encode())
    if stored.shape not in ((), (1,)) or stored.dtype.kind not in "OSU":
        return None
    value = item.attrs[name]
    value = value[0] if isinstance(value, np.ndarray) and value.shape == (1,) else value
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def open_h5(file: IO[bytes]) -> Any:
    """The HDF5 file in an open binary file, for reading."""
    import h5py

    return h5py.File(file, "r")


def _items(h5: Any) -> Iterator[tuple[str, Any]]:
    """What hard links lead to from the root, each object once: other links may leave the file."""
    import h5py

    waiting, seen = [("", h5, 0)], {_address(h5)}
    while waiting:
        path, group, depth = waiting.pop()
        for name in group:
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                continue
            item = group.get(name)
            if item is None or (address := _address(item)) in seen:
                continue
            seen.add(address)
            if len(seen) > MEMBERS or depth > _DEEPEST:
                raise InputError(f"holds more than {MEMBERS} objects, or more than {_DEEPEST} in one another")
            inside = f"{path}/{name}".lstrip("/")
            yield inside, item
            if isinstance(item, h5py.Group):
                waiting.append((inside, item, depth + 1))


def _address(item: Any) -> int:
    import h5py

    return int(h5py.h5o.get_info(item.id).addr)


def _load(dataset: Any, name: str) -> npt.NDArray[Any]:
    """The values, if they lie in the file as they are: neither elsewhere nor packed nor left out."""
    import h5py

    plan = dataset.id.get_create_plist()
    inside = plan.get_layout() in (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT) and not plan.get_external_count()
    if not inside or plan.get_nfilters() or dataset.id.get_storage_size() != dataset.nbytes:
        raise InputError(f"array {quoted(name)} is kept outside the file or packed, which Keras does not do")
    return np.asarray(dataset[()])
