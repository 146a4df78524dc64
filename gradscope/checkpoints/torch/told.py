"""What a module of PyTorch says of its layers beyond their weights, in memory or in a file."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gradscope.checkpoints.adapters import is_adapter
from gradscope.checkpoints.found import SIMPLE, Found
from gradscope.checkpoints.model_part import is_average, is_optimiser
from gradscope.checkpoints.torch.names import is_of_layer
from gradscope.errors import listed, shown
from gradscope.formats.torch_file import Saved

# The module of torch's own classes, and the attributes of theirs that matter here.
OWN = "torch.nn.modules.rnn"
# Those that quantise_dynamic makes of them, which compute the same of weights that are rounded.
QUANTISED = tuple(f"torch.{place}nn.quantized.dynamic.modules.rnn" for place in ("", "ao."))
FACTS = ("mode", "nonlinearity", "batch_first", "dropout")
_MODES = {"RNN_TANH": "tanh", "RNN_RELU": "relu"}
# Hyper-parameters that change the gradient of training, and nothing here.
_TRAINING = re.compile(r"(.*_)?(drop(out|connect)?|zoneout|clip(ping)?)(_.*)?", re.I)


def told(found: Found, facts: Mapping[str, Any], own: str) -> Found:
    """A layer with what its module says: the nonlinearity, which axis is time, dropout between the layers.

    facts : the attributes FACTS of the module; own : what it is called where its class is not torch's.
    """
    if found.problem:
        return found
    mode, nonlinearity = facts.get("mode"), facts.get("nonlinearity")
    nonlinearity = nonlinearity or (_MODES.get(mode) if isinstance(mode, str) else None)
    if isinstance(nonlinearity, str) and SIMPLE.get(nonlinearity) in found.cells:
        found = replace(found, cells=(SIMPLE[nonlinearity],), question="")
    first, dropout = facts.get("batch_first"), facts.get("dropout")
    if isinstance(first, bool):
        found = replace(found, time_major=not first)
    if isinstance(dropout, int | float) and dropout > 0 and found.depth:
        said = f"dropout {dropout:g} in training of what it reads of the layer below, not from step to step"
        found = replace(found, not_applied=(*found.not_applied, said))
    return replace(found, doubt=_doubt(own, found) if own else "")


def told_by_file(found: Found, saved: Saved) -> Found:
    """A layer with what the file says besides: its module, hyper-parameters, other models."""
    path = module_of(found)
    if unread := [name for name in saved.tree.objects if is_of_layer(name) and _in(path, name)]:
        kinds = sorted({saved.tree.objects[name] for name in unread} - {"?"})
        said = f"keeps {listed([*unread, *kinds])}, of a class that is not torch's: save them as tensors"
        return replace(found, problem=found.problem or said)
    module = saved.module(path)
    if module is not None:
        own = module.kind.rpartition(".")[0] not in (OWN, *QUANTISED)
        found = told(found, module.attributes, module.kind if own else "")
    if settings := [
        f"{shown(name[:80])} = {value:g}"
        for name, value in saved.tree.settings.items()
        if _TRAINING.fullmatch(name) and value and not isinstance(value, bool)
    ]:
        how = " (--zoneout measures it)" * any("zoneout" in one.lower() for one in settings)
        said = f"by the file's hyper-parameters, in training: {listed(settings)}{how}"
        found = replace(found, not_applied=(*found.not_applied, said))
    beside = [name for name in saved.tree.beside if not is_optimiser(name)]
    return _told_of_others(found, saved.tree.taken, beside) if beside else found


def _in(module: str, tensor: str) -> bool:
    return tensor.rpartition(".")[0] == module


def _told_of_others(found: Found, taken: str, beside: Sequence[str]) -> Found:
    """A layer of the model that is taken, with what its file has beside: other models, or adapters."""
    if found.cells and (adapters := list(filter(is_adapter, beside))):
        said = (
            f"is of {shown(taken)}, and {listed(adapters)} is beside it in the file, of which the model may "
            "make its weights, as LoRA does: give the model with these merged, or in memory; if it reads its "
            f"weights as they are, add {_options(found)}"
        )
        return replace(found, doubt=found.doubt or said)
    what = "models or averages of one" if any(map(is_average, beside)) else "models"
    said = f"of {what} in the file ({listed([taken, *beside])}) {taken} is read"
    return replace(found, assumed=(*found.assumed, said))


def module_of(found: Found) -> str:
    """The name of the module that has the layer's weights."""
    # Weight drop as fastai does it keeps one weight in a module around that of the layer.
    return max((key.rpartition(".")[0] for key in found.keys), key=len)


def _options(found: Found) -> str:
    return " or ".join(f"--cell {cell}" for cell in found.cells)


def _doubt(own: str, found: Found) -> str:
    what = f"is a {shown(own[:80])}, which computes in its own way"
    return f"{what}: if that is what torch's does all the same, add {_options(found)}"
