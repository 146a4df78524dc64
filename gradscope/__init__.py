"""gradscope: tells, exactly, whether and how gradients vanish or explode in a recurrent network.

    import gradscope
    gradscope.analyze(cell="lstm", hidden=64, steps=200).verdict.level
    gradscope.spectrum(jacobians).log10_singular_values

Importing the package imports neither JAX nor NumPy; they come with the first name that needs them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from gradscope.version import __version__ as __version__

if TYPE_CHECKING:
    from gradscope.advise.repair import Repaired as Repaired
    from gradscope.advise.suggest import Suggestions as Suggestions
    from gradscope.api import analyze as analyze
    from gradscope.api import repair as repair
    from gradscope.api import suggest as suggest
    from gradscope.api import sweep as sweep
    from gradscope.cells.cell import Cell as Cell
    from gradscope.checkpoints.jax.equinox_live import from_equinox as from_equinox
    from gradscope.checkpoints.jax.flax_live import from_flax as from_flax
    from gradscope.checkpoints.keras.live import from_keras as from_keras
    from gradscope.checkpoints.torch.live import from_torch as from_torch
    from gradscope.errors import GradscopeError as GradscopeError
    from gradscope.errors import InputError as InputError
    from gradscope.grid.sweep import Sweep as Sweep
    from gradscope.measure.loss import LossGradient as LossGradient
    from gradscope.measure.sensitivity import Sensitivity as Sensitivity
    from gradscope.problem.record import record as record
    from gradscope.product_svd.spectrum import Spectrum as Spectrum
    from gradscope.product_svd.spectrum import spectrum as spectrum
    from gradscope.report.analysis import Analysis as Analysis
    from gradscope.report.chains import Chain as Chain
    from gradscope.report.chains import Extremes as Extremes
    from gradscope.report.inspection import Inspection as Inspection
    from gradscope.report.inspection import inspect as inspect
    from gradscope.report.verdict import Verdict as Verdict
    from gradscope.schemas import schema as schema
    from gradscope.settings import Policy as Policy

# Public name -> the module that it is imported from when it is asked for. What a type checker sees is above.
_HOME = {
    "Analysis": "gradscope.report.analysis",
    "Cell": "gradscope.cells.cell",
    "Chain": "gradscope.report.chains",
    "Extremes": "gradscope.report.chains",
    "GradscopeError": "gradscope.errors",
    "InputError": "gradscope.errors",
    "Inspection": "gradscope.report.inspection",
    "LossGradient": "gradscope.measure.loss",
    "Policy": "gradscope.settings",
    "Repaired": "gradscope.advise.repair",
    "Sensitivity": "gradscope.measure.sensitivity",
    "Spectrum": "gradscope.product_svd.spectrum",
    "Suggestion": "gradscope.report.remedies",
    "Suggestions": "gradscope.advise.suggest",
    "Sweep": "gradscope.grid.sweep",
    "Verdict": "gradscope.report.verdict",
    "analyze": "gradscope.api",
    "from_equinox": "gradscope.checkpoints.jax.equinox_live",
    "from_flax": "gradscope.checkpoints.jax.flax_live",
    "from_keras": "gradscope.checkpoints.keras.live",
    "from_torch": "gradscope.checkpoints.torch.live",
    "inspect": "gradscope.report.inspection",
    "record": "gradscope.problem.record",
    "repair": "gradscope.api",
    "schema": "gradscope.schemas",
    "suggest": "gradscope.api",
    "sweep": "gradscope.api",
    "spectrum": "gradscope.product_svd.spectrum",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'gradscope' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
