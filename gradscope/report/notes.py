"""What else a user should know of a trajectory and its chain, in sentences with the number and the remedy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import counted, flag, listed
from gradscope.measure.measured import Measured, course_of, drives_below, gate_statistics
from gradscope.problem.problem import Problem
from gradscope.problem.problems import Problems
from gradscope.product_svd.log_scale import median_of_known
from gradscope.report.chains import Chain
from gradscope.report.verdict import scientific
from gradscope.settings import Level

if TYPE_CHECKING:
    from gradscope.measure.loss import LossGradient
    from gradscope.measure.sensitivity import Sensitivity

# Of all gates at all steps: from here on it is the network's state, not that of some units.
_SATURATED = 0.9
# Terms this large saturate most gates; with inputs of size 1 that is the weights' doing.
_LARGE = 3.0
# A gate below this is closed. Units that do nothing are told where they are so many, over so many steps.
_CLOSED = 0.01
_MANY = 0.1
_ENOUGH = 20
# Digits of a dtype that rounding has to leave of a trajectory.
_DIGITS_LEFT = 4.0
_FLOAT32 = (math.log10(np.finfo(np.float32).tiny), math.log10(np.finfo(np.float32).max))
# Cells without gates whose slopes end as exponentials do.
_SATURATING = ("rnn", "rnn-sigmoid")
# 1 / cos of the angle between the forward and the backward vector from where on the gain hangs by one step.
_FRAGILE = 100.0
_SCALE_DOWN = "scale the recurrent matrices down"
# Times T up to which a rate is carried on.
_AHEAD = 10


def trajectory_notes(problem: Problem, measured: Sequence[Measured]) -> tuple[str, ...]:
    """Of one layer: what its gates, states and units do."""
    if not all(one.course for one in measured):
        return ()
    course, system = course_of(measured), problem.system
    steps = sum(map(system.length, range(len(measured))))
    cause = _cause(course)
    saturated = _saturated(measured, cause)
    # A cause is named once, and so is its remedy.
    found = [saturated, _beyond(course, system.dtype, "" if _SCALE_DOWN in saturated else f"; {_SCALE_DOWN}")]
    if system.cell.gates is not None or system.cell.name in _SATURATING:
        found.append(_underflow(measured, course, system.dtype))
    if course["moved"][0] == 0 and steps > 1:
        found.append(_at_rest(course))
    elif steps >= _ENOUGH:
        why = "" if saturated else f": {cause}"
        found += [_dead(course, system.output, why), *(_closed(course, gate) for gate in ("i", "o"))]
    return tuple(filter(None, found))


def left_out(problems: Problems) -> tuple[str, ...]:
    """What was asked for of a loss or of training, and is not measured with less than all."""
    only = problems.layers[0].only
    if only == "all":
        return ()
    lossy = next((problem for problem in problems.every if problem.adjoint is not None), None)
    asked = {
        "readout" if lossy and lossy.origin.readout else "adjoint": lossy,
        "clip": lossy and lossy.clip,
        "tbptt": lossy and lossy.tbptt,
    }
    names = [flag(name) for name, value in asked.items() if value is not None]
    names += [flag(problems.masks.name)] if problems.masks else []
    return (f"{listed(names)} not measured: --only {only} leaves it out.",) if names else ()


def chain_notes(
    full: Chain, level: Level, dtype: str | None = None, measured: Sequence[Measured] = ()
) -> tuple[str, ...]:
    """Of a whole chain; dtype : of the forward pass, None where there was none; measured : in it."""
    courses = [one.course for one in measured if one.course]
    chaos = dtype and _chaos(full, dtype, _growth(courses))
    return tuple(filter(None, [chaos, _float32_lag(full, level)]))


def loss_notes(loss: LossGradient | None) -> tuple[str, ...]:
    """Of what a loss sends back."""
    if loss is None:
        return ()
    norms = median_of_known(loss.log10_norm)
    what = _leaving(np.arange(len(norms)), norms)
    found = (f"In float32 the loss' gradient {what}.",) if what else ()
    lost = f"The loss' gradient is not all measured: {loss.unmeasured}; normalise inputs, scale weights down."
    return (*found, lost) if loss.unmeasured else found


def sensitivity_notes(change: Sensitivity | str | None) -> tuple[str, ...]:
    """Of how the gain changes: what there is to know before anything is made of it."""
    if change is None:
        return ()
    if isinstance(change, str):
        return (f"No sensitivity: {change}.",)
    found = []
    if change.values > 1:
        found.append(
            f"The {change.values} largest singular values coincide, and have no derivatives of their own: "
            "the sensitivity is that of their mean logarithm."
        )
    if change.window is not None:
        found.append(
            f"The trajectory answers to a change with a factor of {_size(change.largest_adjoint)}, "
            "chaotically: the sensitivity tells little of a change that is not tiny; beside it stands that "
            f"of windows of {counted(change.window, 'step')}, the state before each held, which is not of "
            "the whole."
        )
    if change.unmeasured:
        found.append(f"Of the sensitivity is not measured: {change.unmeasured}.")
    if change.condition > _FRAGILE:
        found.append(
            f"The chain is fragile at step {change.condition_step}: a relative change of that Jacobian may "
            f"change the gain {_size(change.condition)} times as much."
        )
    return tuple(found)


def _saturated(measured: Sequence[Measured], cause: str) -> str:
    gates = gate_statistics(measured)
    share = float(np.mean([gate["saturated"] for gate in gates.values()])) if gates else 0.0
    return f"Gates are saturated {100 * share:.0f} %: {cause}." if share >= _SATURATED else ""


def _cause(course: Mapping[str, Array]) -> str:
    """Which term of the gates is the largest, and what to do about it."""
    with np.errstate(invalid="ignore", divide="ignore"):
        weighed, recurrent, bias, inputs = np.sqrt(course["squares"] / course["counts"]).tolist()
    if not weighed + recurrent + bias > 0:  # not <=, or NaN passes
        return "their slopes, and what goes through them, are small"
    if weighed >= max(recurrent, bias):
        if weighed > _LARGE * inputs:
            return f"W x is of size {_size(weighed)}, inputs of {_size(inputs)}; scale the input weights down"
        return f"inputs are of size {_size(inputs)}; normalise them"
    if recurrent >= bias:
        return f"R h is of size {_size(recurrent)}; {_SCALE_DOWN}"
    return f"biases are of size {_size(bias)}; smaller ones leave the gates a slope"


def _size(number: float) -> str:
    """Two digits of it."""
    if (
        not number < 1e150
    ):  # not >=, or NaN passes; states beyond it were taken as that, and squares are infinite
        return "over 1e150"
    rounded = float(f"{number:.1e}")
    return f"{rounded:.0f}" if 10 <= rounded < 1e6 else f"{rounded:.2g}"


def small_slopes(problem: Problem, measured: Sequence[Measured]) -> bool:
    """Whether some slopes may not be 0 that the dtype of the trajectory takes as that."""
    if not all(one.course for one in measured):
        return True
    course = course_of(measured)
    return bool(course["small"][0]) and drives_below(course, problem.system.dtype)


def _underflow(measured: Sequence[Measured], course: Mapping[str, Array], dtype: str) -> str:
    """That zeros may be none: sech^2 a is below the smallest number from half its logarithm on."""
    zero = any(np.isneginf(one.full.log10_singular_values).any() for one in measured)
    if not (course["flushed"][0] and zero and drives_below(course, dtype)):
        return ""
    smallest = np.finfo(dtype).tiny
    return (
        f"Pre-activations reach {_size(float(course['drive'][0]))}: slopes below {smallest:.0e} are 0 in "
        f"{dtype}, so that what counts as zero may be a number too small for it."
    )


def _at_rest(course: Mapping[str, Array]) -> str:
    zero = course["squares"][3] == 0
    why = "its inputs are 0; give it what it reads in use" if zero else "nothing that it reads moves it"
    return f"The state never leaves a fixed point, where all steps have one Jacobian: {why}."


def _dead(course: Mapping[str, Array], output: slice, why: str) -> str:
    """why : what makes others constant, with what stands before it."""
    high, low = course["highest"][output], course["lowest"][output]
    dead, constant = (int(np.count_nonzero(mask)) for mask in ((high == 0) & (low == 0), high == low))
    if constant < _MANY * len(high):
        return ""
    if dead == constant:
        return (
            f"{dead} of {len(high)} units are dead: their output is 0 at every step, and no gradient passes "
            "them; larger biases or a leaky activation would bring them back."
        )
    return f"{constant} of {len(high)} units put out the same number at every step{why}."


def _closed(course: Mapping[str, Array], gate: str) -> str:
    largest = course.get(f"open.{gate}")
    if largest is None or (closed := int(np.count_nonzero(largest < _CLOSED))) < _MANY * len(largest):
        return ""
    what = {"i": "input gate never opens: nothing is", "o": "output gate never opens: nothing is"}[gate]
    done = {"i": "written to them", "o": "read of them"}[gate]
    return f"Of {closed} of {len(largest)} units the {what} {done}; raise b_{gate}."


def _beyond(course: Mapping[str, Array], dtype: str, remedy: str) -> str:
    """The steps from which on a state is beyond float32, and beyond float64."""
    leaves, ends = (float(course[name][0]) for name in ("leaves", "ends"))
    if not math.isfinite(leaves) or (dtype == "float32" and not math.isfinite(ends)):
        return ""
    found = (
        f"A state leaves float32 (3.4e38) at step {leaves:.0f}: in float32 there is infinity or NaN from then"
        f" on{remedy}."
    )
    if not math.isfinite(ends):
        return found
    held = "" if dtype == "float32" else f" It leaves float64 (1.8e308) at step {ends:.0f}."
    return f"{found}{held} What is measured here is the network in numbers of any size."


def _growth(courses: Sequence[Mapping[str, Array]]) -> float:
    """log10 of the size that states reach where that is more than 1: rounding is relative to it."""
    return max([0.0, *(float(course["reached"][0]) for course in courses)])


def _chaos(full: Chain, dtype: str, growth: float) -> str:
    """That the trajectory is one of many; on the way there may be a gain that its end does not show."""
    largest, peak = full.log10_largest_gain.median, full.log10_peak.median
    digits = -math.log10(np.finfo(dtype).eps)
    lost = max(largest, peak) - growth
    if not lost > digits - _DIGITS_LEFT:  # not <=, or NaN passes
        return ""
    gain = f"A gain of {scientific(max(largest, peak))}"
    if largest > peak + 1:
        gain += ", over the stretch of steps where it is largest,"
    some = f"{lost:.0f} of the {digits:.0f}" if lost < digits else "all"
    return (
        f"{gain} amplifies the forward pass's rounding too: {some} digits of the trajectory are rounding "
        "then. The figures are exact for the computed trajectory, which another machine may not repeat."
    )


def _float32_lag(full: Chain, level: Level) -> str:
    """The lag at which a gradient in float32 ends: of the curve, or else at its rate."""
    if what := _leaving(full.lags, full.median_by_lag):
        return f"In float32 a gradient of size 1 {what}."
    rate = full.rate.median
    if level not in ("vanishing", "exploding") or not (math.isfinite(rate) and rate):
        return ""
    lag = _FLOAT32[rate > 0] * math.log(10) / rate
    if lag > _AHEAD * full.steps:
        return ""
    does = "overflows" if rate > 0 else "underflows"
    return f"At this rate a gradient of size 1 {does} in float32 after about {counted(round(lag), 'step')}."


def _leaving(lags: Array, log10: Array) -> str:
    """How it leaves float32 first, if it does."""
    ends: dict[str, Callable[[Array], Array]] = {
        "underflows": lambda sizes: sizes < _FLOAT32[0],
        "overflows": lambda sizes: sizes > _FLOAT32[1],
    }
    first = {does: np.flatnonzero(out(log10)) for does, out in ends.items()}
    found = {does: int(lags[at[0]]) for does, at in first.items() if len(at)}
    if not found:
        return ""
    does = min(found, key=lambda each: found[each])
    return f"{does} from lag {found[does]} on"
