"""Names in state dicts of torch.ao.quantization.quantize_dynamic, as those that the layers had before it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gradscope.checkpoints.found import Found
from gradscope.errors import InputError, shown
from gradscope.formats.tensors import Tensor, Tensors

# lstm._all_weight_values.1.param.ih.weight; cell._packed_weight_ih.bias; fc._packed_params._packed_params.0
_LAYER = re.compile(
    r"(?P<module>.*?)\.?_all_weight_values\.(?P<number>\d{1,4})\.param\."
    r"(?P<side>[ih]h)\.(?P<role>weight|bias)",
    re.S,
)
_CELL = re.compile(r"(?P<module>.*?)\.?_packed_weight_(?P<side>[ih]h)\.(?P<role>weight|bias)", re.S)
_LINEAR = re.compile(r"(?P<module>.*?)\.?_packed_params\._packed_params\.(?P<role>weight|bias|0|1)", re.S)
_SAID = "weights are read as the numbers that their 8 or 16 bits stand for"
_ROUNDED = "what the quantised model multiplies its weights with it rounds as well"
_UNLIKE = "it rounds what it multiplies its weights with, as quantised modules do: leave the batch out"
Facts = Callable[[str], Mapping[str, Any]]


def dequantised(tensors: Tensors, facts: Facts) -> tuple[Tensors, frozenset[str]]:
    """The tensors under the names of the float model, and the names of those that were quantised.

    facts : the attributes of a module, as far as the file has them: whether it is bidirectional.
    """
    named: Tensors = {}
    quantised = set()
    directions: dict[str, int] = {}
    for key, tensor in tensors.items():
        name = key
        if match := _LAYER.fullmatch(key):
            module, number = match["module"], int(match["number"])
            if module not in directions:
                directions[module] = _directions(module, tensors, facts(module))
            name = _joined(module, f"{match['role']}_{match['side']}{_end(number, directions[module])}")
        elif match := _CELL.fullmatch(key):
            name = _joined(match["module"], f"{match['role']}_{match['side']}")
        elif match := _LINEAR.fullmatch(key):
            name = _joined(match["module"], {"0": "weight", "1": "bias"}.get(match["role"], match["role"]))
        if name != key:
            quantised.add(name)
        named[name] = tensor
    return named, frozenset(quantised)


def told_quantised(found: Found, names: frozenset[str]) -> Found:
    """A layer with what there is to be said of its weights, if they were quantised."""
    if not names.intersection(found.keys):
        return found
    assumed, not_applied = (*found.assumed, _SAID), (*found.not_applied, _ROUNDED)
    return replace(found, assumed=assumed, not_applied=not_applied, unlike=_UNLIKE)


def _joined(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def _end(number: int, directions: int) -> str:
    """``_l1_reverse`` of the fourth of the weights that go by twos."""
    layer, side = divmod(number, directions)
    return f"_l{layer}" + "_reverse" * side


def _directions(module: str, tensors: Tensors, facts: Mapping[str, Any]) -> int:
    """One or two: what the module says, or what the sizes of what its layers read do."""
    if isinstance(both := facts.get("bidirectional"), bool):
        return 1 + both
    widths: list[int] = []
    while (tensor := _weight(module, len(widths), "ih", tensors)) is not None:
        widths.append(int(tensor.load().shape[-1]))
    recurrent = _weight(module, 0, "hh", tensors)
    units = int(recurrent.load().shape[-1]) if recurrent is not None else 0
    fits = {
        directions: len(widths) % directions == 0
        and all(width == widths[0] for width in widths[:directions])
        and all(width == directions * units for width in widths[directions:])
        for directions in (1, 2)
    }
    if all(fits.values()):
        raise InputError(
            f"module {shown(module)} has quantised weights of two layers or of two directions, which a state "
            "dict does not say: save the module, torch.save(model, 'model.pt'), or give it to from_torch"
        )
    return 2 if fits[2] else 1


def _weight(module: str, number: int, side: str, tensors: Tensors) -> Tensor | None:
    return tensors.get(_joined(module, f"_all_weight_values.{number}.param.{side}.weight"))
