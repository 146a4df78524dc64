"""A network that is analysed again and again with other parameters, by programs that are compiled once."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from gradscope.cells.cell import Cell
from gradscope.custom_types import Array
from gradscope.errors import InputError
from gradscope.measure.batch import Means, measure_batch
from gradscope.measure.measured import Measured
from gradscope.measure.sensitivity import Sensitivity, median_sequence, sensitivity_of, top_sums
from gradscope.problem.problem import Problem
from gradscope.problem.problems import Problems
from gradscope.report.analysis import Analysis
from gradscope.report.conclude import known, of_sequences
from gradscope.report.notes import trajectory_notes
from gradscope.report.provenance import described
from gradscope.settings import Only, Policy

# Error of an elasticity up to which a first guess may go by it.
SURE = 0.1


@dataclass(frozen=True, eq=False)
class Network:
    """One layer or one stack on a batch.

    problem : as it is; its states are computed anew for every change; already : what was measured of it, if
    that is there already.
    """

    problem: Problem
    policy: Policy
    means: Means
    already: Sequence[Measured] | None = None

    @classmethod
    def of(
        cls, problem: Problem, policy: Policy, means: Means, already: Sequence[Measured] | None = None
    ) -> Network:
        """The network of a problem."""
        system = replace(problem.system, states=None)
        # A stack has the origin of its first layer, whose name is not that of all.
        origin = replace(problem.origin, layer=None) if system.cell.members else problem.origin
        plain = replace(problem, system=system, adjoint=None, sensitivity=False, origin=origin)
        return cls(plain, policy, means, already)

    @property
    def parameters(self) -> dict[str, Array]:
        """As they are."""
        return self.problem.system.parameters

    @cached_property
    def analysis(self) -> Analysis:
        """As it is, with every path, and what its trajectory has to tell."""
        found = self._concluded(self.measured)
        if self.problem.system.cell.members:  # of a stack the layers' courses are not apart
            return found
        notes = trajectory_notes(self.problem, self.measured)
        return replace(found, verdict=found.verdict.noting(notes))

    @cached_property
    def sensitivity(self) -> Sensitivity | None:
        """How its gain changes, where that has a derivative which is worth a step."""
        found = known(sensitivity_of(self.problem, self.measured, device=self.means.devices[0]))
        if found is None or found.window is not None or not found.error <= SURE:  # not >, or NaN passes
            return None
        return found

    def changed(
        self,
        parameters: Mapping[str, Array] | None = None,
        *,
        inputs: Array | None = None,
        cell: Cell | None = None,
        only: Only = "gain",
    ) -> Analysis | None:
        """The analysis with other parameters, inputs or equations; None where a state is no number then."""
        system = self.problem.system
        there = replace(
            system,
            parameters=dict(parameters or system.parameters),
            inputs=system.inputs if inputs is None else inputs,
            cell=cell or system.cell,
        )
        try:
            with np.errstate(over="ignore", invalid="ignore"):
                return self._concluded(self._measure(replace(self.problem, system=there, only=only)))
        except InputError:  # a state that leaves its dtype: that it is said to be the user's fault is no use
            return None

    def exponents(self, parameters: Mapping[str, Array], count: int) -> tuple[float, dict[str, Array]]:
        """The sum of the squares of the ``count`` largest exponents, in nats per step, and its derivative.

        Of the median sequence. Raises InputError where there is no derivative.
        """
        system = replace(self.problem.system, parameters=dict(parameters))
        problem = replace(self.problem, system=system, only="paths")
        measured = self._measure(problem)
        number = median_sequence(measured)
        steps = system.length(number)
        logs = measured[number].full.log10_singular_values[:count] * math.log(10.0) / steps
        if not np.isfinite(logs).all():
            raise InputError(f"--floss {count}: of the largest values some are 0, which nothing moves")
        each = top_sums(problem, measured[number], number, count, self.means.devices[0])
        before = gradient = {name: np.zeros_like(array) for name, array in parameters.items()}
        begun = 0  # the first of the values that coincide, whose exponents have one derivative
        for end, summed in enumerate(each, 1):
            if summed is None:
                continue
            slope = 2 * float(logs[begun:end].mean()) * math.log(10.0) / steps
            gradient = {name: gradient[name] + slope * (summed[name] - before[name]) for name in gradient}
            before, begun = summed, end
        return float((logs**2).sum()), gradient

    @cached_property
    def measured(self) -> list[Measured]:
        """As it is, every sequence."""
        return list(self.already or self._measure(replace(self.problem, only="paths")))

    def _measure(self, problem: Problem) -> list[Measured]:
        problems = Problems((problem,))
        floor = math.log10(self.policy.vanishing_below)
        return measure_batch(problems, range(problems.batch), floor, self.means)[0]

    def _concluded(self, measured: list[Measured]) -> Analysis:
        source: dict[str, Any] = described(self.problem, self.means.devices[0].platform)
        return of_sequences(measured, self.policy, source)
