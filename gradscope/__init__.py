"""gradscope: tells, exactly, whether and how gradients vanish or explode in a recurrent network.

    import gradscope
    gradscope.analyze(cell="lstm", hidden=64, steps=200).verdict.level
    gradscope.spectrum(jacobians).log10_singular_values

Importing the package imports neither JAX nor NumPy; they come with the first name that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradscope.api import analyze
    from gradscope.cells.cell import Cell
    from gradscope.checkpoints.equinox_live import from_equinox
    from gradscope.checkpoints.flax_live import from_flax
    from gradscope.checkpoints.keras_live import from_keras
    from gradscope.checkpoints.torch_live import from_torch
    from gradscope.errors import GradscopeError, InputError
    from gradscope.product_svd.spectrum import Spectrum, spectrum
    from gradscope.report.analysis import Analysis, schema
    from gradscope.settings import Policy

__version__ = "0.1.0"

__all__ = [
    "Analysis",
    "Cell",
    "GradscopeError",
    "InputError",
    "Policy",
    "Spectrum",
    "analyze",
    "from_equinox",
    "from_flax",
    "from_keras",
    "from_torch",
    "schema",
    "spectrum",
]

_HOME = {
    "Analysis": "gradscope.report.analysis",
    "Cell": "gradscope.cells.cell",
    "GradscopeError": "gradscope.errors",
    "InputError": "gradscope.errors",
    "Policy": "gradscope.settings",
    "Spectrum": "gradscope.product_svd.spectrum",
    "analyze": "gradscope.api",
    "from_equinox": "gradscope.checkpoints.equinox_live",
    "from_flax": "gradscope.checkpoints.flax_live",
    "from_keras": "gradscope.checkpoints.keras_live",
    "from_torch": "gradscope.checkpoints.torch_live",
    "schema": "gradscope.report.analysis",
    "spectrum": "gradscope.product_svd.spectrum",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gradscope' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
