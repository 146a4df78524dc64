"""Models in several files, as transformers saves large ones, and the index of which file has which tensor."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from gradscope.checkpoints.found import Contents
from gradscope.checkpoints.torch.names import is_of_layer
from gradscope.custom_types import PathLike
from gradscope.errors import InputError, listed
from gradscope.formats.json_text import parsed
from gradscope.formats.tensors import opened

# model-00002-of-00003.safetensors
_PART = re.compile(r".*-(\d{1,6})-of-(\d{1,6})\.\w+", re.S)
_LARGEST = 2**26


def _part(path: PathLike) -> str:
    """Which one of several files it is, by its name: "2 of 3", "" of one alone."""
    match = _PART.fullmatch(str(path))
    return f"{int(match[1])} of {int(match[2])}" if match and int(match[2]) > 1 else ""


@contextmanager
def of_part(path: PathLike) -> Iterator[None]:
    """Where the model is not read, say with the reason that the file is one of several."""
    try:
        yield
    except InputError as error:
        if not (part := _part(path)):
            raise
        raise InputError(f"{error}; it is {part} files of a model, of which no other was read") from error


def told_part(contents: Contents, path: PathLike) -> Contents:
    """What a file holds, each layer with what the file's name says of others, which are not read."""
    if not (part := _part(path)):
        return contents
    said = (
        f"that nothing in the other files of the model, of which this is {part}, stands before the layer or "
        "changes its weights"
    )
    layers = (replace(one, assumed=(*one.assumed, said)) for one in contents.layers)
    return replace(contents, layers=tuple(layers))


def index_hint(path: PathLike) -> str:
    """What to give in the place of an index; raises InputError of a file that is too large, or damaged."""
    with opened(path, ".json") as (file, budget):
        if budget.size > _LARGEST:
            raise InputError(f"has {budget.size} bytes, more than an index of a model")
        index = parsed(file.read().decode("utf-8"), budget)
        files = index.get("weight_map") if isinstance(index, dict) else None
        if not isinstance(files, dict):
            return "it is no index of a model in several files either"
        ours = sorted({str(file) for name, file in files.items() if is_of_layer(name)})
        if not ours:
            return "of an index give the file that has the recurrent layer: no tensor has a name of PyTorch's"
        each = " (each by itself; a layer that is in two of them wants the model in one)" * bool(ours[1:])
        return f"of this index give the file that has the recurrent layers, {listed(ours)}{each}"
