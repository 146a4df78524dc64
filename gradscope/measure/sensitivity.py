"""How log sigma_1 of a chain, or of what a loss sends back, changes with every parameter, exactly."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import listed
from gradscope.measure.adjoints import DRAWS, ROUNDINGS
from gradscope.measure.derivative_passes import SAME, Derivative, DerivativePasses
from gradscope.measure.loss import LossGradient
from gradscope.measure.measured import Measured, near_levels
from gradscope.problem.problem import Problem
from gradscope.product_svd.error_estimate import SAFETY

# Singular values this close together, in decades, have no derivatives of their own that could be told apart.
DEGENERATE = 1e-6
# So many values may coincide, and are then differentiated together.
MOST_TOGETHER = 128
# A number that is off by more than this, and by more than itself, is lost.
LOST = 1.0
# {parameter: {"norm", "elasticity", "shift"}}, numbers of a derivative or their estimated errors.
Numbers = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class Sensitivity:
    """d log10 sigma_1 / d(parameter) of the full chain of one sequence, sigma_1 its gain over all T steps.

    total : {parameter: its shape}, decades per unit: with all that a change does to the states, as a step of
        training or a scaled matrix makes it. ``h0``, ``c0``, ... are there where the initial state is not 0.
        NaN where rounding may leave nothing of it.
    direct : the same with the states held as they are, which is not what a change does.
    elasticity, direct_elasticity : {parameter: d log sigma_1 / d log alpha} for the parameter times alpha.
    sequence : of which, the median of the batch.
    values : of how many largest singular values that coincide it is the mean logarithm; mostly 1.
    largest_adjoint : max_t |p_t| of the adjoint of the trajectory, d log sigma_1 / d state.
    window : where that is above 1e3 the trajectory answers chaotically: the total is that of changes far
        smaller than any that is made, and ``windowed`` that of windows of so many steps before each of which
        the state is held as it is, which is another number. None where there are no windows.
    condition, condition_step : max_t |a_t||b_t| / sigma_1 = 1 / cos angle(a_t, b_t) over the states after the
        steps, and the step: how much a relative change of one Jacobian may do to sigma_1, and where most.
    error : the largest estimated |error| of the elasticities in ``elasticity``.
    loss : the same of log10 |dL/ds_0| of the loss that is followed back, None without one.
    windowed, windowed_elasticity : see ``window``.
    errors : {"total" | "direct" | "windowed": {parameter: {"norm" | "elasticity" | "shift": estimated |error|
        of that number in ``to_dict``}}}, from runs in which all that is given is changed by roundings; the
        norm's is that of the array. Empty of results that are older.
    unmeasured : what is lost of these, or that the loss' are, and why; None where all are known.
    """

    total: Mapping[str, Array]
    direct: Mapping[str, Array]
    elasticity: Mapping[str, float]
    direct_elasticity: Mapping[str, float]
    sequence: int
    values: int
    largest_adjoint: float
    window: int | None
    condition: float
    condition_step: int
    error: float
    loss: Sensitivity | None = None
    windowed: Mapping[str, Array] | None = None
    windowed_elasticity: Mapping[str, float] | None = None
    errors: Mapping[str, Numbers] = field(default_factory=dict)
    unmeasured: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The part ``sensitivity`` of the JSON object."""
        kinds = {"total": self.total, "direct": self.direct, "windowed": self.windowed}
        elasticities = {
            "total": self.elasticity,
            "direct": self.direct_elasticity,
            "windowed": self.windowed_elasticity,
        }
        told: dict[str, Any] = {
            kind: _told(arrays, elasticities[kind] or {}, self.errors.get(kind, {}))
            for kind, arrays in kinds.items()
            if arrays is not None
        }
        return told | {
            "gates": _gates(told["total"]),
            "sequence": self.sequence,
            "values": self.values,
            "largest_adjoint": self.largest_adjoint,
            "window": self.window,
            "condition": {"largest": self.condition, "step": self.condition_step},
            "error": self.error,
            **({} if self.unmeasured is None else {"unmeasured": self.unmeasured}),
            **({} if self.loss is None else {"loss": self.loss.to_dict()}),
        }


def _told(arrays: Mapping[str, Array], elasticity: Mapping[str, float], errors: Numbers) -> Numbers:
    return {
        name: {
            "norm": float(np.linalg.norm(array)),
            "elasticity": elasticity[name],
            "shift": float(array.sum()),
            **{f"{number}_error": error for number, error in errors.get(name, {}).items()},
        }
        for name, array in arrays.items()
    }


def _gates(total: Numbers) -> dict[str, dict[str, float]]:
    """All that makes a gate's pre-activation together: W_f, R_f, b_f and p_f are f."""
    names: dict[str, list[str]] = {}
    for name in total:
        module, dot, key = name.rpartition(".")
        if "_" in key:
            names.setdefault(f"{module}{dot}{key.partition('_')[2]}", []).append(name)
    sums: dict[str, Callable[..., float]] = {"norm": math.hypot, "elasticity": lambda *parts: sum(parts)}
    sums |= {f"{number}_error": each for number, each in sums.items()}
    return {
        gate: {
            number: summed(*(total[name][number] for name in parts))
            for number, summed in sums.items()
            if all(number in total[name] for name in parts)
        }
        for gate, parts in names.items()
    }


def sensitivity_of(
    problem: Problem,
    measured: Sequence[Measured],
    loss: LossGradient | None = None,
    device: jax.Device | None = None,
) -> Sensitivity | str:
    """The sensitivity of the median sequence, or why it has none."""
    number = median_sequence(measured)
    if not measured[number].alive:
        return "the gain is 0, whose logarithm has no derivative"
    if math.isfinite(step := float(measured[number].course["ends"][0])):
        return (
            f"a state leaves {problem.system.dtype} at step {step:.0f}, and it is differentiated along states"
        )
    try:
        return of_sequence(problem, measured[number], number, loss, device)
    except ArithmeticError as error:
        return str(error)


def median_sequence(measured: Sequence[Measured]) -> int:
    """The number of the sequence in the middle; of an even number the lower of the two there."""
    norms = [float(one.full.log10_singular_values[0]) for one in measured]
    return int(np.argsort(norms, kind="stable")[(len(norms) - 1) // 2])


def top_sums(
    problem: Problem, measured: Measured, number: int, count: int, device: jax.Device
) -> list[dict[str, Array] | None]:
    """Derivatives of the sums of log10 of the 1, 2, ... ``count`` largest singular values of one sequence.

    Of windows where the trajectory answers chaotically. None where a sum has none: where its last value and
    the next one coincide.
    """
    found: list[dict[str, Array] | None] = []
    with problem.system.running():
        passes = _passes(problem, measured, number, device)
        for values in range(1, count + 1):
            try:
                logs = measured.full.log10_singular_values[:values]
                mean = passes.of_norm(measured.full.right, values, float(np.mean(logs)))
            except ArithmeticError:
                found.append(None)
            else:
                total = mean.total if mean.windowed is None else mean.windowed
                found.append({name: values * total[name] for name in mean.direct})
    return found


def of_sequence(
    problem: Problem,
    measured: Measured,
    number: int,
    loss: LossGradient | None = None,
    device: jax.Device | None = None,
) -> Sensitivity:
    """The sensitivity of one sequence of the problem, of which this was measured.

    Raises ArithmeticError where it has none that could be told.
    """
    device = device or jax.local_devices()[0]
    values = _coinciding(measured, problem.system.size)
    with problem.system.running():
        passes = _passes(problem, measured, number, device)
        mean = float(np.mean(measured.full.log10_singular_values[:values]))
        one = passes.of_norm(measured.full.right, values, mean)
        again = [passes.again(draw).from_columns(one.start, one) for draw in range(1, DRAWS + 1)]
        found = concluded(one, again, problem.system.eps)
        if loss is not None and problem.adjoint is not None:
            adjoint = problem.adjoint[number][: problem.system.length(number)]
            found = _with_loss(found, passes, adjoint, float(loss.log10_norm[number, passes.steps]))
    worst = int(np.argmin(one.cosine))
    return replace(
        found,
        sequence=number,
        values=values,
        loss=found.loss and replace(found.loss, sequence=number),
        condition=1.0 / max(float(one.cosine[worst]), np.finfo(float).tiny),
        condition_step=worst + 1,
    )


def _passes(problem: Problem, measured: Measured, number: int, device: jax.Device) -> DerivativePasses:
    system = problem.system
    alone = system.part([number], system.length(number))
    return DerivativePasses(alone, problem.kept, near_levels([measured]), device)


def _coinciding(measured: Measured, size: int) -> int:
    """How many of the largest singular values are the same, as far as can be told."""
    spectrum = measured.full
    logs = np.asarray(spectrum.log10_singular_values)
    apart = max(DEGENERATE, 10 * spectrum.log10_norm_error)
    with np.errstate(invalid="ignore"):  # of zeros
        far = np.flatnonzero(~(logs[:-1] - logs[1:] <= apart))  # not >, or NaN is taken to be near
    count = int(far[0]) + 1 if len(far) else len(logs)
    if count > MOST_TOGETHER or (count == len(logs) < size):
        raise ArithmeticError(
            f"the {count} largest singular values coincide: none of them has a derivative of its own"
        )
    return count


def _with_loss(
    found: Sensitivity, passes: DerivativePasses, adjoint: Array, log10_norm: float
) -> Sensitivity:
    """The same with that of a loss, whose log10 |dL/ds_0| was measured to be this, or why it has none."""
    if math.isinf(log10_norm):  # a gradient of 0, whose logarithm has no derivative
        return found
    one = None if math.isnan(log10_norm) else passes.of_loss(adjoint)
    if one is None or not abs(float(one.log10[0]) - log10_norm) <= SAME:
        lost = (
            "that of the loss, whose gradient is not measured, or not by the slopes that are differentiated"
        )
        return replace(found, unmeasured="; ".join(filter(None, (found.unmeasured, lost))))
    runs = [passes.again(draw).of_loss(adjoint, one) for draw in range(1, DRAWS + 1)]
    again = [run for run in runs if run is not None]
    return replace(found, loss=concluded(one, again, passes.system.eps))


def concluded(one: Derivative, again: Sequence[Derivative], eps: float) -> Sensitivity:
    """What is told of a derivative, of which there are other runs."""
    kinds = ["total", "direct", *(["windowed"] if one.windowed is not None else [])]
    arrays, elasticity, errors = zip(*(_known(kind, one, again, eps) for kind in kinds), strict=True)
    lost = [name for name, array in arrays[0].items() if not np.isfinite(array).all()]
    return Sensitivity(
        total=arrays[0],
        direct=arrays[1],
        elasticity=elasticity[0],
        direct_elasticity=elasticity[1],
        sequence=0,
        values=1,
        largest_adjoint=one.largest_adjoint,
        window=one.window,
        condition=math.nan,
        condition_step=0,
        error=max(each["elasticity"] for each in errors[0].values()),
        windowed=arrays[2] if arrays[2:] else None,
        windowed_elasticity=elasticity[2] if arrays[2:] else None,
        errors=dict(zip(kinds, errors, strict=True)),
        unmeasured=f"that by {listed(lost)}, of which rounding may leave nothing" if lost else None,
    )


def _known(
    kind: str, one: Derivative, again: Sequence[Derivative], eps: float
) -> tuple[dict[str, Array], dict[str, float], Numbers]:
    """Arrays of a kind and their elasticities, NaN of what is lost, and estimated errors of all."""
    arrays: dict[str, Array] = {}
    elasticities: dict[str, float] = {}
    errors: dict[str, dict[str, float]] = {}
    for name, array in getattr(one, kind).items():
        number = _elasticity(array, one.parameters[name])
        runs = [(getattr(run, kind)[name], run.parameters[name]) for run in again]
        with np.errstate(invalid="ignore", over="ignore"):
            off = {
                "norm": [float(np.linalg.norm(other - array)) for other, _ in runs],
                "elasticity": [abs(_elasticity(*run) - number) for run in runs],
                "shift": [abs(float(other.sum() - array.sum())) for other, _ in runs],
            }
            size = {"norm": np.linalg.norm(array), "elasticity": number, "shift": array.sum()}
            errors[name] = {
                each: float(SAFETY * np.max(off[each]) + ROUNDINGS * eps * abs(size[each])) for each in off
            }
        sure = all(errors[name][each] <= max(LOST, abs(size[each])) for each in ("norm", "elasticity"))
        arrays[name] = array if sure else np.full_like(array, np.nan)  # not lost, or NaN is sure
        elasticities[name] = number if sure else math.nan
    return arrays, elasticities, errors


def _elasticity(array: Array, parameter: Array) -> float:
    return float((array * parameter).sum() * math.log(10.0))
