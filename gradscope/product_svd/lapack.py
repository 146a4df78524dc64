"""LAPACK as SciPy brings it, without the rest of ``scipy.linalg``, whose import takes a sixth of JAX's."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.machinery import PathFinder
from types import ModuleType

import scipy


def _extension(name: str) -> ModuleType:
    """The compiled module ``scipy.linalg.<name>``, its package not imported, which can still import it."""
    whole = f"scipy.linalg.{name}"
    spec = PathFinder.find_spec(whole, [f"{folder}/linalg" for folder in scipy.__path__])
    if "scipy.linalg" in sys.modules or spec is None or spec.loader is None:  # None: within a frozen program
        return importlib.import_module(whole)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Extensions may enter themselves. The package would then find this one and not make it an attribute.
    sys.modules.pop(whole, None)
    return module


_flapack = _extension("_flapack")
dgetrf, dlaswp, dormqr = _flapack.dgetrf, _flapack.dlaswp, _flapack.dormqr
# What SciPy offers to compiled code: {routine: capsule of its pointer}.
POINTERS = _extension("cython_lapack").__pyx_capi__
