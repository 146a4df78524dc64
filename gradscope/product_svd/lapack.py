"""LAPACK as SciPy brings it, without the rest of ``scipy.linalg``, whose import takes a sixth of JAX's."""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import sys
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any

if sys.platform == "win32":
    import scipy  # which says where its libraries are  # noqa: F401


def _extension(name: str) -> ModuleType:
    """The compiled module ``scipy.linalg.<name>``, its packages not imported, which can still import it."""
    whole, package = f"scipy.linalg.{name}", importlib.util.find_spec("scipy")
    folders = package.submodule_search_locations if package is not None else None
    spec = PathFinder.find_spec(whole, [f"{folder}/linalg" for folder in folders or []])
    if "scipy.linalg" in sys.modules or spec is None or spec.loader is None:  # None: within a frozen program
        return importlib.import_module(whole)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Extensions may enter themselves. The package would then find this one and not make it an attribute.
    sys.modules.pop(whole, None)
    return module


_flapack = _extension("_flapack")
dgejsv, dgesdd, dgetrf = _flapack.dgejsv, _flapack.dgesdd, _flapack.dgetrf
dlaswp, dormqr = _flapack.dlaswp, _flapack.dormqr


def address(routine: Any) -> int:
    """Where the Fortran behind one of these is, whose integers are of 32 bits."""
    get = ctypes.pythonapi.PyCapsule_GetPointer
    get.restype, get.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    found = get(routine._cpointer, None)
    assert found is not None
    return int(found)
