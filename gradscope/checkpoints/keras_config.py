"""What a Keras model's config says of its recurrent layers, and of how they stand upon each other."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gradscope.checkpoints.signals import Signal, changed, lost, side_by_side
from gradscope.errors import InputError

RECURRENT = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3, "SimpleRNN": 1, "SimpleRNNCell": 1}
# What leaves its input as it is when the model is not being trained.
_IDENTITIES = {
    "ActivityRegularization",
    "AlphaDropout",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "Identity",
    "InputLayer",
    "SpatialDropout1D",
}
_DEEPEST = 50
# Characters, of a config and of the names on the way to a layer.
_MOST, LONGEST = 2**23, 1024
Node = dict[str, Any]


@dataclass(frozen=True)
class Spec:
    """One recurrent layer or cell in a config.

    gates : how many; reset_after : None where there is none; reverse : whether it reads the sequence from
    its end; depth, below, given_state : as in Layer, the layers by their keys in ``specs``.
    """

    gates: int
    activation: str
    recurrent_activation: str
    reset_after: bool | None
    reverse: bool = False
    depth: int = 0
    below: tuple[str, ...] | None = ()
    given_state: bool = False


def specs(text: str) -> dict[str, Spec]:
    """The recurrent layers of a model by the names of all that holds them: ``encoder/both/forward_lstm``.

    A name that stands for several different layers is left out. Raises InputError for a config that
    is longer, or nests deeper, than one of Keras.
    """
    if len(text) > _MOST:
        raise InputError(f"has a config of {len(text)} characters, expected at most {_MOST}")
    walk, root = _Walk(), json.loads(text)
    config = _config(root)
    inputs = _references(config.get("input_layers"), 0) if "input_layers" in config else [("", 0, 0)]
    walk.inside(root, [Signal((), f"input {k}") for k in range(len(list(inputs)))], ())
    return {path: spec for path, spec in walk.found.items() if spec}


def _config(node: Any) -> Node:
    config = node.get("config") if isinstance(node, dict) else None
    return config if isinstance(config, dict) else {}


def _kind(node: Any) -> Any:
    return node.get("class_name") if isinstance(node, dict) else None


def _name(node: Any) -> str:
    return str(_config(node).get("name", ""))


def _nodes(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def directions(config: Node) -> tuple[tuple[Any, str], tuple[Any, str]]:
    """The two layers of a Bidirectional and what it calls them; it makes the second if it has only one."""
    ahead, back = config.get("layer"), config.get("backward_layer")
    base = _name(ahead).removeprefix("forward_")
    if isinstance(back, dict):
        return (ahead, f"forward_{base}"), (back, _name(back))
    turned = {"go_backwards": not _config(ahead).get("go_backwards")}
    made = {"class_name": _kind(ahead), "config": _config(ahead) | turned}
    return (ahead, f"forward_{base}"), (made, f"backward_{base}")


@dataclass
class _Walk:
    """Goes through a model in the order in which it computes.

    found : what it has met, by path; order : the paths as it met them.
    """

    found: dict[str, Spec | None] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    def layer(self, node: Any, given: Sequence[Signal], above: tuple[str, ...]) -> list[Signal]:
        """What a layer puts out, given its inputs."""
        path = (*above, _name(node))
        if len(path) > _DEEPEST or sum(map(len, path)) > LONGEST:
            raise InputError(
                f"has a config of more than {_DEEPEST} levels or names of more than {LONGEST} characters, "
                "expected a model of Keras"
            )
        kind, config = _kind(node), _config(node)
        if kind in _IDENTITIES:
            return list(given)
        if kind == "Concatenate" and config.get("axis") in (-1, 2):
            return [side_by_side("/".join(path), given)]
        if kind in RECURRENT or kind == "RNN":
            signal, in_order = self._recurrent(node, given, path)
            return [signal if in_order and not config.get("go_backwards") else lost(signal.depth)]
        if kind == "Bidirectional" and _kind(config.get("layer")) in (*RECURRENT, "RNN"):
            return [self._both(config, given, path)]
        return self.inside(node, given, path)

    def inside(self, node: Any, given: Sequence[Signal], path: tuple[str, ...]) -> list[Signal]:
        """What a model, or whatever else holds layers, puts out."""
        config = _config(node)
        layers = _nodes(config.get("layers"))
        if any(isinstance(layer, dict) and "inbound_nodes" in layer for layer in layers):
            return self._graph(config, given, path)
        if _kind(node) == "Sequential":
            for layer in layers:
                given = self.layer(layer, given, path)
            return list(given)
        result, met = changed("/".join(path), given), len(self.order)
        for part in (*layers, *_nodes(config.get("cells")), config.get("layer"), config.get("cell")):
            if isinstance(part, dict):  # what becomes of the input on its way there is in the code
                self.layer(part, [replace(result, root="/".join((*path, _name(part))))], path)
        return [result if len(self.order) == met else lost(result.depth + 1)]

    def _graph(self, config: Node, given: Sequence[Signal], path: tuple[str, ...]) -> list[Signal]:
        """What a functional model puts out; a layer that comes before what it reads reads the unknown."""
        inputs = list(_references(config.get("input_layers"), 0))
        values = dict(zip(inputs, given, strict=True)) if len(inputs) == len(given) else {}
        for layer in _nodes(config.get("layers")):
            met, place = len(self.order), str(layer.get("name", _name(layer)))
            calls = [list(_references(call, 0)) for call in _nodes(layer.get("inbound_nodes"))]
            signals = [[values.get(reference, lost()) for reference in call] for call in calls]
            if signals:
                outputs = self.layer(layer, signals[0], path)
                values |= {(place, 0, k): output for k, output in enumerate(outputs)}
                again = self._again(place, signals[1:], self.order[met:])
                values |= {(place, number, 0): output for number, output in enumerate(again, 1)}
        return [values.get(reference, lost()) for reference in _references(config.get("output_layers"), 0)]

    def _again(self, name: str, calls: Sequence[Sequence[Signal]], inner: Sequence[str]) -> list[Signal]:
        """What a layer that holds these recurrent layers puts out when it is called again.

        Those inside that read what it is given then read different things, and put out different ones.
        """
        results = [changed(name, given) for given in calls]
        if not results or not inner:
            return results
        inside, untouched = set(inner), all(result.layers == () for result in results)
        for path in inner:
            spec = self.found[path]
            if spec and not (set(spec.below) <= inside if spec.below else untouched):
                self.found[path] = replace(spec, below=None)
        return [lost(result.depth + 1) for result in results]

    def _both(self, config: Node, given: Sequence[Signal], path: tuple[str, ...]) -> Signal:
        """The two directions side by side; Keras turns the outputs of the backward one round."""
        outputs, usual = [], config.get("merge_mode") == "concat"
        for backward, (layer, name) in enumerate(directions(config)):
            signal, in_order = self._recurrent(layer, given, (*path, name))
            usual &= in_order and bool(_config(layer).get("go_backwards")) == bool(backward)
            outputs.append(signal)
        merged = side_by_side("/".join(path), outputs)
        return merged if usual else lost(merged.depth)

    def _recurrent(self, node: Any, given: Sequence[Signal], path: tuple[str, ...]) -> tuple[Signal, bool]:
        """What a recurrent layer puts out in the order of time, and whether it puts out every step."""
        config = _config(node)
        signal, *state = given or [lost()]
        cell = node if _kind(node) in RECURRENT else config.get("cell")
        cells = _nodes(_config(cell).get("cells")) if _kind(cell) == "StackedRNNCells" else [cell]
        for one in cells:
            name = "/".join(path if one is cell else (*path, _name(one)))
            if _kind(one) in RECURRENT:
                spec = _spec(one, signal, reverse=config.get("go_backwards") is True)
                spec = replace(spec, given_state=bool(state))
                self.found[name] = spec if self.found.get(name, spec) == spec else None
                self.order.append(name)
                signal = signal.through(name)
            else:
                signal = lost(signal.depth + 1)
        return signal, config.get("return_sequences") is True


def _spec(node: Any, given: Signal, *, reverse: bool) -> Spec:
    gates, config = RECURRENT[node["class_name"]], _config(node)
    reset_after = config.get("reset_after") if gates == 3 else None
    return Spec(
        gates,
        _activation(config.get("activation", "tanh")),
        _activation(config.get("recurrent_activation", "sigmoid")) if gates > 1 else "",
        reset_after if isinstance(reset_after, bool) else None,
        reverse,
        given.depth,
        given.layers,
    )


def _activation(activation: Any) -> str:
    """The name of an activation, which is a string or the description of a function."""
    if isinstance(activation, dict):
        activation = activation.get("config")
    return "linear" if activation is None else str(activation)


def _references(value: Any, depth: int) -> Iterator[tuple[str, int, int]]:
    """The values that a call refers to, as (layer, number of the call, number of the output)."""
    if depth > _DEEPEST:
        raise InputError(f"has a config of more than {_DEEPEST} levels, expected a model of Keras")
    match value:
        case {"class_name": "__keras_tensor__", "config": {"keras_history": [str(name), int(k), int(n)]}}:
            yield name, k, n
        case [str(name), int(k), int(n), *_]:  # in Keras 2, and for the inputs and outputs of a model
            yield name, k, n
        case list():
            for part in value:
                yield from _references(part, depth + 1)
        case dict():
            for name, part in value.items():
                if name != "mask":  # which goes along with the values and is none
                    yield from _references(part, depth + 1)
