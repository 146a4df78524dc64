"""The straight line: prepare, measure, conclude. ``gradscope.analyze`` is all of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from gradscope.as_arguments import takes
from gradscope.custom_types import Array
from gradscope.errors import InputError, as_option, quoted, shown
from gradscope.linearize.below_range import falls
from gradscope.machine import find_devices, one_blas_thread
from gradscope.measure.batch import Means, measure_batch
from gradscope.measure.measured import Measured, near_levels
from gradscope.measure.plan import Plan
from gradscope.measure.progress import Progress
from gradscope.option import is_default
from gradscope.problem.checks import whole_number
from gradscope.problem.clip import clip_of
from gradscope.problem.inputs import is_made
from gradscope.problem.layers import make_problems
from gradscope.problem.masks import drawn_of
from gradscope.problem.problem import Problem
from gradscope.problem.problems import Problems
from gradscope.product_svd.spectrum import spectrum
from gradscope.report.analysis import Analysis
from gradscope.report.chains import chain_of
from gradscope.report.conclude import conclude, of_sequences
from gradscope.report.notes import chain_notes, left_out, small_slopes
from gradscope.report.provenance import described_together
from gradscope.report.verdict import judge, level
from gradscope.settings import DTYPE, DTYPE_ON_TPU, STEPS, Policy, Repairing, Settings, Suggesting, Sweeping

if TYPE_CHECKING:
    from jax import Device

    from gradscope.advise.repair import Repaired
    from gradscope.advise.suggest import Suggestions
    from gradscope.checkpoints import Model
    from gradscope.gate.budgets import MetricBudget
    from gradscope.grid.points import Points
    from gradscope.grid.sweep import Sweep
    from gradscope.measure.light import LightProbe
    from gradscope.measure.loss import LossGradient
    from gradscope.measure.sensitivity import Sensitivity
    from gradscope.report.masked import MaskedGains

# Steps that are analysed for a horizon, in horizons.
_BEYOND = 1.25


@takes(Settings)
def analyze(settings: Settings) -> Analysis:
    """How the gradient flows through a recurrent cell or a trained layer.

    Returns
    -------
    Analysis
        Verdict, singular values of every chain, shares and norm by lag, of a whole model those of each layer.

    Raises
    ------
    InputError
        With one line that says what was given and what is expected.
    """
    policy, prepare = settings.policy, partial(_prepare, settings)
    if not settings.distributed:
        problems, means = prepare()
        if settings.suggest:
            return _analyze_and_suggest(settings, problems, means)
        return analyze_problems(problems, policy, settings.progress, means)
    if settings.suggest:
        raise InputError(f"{as_option('suggest')} is of one process: leave {as_option('distributed')} out")
    from gradscope.measure.cluster import measure_shared

    floor = math.log10(policy.vanishing_below)
    problems, means, measured = measure_shared(prepare, floor, settings.progress)
    return _concluded(problems, policy, measured, means, settings.progress)


def analyze_problems(
    problems: Problems,
    policy: Policy | None = None,
    progress: Progress | None = None,
    means: Means | None = None,
) -> Analysis:
    """The same from problems that are made already, by default on all devices of this process."""
    policy, means = policy or Policy(), means or Means(find_devices())
    return _concluded(problems, policy, _measured(problems, policy, means, progress), means, progress)


@takes(Settings)
def analyze_together(settings: Settings) -> Analysis:
    """The verdict of all layers together; none of a stack is measured alone."""
    if settings.distributed or settings.suggest:
        return analyze(**vars(settings))
    problems, means = _prepare(settings)
    if not problems.stacks:
        return analyze_problems(problems, settings.policy, settings.progress, means)
    from gradscope.measure.side_by_side import together

    groups = Problems(tuple(group.problem for group in problems.groups))
    measured = together(groups, _measured(groups, settings.policy, means, settings.progress))
    source = described_together(problems, means.devices[0].platform) | {"layers": len(problems.layers)}
    return replace(of_sequences(measured, settings.policy, source), only=settings.only)


def _measured(
    problems: Problems, policy: Policy, means: Means, progress: Progress | None
) -> list[list[Measured]]:
    floor = math.log10(policy.vanishing_below)
    return measure_batch(problems, range(problems.batch), floor, means, progress)


def _analyze_and_suggest(settings: Settings, problems: Problems, means: Means) -> Analysis:
    """The analysis with what to do about it, of the network as it was measured."""
    from gradscope.advise.suggest import check_settable, networks_of, remedies_of

    _check_suggest(settings)
    check_settable(problems)
    policy, progress = settings.policy, settings.progress
    measured = _measured(problems, policy, means, progress)
    found = _concluded(problems, policy, measured, means, progress)
    if settings.only in ("verdict", "gain"):
        said = f"--suggest not measured: --only {settings.only} leaves it out."
        return replace(found, verdict=found.verdict.noting([said]))
    networks = networks_of(problems, policy, means, measured)
    return replace(found, remedies=remedies_of(problems, networks, report=settings.trying))


def _check_suggest(settings: Settings) -> None:
    """Raise InputError for an analysis that is not of the network as it is."""
    asked = {"cut": settings.cut, "scale": settings.scale, "view": settings.view != "state"}
    if names := [as_option(name) for name, value in asked.items() if value]:
        said = "is of the whole chain as the network has it"
        raise InputError(f"{as_option('suggest')} {said}: leave {' and '.join(names)} out")


def analyze_light(settings: Settings, probe: LightProbe) -> Analysis:
    """The gain and the horizon alone, as lower bounds, by a probe that keeps its vectors between calls.

    Where they hang on slopes that the dtype takes as 0, as they are, without the probe.
    """
    problems, means = _prepare(replace(settings, only="gain", top=1))
    low, high = (math.log10(gain) for gain in (settings.vanishing_below, settings.exploding_above))
    measured = probe.measure(problems, low, high, means.devices[0])
    if any(math.isinf(one.full.log10_norm_error) for each in measured for one in each):
        measured = _measured(problems, settings.policy, means, None)
    return _concluded(problems, settings.policy, measured, means, None)


@takes(Sweeping)
def sweep(settings: Sweeping) -> Sweep:
    """The gain and the horizon at every point of a grid of settings, by one compiled program.

    Returns
    -------
    Sweep
        A row for every point; one that cannot be measured says why.

    Raises
    ------
    InputError
        With one line that says what was given and what is expected; where no point can be measured.
    """
    from gradscope.grid.sweep import SCHEMA, Sweep
    from gradscope.rows.following import follow

    points = points_of_grid(settings)
    count, rows = len(points.points), []
    for row, _ in follow(points.tasks(range(count)), count, SCHEMA, ()):
        rows.append(row)
        if settings.progress:
            settings.progress(len(rows), count)
    return Sweep(rows).checked()


def points_of_grid(settings: Sweeping, budgets: Sequence[MetricBudget] = ()) -> Points:
    """The points of a grid, ready to be measured."""
    from gradscope.gate.metrics import least
    from gradscope.grid.axes import axes_of, check_fixed
    from gradscope.grid.points import Points
    from gradscope.grid.probe import light_probe, whole_analysis

    settings.check()
    given = {one.name: getattr(settings, one.name) for one in fields(Settings) if one.name != "progress"}
    default = {one.name: one.default for one in fields(Settings)}
    fixed = {name: value for name, value in given.items() if not is_default(value, default[name])}
    axes = axes_of(settings.grid)
    check_fixed(axes, fixed)
    fixed["only"] = settings.measured([axis.name for axis in axes], least([one.measured for one in budgets]))
    light = fixed["only"] == "gain"
    measure = (light_probe if light else whole_analysis)(_prepare, _analyzed)
    return Points(axes, fixed, measure, budgets, light=light)


def _analyzed(problems: Problems, policy: Policy, means: Means) -> Analysis:
    return analyze_problems(problems, policy, means=means)


@takes(Suggesting)
def suggest(settings: Suggesting) -> Suggestions:
    """What to do about a network: settings that reach a target, each verified by a second analysis.

    Returns
    -------
    Suggestions
        For every knob the setting that reaches the target, or that none does; what a number cannot tell.

    Raises
    ------
    InputError
        With one line that says what was given and what is expected.
    """
    from gradscope.advise.suggest import suggested

    settings.check()
    settings, steps = _far_enough(settings)
    problems, means = _prepare(settings)
    knobs = (settings.knob,) if isinstance(settings.knob, str) else tuple(settings.knob)
    return suggested(
        problems,
        settings.policy,
        means,
        target=settings.target,
        horizon=steps,
        knobs=knobs,
        report=settings.trying,
    )


Asked = TypeVar("Asked", bound=Suggesting)


def _far_enough(settings: Asked) -> tuple[Asked, int | None]:
    """The settings with steps beyond the horizon, so that it is seen to end; and the horizon."""
    steps = None if settings.horizon is None else whole_number("horizon", settings.horizon, 1)
    if steps and settings.steps is None and is_made(settings.inputs) and settings.lengths is None:
        settings = replace(settings, steps=max(STEPS, math.ceil(_BEYOND * steps)))
    return settings, steps


@takes(Repairing)
def repair(settings: Repairing) -> Repaired:
    """Write the weights of a checkpoint with knobs set, under its own names, and analyse what was written.

    Returns
    -------
    Repaired
        What was set, which tensors changed, and the analyses of both files.

    Raises
    ------
    InputError
        With one line that says what was given and what is expected; nothing is written then.
    """
    from gradscope.advise.rewrite import rewritten

    settings.check()
    settings, steps = _far_enough(settings)
    return rewritten(settings, steps, _prepare, _analyzed)


@one_blas_thread()
def analyze_chain(
    stack: Array, source: str, policy: Policy | None = None, top: int | None = None
) -> Analysis:
    """The same for a bare stack of Jacobians (T, m, m), which has no paths; top : how many values."""
    policy = policy or Policy()
    floor = -math.inf if top is None else math.log10(policy.vanishing_below)
    chain = chain_of("full", [spectrum(stack, top, by_lag=True, floor=floor)], policy.vanishing_below)
    verdict = judge([chain], {}, policy, trajectory=False)
    return Analysis(
        problem={"cell": None, "size": stack.shape[1], "steps": len(stack), "batch": 1, "source": source},
        policy=policy,
        verdict=verdict.noting(chain_notes(chain, verdict.level)),
        chains=(chain,),
        levels={"full": level(chain, policy)},
    )


def _prepare(settings: Settings) -> tuple[Problems, Means]:
    """What is to be analysed, and what there is to measure it with."""
    devices = find_devices(settings.platform, settings.devices)
    model = _read(settings)
    default = DTYPE_ON_TPU if devices[0].platform == "tpu" else DTYPE
    # On a CPU the devices that were asked for are cores.
    means = Means(devices, most=settings.devices)
    plan = Plan(settings, means.at_once)
    dtype = settings.dtype or default
    problems = make_problems(replace(settings, dtype=dtype), model, devices, plan.of_layers)
    if model is None or len(model.chosen) == 1:
        plan.of_one(problems.layers[0])
    readout = model.arrays[settings.readout] if model and settings.readout else None
    tbptt = None if settings.tbptt is None else whole_number("tbptt", settings.tbptt, 1)
    problems = problems.with_loss(readout, settings.readout_at, settings.adjoint)
    return problems.with_training(clip_of(settings.clip), tbptt, drawn_of(settings)), means


def _read(settings: Settings) -> Model | None:
    """The layers of a checkpoint, if one is given, and what else of it is asked for."""
    if settings.checkpoint is None and is_made(settings.inputs):
        _check_no_model(settings)
        return None
    from gradscope.checkpoints import read
    from gradscope.checkpoints.array_map import rules_of
    from gradscope.checkpoints.recording_file import read_recorded

    recorded = read_recorded(settings.inputs)
    if settings.checkpoint is None:
        if recorded:
            whole = not recorded.layers
            way = f"say gradscope analyze {shown(recorded.label)}" if whole else "give its checkpoint as well"
            raise InputError(f"{shown(recorded.label)} is a recording of a model's layers: {way}")
        _check_no_model(settings)
        return None
    layer, reads = settings.layer, settings.reads
    return read(
        settings.checkpoint,
        settings.cell,
        layers=(layer,) if isinstance(layer, str) else layer,
        activation=settings.activation,
        layout=settings.layout,
        config=settings.config,
        max_size=settings.max_size,
        reads=(reads,) if isinstance(reads, str) else reads or (),
        rules=rules_of(settings.map),
        also=[name for name in (settings.readout, settings.embedding) if name is not None],
        recorded=recorded,
        inputs=None if recorded else _of_model(settings),
    )


def _check_no_model(settings: Settings) -> None:
    """Raise InputError for what is about a checkpoint, where none is given."""
    about = ("layer", "reads", "map", "activation", "layout", "config", "max_size", "readout", "embedding")
    for name in about:
        if (value := getattr(settings, name)) is not None:
            raise InputError(
                f"{as_option(name)} is {quoted(value)}, but that is about a checkpoint: give its file as well"
            )


def _of_model(settings: Settings) -> Any:
    """The inputs where they may be the model's: nothing else is said of them, or of what a layer reads."""
    said = (settings.lengths, settings.initial_state, settings.embedding, settings.map)
    told = settings.time_major or any(one is not None for one in said)
    return None if told or is_made(settings.inputs) else settings.inputs


def _concluded(
    problems: Problems,
    policy: Policy,
    measured: Sequence[Sequence[Measured]],
    means: Means,
    progress: Progress | None,
) -> Analysis:
    """The analysis of what was measured; on one device losses are followed back and chains differentiated."""
    whole, device = problems.layers[0].only == "all", means.devices[0]
    losses = [
        _loss(problem, each, device, progress) if whole else None
        for problem, each in zip(problems.every, measured, strict=True)
    ]
    changes = [
        _sensitivity(problem, each, loss, device)
        for problem, each, loss in zip(problems.every, measured, losses, strict=True)
    ]
    masks = _masked(problems, policy, means, progress) if whole else None
    found = conclude(problems, policy, measured, losses, changes, device.platform)
    return replace(found, masks=masks, verdict=found.verdict.noting(left_out(problems)))


def _loss(
    problem: Problem, measured: Sequence[Measured], device: Device, progress: Progress | None
) -> LossGradient | None:
    """The gradient of its loss, in doubt where it may hang on slopes that its dtype does not hold."""
    if problem.adjoint is None:
        return None
    from gradscope.measure.loss_errors import held_by
    from gradscope.measure.loss_gradient import loss_gradient

    loss = loss_gradient(problem, near_levels(measured), device, progress)
    doubted = held_by(loss, problem.system.dtype)
    if doubted is loss or small_slopes(problem, measured) or falls(problem.system, device):
        return doubted
    return loss


def _sensitivity(
    problem: Problem, measured: Sequence[Measured], loss: LossGradient | None, device: Device
) -> Sensitivity | str | None:
    """How its gain changes with its parameters, or why it has no derivative, where that is asked for."""
    if not problem.sensitivity:
        return None
    from gradscope.measure.sensitivity import sensitivity_of

    return sensitivity_of(problem, measured, loss, device)


def _masked(
    problems: Problems, policy: Policy, means: Means, progress: Progress | None
) -> MaskedGains | None:
    """The gains with the masks of training that are asked for; they are measured after all else."""
    masks = problems.masks
    if masks is None:
        return None
    from gradscope.measure.side_by_side import together
    from gradscope.problem.masked import masked_problems
    from gradscope.report.masked import masked_gains

    floor = math.log10(policy.vanishing_below)

    def report(done: float, count: int) -> None:
        if progress:
            progress(done * problems.batch / count, problems.batch)

    def measured(each: Sequence[Problem], told: Progress | None = None) -> list[Measured]:
        side_by_side = Problems(tuple(each))
        found = measure_batch(side_by_side, range(side_by_side.batch), floor, means, told)
        return together(side_by_side, found) if len(each) > 1 else found[0]

    made = (masked_problems(one.problem, masks, number) for number, one in enumerate(problems.groups))
    drawn, mean = zip(*made, strict=True)
    return masked_gains(masks, measured(drawn, report), measured(mean), policy.vanishing_below)
