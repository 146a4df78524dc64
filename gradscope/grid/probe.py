"""Points of a grid measured: the gain and the horizon alone by the light probe, or all of each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from gradscope.cells import find
from gradscope.errors import InputError, as_option
from gradscope.grid.mean_field import theory_rate
from gradscope.grid.points import Measure, PointFound
from gradscope.measure.batch import Means
from gradscope.measure.light import check_light, converged, measure_side_by_side
from gradscope.measure.measured import Measured
from gradscope.problem.problems import Problems
from gradscope.report.analysis import Analysis
from gradscope.report.conclude import conclude
from gradscope.settings import Policy, Settings

Prepared = tuple[Settings, Problems, Means]
Found = list[Measured] | InputError
# What makes the problems of settings, with what there is to measure them with; what measures such problems.
Prepare = Callable[[Settings], tuple[Problems, Means]]
Analyze = Callable[[Problems, Policy, Means], Analysis]


def light_probe(prepare: Prepare, analyze: Analyze) -> Measure:
    """Measures the gain and the horizon of points, side by side on an accelerator.

    Of a point whose gain does not settle the probe has bounds alone: ``analyze`` measures it.
    """

    def measure(many: Sequence[Mapping[str, Any]]) -> list[PointFound | InputError]:
        prepared = []
        for asked in many:
            prepared.append(one := _prepared(prepare, _settings({**asked, "only": "gain", "top": 1})))
            if isinstance(one, InputError) or one_by_one(one[2]):
                break
        found = iter(_measured([one for one in prepared if not isinstance(one, InputError)]))
        return [
            one if isinstance(one, InputError) else _concluded(one, next(found), analyze) for one in prepared
        ]

    return measure


def one_by_one(means: Means) -> bool:
    """Whether points side by side are no sooner measured: on a CPU (see ``light._at_once``)."""
    return bool(means.devices[0].platform == "cpu")


def whole_analysis(prepare: Prepare, analyze: Analyze) -> Measure:
    """Measures all that is asked for at the first of the points."""

    def measure(many: Sequence[Mapping[str, Any]]) -> list[PointFound | InputError]:
        try:
            settings = _settings(many[0])
            problems, means = prepare(settings)
            return [PointFound(analyze(problems, settings.policy, means), _theory(problems))]
        except InputError as error:
            return [error]

    return measure


def _settings(asked: Mapping[str, Any]) -> Settings:
    """The same; a user's cell is one object at every point: what is compiled for it serves all."""
    cell = asked.get("cell")
    return Settings(**{**asked, "cell": _found(cell)} if ":" in str(cell) else asked)


_found = cache(find)


def _prepared(prepare: Prepare, settings: Settings) -> Prepared | InputError:
    try:
        problems, means = prepare(settings)
        for problem in problems.every:
            check_light(problem, f"give {as_option('only')} paths")
    except InputError as error:
        return error
    return settings, problems, means


def _measured(prepared: Sequence[Prepared]) -> list[list[Found]]:
    """Of every point what was found of each of its problems."""
    if not prepared:
        return []
    flat = [(problem, settings) for settings, problems, _ in prepared for problem in problems.every]
    low = [math.log10(settings.vanishing_below) for _, settings in flat]
    high = [math.log10(settings.exploding_above) for _, settings in flat]
    device = prepared[0][2].devices[0]
    found = iter(measure_side_by_side([problem for problem, _ in flat], low, high, device))
    return [[next(found) for _ in problems.every] for _, problems, _ in prepared]


def _concluded(one: Prepared, found: Sequence[Found], analyze: Analyze) -> PointFound | InputError:
    settings, problems, means = one
    measured = []
    for each in found:
        if isinstance(each, InputError):
            return each
        measured.append(each)
    try:
        if not all(converged([one.full for one in each]) for each in measured):
            return PointFound(analyze(problems, settings.policy, means), _theory(problems))
        nothing, platform = [None] * len(measured), means.devices[0].platform
        analysis = conclude(problems, settings.policy, measured, nothing, nothing, platform)
        return PointFound(analysis, _theory(problems))
    except InputError as error:
        return error


def _theory(problems: Problems) -> float | None:
    return theory_rate(problems.layers[0]) if len(problems.every) == 1 else None
