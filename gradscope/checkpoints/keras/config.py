"""What a Keras model's config says of its recurrent layers, and of how they stand upon each other."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from gradscope.checkpoints.keras.activations import activation_in, usual_gate
from gradscope.checkpoints.keras.masks import given_mask, made_mask
from gradscope.checkpoints.keras.training import besides, clipping
from gradscope.checkpoints.signals import Mask, Signal, changed, embedded, lost, side_by_side
from gradscope.errors import InputError, listed
from gradscope.formats.budget import Budget
from gradscope.formats.json_text import parsed

_OF_CUDNN = {"CuDNNLSTM": 4, "CuDNNGRU": 3}
RECURRENT = {"LSTM": 4, "LSTMCell": 4, "GRU": 3, "GRUCell": 3, "SimpleRNN": 1, "SimpleRNNCell": 1} | _OF_CUDNN
# What leaves its input as it is when the model is not being trained, and what does so even then.
_IN_TRAINING = {
    "AlphaDropout",
    "Dropout",
    "GaussianDropout",
    "GaussianNoise",
    "SpatialDropout1D",
    "SpatialDropout2D",
    "SpatialDropout3D",
}
_IDENTITIES = {"ActivityRegularization", "Identity", "InputLayer", *_IN_TRAINING}
# Through which no mask goes.
_MASKLESS = re.compile(
    r"(Separable|Depthwise)?Conv(olution)?\d.*|.*Pool(ing)?\dD|Cropping.*|Embedding|Flatten|Permute|"
    r"RepeatVector|Reshape|UpSampling.*|ZeroPadding.*"
)
_DEEPEST = 50
# Characters, of a config and of the names on the way to a layer.
MOST_TEXT, LONGEST = 2**23, 1024
Node = dict[str, Any]


@dataclass(frozen=True)
class Spec:
    """One recurrent layer or cell in a config.

    gates : how many; units, use_bias, reset_after : None where it does not say.
    reverse : whether it reads the sequence from its end; depth, below, reads, table, mask, given_state,
    not_applied, time_major : as in Layer, the layers by their keys in ``specs``.
    """

    gates: int
    activation: str
    recurrent_activation: str
    reset_after: bool | None
    reverse: bool = False
    depth: int = 0
    below: tuple[str, ...] | None = ()
    given_state: bool = False
    reads: str = ""
    table: str | None = ""
    mask: Mask | None = None
    not_applied: tuple[str, ...] = ()
    time_major: bool | None = None
    units: int | None = None
    use_bias: bool | None = None

    def check(self, gates: int, units: int, reset_after: bool | None, *, has_bias: bool) -> None:
        """Raise InputError where the weights are of another layer than the config has."""
        claims = {
            "gates": (self.gates, gates),
            "units": (self.units, units),
            "use_bias": (self.use_bias, has_bias),
            "reset_after": (self.reset_after, reset_after),
        }
        for name, (told, there) in claims.items():
            if None not in (told, there) and told != there:
                raise InputError(
                    f"has {name} {told} by its config and {there} by its weights: they do not fit"
                )


def specs(
    text: str, compiled: str | None = None, version: str = "", budget: Budget | None = None
) -> dict[str, Spec]:
    """The recurrent layers of a model by the names of all that holds them: ``encoder/both/forward_lstm``.

    compiled : what it was compiled with, where that is not in the config; version : of Keras, where known;
    budget : of the file that the text is in, where it is in one.
    A name that stands for several different layers is left out. Raises InputError for a config that
    is longer, or nests deeper, than one of Keras.
    """
    if len(text) > MOST_TEXT:
        raise InputError(f"has a config of {len(text)} characters, expected at most {MOST_TEXT}")
    budget = budget or Budget(len(text))
    walk, root = _Walk(budget, usual_gate(version)), parsed(text, budget)
    root = root if isinstance(root, dict) else {}
    config = config_of(root)
    inputs = list(_references(config.get("input_layers"), 0)) or [("", 0, 0)]
    # The only input needs no name.
    walk.inside(root, [Signal((), name if len(inputs) > 1 else "") for name, _, _ in inputs], ())
    clips = clipping(parsed(compiled, budget) if compiled else root.get("compile_config"))
    return {
        path: replace(spec, not_applied=(*spec.not_applied, *clips))
        for path, spec in walk.found.items()
        if spec
    }


def config_of(node: Any) -> Node:
    """The config of a layer; of a Sequential before Keras 2.2.3 it is the list of its layers."""
    config = node.get("config") if isinstance(node, dict) else None
    if isinstance(config, list) and node.get("class_name") == "Sequential":
        return {"name": str(node.get("name", "")), "layers": config}
    return config if isinstance(config, dict) else {}


def _kind(node: Any) -> Any:
    """The class of Keras; of another package's, whatever it is called, that it is none."""
    if not isinstance(node, dict):
        return None
    module, registered = node.get("module"), node.get("registered_name")
    own = isinstance(module, str) and module.split(".")[0] not in ("keras", "tensorflow", "tf_keras")
    own = own or (isinstance(registered, str) and ">" in registered)
    return f"own {node.get('class_name')}" if own else node.get("class_name")


def _name(node: Any) -> str:
    return str(config_of(node).get("name", ""))


def _nodes(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def directions(config: Node) -> tuple[tuple[Any, str], tuple[Any, str]]:
    """The two layers of a Bidirectional and what it calls them; it makes the second if it has only one."""
    ahead, back = config.get("layer"), config.get("backward_layer")
    base = _name(ahead).removeprefix("forward_")
    if isinstance(back, dict):
        return (ahead, f"forward_{base}"), (back, _name(back))
    turned = {"go_backwards": not config_of(ahead).get("go_backwards")}
    made = {"class_name": _kind(ahead), "config": config_of(ahead) | turned}
    return (ahead, f"forward_{base}"), (made, f"backward_{base}")


@dataclass
class _Walk:
    """Goes through a model in the order in which it computes.

    budget : what its names are drawn from; gate : the recurrent activation where a config has none.
    found : what it has met, by path; order : the paths as it met them.
    """

    budget: Budget
    gate: str = "sigmoid"
    found: dict[str, Spec | None] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)

    def layer(self, node: Any, given: Sequence[Signal], above: tuple[str, ...]) -> list[Signal]:
        """What a layer puts out, given its inputs."""
        path = (*above, _name(node))
        self.budget.draw(size=sum(map(len, path)))
        if len(path) > _DEEPEST or sum(map(len, path)) > LONGEST:
            raise InputError(
                f"has a config of more than {_DEEPEST} levels or names of more than {LONGEST} characters, "
                "expected a model of Keras"
            )
        kind, config = _kind(node), config_of(node)
        if (left := _leaf(node, given, "/".join(path))) is not None:
            return left
        if kind == "Concatenate" and config.get("axis") in (-1, 2):
            return [side_by_side("/".join(path), given)]
        if kind in RECURRENT or kind == "RNN":
            signal, in_order = self._recurrent(node, given, path)
            name, usual = "/".join(path), in_order and not config.get("go_backwards")
            return [signal if usual else lost(signal.depth, name, signal.mask if in_order else None)]
        if kind == "Bidirectional" and _kind(config.get("layer")) in (*RECURRENT, "RNN"):
            return [self._both(config, given, path)]
        return self.inside(node, given, path)

    def inside(self, node: Any, given: Sequence[Signal], path: tuple[str, ...]) -> list[Signal]:
        """What a model, or whatever else holds layers, puts out."""
        config = config_of(node)
        layers = _nodes(config.get("layers"))
        if any(isinstance(layer, dict) and "inbound_nodes" in layer for layer in layers):
            return self._graph(config, given, path)
        if _kind(node) == "Sequential":
            for layer in layers:
                given = self.layer(layer, given, path)
            return list(given)
        name, met = "/".join(path), len(self.order)
        result = _masked(node, changed(name, given))
        for part in (*layers, *_nodes(config.get("cells")), config.get("layer"), config.get("cell")):
            if isinstance(part, dict):  # what becomes of the input on its way there is in the code
                root = "/".join((*path, _name(part)))
                self.layer(
                    part, [Signal((), f"the input of {root}", front=True, table=None, mask=result.mask)], path
                )
        return [result if len(self.order) == met else lost(result.depth + 1, name, result.mask)]

    def _graph(self, config: Node, given: Sequence[Signal], path: tuple[str, ...]) -> list[Signal]:
        """What a functional model puts out; a layer that comes before what it reads reads the unknown."""
        inputs = list(_references(config.get("input_layers"), 0))
        values = dict(zip(inputs, given, strict=True)) if len(inputs) == len(given) else {}
        for layer in _nodes(config.get("layers")):
            met, place = len(self.order), str(layer.get("name", _name(layer)))
            read = partial(
                _call, values=values, recurrent=_kind(layer) in (*RECURRENT, "RNN", "Bidirectional")
            )
            calls = [read(call) for call in _nodes(layer.get("inbound_nodes"))]
            if calls:
                outputs = self.layer(layer, calls[0], path)
                if mask := made_mask(_kind(layer), place, layer["inbound_nodes"][0], calls[0]):
                    outputs = [replace(outputs[0], tells=mask)]
                values |= {(place, 0, k): output for k, output in enumerate(outputs)}
                again = self._again(layer, (*path, place), calls[1:], self.order[met:])
                values |= {(place, number, 0): output for number, output in enumerate(again, 1)}
        return [values.get(reference, lost()) for reference in _references(config.get("output_layers"), 0)]

    def _again(
        self, node: Any, path: tuple[str, ...], calls: Sequence[Sequence[Signal]], inner: Sequence[str]
    ) -> list[Signal]:
        """What a layer, that holds the recurrent layers ``inner``, puts out when it is called again.

        Those inside that read what it is given then read different things, and put out different ones.
        """
        name, results = "/".join(path), []
        for number, given in enumerate(calls, 1):
            left = _leaf(node, given, name)
            results.append(left[0] if left else changed(f"{name} (call {number + 1})", given))
        if not results or not inner:
            return results
        inside, untouched = set(inner), all(result.layers == () for result in results)
        for path_inside in inner:
            spec = self.found[path_inside]
            if spec and not (set(spec.below) <= inside if spec.below else untouched):
                self.found[path_inside] = replace(spec, below=None)
        return [lost(result.depth + 1, result.root) for result in results]

    def _both(self, config: Node, given: Sequence[Signal], path: tuple[str, ...]) -> Signal:
        """The two directions side by side; Keras turns the outputs of the backward one round."""
        outputs, usual, steps = [], config.get("merge_mode") == "concat", True
        for backward, (layer, name) in enumerate(directions(config)):
            signal, in_order = self._recurrent(layer, given, (*path, name))
            steps &= in_order
            usual &= in_order and bool(config_of(layer).get("go_backwards")) == bool(backward)
            outputs.append(signal)
        merged = side_by_side(name := "/".join(path), outputs)
        return merged if usual else lost(merged.depth, name, merged.mask if steps else None)

    def _recurrent(self, node: Any, given: Sequence[Signal], path: tuple[str, ...]) -> tuple[Signal, bool]:
        """What a recurrent layer puts out in the order of time, and whether it puts out every step."""
        config = config_of(node)
        signal, *state = given or [lost()]
        cell = node if _kind(node) in RECURRENT else config.get("cell")
        cells = _nodes(config_of(cell).get("cells")) if _kind(cell) == "StackedRNNCells" else [cell]
        for one in cells:
            name = "/".join(path if one is cell else (*path, _name(one)))
            if _kind(one) in RECURRENT:
                spec = _spec(one, signal, self.gate, reverse=config.get("go_backwards") is True)
                said = besides(config, config_of(one))
                spec = replace(spec, given_state=bool(state), not_applied=(*spec.not_applied, *said))
                spec = replace(spec, time_major=config.get("time_major") is True or None)
                self.found[name] = spec if self.found.get(name, spec) == spec else None
                self.order.append(name)
                signal = signal.through(name)
            else:
                signal = lost(signal.depth + 1, name, signal.mask)
        return signal, config.get("return_sequences") is True


def _spec(node: Any, given: Signal, gate: str, *, reverse: bool) -> Spec:
    gates, config = RECURRENT[_kind(node)], config_of(node)
    if _kind(node) in _OF_CUDNN:
        gate, config = "sigmoid", config | {"reset_after": True}
    reset_after = config.get("reset_after") if gates == 3 else None
    return Spec(
        gates,
        activation_in(config.get("activation", "tanh")),
        activation_in(config.get("recurrent_activation", gate)) if gates > 1 else "",
        reset_after if isinstance(reset_after, bool) else None,
        reverse,
        given.depth,
        given.below,
        reads="" if given.below else given.root,
        table=given.table,
        mask=given.own_mask,
        not_applied=_on_the_way(given),
        units=units if isinstance(units := config.get("units"), int) else None,
        use_bias=config["use_bias"] if isinstance(config.get("use_bias"), bool) else None,
    )


def _on_the_way(given: Signal) -> tuple[str, ...]:
    """What training does to the value that a layer reads."""
    if not given.training:
        return ()
    return (f"in training, {listed(given.training)} on what it reads: other inputs, no factor of its gain",)


def _leaf(node: Any, given: Sequence[Signal], name: str) -> list[Signal] | None:
    """What a layer puts out that leaves its input as it is, masks it or looks it up; None of another."""
    kind, config = _kind(node), config_of(node)
    if not given:
        return [] if kind in _IDENTITIES else None
    if kind == "TimeDistributed":
        return _leaf(inner, given, name) if _kind(inner := config.get("layer")) in _IDENTITIES else None
    if kind in _IN_TRAINING:
        return [given[0].trained(f"{kind} {name}"), *given[1:]]
    if kind in _IDENTITIES or (kind == "Activation" and config.get("activation") == "linear"):
        return list(given)
    if kind == "Embedding":
        mask = Mask("ids", 0.0, name, given[0].root) if config.get("mask_zero") else None
        return [replace(embedded(name, given[0]), mask=mask)]
    if kind == "Masking":
        return [replace(given[0], mask=_masking(config, name, given[0]))]
    return None


def _masking(config: Node, name: str, given: Signal) -> Mask:
    value = config.get("mask_value", 0.0)
    if given.layers != () or not isinstance(value, int | float):
        return Mask(by=name)
    return Mask("features", float(value), name, given.root, _dtype(config))


def _dtype(config: Node) -> str:
    """In which a layer computes: float64 or, which is all that matters to a mask, less."""
    return "float64" if "float64" in json.dumps(config.get("dtype")) else "float32"


def _masked(node: Any, signal: Signal) -> Signal:
    """What an operation, or a layer with code of its own, has made of a value, and of its mask."""
    if isinstance(_kind(node), str) and _MASKLESS.fullmatch(_kind(node)):
        return replace(signal, mask=None)
    parts = _nodes(config_of(node).get("layers"))
    masks = any(_kind(part) == "Masking" or config_of(part).get("mask_zero") is True for part in parts)
    return replace(signal, mask=Mask()) if masks else signal


def _call(call: Any, values: Mapping[tuple[str, int, int], Signal], *, recurrent: bool) -> list[Signal]:
    """The values that a call is given, the first with the mask that is given beside them, if one is.

    recurrent : whether it is of a layer that may be given a state, which may be a constant.
    """
    signals = [values.get(reference, lost()) for reference in _references(call, 0)]
    if not signals:
        return []
    if recurrent and len(signals) == 1 and _argument(call, "initial_state", 1) is not None:
        signals.append(lost())
    mask = _argument(call, "mask", 2 if recurrent else None)
    masks = list(_references(mask, 0))
    return signals if mask is None else [given_mask(signals[0], masks, values), *signals[1:]]


def _argument(call: Any, name: str, place: int | None) -> Any:
    """An argument of a call, by its name or its place; None where it is not given."""
    match call:
        case {"kwargs": {**named}} if name in named:
            return named[name]
        case {"args": [*given]} if place is not None and len(given) > place:
            return given[place]
        case [[_, _, _, {**named}], *_] | [str(), _, _, {**named}]:  # in Keras 2
            return named.get(name)
    return None


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
