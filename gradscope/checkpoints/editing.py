"""A checkpoint opened to be written again: its tensors, how they are read, and what each layer is made of."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes
import numpy as np

from gradscope.checkpoints.choosing import Decided, choose
from gradscope.checkpoints.layer import Layer
from gradscope.checkpoints.live import Live
from gradscope.checkpoints.locating import Placed, Reader, located, with_arrays
from gradscope.checkpoints.reading import contents_of
from gradscope.checkpoints.rewriting import Parameters, changed_tensors
from gradscope.custom_types import Array, PathLike
from gradscope.errors import InputError, about, shown
from gradscope.formats.array_writing import packed_safetensors, patched_npz, patched_safetensors
from gradscope.formats.reading import kind_of, open_tensors
from gradscope.formats.tensors import Tensors

# Kinds of files that are written, and those of which a state dict is written as .safetensors.
_SAME = {".safetensors": patched_safetensors, ".npz": patched_npz}
_TORCH = (".pt", ".pth", ".bin", ".ckpt", ".jit", ".pkl")


@dataclass(frozen=True)
class Editable:
    """An open checkpoint.

    tensors : all of it; placed : {layer: {parameter: where it is}} of the layers that were chosen.
    """

    path: Path
    kind: str
    tensors: Tensors
    placed: Mapping[str, Mapping[str, Placed]]
    read: Reader

    def written(
        self, before: Mapping[str, Parameters], after: Mapping[str, Parameters], suffix: str
    ) -> tuple[bytes, dict[str, Array]]:
        """The file with these parameters of its layers in place of those, and the tensors that changed."""
        with about(self.path):
            changed = changed_tensors(self.tensors, self.placed, before, after)
            self._check(changed, after)
        if suffix == self.kind:
            return _SAME[suffix](self.path, changed), changed
        return packed_safetensors(self.tensors, changed), changed

    def _check(self, changed: Mapping[str, Array], after: Mapping[str, Parameters]) -> None:
        """Raise InputError where the reader would not find what was meant, as of a tensor of two layers."""
        layers = {layer.name: layer for layer in self.read(with_arrays(self.tensors, changed))}
        rounding = max((_rounding(array) for array in changed.values()), default=0.0)
        for name, parameters in after.items():
            for key, new in parameters.items():
                got = layers[name].parameters[key]
                if np.abs(got - new).max(initial=0) > 8 * rounding * max(1.0, np.abs(new).max(initial=0)):
                    raise InputError(
                        f"layer {shown(name)}: its {key} cannot be set alone, for what it is made of is of "
                        "other layers or gates too: set the knob of all of them, as in R_*"
                    )


def _rounding(array: Array) -> float:
    return float(ml_dtypes.finfo(array.dtype).eps)  # type: ignore[no-untyped-call]


def written_as(path: str | os.PathLike[str] | Live | None, output: PathLike | None) -> str:
    """The suffix of what a checkpoint is written to; raises InputError where it cannot be.

    output : the new file, None for the checkpoint itself.
    """
    if not isinstance(path, str | os.PathLike):
        raise InputError("repair writes a file again: give a checkpoint's file, not a model in memory")
    kind = kind_of(path)
    if kind not in (*_SAME, *_TORCH):
        raise InputError(
            f"checkpoint {shown(path)}: written are .safetensors, .npz and state dicts of PyTorch; of others "
            "set the knob in the framework: gradscope suggest says to what"
        )
    allowed = [kind] if kind == ".npz" else [".safetensors"]
    if output is None and kind not in _SAME:
        raise InputError(
            f"checkpoint {shown(path)} is a pickle, which is never written: give a new .safetensors by -o"
        )
    suffix = kind if output is None else Path(output).suffix.lower()
    if suffix not in allowed:
        named = shown(Path(output or path).with_suffix(allowed[0]))
        raise InputError(
            f"-o {shown(output or '')}: of {shown(path)} a {allowed[0]} is written: give -o {named}"
        )
    return suffix


@contextmanager
def editable(
    path: PathLike,
    decided: Decided,
    names: Sequence[str],
    *,
    reads: Sequence[str] = (),
    rules: Sequence[str] = (),
    max_size: int | None = None,
) -> Iterator[Editable]:
    """Open a checkpoint to write the layers ``names`` again; raises InputError where that cannot be done."""
    with open_tensors(path, max_size) as tensors, about(str(path)):
        contents = contents_of(tensors, decided.cell, rules=rules)
        keys = {found.name: found.keys for found in contents.layers if found.name in names}

        def read(tensors: Tensors) -> Sequence[Layer]:
            again = contents_of(tensors, decided.cell, rules=rules)
            return choose(again, decided, names, str(path), reads).layers

        yield Editable(Path(path), kind_of(path), tensors, located(read, tensors, keys), read)
