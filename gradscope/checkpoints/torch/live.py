"""Modules of PyTorch: the names are those of its state dict, what is not in that the module itself says."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np

from gradscope.checkpoints.found import Found
from gradscope.checkpoints.live import Live, kept, source, wrong
from gradscope.checkpoints.torch import names as torch_names
from gradscope.checkpoints.torch.any import with_own
from gradscope.checkpoints.torch.quantised import told_quantised
from gradscope.checkpoints.torch.told import FACTS, OWN, QUANTISED, module_of, told
from gradscope.custom_types import Array
from gradscope.errors import InputError

_ON_A_BATCH = "a loop over time that it writes itself is found on a batch: give one as well"
_QUANTISED = ("torch.ao.nn.quantized.", "torch.nn.quantized.")
_PARAMETRIZED = "torch.nn.utils.parametrize"  # the class that it makes of a module's own
# What a subclass may have of its own and still compute what torch's class does.
_HARMLESS = {"__init__", "__doc__", "__module__", "__annotations__", "__constants__"}
_HARMLESS |= {"__dict__", "__weakref__", "__repr__", "extra_repr", "reset_parameters", "flatten_parameters"}


def from_torch(module: Any, batch: Any = None, cells: Iterable[str] = ()) -> Live:
    """The LSTM, GRU and RNN layers and cells anywhere in a ``torch.nn.Module``, for ``gradscope.analyze``.

    module : as it is now, on any device and in any precision, compiled by ``torch.jit`` or not;
        parametrisations, pruning and norms are applied. The tanh or relu of an RNN is read from it.
    batch : what its forward takes: a tensor, a tuple of arguments, or a dict of them by name. The module runs
        over it once, in eval mode, and is as before afterwards: every layer is then analysed on the inputs,
        states and lengths that it had itself, whatever stands before it, and ``analyze`` compares what
        gradscope computes with what the layer put out. Calls in a row (a loop over a cell) are one sequence.
        A module of the user's own class whose calls pass a state on is a layer too, one that computes
        something else than torch's, and a loop over time in a forward: it is run again, step by step, and
        differentiated by torch itself.
    cells : names of modules that are to be analysed so, by torch's derivatives, whatever they are.
    Raises InputError where it is no module, holds no such layer, or fails on the batch; without a batch a
    class of the user's own that computes something else than torch's is a question.
    """
    return read_module("from_torch", module, batch, (cells,) if isinstance(cells, str) else tuple(cells))


def read_module(function: str, module: Any, batch: Any, cells: Sequence[str] = ()) -> Live:
    """What ``from_torch`` returns; function : whose name messages begin with."""
    if isinstance(module, type) or not all(hasattr(module, n) for n in ("state_dict", "named_modules")):
        raise wrong(function, module, "a torch.nn.Module")
    modules = dict(module.named_modules(remove_duplicate=False))
    tensors = {name: kept(name, partial(_values, tensor)) for name, tensor in _weights(module, modules)}
    layers = tuple(_told(found, modules, checked=batch is not None) for found in torch_names.layers(tensors))
    called = source(function, module)
    if batch is None:
        if cells:
            raise InputError(f"{called}: cells are found as they are called: give a batch as well")
        return Live(called, layers, tensors, way=_ON_A_BATCH)
    hooked = [modules[of] for of in map(module_of, layers) if of in modules and _hooks(modules[of])]
    layers, recording = with_own(called, module, batch, layers, cells, hooked, _may_change)
    return Live(called, layers, tensors, recording)


def _weights(module: Any, modules: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The tensors of the state dict, what parametrisations and hooks make of them in place of their parts."""
    made = {_inside(path, name): value for path, part in modules.items() for name, value in _made(part)}
    parts = {f"{name}_{part}" for name in made for part in ("orig", "mask", "u", "v")}
    for name, value in module.state_dict().items():
        if hasattr(value, "detach") and "parametrizations" not in name.split(".") and name not in parts:
            yield name, value
    yield from made.items()
    for path, part in modules.items():
        if type(part).__module__.startswith(_QUANTISED):
            yield from ((_inside(path, name), value) for name, value in _dequantised(part))


def _dequantised(part: Any) -> Iterator[tuple[str, Any]]:
    """Weights and biases of a module of torch.ao.nn.quantized, as numbers."""
    if hasattr(part, "get_weight"):  # a recurrent one
        values = {**part.get_weight(), **part.get_bias()}
    else:
        values = {
            name: getattr(part, name)() for name in ("weight", "bias") if callable(getattr(part, name, None))
        }
    for name, value in values.items():
        if value is not None:
            yield name, value.dequantize() if value.is_quantized else value


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


def _told(found: Found, modules: Mapping[str, Any], *, checked: bool) -> Found:
    """A layer with what its module says, and whether that is one of torch's at all.

    checked : whether what it puts out will be compared, so that nothing need be said of hooks.
    """
    module = modules.get(module_of(found))
    facts = {name: getattr(module, name, None) for name in FACTS}
    found = told(found, facts, "" if _plain(module) else _class(module))
    if type(module).__module__ in QUANTISED:
        found = told_quantised(found, frozenset(found.keys))
    said = (
        (f"the hooks on it ({count}) change nothing that it computes",)
        if (count := _hooks(module)) and not checked
        else ()
    )
    return replace(found, assumed=found.assumed + said)


def _hooks(module: Any) -> int:
    """How many functions of the user's own are called with what a module reads or puts out."""
    before, after = (getattr(module, f"_forward{name}_hooks", {}).values() for name in ("_pre", ""))
    return len(after) + sum(not type(hook).__module__.startswith("torch.nn.utils.") for hook in before)


def _may_change(module: Any) -> bool:
    return bool(_hooks(module)) or not _plain(module)


def _plain(module: Any) -> bool:
    """Whether a module computes what torch's class of its name does."""
    if hasattr(getattr(module, "_c", None), "_type"):  # torch.jit: the name is all that is left of the class
        name = str(module._c._type().qualified_name())
        return re.sub(r"___torch_mangle_\d+\.", "", name).startswith(f"__torch__.{OWN}.")
    kinds = [kind for kind in type(module).__mro__ if kind.__module__ != _PARAMETRIZED]
    theirs = next((kind for kind in kinds if kind.__module__ in (OWN, *QUANTISED)), None)
    if theirs is None:
        return False
    own = {name for kind in kinds[: kinds.index(theirs)] for name in vars(kind)}
    changed = own.intersection(dir(theirs)) - _HARMLESS
    return not changed and "forward" not in vars(module)


def _class(module: Any) -> str:
    """What the class of a module is called."""
    kinds = [kind.__name__ for kind in type(module).__mro__ if kind.__module__ != _PARAMETRIZED]
    return str(getattr(module, "original_name", kinds[0]))
