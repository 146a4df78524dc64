"""Array files written again with some arrays changed, all else byte for byte."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gradscope.custom_types import Array, PathLike
from gradscope.errors import InputError, reason
from gradscope.formats.tensors import Tensors


def patched_safetensors(path: PathLike, changed: Mapping[str, Array]) -> bytes:
    """The file with these tensors changed, which have the shapes and dtypes that it says."""
    data = bytearray(Path(path).read_bytes())
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    for name, array in changed.items():
        start, end = (8 + size + offset for offset in header[name]["data_offsets"])
        new = array.tobytes()
        assert len(new) == end - start
        data[start:end] = new
    return bytes(data)


def patched_npz(path: PathLike, changed: Mapping[str, Array]) -> bytes:
    """The archive with these arrays changed; each keeps its header."""
    written = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(written, "w") as copy:
        for member in archive.infolist():
            data = archive.read(member)
            if (array := changed.get(member.filename.removesuffix(".npy"))) is not None:
                data = _with_data(data, array)
            copy.writestr(member, data, compress_type=member.compress_type)
    return written.getvalue()


def _with_data(data: bytes, array: Array) -> bytes:
    stream = io.BytesIO(data)
    version = np.lib.format.read_magic(stream)
    headers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    _, fortran, _ = headers[version](stream)
    return data[: stream.tell()] + array.tobytes("F" if fortran else "C")


def packed_safetensors(tensors: Tensors, changed: Mapping[str, Array]) -> bytes:
    """All tensors of a file of another kind under their names, these of them changed."""
    from safetensors import SafetensorError
    from safetensors.numpy import save

    arrays = {
        name: np.ascontiguousarray(tensor.load()) for name, tensor in tensors.items() if name not in changed
    }
    try:
        return save(arrays | dict(changed), metadata={"format": "pt"})
    except (KeyError, SafetensorError) as error:
        raise InputError(
            f"a tensor has no place in .safetensors ({reason(error)}): save the model alone"
        ) from error
