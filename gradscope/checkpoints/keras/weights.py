"""Weights of Keras without their config: what they leave open, and what stands beside them tells."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from gradscope.checkpoints.found import Found
from gradscope.checkpoints.signals import Mask
from gradscope.errors import InputError
from gradscope.formats.tensors import Tensors

# Moments and copies of the weights; a layer that is called so is not kept in such a place.
_OPTIMIZER = re.compile(r"optimizer_weights/.*|_?optimizer/(.*/)?vars/[^/]*", re.S)
_EMBEDDING = re.compile(r"(.*/)?(embeddings(:0)?|embedding(_\d+)?/vars/0)", re.S)
_MASKING = re.compile(r"masking(_\d+)?")


def of_model(tensors: Tensors) -> Tensors:
    """The tensors without those of an optimizer."""
    return {key: tensor for key, tensor in tensors.items() if not _OPTIMIZER.fullmatch(key)}


def unconnected(found: Iterable[Found], tensors: Tensors, groups: Iterable[str]) -> list[Found]:
    """The layers with what nothing but their weights leaves to be asked, or to be assumed and said.

    tensors : of the model; groups : the paths of all that the file holds.
    """
    found = list(found)
    holders = {_holder(layer.name) for layer in found}
    # What puts out as many features as the layers read may stand before them.
    widths = _widths(found, tensors) if len(holders) == 1 else set()
    mask = next((part for path in groups for part in path.split("/") if _MASKING.fullmatch(part)), None)
    return [
        replace(
            layer,
            below=None if len(holders) > 1 or (layer.sizes and layer.sizes[1] in widths) else (),
            reads=f"the input of {_holder(layer.name)}",
            mask=Mask(by=mask) if mask else None,
            assumed=(_assumed(layer, masked=mask is not None),),
        )
        for layer in found
    ]


def _holder(name: str) -> str:
    """The Bidirectional that holds a layer, or the layer."""
    above, _, last = name.rpartition("/")
    return above if above and last.startswith(("forward_", "backward_")) else name


def _widths(found: Sequence[Found], tensors: Tensors) -> set[int]:
    """How many features the other weights in the file, but for embeddings, put out."""
    used = {key for one in found for key in one.keys}
    return {_last_axis(tensors, key) for key in tensors.keys() - used if not _EMBEDDING.fullmatch(key)}


def _last_axis(tensors: Tensors, key: str) -> int:
    try:
        return int((0, *tensors[key].load().shape)[-1])
    except InputError:
        return 0


def _assumed(layer: Found, *, masked: bool) -> str:
    told = layer.name.rpartition("/")[2].startswith(("forward_", "backward_"))
    parts = ["" if told else "reads its inputs forward", "" if masked else "leaves out no steps"]
    said = " and ".join(filter(None, parts))
    return f"that the layer {said or 'reads what is given'}, which weights without their config do not say"
