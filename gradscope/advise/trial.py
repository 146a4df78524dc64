"""All knobs of one layer or one stack, tried one after the other."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from gradscope.advise.field_advice import field_advice
from gradscope.advise.goals import Goal, Horizon, countable
from gradscope.advise.knobs import Knob, Scale, Shift, SpectralClip, largest_singular_value
from gradscope.advise.network import Network
from gradscope.advise.search import KnobSearch
from gradscope.cells import find
from gradscope.cells.activated import activation_of, base_of
from gradscope.cells.initializers import INITIALIZERS, initialize
from gradscope.cells.notation import is_recurrent
from gradscope.custom_types import Array
from gradscope.errors import InputError
from gradscope.report.analysis import Analysis
from gradscope.report.chains import horizon
from gradscope.report.remedies import Remedies, Suggestion

# Of the matrices, or of a bias of several layers, those are tried alone whose elasticity is largest.
_TRIED = 3
# Inputs whose size or mean is further than this from 1 and 0 are worth normalising.
_SIZE, _MEAN = 3.0, 1.0
_CLIP = "clip "


@dataclass
class Trial:
    """The knobs of a network, each a try that analyses it with other settings.

    place : the numbers of its layers in the file, where others stand beside it, else none.
    """

    network: Network
    goal: Goal
    place: tuple[int, ...] = ()

    @cached_property
    def reached(self) -> bool:
        """Whether there is nothing to be done."""
        return self.goal.reached(self.network.analysis)

    def tries(self, *, every: bool = False) -> dict[str, Callable[[], Suggestion]]:
        """{knob: what tries it}; every : also knobs that promise little."""
        found: dict[str, Callable[[], Suggestion]] = {}
        found |= self.inputs()  # first what wants no other training
        found |= {knob.name: partial(self._searched, knob) for knob in self.knobs(every=every)}
        return found | self._activations() | self._initialisations()

    def called(self, name: str) -> str:
        """A knob as it is told from that of other layers: of a file of several by their numbers."""
        if not self.place or name.startswith("layer"):
            return name
        if name.startswith(_CLIP):
            return _CLIP + self.called(name.removeprefix(_CLIP))
        return ",".join(f"layer{number}.{name}" for number in self.place)

    def remedies(self, tried: Sequence[Suggestion]) -> Remedies:
        """What was found of these knobs."""
        full, layers = self.network.analysis.full, tuple(f"layer{number}" for number in self.place)
        return Remedies(
            target=self.goal.words,
            reached=self.reached,
            log10_norm=float(full.log10_norm.median),
            horizon=float(full.horizon.median),
            suggestions=tuple(tried),
            advice=() if self.reached else tuple(field_advice(self.network, self.goal, ", ".join(layers))),
            layers=layers,
        )

    def knobs(self, *, every: bool = False) -> Iterator[Knob]:
        """Biases, scales of some matrices, of all, and the clipping of their singular values."""
        parameters, cells = self.network.parameters, self._cells()
        holding = [f"{at}{key}" for at, name in cells.items() if (key := self._holding(name, at))]
        if len(holding) > 1:
            yield Shift(self._together(holding), tuple(holding))
        for key in holding if every else self._strongest(holding):
            yield Shift(self.called(key), (key,))
        matrices = [key for key in parameters if is_recurrent(key)]
        if len(matrices) > 1:
            for key in matrices if every else self._strongest(matrices):
                yield Scale(self.called(key), (key,))
        if matrices:
            together = self.called("R_*" if len(matrices) > 1 else matrices[0])
            yield Scale(together, tuple(matrices))
            largest = largest_singular_value(parameters, matrices)
            if largest > 0 and (every or self.goal.excess(self.network.analysis) > 0):
                yield SpectralClip(f"{_CLIP}{together}", tuple(matrices), largest)

    def _together(self, keys: Sequence[str]) -> str:
        """These parameters by one name; where that is of others too (b_z of an LSTM), by the name of each."""
        kind = keys[0].rpartition(".")[2]
        all_ = [key for key in self.network.parameters if key.rpartition(".")[2] == kind]
        return self.called(kind) if set(all_) == set(keys) else ",".join(keys)

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
            # Where a state is no number any more, less of it is to be tried.
            found = analyses[u] = self.network.changed(knob.applied(self.network.parameters, u))
            return countable(math.inf) if found is None else self.goal.excess(found)

        begin = self.goal.excess(self.network.analysis)
        search = KnobSearch(excess, *knob.span(self.network.parameters), knob.start, begin)
        search.run(self._guess(knob, begin))
        reaching = [u for u, found in analyses.items() if found and self.goal.reached(found)]
        chosen = min(reaching or search.tried, key=lambda u: (abs(search.tried[u]), abs(u)))
        parameters, rate = self.network.parameters, self._rate(knob)
        changed = knob.applied(parameters, chosen)
        made = self._made(
            knob.name,
            (knob.value(parameters, chosen), knob.value(parameters, knob.start)),
            knob.words(chosen),
            self.network.changed(changed, only="paths") if reaching else analyses[chosen],
            None if rate is None else rate * knob.coordinate(parameters, chosen),
        )
        setting = knob.setting(chosen).removeprefix(_CLIP)
        return replace(made, setting=setting, evaluations=len(search.tried), monotone=search.monotone)

    def _guess(self, knob: Knob, excess: float) -> float | None:
        """The u that reaches the goal to first order; of a horizon the rate is what its lags are of all."""
        rate = self._rate(knob)
        if not rate:
            return None
        if isinstance(self.goal, Horizon):
            rate *= self.goal.steps / self.network.analysis.full.steps
        return knob.at(self.network.parameters, -excess / rate)

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

    def inputs(self) -> dict[str, Callable[[], Suggestion]]:
        """Inputs of the user's own that are far from mean 0 and variance 1, with these."""
        problem = self.network.problem
        given = problem.origin.inputs
        # A stack beside others reads what these put out as well, and that is not the user's to normalise.
        if given in ("normal", "zeros") or given.startswith("outputs of ") or self.place[1:]:
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
            return self._made(self.called("inputs"), (1.0, size), words, found)

        return {self.called("inputs"): tried}

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
                self.called("activation"), (None, None), words, self.network.changed(parameters, cell=bounded)
            )

        return {self.called("activation"): tried}

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
