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
# Until then Keras, and TensorFlow 1 with it, made LSTM and GRU with gates of hard_sigmoid.
_SIGMOID_SINCE = (2, 3)
_HARD = {2: "clip(x / 5 + 1 / 2, 0, 1)", 3: "relu6(x + 3) / 6"}


def of_model(tensors: Tensors) -> Tensors:
    """The tensors without those of an optimizer."""
    return {key: tensor for key, tensor in tensors.items() if not _OPTIMIZER.fullmatch(key)}


def usual_gate(version: str) -> str:
    """The recurrent activation of layers that were made without saying one."""
    return "hard_sigmoid" if (_numbers(version) or _SIGMOID_SINCE) < _SIGMOID_SINCE else "sigmoid"


def spelled_out(activation: str, version: str) -> str:
    """An activation with its equation, where that is not the same in all versions of Keras."""
    if activation != "hard_sigmoid":
        return activation
    known = _HARD.get((_numbers(version) or (0,))[0])
    return f"hard_sigmoid, which is {known or f'{_HARD[2]} in Keras 2 and {_HARD[3]} in Keras 3'}"


def question(kind: str, cells: Sequence[str], version: str) -> str:
    """What is to be decided of the weights of an LSTM, a GRU or an RNN, and how."""
    what = "holds weights without the config that says its activations"
    if kind == "rnn":
        return f"{what}: add --activation tanh, relu, sigmoid or linear"
    choice = f"--cell {' or '.join(cells)}"
    if usual_gate(version) == "sigmoid":
        return f"{what}: add {choice} if these are tanh and sigmoid"
    usual = spelled_out("hard_sigmoid", version)
    return (
        f"{what}: Keras {version} makes gates of {usual}, unless told otherwise, for which gradscope has no "
        f"{kind}; {choice} is right only where the model says recurrent_activation='sigmoid'"
    )


def unconnected(found: Iterable[Found], tensors: Tensors, groups: Iterable[str]) -> list[Found]:
    """The layers with what nothing but their weights leaves to be asked, or to be assumed and said.

    tensors : of the model; groups : the paths of all that the file holds.
    """
    found = list(found)
    holders = {_holder(layer.name) for layer in found}
    mask = next((part for path in groups for part in path.split("/") if _MASKING.fullmatch(part)), None)
    return [
        replace(
            layer,
            below=None if len(holders) > 1 or _may_stand_before(layer, found, tensors) else (),
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


def _may_stand_before(layer: Found, found: Sequence[Found], tensors: Tensors) -> bool:
    """Whether the file has weights, not of an embedding, that put out as many features as the layer reads."""
    used = {key for one in found for key in one.keys}
    size = layer.sizes[1] if layer.sizes else None
    others = (key for key in tensors if key not in used and not _EMBEDDING.fullmatch(key))
    return any(_last_axis(tensors, key) == size for key in others)


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


def _numbers(version: str) -> tuple[int, ...]:
    """(2, 2) of "2.2.4-tf"; () where that says nothing: TensorFlow 2 came with that very version too."""
    match = re.match(r"(\d+)\.(\d+)", version)
    return (int(match[1]), int(match[2])) if match and version != "2.2.4-tf" else ()
