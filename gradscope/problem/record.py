"""``record``: a model in memory run over one batch, written as a file for the command line."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gradscope.checkpoints import Decided, Found, Live, Recorded, Recording, choose, holder_of
from gradscope.checkpoints.live_models import read_live
from gradscope.checkpoints.recording_file import write_recording
from gradscope.custom_types import PathLike
from gradscope.errors import InputError, quoted, shown
from gradscope.formats.reading import suffix
from gradscope.machine import find_devices
from gradscope.problem.self_check import settled
from gradscope.settings import DTYPE

# Bytes that a recording may take, if nothing is said.
MOST = 4 * 2**30


def record(model: Any, batch: Any, path: PathLike, *, max_size: int = MOST) -> None:
    """Write what the recurrent layers of a model read and put out on a batch, for ``--inputs`` of the shell.

    ``gradscope analyze model.pt --inputs run.npz`` is then ``from_torch(model, batch)`` of the same weights:
    every layer on its own inputs, and what gradscope computes compared with what the layer put out. Of a
    layer that its framework alone differentiates, a module or a loop of the user's own, the file has the
    one-step Jacobians and the states: ``gradscope analyze run.npz`` reads them without a checkpoint, and
    where one is given, it must have the weights that were recorded.

    Parameters
    ----------
    model : torch.nn.Module, keras.Model, flax.nnx.Module, a bound flax.linen.Module, equinox.Module
        Run once, not in training, and as before afterwards.
    batch : array, tuple or dict
        What the model is called with, as ``from_torch`` and its like take it.
    path : str or Path
        A ``.npz`` file, which is replaced: of each layer NAME ``NAME.inputs`` (B, T, d), ``NAME.outputs``
        (B, T, n), ``NAME.h0`` and ``NAME.c0`` (B, n), ``NAME.lengths`` (B,), and what the comparison needs;
        or ``NAME.jacobians`` (B, T, paths, m, m), ``NAME.states`` (B, T + 1, m), and what they are.
    max_size : int
        Bytes that the file may take; Jacobians are large.

    Raises
    ------
    InputError
        Where these raise it, no layer can be recorded, or the file would be too large or cannot be written.
    """
    if suffix(path) != ".npz":
        raise InputError(f"record was given the path {quoted(os.fspath(path))}, expected a .npz file")
    live = read_live("record", model, batch)
    if live.recorded is None:
        raise InputError("record was given no batch, expected what the model is called with")
    layers = _settled(live, live.recorded)
    having: Mapping[str, Recording] = live.recorded.layers
    every = [(one.name, one if one.derivatives else having.get(one.name)) for one in layers]
    kept = [(name, one) for name, one in every if one is not None]
    if not kept:
        name, why = next(iter(live.recorded.problems.items()))
        raise InputError(f"{live.source}: no layer can be recorded: {shown(name)} {why}")
    for name, one in kept:
        if isinstance(one, Recording) and one.unlike:
            raise InputError(f"{live.source}: layer {shown(name)} {one.unlike}")
    write_recording(path, kept, max_size)


def _settled(live: Live, recorded: Recorded) -> list[Found]:
    """The layers of a model; those that compute something else than their class does are differentiated."""
    layers = list(live.layers)
    for one in live.layers:
        module = holder_of(one.name, recorded.own)
        if module in recorded.own and not one.derivatives and any(one is other for other in layers):
            layers = _with_steps(live, recorded, layers, one, module)
    return layers


def _with_steps(live: Live, recorded: Recorded, layers: list[Found], one: Found, module: str) -> list[Found]:
    """The layers with the module that one is in differentiated, if that puts out something else than it."""
    try:
        chosen = choose(live.contents(), Decided(None, None, None), [one.name], live.source, (), recorded)
        model, said = settled(chosen, recorded, DTYPE, find_devices()[:1])
    except InputError:  # said where it is analysed
        return layers
    if module not in {layer.name for layer in model.layers if layer.derivatives}:
        return layers
    steps = recorded.own[module]
    mates = {layer.name for layer in layers if holder_of(layer.name, recorded.own) == module}
    made = Found(module, {}, kind=steps.kind, derivatives=steps, not_applied=one.not_applied)
    made = replace(made, assumed=(*one.assumed, *(said[key] for key in (module,) if key in said)))
    return [made if layer is one else layer for layer in layers if layer is one or layer.name not in mates]
