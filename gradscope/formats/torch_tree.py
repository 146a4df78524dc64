"""What a PyTorch file holds: the tensors in its pickled objects by name, and the modules that they are in."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gradscope.errors import InputError
from gradscope.formats.budget import Budget
from gradscope.formats.pickles import Call, Name, joined

REBUILD = {f"torch._utils._rebuild_{kind}" for kind in ("tensor", "tensor_v2", "qtensor")}
# Tensors of other kinds, whose numbers are not read: sparse ones, those of 8 bits, those without any (meta).
_OTHERS = re.compile(r"torch\._utils\._rebuild_\w+")
# What is around a tensor: a parameter, that has attributes of the user's own or not, and a subclass.
_PARAMETERS = {f"torch._utils._rebuild_parameter{state}" for state in ("", "_with_state")}
_SUBCLASSES = {f"torch._tensor._rebuild_from_type{version}" for version in ("", "_v2")}
_ARRAY = {f"numpy.{core}.multiarray._reconstruct" for core in ("core", "_core")}
_ARRAY |= {f"numpy.{core}.numeric._frombuffer" for core in ("core", "_core")}
# Under these keys training scripts and Lightning keep the weights, beside those of the optimiser.
_NESTED = ("state_dict", "model_state_dict", "model")
_SETTINGS = ("hyper_parameters", "hparams", "args", "config")
_DEEPEST = 24
# In which torch.ao.quantization keeps weights.
_PACKED = "torch.ScriptObject"
# What torch.jit names a class by.
COMPILED = "__torch__."


@dataclass(frozen=True)
class Tree:
    """What is in the objects of a file.

    tensors : as the pickle describes them; modules : the objects that are modules, by name in the model.
    objects : the classes of those that are neither, and have a name beside tensors: they may stand for some.
    settings : the numbers among the hyper-parameters; taken : the key of the file that the model is under,
        if it is; beside : the other keys that have matrices.
    """

    tensors: dict[str, Call] = field(default_factory=dict)
    objects: dict[str, str] = field(default_factory=dict)
    modules: dict[str, Call] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    taken: str = ""
    beside: tuple[str, ...] = ()


def tree_of(whole: Any, budget: Budget) -> Tree:
    """The model among what a training script keeps, else all that there is."""
    entries = (whole.items if isinstance(whole, Call) else whole) or {}
    entries = entries if isinstance(entries, dict) else {}
    settings = {k: v for name in _SETTINGS for k, v in _numbers(entries.get(name)).items()}
    for key in _NESTED:
        part = _walked(entries.get(key), budget)
        if part.tensors:
            # What many keys hold is walked once: a small file may have as many keys as a list has entries.
            seen: set[int] = set()
            beside = tuple(
                str(name)
                for name, other in entries.items()
                if name != key and any(map(_is_matrix, _walked(other, budget, seen).tensors.values()))
            )
            return replace(part, settings=settings, taken=key, beside=beside)
    return replace(_walked(whole, budget), settings=settings)


def rebuilt(value: Any) -> Call | None:
    """The call that makes a tensor or an array, without what is put around it; None if it is neither."""
    for _ in range(3):
        match value:
            case Call(function, (Call() as inner, *_)) if function in _PARAMETERS:
                value = inner
            case Call(function, (Name(text), _, tuple(arguments), *_)) if function in _SUBCLASSES:
                value = Call(text, arguments)
    if isinstance(value, Call) and (value.function in _ARRAY or _makes_tensor(value)):
        return value
    return None


def _makes_tensor(value: Call) -> bool:
    """Whether a call makes a tensor of torch, of whatever kind."""
    return value.function in REBUILD or _OTHERS.fullmatch(value.function) is not None


def is_module(value: Call) -> bool:
    """Whether an object is a torch.nn.Module, compiled or not."""
    if not isinstance(value.state, dict):
        return False
    return value.function.startswith(COMPILED) or {"_parameters", "_modules"} <= value.state.keys()


def _walked(whole: Any, budget: Budget, seen: set[int] | None = None) -> Tree:
    """All tensors and modules in nested objects, each object once, under its keys joined by dots.

    seen : ids of the objects that were walked before, which are left out; those of this walk are added.
    """
    tree, seen = Tree(), set() if seen is None else seen
    waiting = [("", iter([("", whole)]), False)]
    while waiting:
        above, entries, of_tensors = waiting[-1]
        key, value = next(entries, (None, None))
        if key is None:
            waiting.pop()
            continue
        if not isinstance(value, Call | dict | list | tuple):
            continue
        if len(waiting) > _DEEPEST:
            raise InputError(f"nests more than {_DEEPEST} deep")
        # Containers that hold one another many times over are small in a file and endless to walk.
        name = joined(above, key, budget)
        if tensor := rebuilt(value):
            budget.name(name)
            tree.tensors.setdefault(name, tensor)
            continue
        if of_tensors and isinstance(value, Call):
            budget.name(name)
            tree.objects.setdefault(name, value.function)
        if id(value) not in seen:
            seen.add(id(value))
            if isinstance(value, Call) and is_module(value):
                tree.modules.setdefault(name, value)
            inside = [*_entries(value)]
            has_names = not isinstance(value, list | tuple)
            waiting.append((name, iter(inside), has_names and any(rebuilt(one) for _, one in inside)))
    return tree


def _entries(value: Any) -> Iterable[tuple[Any, Any]]:
    """What is in an object, with the keys that a state dict has for it."""
    if isinstance(value, dict):
        return value.items()
    if not isinstance(value, Call):
        return enumerate(value)
    if value.function == _PACKED:
        return _packed(value.state)
    state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
    state = state if isinstance(state, dict) else {}
    if not is_module(value):
        return itertools.chain((value.items or {}).items(), state.items())
    if value.function.startswith(COMPILED):  # its lists hold the same tensors again
        return ((key, part) for key, part in state.items() if isinstance(part, Call))
    holders = (state.get(name) for name in ("_parameters", "_buffers", "_modules"))
    held = itertools.chain.from_iterable(held.items() for held in holders if isinstance(held, dict))
    own = ((k, v) for k, v in state.items() if isinstance(v, Call) and v.function == _PACKED)
    return itertools.chain(held, own)


def _packed(state: Any) -> Iterable[tuple[str, Any]]:
    """Weight and bias of a quantised Linear, or the two of an LSTM, GRU or RNN: ``ih`` and ``hh``."""
    match state:
        case ((weight, bias), str(kind)) if kind.endswith(".LinearPackedParamsBase"):
            return (("weight", weight), ("bias", bias))
        case ((_, _, _, _, [first, second, *_]), str(kind)) if kind.endswith(".CellParamsBase"):
            return (("ih", first), ("hh", second))
    return ()


def _is_matrix(tensor: Call) -> bool:
    """Whether a tensor has several axes: scores and states of random numbers have not."""
    match tensor.arguments:
        case (_, _, tuple(shape), *_):
            return len(shape) > 1
    return False


def _numbers(settings: Any) -> Mapping[str, Any]:
    """The numbers under names, in a dict or an object such as a Namespace."""
    if isinstance(settings, Call):
        settings = settings.items or settings.state
    entries = settings.items() if isinstance(settings, dict) else ()
    return {k: v for k, v in entries if isinstance(k, str) and isinstance(v, int | float)}
