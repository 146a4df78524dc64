"""One forward pass of a PyTorch model, in which hooks record what its recurrent modules read and put out."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from gradscope.checkpoints.calls import Heard, ModuleCall, recordings, run_failed
from gradscope.checkpoints.found import Found
from gradscope.checkpoints.recording import Recorded
from gradscope.checkpoints.torch.calls import call_of, reaches
from gradscope.checkpoints.torch.gradients import Doubt, Pulled
from gradscope.checkpoints.torch.operations import WRAPPED
from gradscope.checkpoints.torch.own import Own, overhearing
from gradscope.checkpoints.torch.told import module_of
from gradscope.custom_types import Array
from gradscope.errors import InputError

_OF_LAYER = re.compile(r"\w+_l\d+(_reverse)?(_\w+)?")
_COMPILED = "is compiled by torch.jit, which shows no step of it: record it as it was before"
_EXPORTED = "is a program of torch.export, in which no module is called: record the model that it was made of"
_TRANSFORM = "functorch transform"  # in what torch says within torch.func
_BATCH = "batch is what its forward takes: a tensor, a tuple of arguments, or a dict of them by name"


# The states (L, B, n) that each call of a module ended in.
States = tuple[tuple[Array, ...], ...]


def recorded(
    source: str,
    model: Any,
    batch: Any,
    layers: Sequence[Found],
    own: Mapping[str, Own],
    may_change: Callable[[Any], bool],
) -> tuple[Recorded, dict[str, States]]:
    """What the layers found in a model read and put out as it runs over a batch, in eval mode.

    own : modules whose calls are noted as they are; may_change : whether a module computes in its own way, or
    functions of the user's are called in it. Also returns the states that every call of a module with layers
    ended in, by the names of the layers.
    Raises InputError where the forward pass fails. What is wrong with one layer alone is a problem of it.
    """
    _check_hooks(source, model)
    modules = dict(model.named_modules(remove_duplicate=False))
    owners = {
        found.name: modules[module_of(found)]
        for found in layers
        if not found.problem and module_of(found) in modules
    }
    heard = {id(owner): Heard() for owner in owners.values()}
    cells = {id(owners[f.name]): not any(map(_is_of_layer, f.keys)) for f in layers if f.name in owners}
    pulled = {id(owner): Pulled(owner) for owner in owners.values()}
    try:
        modules_of_own = [one.module for one in own.values()]
        every = [*owners.values(), *modules_of_own]
        with _evaluating(model, every), _listening(pulled, heard, cells):
            with overhearing(own):
                _run(model, batch)
            changed = {id(owner) for owner in owners.values() if may_change(owner)}
            doubts = _doubts(pulled, changed)
    except InputError as error:
        raise InputError(f"{source}: {error.marked}") from error
    except Exception as error:  # the user's code may fail in any way
        if _TRANSFORM in str(error):  # not by itself: the hooks do what it does not allow
            raise InputError(f"{source}: {WRAPPED}") from error
        raise run_failed(source, error, _BATCH) from error
    # A module may have two names, each with layers of its own.
    by_name = {module_of(found): heard[id(owners[found.name])] for found in layers if found.name in owners}
    found = recordings(
        layers,
        module_of,
        by_name,
        lambda _, call: reaches(call.reads, call.makes),
    )
    for layer in layers:
        if layer.name in found.layers:
            doubt = doubts.get(id(owners[layer.name]), Doubt())
            told = replace(found.layers[layer.name], unlike=doubt.unlike, unseen=doubt.unseen)
            found = replace(found, layers={**found.layers, layer.name: told})
    ends = {
        layer.name: tuple(tuple(map(np.asarray, call.after)) for call in heard[id(owners[layer.name])].calls)
        for layer in layers
        if layer.name in found.layers
    }
    return found, ends


def _check_hooks(source: str, model: Any) -> None:
    """Raise InputError of a model that runs as one program, of which no step is seen."""
    if _is_compiled(model):
        raise InputError(
            f"{source}: {_COMPILED}; without a batch its layers are read by their weights, as torch's own"
        )


def _is_compiled(module: Any) -> bool:
    return isinstance(module, importlib.import_module("torch").jit.ScriptModule)


def _is_of_layer(key: str) -> bool:
    """Whether a tensor is one of a module of layers, not of a cell."""
    return _OF_LAYER.fullmatch(key.rpartition(".")[2]) is not None


def _run(model: Any, batch: Any) -> None:
    if hasattr(batch, "keys"):
        model(**batch)
    elif isinstance(batch, tuple | list) and not hasattr(batch, "_fields"):  # a PackedSequence is one value
        model(*batch)
    else:
        model(batch)


@contextmanager
def _evaluating(model: Any, owners: Any) -> Iterator[None]:
    """Within, the model is in eval mode, and what its layers put out is in the graph, of frozen weights too.

    The graph tells whether a loop feeds its outputs back. All is as it was afterwards.
    """
    torch = importlib.import_module("torch")
    modes = [(part, part.training) for part in model.modules()]
    frozen = {
        p for owner in owners for p in owner.parameters() if p.is_floating_point() and not p.requires_grad
    }
    try:
        try:
            model.eval()
        except NotImplementedError as error:
            raise InputError(_EXPORTED) from error
        for parameter in frozen:
            parameter.requires_grad_(True)
        with torch.enable_grad(), _without_tf32(torch.backends.cudnn):
            yield
    finally:
        for parameter in frozen:
            parameter.requires_grad_(False)
        for part, training in modes:
            part.training = training


@contextmanager
def _without_tf32(cudnn: Any) -> Iterator[None]:
    """Within, a GPU rounds float32 as float32, if that is not said by torch's newer names for it."""
    try:
        before, cudnn.allow_tf32 = cudnn.allow_tf32, False
    except RuntimeError:
        yield
        return
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def _doubts(pulled: Mapping[int, Pulled], changed: Collection[int]) -> dict[int, Doubt]:
    """Of the derivatives of the modules that may have others than torch's: changed, or called in a loop."""
    return {
        key: one.doubt() for key, one in pulled.items() if key in changed or len(one.given) > 1 or one.unseen
    }


@contextmanager
def _listening(
    pulled: Mapping[int, Pulled], heard: Mapping[int, Heard], cells: Mapping[int, bool]
) -> Iterator[None]:
    """Within, every call of a module is noted, after all other hooks of it."""
    handles = []
    try:
        for one in pulled.values():
            owner = one.module
            first = getattr(owner, "batch_first", False) is True
            read = partial(call_of, cell=cells[id(owner)], batch_first=first)
            hook = partial(_note, heard[id(owner)], one, read)
            if _is_compiled(owner):
                heard[id(owner)].problem = _COMPILED
                continue
            handles.append(owner.register_forward_pre_hook(one.before, with_kwargs=True))
            handles.append(owner.register_forward_hook(hook, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _note(
    heard: Heard,
    pulled: Pulled,
    read: Callable[..., ModuleCall],
    _: Any,
    args: Any,
    keywords: Any,
    output: Any,
) -> None:
    """The hook."""
    pulled.after(output)
    if pulled.over:
        return
    heard.note(partial(read, args, keywords, output))
