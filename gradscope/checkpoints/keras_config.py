"""What a Keras model's config says of its recurrent layers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from gradscope.errors import InputError

_RECURRENT = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3, "SimpleRNN": 1, "SimpleRNNCell": 1}
_DEEPEST = 50


@dataclass(frozen=True)
class Spec:
    """One recurrent layer or cell in a config.

    gates : how many; reset_after : None where there is none; depth : recurrent layers before it in its
    Sequential; reverse : whether it reads the sequence from its end.
    """

    name: str
    gates: int
    activation: str
    recurrent_activation: str
    reset_after: bool | None
    reverse: bool = False
    depth: int = 0


def specs(text: str) -> dict[str, Spec]:
    """The recurrent layers of a model by name, wrappers and cells included.

    A name that stands for several different layers is left out. Raises InputError for a config that
    nests without end.
    """
    found: dict[str, Spec | None] = {}
    for spec in _walk(json.loads(text), 0):
        same = found.get(spec.name, spec)
        found[spec.name] = spec if same == spec else None
    return {name: spec for name, spec in found.items() if spec}


def _walk(node: Any, depth: int) -> Iterator[Spec]:
    if depth > _DEEPEST:
        raise InputError(f"has a config of more than {_DEEPEST} levels, expected a model of Keras")
    config = node.get("config") if isinstance(node, dict) else None
    if not isinstance(config, dict):
        return
    name, kind = str(config.get("name", "")), node.get("class_name")
    if kind in _RECURRENT:
        yield _spec(name, _RECURRENT[kind], config)
    elif isinstance(config.get("layers"), list):
        yield from _layers(config["layers"], kind == "Sequential", depth)
    else:
        yield from _wrapped(name, config, depth)


def _layers(layers: list[Any], stacked: bool, depth: int) -> Iterator[Spec]:
    """The layers of a model; in a Sequential each reads what those before it put out."""
    below = 0
    for layer in layers:
        inside = list(_walk(layer, depth + 1))
        yield from (replace(spec, depth=spec.depth + below) for spec in inside)
        if stacked and inside:
            below += 1 + max(spec.depth for spec in inside)


def _wrapped(name: str, config: dict[str, Any], depth: int) -> Iterator[Spec]:
    """What Bidirectional, RNN and StackedRNNCells hold; the only one also under the wrapper's own name."""
    cells = config["cells"] if isinstance(config.get("cells"), list) else []
    for position, cell in enumerate(cells):
        yield from (replace(spec, depth=position) for spec in _walk(cell, depth + 1))
    reverse = config.get("go_backwards") is True
    for part in ("layer", "cell"):
        inside = [replace(s, reverse=s.reverse or reverse) for s in _walk(config.get(part), depth + 1)]
        yield from inside
        if len(inside) == 1:
            yield replace(inside[0], name=name)
    yield from _walk(config.get("backward_layer"), depth + 1)


def _spec(name: str, gates: int, config: dict[str, Any]) -> Spec:
    reset_after = config.get("reset_after") if gates == 3 else None
    return Spec(
        name,
        gates,
        _named(config.get("activation", "tanh")),
        _named(config.get("recurrent_activation", "sigmoid")) if gates > 1 else "",
        reset_after if isinstance(reset_after, bool) else None,
        config.get("go_backwards") is True,
    )


def _named(activation: Any) -> str:
    """The name of an activation, which is a string or the description of a function."""
    if isinstance(activation, dict):
        activation = activation.get("config")
    return "linear" if activation is None else str(activation)
