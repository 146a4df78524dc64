"""Modules of PyTorch: the names are those of its state dict, what is not in that the module itself says."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from gradscope.checkpoints import torch_names
from gradscope.checkpoints.found import Found
from gradscope.checkpoints.live import Live, kept, source, wrong
from gradscope.checkpoints.torch_told import FACTS, OWN, module_of, told
from gradscope.custom_types import Array

_PARAMETRIZED = "torch.nn.utils.parametrize"  # the class that it makes of a module's own
# What a subclass may have of its own and still compute what torch's class does.
_HARMLESS = {"__init__", "__doc__", "__module__", "__annotations__", "__constants__"}
_HARMLESS |= {"__dict__", "__weakref__", "__repr__", "extra_repr", "reset_parameters", "flatten_parameters"}


def from_torch(module: Any) -> Live:
    """The LSTM, GRU and RNN layers and cells anywhere in a ``torch.nn.Module``, for ``gradscope.analyze``.

    module : as it is now, on any device and in any precision, compiled by ``torch.jit`` or not;
        parametrisations, pruning and norms are applied. The tanh or relu of an RNN is read from it.
    Raises InputError where it is no module, or holds no such layer; a class of the user's own that computes
    something else than torch's is a question.
    """
    if isinstance(module, type) or not all(hasattr(module, n) for n in ("state_dict", "named_modules")):
        raise wrong("from_torch", module, "a torch.nn.Module")
    modules = dict(module.named_modules(remove_duplicate=False))
    tensors = {name: kept(name, partial(_values, tensor)) for name, tensor in _weights(module, modules)}
    layers = tuple(_told(found, modules) for found in torch_names.layers(tensors))
    return Live(source("from_torch", module), layers, tensors)


def _weights(module: Any, modules: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The tensors of the state dict, what parametrisations and hooks make of them in place of their parts."""
    made = {_inside(path, name): value for path, part in modules.items() for name, value in _made(part)}
    parts = {f"{name}_{part}" for name in made for part in ("orig", "mask", "u", "v")}
    for name, value in module.state_dict().items():
        if hasattr(value, "detach") and "parametrizations" not in name.split(".") and name not in parts:
            yield name, value
    yield from made.items()


def _made(part: Any) -> Iterator[tuple[str, Any]]:
    """The weights that a module computes before it runs."""
    for name, parametrization in getattr(part, "parametrizations", {}).items():
        training = parametrization.training
        parametrization.eval()  # to look must not be a step of spectral norm's power iteration
        try:
            yield name, getattr(part, name)
        finally:
            parametrization.train(training)
    for hook in getattr(part, "_forward_pre_hooks", {}).values():
        if hasattr(hook, "apply_mask"):  # torch.nn.utils.prune
            yield hook._tensor_name, hook.apply_mask(part)
        elif type(hook).__name__ == "SpectralNorm":  # as it was before there were parametrisations
            yield hook.name, hook.compute_weight(part, do_power_iteration=False)


def _inside(path: str, name: str) -> str:
    return f"{path}.{name}".lstrip(".")


def _values(tensor: Any) -> Array:
    """On the CPU, in the same precision: NumPy's own conversion knows no bfloat16."""
    tensor = tensor.detach().cpu()
    if str(tensor.dtype) == "torch.bfloat16":
        return np.asarray(tensor.float()).astype(ml_dtypes.bfloat16)
    return np.asarray(tensor)


def _told(found: Found, modules: Mapping[str, Any]) -> Found:
    """A layer with what its module says, and whether that is one of torch's at all."""
    module = modules.get(module_of(found))
    facts = {name: getattr(module, name, None) for name in FACTS}
    found = told(found, facts, "" if _plain(module) else _class(module))
    said = (
        (f"the hooks on it ({count}) change nothing that it computes",) if (count := _hooks(module)) else ()
    )
    return replace(found, assumed=found.assumed + said)


def _hooks(module: Any) -> int:
    """How many functions of the user's own are called with what a module reads or puts out."""
    before, after = (getattr(module, f"_forward{name}_hooks", {}).values() for name in ("_pre", ""))
    return len(after) + sum(not type(hook).__module__.startswith("torch.nn.utils.") for hook in before)


def _plain(module: Any) -> bool:
    """Whether a module computes what torch's class of its name does."""
    if hasattr(getattr(module, "_c", None), "_type"):  # torch.jit: the name is all that is left of the class
        name = str(module._c._type().qualified_name())
        return re.sub(r"___torch_mangle_\d+\.", "", name).startswith(f"__torch__.{OWN}.")
    kinds = [kind for kind in type(module).__mro__ if kind.__module__ != _PARAMETRIZED]
    theirs = next((kind for kind in kinds if kind.__module__ == OWN), None)
    if theirs is None:
        return False
    own = {name for kind in kinds[: kinds.index(theirs)] for name in vars(kind)}
    changed = own.intersection(dir(theirs)) - _HARMLESS
    return not changed and "forward" not in vars(module)


def _class(module: Any) -> str:
    """What the class of a module is called."""
    kinds = [kind.__name__ for kind in type(module).__mro__ if kind.__module__ != _PARAMETRIZED]
    return str(getattr(module, "original_name", kinds[0]))
