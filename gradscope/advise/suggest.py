"""Settings of a network's knobs that reach a target, each verified by an analysis of the changed network."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from gradscope.advise.field_advice import field_advice
from gradscope.advise.goals import Critical, Goal, Horizon, Stable
from gradscope.advise.knobs import Knob, Scale, Shift, SpectralClip, largest_singular_value
from gradscope.advise.network import Network
from gradscope.advise.search import KnobSearch
from gradscope.cells import find
from gradscope.cells.activated import activation_of, base_of
from gradscope.cells.initializers import INITIALIZERS, initialize
from gradscope.cells.notation import is_recurrent
from gradscope.custom_types import Array
from gradscope.errors import InputError, as_option, listed, quoted
from gradscope.measure.batch import Means
from gradscope.problem.layers import Problems
from gradscope.report.analysis import Analysis
from gradscope.report.chains import horizon
from gradscope.settings import Policy, Target
from gradscope.version import __version__

SCHEMA = "gradscope/suggestions/1"
# Of the matrices, or of a bias of several layers, those are tried alone whose elasticity is largest.
_TRIED = 3
# Inputs whose size or mean is further than this from 1 and 0 are worth normalising.
_SIZE, _MEAN = 3.0, 1.0


@dataclass(frozen=True)
class Suggestion:
    """One knob: what reaches the target, or that nothing does.

    knob : what is set; value, was : of the mean bias, of the factor (1 before), of the largest singular value
        that is left, or None and None where it is no number; words : the setting, for people; setting : for
        ``repair --knob``, None where a file cannot have it.
    reaches : whether it reaches the target, as the analysis of the changed network says; where not,
        value and what follows are the nearest that was found.
    predicted_log10, predicted_horizon : what the first order said of log10 gain and horizon; None where
        there is no derivative. verified_log10, horizon : what was measured, medians of the batch, None where
        a state is no number any more. evaluations : how often the network was analysed; monotone : whether
        the gain rose, or fell, through all that was tried; shares : {path: (before, after)} of those that
        moved.
    """

    knob: str
    value: float | None
    was: float | None
    words: str
    setting: str | None
    reaches: bool
    predicted_log10: float | None
    predicted_horizon: int | None
    verified_log10: float | None
    horizon: float | None
    verdict: str | None
    evaluations: int
    monotone: bool
    shares: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON tells it."""
        told = {name: _finite(value) for name, value in vars(self).items() if name != "shares"}
        return told | {"shares": {name: list(map(_finite, pair)) for name, pair in self.shares.items()}}


@dataclass(frozen=True)
class Suggestions:
    """What to do about a network, or about the layers of one that stand side by side.

    analysis : as it is; target : in words; reached : whether that is reached already, and no weight is to be
    changed; suggestions : of every knob that was tried; advice : what a number cannot tell, with its source;
    layers : the names in the file of layer0, layer1, ... of several that are connected.
    """

    analysis: Analysis
    target: str
    reached: bool
    suggestions: tuple[Suggestion, ...]
    advice: tuple[str, ...]
    layers: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """The JSON object ``gradscope/suggestions/1``."""
        full, verdict = self.analysis.full, self.analysis.verdict
        return {
            "schema": SCHEMA,
            "gradscope": __version__,
            "problem": dict(self.analysis.problem),
            "verdict": {
                "level": verdict.level,
                "reasons": list(verdict.reasons),
                "notes": list(verdict.notes),
            },
            "log10_norm": _finite(full.log10_norm.median),
            "horizon": _finite(full.horizon.median),
            "target": self.target,
            "reached": self.reached,
            "suggestions": [one.to_dict() for one in self.suggestions],
            "advice": list(self.advice),
        }

    def __str__(self) -> str:
        from gradscope.advise.suggestion_table import render_suggestions
        from gradscope.report.terminal import terminal_for
        from gradscope.report.views import Look

        return render_suggestions(self, Look(terminal_for("never", to_file=False))).rstrip("\n")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


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
    """What to do about the layers of ``problems``, which are connected.

    horizon : steps, in place of a target; knobs : names of those to be tried, by default all; report : told
    what is being tried. Raises InputError for layers side by side, and where there are no parameters to set.
    """
    joint = problems.joint
    if joint is None:
        raise InputError(
            f"layers {listed(problems.names)} stand side by side, and each has a gain of its own: choose one "
            f"with {as_option('layer')}"
        )
    if joint.origin.jacobians != "own":
        raise InputError(
            f"the layer is differentiated by {joint.origin.jacobians}, and gradscope has no equations to run "
            "with other weights: suggestions are of cells that it has"
        )
    network = Network.of(joint, policy, means)
    goal = _goal(network, target, horizon)
    analysis = network.analysis
    trial = Trial(network, goal, report or (lambda _: None))
    if goal.reached(analysis):
        return Suggestions(analysis, goal.words, True, tuple(trial.all_the_same()), (), problems.names)
    found = trial.all(knobs)
    advice = tuple(field_advice(network, goal))
    return Suggestions(analysis, goal.words, False, tuple(found), advice, problems.names)


def _goal(network: Network, target: str, steps: int | None) -> Goal:
    if steps is None:
        exploding = network.analysis.verdict.level == "exploding"
        return Critical(network.policy) if target == "critical" else Stable(network.policy, exploding)
    system = network.problem.system
    shortest = min(map(system.length, range(system.batch)))
    if shortest < steps:
        raise InputError(
            f"{as_option('horizon')} is {steps}, but there are {shortest} steps: give sequences of at least "
            f"{steps}, or a shorter horizon"
        )
    return Horizon(network.policy, steps)


@dataclass
class Trial:
    """All knobs of a network, tried one after the other."""

    network: Network
    goal: Goal
    report: Callable[[str], None]

    def all(self, names: Sequence[str]) -> list[Suggestion]:
        """The suggestions of the knobs with these names, or of all."""
        tries: dict[str, Callable[[], Suggestion]] = {}
        tries |= self._inputs() | self._activations()
        tries |= {knob.name: partial(self._searched, knob) for knob in self._knobs(bool(names))}
        tries |= self._initialisations()
        if wrong := [name for name in names if name not in tries]:
            raise InputError(f"--knob {quoted(wrong[0])}: expected one of {listed(list(tries), 20)}")
        found = []
        for name in names or tries:
            self.report(f"trying {name}")
            found.append(tries[name]())
        return found

    def all_the_same(self) -> list[Suggestion]:
        """What is tried though the target is reached: a gain of 1 may be that of saturated gates."""
        return [tried() for tried in self._inputs().values()]

    def _knobs(self, every: bool) -> Iterator[Knob]:
        """Biases, scales of some matrices, of all, and the clipping of their singular values."""
        parameters, cells = self.network.parameters, self._cells()
        holding = [f"{at}{key}" for at, name in cells.items() if (key := self._holding(name, at))]
        if len(holding) > 1:
            yield Shift(holding[0].rpartition(".")[2], tuple(holding))
        for key in holding if every else self._strongest(holding):
            yield Shift(key, (key,))
        matrices = [key for key in parameters if is_recurrent(key)]
        if len(matrices) > 1:
            for key in matrices if every else self._strongest(matrices):
                yield Scale(key, (key,))
        if matrices:
            together = "R_*" if len(matrices) > 1 else matrices[0]
            yield Scale(together, tuple(matrices))
            largest = largest_singular_value(parameters, matrices)
            if largest > 0 and (every or self.goal.excess(self.network.analysis) > 0):
                yield SpectralClip(f"clip {together}", tuple(matrices), largest)

    def _cells(self) -> dict[str, str]:
        """{what stands before the keys of a layer: the name of its cell}."""
        cell = self.network.problem.system.cell
        return {f"{m.name}.": m.cell.name for m in cell.members} or {"": cell.name}

    def _holding(self, name: str, at: str) -> str | None:
        """The bias of the gate that holds the state: z of a GRU, f of an LSTM and of what is like one."""
        found = "b_z" if name.startswith("gru") else "b_f"
        return found if f"{at}{found}" in self.network.parameters else None

    def _strongest(self, keys: Sequence[str]) -> list[str]:
        """Those with the largest elasticity, or the first, in the order of the cell."""
        found = self.network.sensitivity
        if found is None:
            return list(keys[:_TRIED])
        by = sorted(keys, key=lambda key: -abs(_weight(found.total[key], self.network.parameters[key], key)))
        return [key for key in keys if key in by[:_TRIED]]

    def _searched(self, knob: Knob) -> Suggestion:
        analyses: dict[float, Analysis | None] = {}

        def excess(u: float) -> float:
            found = analyses[u] = self.network.changed(knob.applied(self.network.parameters, u))
            # Where a state is no number any more, more of it is too much.
            return math.copysign(1e4, 1.0) if found is None else self.goal.excess(found)

        begin = self.goal.excess(self.network.analysis)
        search = KnobSearch(excess, *knob.span(self.network.parameters), knob.start, begin)
        search.run(self._slope(knob))
        reaching = [u for u, found in analyses.items() if found and self.goal.reached(found)]
        chosen = min(reaching or search.tried, key=lambda u: (abs(search.tried[u]), abs(u)))
        parameters, rate = self.network.parameters, self._rate(knob)
        changed = knob.applied(parameters, chosen)
        made = self._made(
            knob.name,
            (knob.value(parameters, chosen), knob.value(parameters, knob.start)),
            knob.words(chosen),
            self.network.changed(changed, only="paths") if reaching else analyses[chosen],
            None if rate is None else rate * (chosen - knob.start),
        )
        setting = knob.setting(chosen).removeprefix("clip ")
        return replace(made, setting=setting, evaluations=len(search.tried), monotone=search.monotone)

    def _slope(self, knob: Knob) -> float | None:
        """d excess / du to first order: of the gain, of a horizon of as much as its lags are of all steps."""
        rate = self._rate(knob)
        if rate is None or not isinstance(self.goal, Horizon):
            return rate
        return rate * self.goal.steps / self.network.analysis.full.steps

    def _rate(self, knob: Knob) -> float | None:
        """d log10 gain / du, where nothing is changed yet; None where there is no derivative."""
        found, parameters = self.network.sensitivity, self.network.parameters
        if found is None:
            return None
        return sum(float((found.total[key] * knob.tangent(parameters[key])).sum()) for key in knob.keys)

    def _made(
        self,
        name: str,
        values: tuple[float | None, float | None],
        words: str,
        found: Analysis | None,
        more: float | None = None,
    ) -> Suggestion:
        """What is told of a setting whose analysis this is; more : decades that the first order adds."""
        before = self.network.analysis
        shares = {} if found is None else _moved(before.mean_shares, found.mean_shares)
        return Suggestion(
            knob=name,
            value=values[0],
            was=values[1],
            words=words,
            setting=None,
            reaches=found is not None and self.goal.reached(found),
            predicted_log10=None if more is None else float(before.full.log10_norm.median) + more,
            predicted_horizon=None if more is None else self._ahead(more),
            verified_log10=None if found is None else float(found.full.log10_norm.median),
            horizon=None if found is None else float(found.full.horizon.median),
            verdict=None if found is None else found.verdict.level,
            evaluations=1,
            monotone=True,
            shares=shares,
        )

    def _ahead(self, more: float) -> int:
        """The horizon that the first order says, of a change that is spread evenly over the steps."""
        full = self.network.analysis.full
        norms = np.nanmedian(full.by_lag, axis=0) + more * full.lags / full.steps
        return horizon(norms, self.network.policy.vanishing_below, full.lags)

    def _inputs(self) -> dict[str, Callable[[], Suggestion]]:
        """Inputs of the user's own that are far from mean 0 and variance 1, with these."""
        problem = self.network.problem
        if problem.origin.inputs in ("normal", "zeros"):
            return {}
        inputs, system = problem.system.inputs, problem.system
        there = np.concatenate([inputs[b, : system.length(b)] for b in range(system.batch)])
        mean, deviation = there.mean(axis=0), there.std(axis=0)
        size = float(np.sqrt((there**2).mean()))
        moving = deviation[deviation > 0]
        plain = not moving.size or (moving.max() <= _SIZE and moving.min() >= 1 / _SIZE)
        if plain and np.abs(mean).max() <= _MEAN:
            return {}

        def tried() -> Suggestion:
            normalised = (inputs - mean) / np.where(deviation > 0, deviation, 1.0)
            words = f"inputs normalised (size now {size:.3g})"
            found = self.network.changed(inputs=normalised, only="paths")
            return self._made("inputs", (1.0, size), words, found)

        return {"inputs": tried}

    def _activations(self) -> dict[str, Callable[[], Suggestion]]:
        """tanh in the place of what does not saturate, where the gain is too large."""
        cell, parameters = self.network.problem.system.cell, self.network.parameters
        if cell.members or self.network.analysis.verdict.level != "exploding":
            return {}
        if activation_of(cell.name) in ("tanh", "sigmoid") or cell.name == "linear":
            return {}
        base = "rnn" if cell.name.startswith("rnn") else base_of(cell.name)
        try:
            bounded = find(base)
        except InputError:  # a cell of the user's own
            return {}
        if bounded.name == cell.name or activation_of(base) != "tanh":
            return {}

        def tried() -> Suggestion:
            words = f"activation tanh in place of {activation_of(cell.name)}"
            return self._made(
                "activation", (None, None), words, self.network.changed(parameters, cell=bounded)
            )

        return {"activation": tried}

    def _initialisations(self) -> dict[str, Callable[[], Suggestion]]:
        """Of a fresh cell, the other laws that fit it."""
        problem = self.network.problem
        system, origin = problem.system, problem.origin
        if origin.source != "initialised" or origin.init is None:
            return {}

        def drawn(law: str) -> Mapping[str, Array]:
            return initialize(
                system.cell,
                system.hidden,
                system.input_size,
                init=law,
                gain=origin.gain,
                seed=origin.seed,
                steps=self.goal.steps if isinstance(self.goal, Horizon) else system.steps,
            )

        def tried(law: str) -> Callable[[], Suggestion]:
            def one() -> Suggestion:
                found = self.network.changed(drawn(law), only="paths")
                return self._made(f"init {law}", (None, None), f"init {law}", found)

            return one

        laws: dict[str, Callable[[], Suggestion]] = {}
        for law in INITIALIZERS:
            if law != origin.init and _fits(drawn, law):
                laws[f"init {law}"] = tried(law)
        return laws


def _fits(drawn: Callable[[str], Any], law: str) -> bool:
    try:
        drawn(law)
    except InputError:
        return False
    return True


def _weight(derivative: Array, parameter: Array, key: str) -> float:
    """How much a knob of this parameter moves: a bias is shifted, a matrix scaled."""
    return float(derivative.sum() if not is_recurrent(key) else (derivative * parameter).sum())


def _moved(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, tuple[float, float]]:
    """The path that carries most, before or after, and any that moved by a tenth."""
    if len(after) < 2:
        return {}
    most = {max(shares, key=lambda name: abs(shares[name])) for shares in (before, after)}
    return {
        name: (before[name], after[name])
        for name in after
        if name in before and (name in most or abs(after[name] - before[name]) > 0.1)
    }


def setting_of(found: Suggestions, name: str) -> str:
    """The setting of the one knob that was tried; raises InputError where it does not reach the target."""
    if found.reached:
        raise InputError(f"--knob {name}: the target, {found.target}, is reached already: nothing is written")
    (one,) = found.suggestions
    if not one.reaches or one.setting is None:
        raise InputError(
            f"--knob {name}: no setting of it that a file could have reaches {found.target}: gradscope "
            "suggest tries the others"
        )
    return one.setting
