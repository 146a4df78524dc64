"""Settings of a network's knobs that reach a target, each verified by an analysis of the changed network."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gradscope.advise.goals import Critical, Goal, Horizon, Stable
from gradscope.advise.network import Network
from gradscope.advise.trial import Trial
from gradscope.errors import InputError, as_option, counted, duration, listed, quoted
from gradscope.measure.batch import Means
from gradscope.measure.cost import seconds, sensitivity_programs, work_of
from gradscope.measure.measured import Measured
from gradscope.measure.side_by_side import together
from gradscope.problem.problems import Problems
from gradscope.report.analysis import Analysis
from gradscope.report.conclude import of_sequences
from gradscope.report.numbers import json_number
from gradscope.report.provenance import described_together
from gradscope.report.remedies import Remedies, Suggestion, told_of
from gradscope.report.views import in_notebook, printed
from gradscope.settings import Policy, Target
from gradscope.version import __version__

SCHEMA = "gradscope/suggestions/1"
# Analyses of a knob, on average, by which the time is estimated.
_EVALUATIONS = 6


@dataclass(frozen=True)
class Suggestions:
    """What to do about a network.

    analysis : as it is; remedies : of the layers that are connected, and of each that stand side by side;
    layers : the names in the file of layer0, layer1, ... of several.
    """

    analysis: Analysis
    remedies: tuple[Remedies, ...]
    layers: tuple[str, ...] = ()

    @property
    def target(self) -> str:
        """In words."""
        return self.remedies[0].target

    @property
    def reached(self) -> bool:
        """Whether that is reached already, and no weight is to be changed."""
        return all(one.reached for one in self.remedies)

    @property
    def suggestions(self) -> tuple[Suggestion, ...]:
        """Of every knob that was tried."""
        return tuple(suggestion for one in self.remedies for suggestion in one.suggestions)

    @property
    def advice(self) -> tuple[str, ...]:
        """What a number cannot tell, with its source."""
        return tuple(told_of(self.remedies)["advice"])

    def to_dict(self) -> dict[str, Any]:
        """The JSON object ``gradscope/suggestions/1``."""
        full = self.analysis.full
        return {
            "schema": SCHEMA,
            "gradscope": __version__,
            "problem": dict(self.analysis.problem),
            "verdict": self.analysis.verdict.to_dict(),
            "log10_norm": json_number(full.log10_norm.median),
            "horizon": json_number(full.horizon.median),
            **told_of(self.remedies),
        }

    def __str__(self) -> str:
        return printed(self)

    def _repr_html_(self) -> str:
        return in_notebook(self)


def suggested(
    problems: Problems,
    policy: Policy,
    means: Means,
    *,
    target: Target = "stable",
    horizon: int | None = None,
    knobs: Sequence[str] = (),
    report: Callable[[str], None] | None = None,
) -> Suggestions:
    """What to do about the layers of ``problems``.

    horizon : steps, in place of a target; knobs : names of those to be tried, by default all; report : told
    what is being tried. Raises InputError where there are no parameters to set.
    """
    networks = networks_of(problems, policy, means)
    found = remedies_of(problems, networks, target=target, horizon=horizon, knobs=knobs, report=report)
    if len(networks) == 1:
        return Suggestions(networks[0].analysis, found, problems.names)
    side_by_side = Problems(tuple(network.problem for network in networks))
    source = described_together(problems, means.devices[0].platform)
    whole = of_sequences(together(side_by_side, [network.measured for network in networks]), policy, source)
    notes = [
        f"{', '.join(one.layers)}: {note}"
        for one, network in zip(found, networks, strict=True)
        for note in network.analysis.verdict.notes
    ]
    layers = tuple(network.analysis for network in networks)
    whole = replace(whole, layers=layers, verdict=whole.verdict.noting(notes))
    return Suggestions(whole, found, problems.names)


def networks_of(
    problems: Problems, policy: Policy, means: Means, measured: Sequence[Sequence[Measured]] | None = None
) -> list[Network]:
    """The layers and stacks that stand side by side; measured : of ``problems.every``, where known."""
    check_settable(problems)
    groups, known = problems.groups, dict[int, Sequence[Measured]]()
    if measured is not None:  # a stack beside others is measured again: its layers' chains are apart
        known = {id(groups[0].problem): together(problems, measured)} if len(groups) == 1 else {}
        known |= {id(one): each for one, each in zip(problems.layers, measured, strict=False)}
    return [Network.of(group.problem, policy, means, known.get(id(group.problem))) for group in groups]


def check_settable(problems: Problems) -> None:
    """Raise InputError where there is something that gradscope has no equations of."""
    for group in problems.groups:
        if (by := group.problem.origin.jacobians) != "own":
            raise InputError(
                f"the layer is differentiated by {by}, and gradscope has no equations to run with other "
                "weights: suggestions are of cells that it has"
            )


def remedies_of(
    problems: Problems,
    networks: Sequence[Network],
    *,
    target: Target = "stable",
    horizon: int | None = None,
    knobs: Sequence[str] = (),
    report: Callable[[str], None] | None = None,
) -> tuple[Remedies, ...]:
    """What was tried of each of these networks, which stand side by side; see ``suggested``."""
    at_once = networks[0].means.at_once
    trials = [
        Trial(network, _goal(network, target, horizon), group.members if len(networks) > 1 else ())
        for network, group in zip(networks, problems.groups, strict=True)
    ]
    if knobs and not all(trial.reached for trial in trials):
        _check_names(trials, knobs)
    chosen = [_chosen(trial, knobs) for trial in trials]
    names = [name for each in chosen for name in each]
    say, number, began = report or (lambda _: None), itertools.count(), time.monotonic()
    if names:
        say(_estimate(trials, chosen, at_once))

    def tried(name: str, call: Callable[[], Suggestion]) -> Suggestion:
        done = next(number)
        left = _left(time.monotonic() - began, done, len(names))
        say(f"trying {name} ({done + 1} of {len(names)}){left}")
        return call()

    return tuple(
        trial.remedies([tried(name, call) for name, call in each.items()])
        for trial, each in zip(trials, chosen, strict=True)
    )


def _check_names(trials: Sequence[Trial], names: Sequence[str]) -> None:
    """Raise InputError for a knob that no layer has."""
    known = dict.fromkeys(name for trial in trials for name in trial.tries(every=True))
    for name in names:
        if not any({name, trial.called(name)} & known.keys() for trial in trials):
            raise InputError(f"--knob {quoted(name)}: expected one of {listed(list(known), 20)}")


def _chosen(trial: Trial, names: Sequence[str]) -> dict[str, Callable[[], Suggestion]]:
    """What is tried of one network."""
    if trial.reached:  # a gain of 1 may be that of saturated gates
        return trial.inputs()
    tries = trial.tries(every=bool(names))
    asked = [called for name in names for called in (trial.called(name), name)] or list(tries)
    return {name: tries[name] for name in asked if name in tries}


def _estimate(
    trials: Sequence[Trial], chosen: Sequence[Mapping[str, Callable[[], Suggestion]]], at_once: int
) -> str:
    """How many knobs there are, and about how long they take."""
    works, programs = [], 0.0
    for trial, each in zip(trials, chosen, strict=True):
        problem = trial.network.problem
        gain, paths = (
            work_of(replace(problem, only=only), problem.system.batch) for only in ("gain", "paths")
        )
        searched = len(each.keys() & {knob.name for knob in trial.knobs(every=True)})
        works += [gain] * (_EVALUATIONS * searched) + [paths] * len(each)
        if searched and "sensitivity" not in vars(trial.network):  # which search begins with
            programs += sensitivity_programs(gain)
    count = sum(map(len, chosen))
    knobs = f"{count} knobs" if count > 1 else "1 knob"
    return f"{knobs}, a dozen analyses of each at most: about {duration(seconds(works, at_once, programs))}"


def _left(elapsed: float, done: int, of: int) -> str:
    """How long the rest takes at the pace of what is done: what other settings take nobody knows before."""
    return f", about {duration(elapsed / done * (of - done))} left" if done else ""


def _goal(network: Network, target: str, steps: int | None) -> Goal:
    if steps is None:
        exploding = network.analysis.verdict.level == "exploding"
        return Critical(network.policy) if target == "critical" else Stable(network.policy, exploding)
    system = network.problem.system
    shortest = min(map(system.length, range(system.batch)))
    if shortest < steps:
        raise InputError(
            f"{as_option('horizon')} is {steps}, of {counted(shortest, 'step')}: give sequences of at least "
            f"{steps}, or a shorter horizon"
        )
    return Horizon(network.policy, steps)


def settings_of_knob(found: Suggestions, name: str) -> list[str]:
    """The settings of the one knob that was tried, of each layer that stands beside others.

    Raises InputError where it does not reach the target.
    """
    if found.reached:
        raise InputError(f"--knob {name}: the target, {found.target}, is reached already: nothing is written")
    tried = [one for each in found.remedies if not each.reached for one in each.suggestions]
    settings = [one.setting for one in tried if one.reaches and one.setting is not None]
    if len(settings) < max(1, len(tried)):
        raise InputError(
            f"--knob {name}: no setting of it that a file could have reaches {found.target}: gradscope "
            "suggest tries the others"
        )
    return settings
