"""What a checkpoint holds, as ``gradscope inspect`` tells it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gradscope.cells import find
from gradscope.cells.spectra import recurrent_matrices
from gradscope.checkpoints import Contents, Found, read_all
from gradscope.checkpoints.array_map import rules_of
from gradscope.checkpoints.live import Live
from gradscope.machine import one_blas_thread
from gradscope.report.numbers import json_number
from gradscope.report.views import in_notebook
from gradscope.version import __version__

SCHEMA = "gradscope/inspection/1"


@dataclass(frozen=True)
class Inspection:
    """The recurrent layers of a file and the names of its other tensors.

    matrices : per layer, {R: {"spectral_norm", "spectral_radius"}}, as of ``recurrent_matrices``.
    """

    source: str
    contents: Contents
    matrices: tuple[Mapping[str, Mapping[str, float | None]], ...]

    def _repr_html_(self) -> str:
        """The table as notebooks show it."""
        return in_notebook(self)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object ``gradscope/inspection/1``: plain Python, no NaN."""
        layers = zip(self.contents.layers, self.matrices, strict=True)
        return {
            "schema": SCHEMA,
            "gradscope": __version__,
            "source": self.source,
            "layers": [_layer(found, matrices) for found, matrices in layers],
            "others": list(self.contents.others),
        }


def inspect(
    checkpoint: str | os.PathLike[str] | Live,
    cell: str | None = None,
    max_size: int | None = None,
    map: Any = None,  # noqa: A002  (as of ``analyze``)
    config: str | None = None,
) -> Inspection:
    """The recurrent layers in a checkpoint, with sizes, directions and norms; nothing in a file is run.

    checkpoint : a file, or what ``from_torch`` and its like make of a model, as for ``analyze``.
    cell : of a native file the name of its cell, where it is one of your own.
    max_size : bytes the file may unpack to, by default a small multiple of its size.
    map : rules that say which tensor is which parameter, as for ``analyze``.
    config : a file of Keras' ``model.to_json()``, which its weights alone lack.
    Raises InputError for a file that is damaged, too large, or lacks a recurrent layer.
    """
    contents = read_all(
        checkpoint, find(cell) if cell else None, max_size=max_size, rules=rules_of(map), config=config
    )
    with one_blas_thread():
        matrices = tuple(recurrent_matrices(found.arrays, all_values=False) for found in contents.layers)
    return Inspection(str(checkpoint), contents, matrices)


def _layer(found: Found, matrices: Mapping[str, Mapping[str, float | None]]) -> dict[str, Any]:
    hidden, input_size = found.sizes or (None, None)
    return {
        "name": found.name,
        "cells": list(found.cells),
        "kind": found.label,
        "hidden": hidden,
        "input_size": input_size,
        "direction": found.direction,
        "depth": found.depth,
        "below": None if found.below is None else list(found.below),
        "reads": found.reads or None,
        "embedding": found.table or None,
        "mask": str(found.mask) if found.mask else None,
        "dtype": found.dtype,
        "activation": found.activations or None,
        "open": found.open or None,
        "problem": found.problem or None,
        "not_applied": list(found.not_applied),
        "assumed": list(found.assumed),
        "matrices": [{"name": name, **_finite(matrix)} for name, matrix in matrices.items()],
        "tensors": list(found.keys),
    }


def _finite(matrix: Mapping[str, float | None]) -> dict[str, float | None]:
    return {name: json_number(value) for name, value in matrix.items()}
