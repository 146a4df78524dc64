"""Which layers of a model what is given is for, and which of its steps they leave out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gradscope.custom_types import Array
from gradscope.errors import InputError, listed, shown
from gradscope.problem.inputs import Sequences, given_lengths

if TYPE_CHECKING:
    from gradscope.checkpoints import Layer, Model, Named
    from gradscope.checkpoints.signals import Mask


def check_roots(model: Model, given: Sequences | None) -> None:
    """Raise InputError where what is given is not what all the lowest layers read.

    Inputs are those of the model. What gradscope does not compute of them can be given too: it is the
    layer's own if that is chosen by its name.
    """
    roots = [layer for layer in model.layers if not layer.below]
    unknown = [layer.name for layer in roots if layer.below is None]
    if 0 < len(unknown) < len(roots):
        raise InputError(
            f"layer {listed(unknown)} reads what other parts of the model make of their inputs, which "
            "gradscope does not compute: choose it with --layer and give its own --inputs, or choose others"
        )
    for layer in roots:
        layer.check_inputs(given=given is not None, named=layer.name in model.named)
    if given is not None:
        _check_same(roots)
        for layer in roots:
            _check_table(layer, given, named=layer.name in model.named)


def lengths_in(
    model: Model, asked: tuple[int, ...] | None, *, given: bool
) -> tuple[tuple[int, ...] | None, str]:
    """How many steps each sequence has, None of all: as asked, else as the model says; and what that assumes.

    given : whether there are inputs. Raises InputError where these have lengths that only the model can tell,
    and for layers that go on to different ends.
    """
    told = {(layer.lengths, layer.given_lengths): layer for layer in model.layers}
    if len(told) > 1:
        each = [f"{shown(one.name)} {_ends(*ends)}" for ends, one in told.items()]
        raise InputError(
            f"the layers do not read as many steps ({'; '.join(each)}): choose with --layer those that do"
        )
    ((lengths, by),) = told
    if asked is not None:
        return asked, ""
    if by and given:
        from gradscope.checkpoints.layer import asked_lengths

        raise InputError(asked_lengths(by))
    return given_lengths(lengths), f"that every sequence has all steps, which {shown(by)} tells" * bool(by)


def _ends(lengths: tuple[int, ...] | None, by: str) -> str:
    return (
        f"as many as {shown(by)} tells" if by else "all" if lengths is None else listed([*map(str, lengths)])
    )


def _check_same(roots: Sequence[Layer]) -> None:
    """One sequence cannot be several different ones."""
    readers: dict[str, list[str]] = {}
    for layer in roots:
        # What is not known to be the same may be something else.
        key = layer.name if layer.below is None and not layer.reads else layer.reads
        readers.setdefault(key, []).append(layer.name)
    if len(readers) > 1:
        each = [f"{listed(names)} read {shown(key) or 'an input'}" for key, names in readers.items()]
        raise InputError(
            f"the inputs are one, and layers read different ones: {listed(each)}: choose with --layer those "
            "of one, and give what they read"
        )


def _check_table(layer: Layer, given: Sequences, *, named: bool) -> None:
    """Raise InputError where ids are for another embedding, or numbers may be ids."""
    called = f"layer {shown(layer.name)}"
    if given.table is not None and layer.table is not None and not _is_of(given.table, layer.table):
        own = (
            f"embedding {shown(layer.table)}"
            if layer.table
            else shown(layer.reads) or "the inputs as they are"
        )
        raise InputError(
            f"{called} reads {own}, not embedding {shown(given.table.name)}: give --inputs of that"
        )
    if given.table is None and layer.table and not named and not np.any(given.values % 1):
        raise InputError(
            f"the {given.called} are whole numbers, and {called} reads embedding {shown(layer.table)}: if "
            f"they are token ids, add --embedding {shown(layer.table)}; if they are its own inputs, --layer "
            f"{shown(layer.name)}"
        )


def _is_of(table: Named, layer: str) -> bool:
    """Whether a tensor is that of the embedding of this name, of which files say more or less."""
    parts = re.split("[./]", table.name)
    return table.name == layer or layer.rpartition("/")[2] in parts


@dataclass(frozen=True)
class Unmasked:
    """Sequences without the steps at which all layers leave their state as it is.

    Such a step is the identity, of the state and so of the gradient: the chain of the others is the whole
    one. Lags, horizon, rate and shares are of these others, as if the sequence had never been padded.

    given : the sequences, (B, S, d); lengths : (B,), steps of each, None where all have S.
    mask : (B, T), which steps of what was given they are; masked : (B,), how many are left out.
    """

    given: Sequences
    lengths: tuple[int, ...] | None
    mask: Array
    masked: tuple[int, ...]


def unmasked(
    model: Model, given: Sequences | None, steps: int, lengths: tuple[int, ...] | None
) -> Unmasked | None:
    """What is given without its masked steps; None where there is no mask, or inputs are made up.

    steps, lengths : how far the sequences go, as from ``extents``. Raises InputError where layers differ in
    their masks, where what is given does not tell them, and for a sequence of nothing else.
    """
    having: dict[Mask | None, list[str]] = {}
    for layer in model.layers:
        having.setdefault(layer.mask, []).append(layer.name)
    if given is None:
        return None
    if len(having) > 1:
        raise _differ(having)
    mask = next(iter(having))
    if mask is None:
        return None
    if not mask.kind or (mask.kind == "ids" and given.table is None):
        if lengths is None:
            raise _not_told(mask, having[mask])
        return None
    return _without(_kept(mask, given, steps, lengths), given, steps, lengths)


def _differ(having: Mapping[Mask | None, Sequence[str]]) -> InputError:
    each = [f"{listed(names)} ({mask or 'no mask'})" for mask, names in having.items()]
    return InputError(
        f"layers are masked differently, {listed(each)}: choose with --layer those that are alike"
    )


def _not_told(mask: Mask, names: Sequence[str]) -> InputError:
    remedy = "give how many steps are not masked as --lengths, and inputs that have these first"
    if mask.kind:
        remedy = f"give token ids with --embedding {shown(mask.by)}, or {remedy}"
    return InputError(f"layer {listed(names)}: {mask}, which the inputs do not tell: {remedy}")


def _kept(mask: Mask, given: Sequences, steps: int, lengths: tuple[int, ...] | None) -> Array:
    """(B, steps), True at the steps that change a state."""
    if mask.kind == "ids":
        told = given.values[:, :steps] != mask.value
    else:
        features = given.first(steps, lengths).astype(mask.dtype)
        told = (features != np.asarray(mask.value, mask.dtype)).any(axis=2)
    within = True if lengths is None else np.arange(steps) < np.array(lengths)[:, None]
    return np.asarray(told & within)


def _without(kept: Array, given: Sequences, steps: int, lengths: tuple[int, ...] | None) -> Unmasked:
    counts = kept.sum(axis=1)
    if not counts.all():
        raise InputError(f"sequence {int(np.argmin(counts))} of the {given.called} is masked at every step")
    order = np.argsort(~kept, axis=1, kind="stable")[:, : counts.max()]
    values = given.values[:, :steps]
    left = np.take_along_axis(values, order.reshape(*order.shape, *[1] * (values.ndim - 2)), axis=1)
    there = np.array(lengths or (steps,)) - counts
    same = counts.min() == counts.max()
    return Unmasked(
        replace(given, values=left), None if same else tuple(map(int, counts)), kept, tuple(map(int, there))
    )
