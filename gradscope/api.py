"""The same line without the shell: ``gradscope.analyze``."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from gradscope.checkpoints import Model, read
from gradscope.errors import InputError, quoted
from gradscope.machine import find_devices
from gradscope.problem.layers import Problems, make_problems
from gradscope.report import conclude
from gradscope.settings import DTYPE, DTYPE_ON_TPU, Settings, takes

if TYPE_CHECKING:
    from jax import Device

    from gradscope.report.analysis import Analysis


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
    if settings.distributed:
        from gradscope.measure import cluster

        return cluster.analyze(prepare, policy, settings.progress, settings.devices)
    problems, devices = prepare()
    # On a CPU the devices that were asked for are cores, and each has a process.
    return conclude.analyze(problems, policy, settings.progress, devices, processes=settings.devices)


def _prepare(settings: Settings) -> tuple[Problems, tuple[Device, ...]]:
    """What is to be analysed, and what computes its states and Jacobians."""
    devices = find_devices(settings.platform, settings.devices)
    model = _read(settings)
    default = DTYPE_ON_TPU if devices[0].platform == "tpu" else DTYPE
    problems = make_problems(replace(settings, dtype=settings.dtype or default), model, devices)
    readout = model.arrays[settings.readout] if model and settings.readout else None
    return problems.with_loss(readout, settings.readout_at, settings.adjoint), devices


def _read(settings: Settings) -> Model | None:
    """The layers of a checkpoint, if one is given, and what else of it is asked for."""
    if settings.checkpoint is None:
        for name in ("layer", "activation", "max_size", "readout", "embedding"):
            if (value := getattr(settings, name)) is not None:
                raise InputError(
                    f"{name} is {quoted(value)}, but that is about a checkpoint: give its file as well"
                )
        return None
    layer = settings.layer
    return read(
        settings.checkpoint,
        settings.cell,
        layers=(layer,) if isinstance(layer, str) else layer,
        activation=settings.activation,
        max_size=settings.max_size,
        also=[name for name in (settings.readout, settings.embedding) if name is not None],
    )
