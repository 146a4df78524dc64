"""What a repair sets in the layers of a checkpoint, and what became of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gradscope.advise.flossing import flossed
from gradscope.advise.knobs import KnobSetting, Parameters
from gradscope.advise.network import Network
from gradscope.errors import InputError, listed
from gradscope.measure.batch import Means
from gradscope.problem.problems import Problems
from gradscope.report.analysis import Analysis
from gradscope.report.numbers import json_number
from gradscope.report.views import in_notebook, printed
from gradscope.settings import Policy
from gradscope.version import __version__

SCHEMA = "gradscope/repair/1"


@dataclass(frozen=True)
class Repaired:
    """A checkpoint that was written again.

    source, file : from which, and to which; knobs : what was set, as ``--knob`` has it; tensors : those of
    the file that changed; before, after : the analyses of both files, the second of what was written;
    flossed : how many of the largest values were moved, 0 where that was not asked for.
    """

    source: str
    file: str
    knobs: tuple[str, ...]
    tensors: tuple[str, ...]
    before: Analysis
    after: Analysis
    flossed: int = 0

    def to_dict(self) -> dict[str, Any]:
        """The JSON object ``gradscope/repair/1``."""
        return {
            "schema": SCHEMA,
            "gradscope": __version__,
            "source": self.source,
            "file": self.file,
            "knobs": list(self.knobs),
            "tensors": list(self.tensors),
            "before": _told(self.before, self.flossed),
            "after": _told(self.after, self.flossed),
        }

    def __str__(self) -> str:
        return printed(self)

    def _repr_html_(self) -> str:
        return in_notebook(self)


def exponents(analysis: Analysis, count: int) -> tuple[list[float], float | None]:
    """The largest Lyapunov exponents ln sigma_i / T of the median sequence, and log10 of its condition.

    The condition number sigma_1 / sigma_m is None where not every value is known, infinite where one is 0.
    """
    full = analysis.full
    order = np.argsort([float(one.log10_singular_values[0]) for one in full.spectra], kind="stable")
    number = int(order[(len(order) - 1) // 2])
    values = np.asarray(full.spectra[number].log10_singular_values, np.float64)
    each = [float(value) * math.log(10.0) / full.lengths[number] for value in values[:count]]
    known = len(values) == full.size and not np.isnan(values[-1])
    return each, float(values[0] - values[-1]) if known else None


def _told(analysis: Analysis, flossed: int) -> dict[str, Any]:
    full, more = analysis.full, {}
    if flossed:
        each, condition = exponents(analysis, flossed)
        more = {
            "exponents": [json_number(one) for one in each],
            "log10_condition": None if condition is None else json_number(condition),
        }
    return more | {
        "verdict": analysis.verdict.level,
        "log10_norm": json_number(full.log10_norm.median),
        "log10_peak": json_number(full.log10_peak.median),
        "horizon": json_number(full.horizon.median),
    }


# {layer in the file: its parameters}.
Layers = Mapping[str, Parameters]


def layers_of(problems: Problems) -> dict[str, dict[str, Any]]:
    """The parameters of every layer by its name in the file."""
    return {problem.origin.layer or "": problem.system.parameters for problem in problems.layers}


def set_knobs(layers: Layers, settings: Sequence[KnobSetting]) -> dict[str, dict[str, Any]]:
    """The layers with these knobs set, one after the other.

    A pattern names a parameter of every layer, of one by its number (layer0.b_f) or its name in the file.
    Raises InputError where one names nothing.
    """
    changed = {name: dict(parameters) for name, parameters in layers.items()}
    for setting in settings:
        called = {
            (name, key): (key, f"layer{number}.{key}", f"{name}.{key}")
            for number, (name, parameters) in enumerate(changed.items())
            for key in parameters
        }
        every = [names[0] if len(changed) == 1 else names[1] for names in called.values()]
        named = [place for place, names in called.items() if any(map(setting.names, names))]
        setting.check([key for _, key in named], every)
        for name, key in named:
            with np.errstate(over="ignore"):
                changed[name][key] = setting.changed(changed[name][key])
    return changed


def stacked_parameters(layers: Layers) -> dict[str, Any]:
    """The parameters of several layers as a stack of them has them."""
    if len(layers) == 1:
        return dict(next(iter(layers.values())))
    return {
        f"layer{number}.{key}": array
        for number, parameters in enumerate(layers.values())
        for key, array in parameters.items()
    }


def unstacked(parameters: Parameters, layers: Layers) -> dict[str, dict[str, Any]]:
    """The reverse."""
    if len(layers) == 1:
        return {name: dict(parameters) for name in layers}
    return {
        name: {key: parameters[f"layer{number}.{key}"] for key in of}
        for number, (name, of) in enumerate(layers.items())
    }


def check_some(knobs: Sequence[str], count: int | None) -> None:
    """Raise InputError where nothing is to be set."""
    if not knobs and count is None:
        raise InputError(
            "nothing is to be set: give --knob, such as b_f+=2.3 (gradscope suggest finds it) or b_f "
            "alone, which is searched for, or --floss"
        )


Find = Callable[[str], list[str]]


def settings_of(knobs: Sequence[str], find: Find) -> list[KnobSetting]:
    """What is to be set; find : the settings of a knob that is given by its name alone."""
    each = ([text] if KnobSetting.is_one(text) else find(text) for text in knobs)
    return [KnobSetting.parse(setting) for settings in each for setting in settings]


def check_new(path: Path, source: Path, *, in_place: bool) -> None:
    """Raise InputError where the original would be overwritten, and that was not asked for."""
    if not in_place and path.exists() and source.exists() and path.samefile(source):
        raise InputError(
            f"-o {listed([str(path)])} is the checkpoint itself: give another file, or --in-place"
        )


def floss(
    problems: Problems,
    layers: Layers,
    policy: Policy,
    means: Means,
    count: int,
    report: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """The layers with the ``count`` largest singular values of their chain brought near 1."""
    joint = problems.joint
    if joint is None:
        raise InputError(
            "--floss is of one chain, and these layers stand side by side: choose one with --layer"
        )
    system = replace(joint.system, parameters=stacked_parameters(layers))
    network = Network.of(replace(joint, system=system), policy, means)
    return unstacked(flossed(network, count, report), layers)
