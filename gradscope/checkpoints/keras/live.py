"""Models and layers of Keras: their own weights, and the config that they give of themselves."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from gradscope.checkpoints.found import Found
from gradscope.checkpoints.keras.config import RECURRENT, specs
from gradscope.checkpoints.keras.file import layers
from gradscope.checkpoints.keras.loops import with_bare_loops
from gradscope.checkpoints.keras.own import OF_RNN
from gradscope.checkpoints.keras.recording import keras_recorded, package_of
from gradscope.checkpoints.live import CALLED, Live, kept, source, wrong
from gradscope.errors import InputError, listed, shown


def from_keras(model: Any, batch: Any = None) -> Live:
    """The LSTM, GRU and SimpleRNN layers and cells anywhere in a model of Keras, for ``gradscope.analyze``.

    model : or a layer, as it is now. What reads what is known of Sequential and functional models; in one
        with code of its own, each recurrent layer is on its own, and is to be given what it reads.
    batch : what the model is called with: an array, a list or a dict of them, or the arguments of its call by
        name. The model runs over it once, with training=False, and is as before afterwards: every layer is
        then analysed on the inputs, states and masks that it had itself, whatever stands before it, and
        ``analyze`` compares what gradscope computes with what the layer put out. Calls of a cell in a row (a
        loop) are one sequence. A layer or cell that computes something else than Keras' own is called again,
        step by step, and differentiated by Keras itself, on its backends jax, torch and tensorflow; a loop
        over time in any other call as well, on jax.
    Raises InputError where it is neither, has no weights yet, holds no such layer, or fails on the batch.
    """
    return read_keras_model("from_keras", model, batch)


def is_keras(model: Any) -> bool:
    """Whether it is a model or a layer of Keras."""
    return not isinstance(model, type) and all(hasattr(model, n) for n in ("get_config", "_flatten_layers"))


def read_keras_model(function: str, model: Any, batch: Any) -> Live:
    """What ``from_keras`` returns; function : whose name messages begin with."""
    if not is_keras(model):
        raise wrong(function, model, "a model or a layer of Keras")
    config, parts = _config(model), [(part.name, part) for part in _parts(model)]
    optimizer = getattr(model, "optimizer", None)
    if not hasattr(model, "layers"):
        config = {"class_name": "Sequential", "config": {"layers": [config]}}
        parts = [(model.name, model)]
    places = [place for path, part in parts for place in _places(part, path)]
    weights = {name: value for path, part in places for name, value in _weights(part, path)}
    own = {path: names for path, part in places if (names := _own_functions(part))}
    if not weights:
        raise wrong(function, model, "one that has its weights: call it once on a batch")
    tensors = {name: kept(name, partial(_values, value)) for name, value in weights.items()}
    if optimizer is not None and hasattr(optimizer, "get_config"):
        config["compile_config"] = {"optimizer": {"config": optimizer.get_config()}}
    version = _version(model)
    known = specs(json.dumps(config, default=str), version=version)
    found = tuple(_told(f, own.get(f.name, [])) for f in layers(tensors, known, str, version))
    called = source(function, model)
    if batch is None:
        _check_known(called, found, places)
        return Live(called, found, tensors, way=CALLED.format("layer"))
    owners = {path: owner for name, part in parts for path, owner in _owners(part, name)}
    each: dict[str, Any] = {}
    for path, part in places:
        each.setdefault(path if path not in each else f"{path}{OF_RNN}", part)
    found, recorded = keras_recorded(called, model, batch, found, owners, each)
    found, recorded = with_bare_loops(
        package_of(model), called, model, batch, weights.items(), found, recorded
    )
    return Live(called, found, tensors, recorded, CALLED.format("layer"))


def _check_known(called: str, found: Sequence[Found], places: Iterable[tuple[str, Any]]) -> None:
    """Raise InputError where all that recurs is of the user's own, and nothing tells what it does."""
    own = next(((path, part) for path, part in places if hasattr(part, "inner_loop")), None)
    if own and not found:
        raise InputError(
            f"{called}: layer {shown(own[0])} has a cell of its own, {shown(type(own[1].cell).__name__)}, "
            "for which gradscope has no equations: give a batch as well, on which Keras differentiates it"
        )


def _values(variable: Any) -> Any:
    return variable.numpy()


def _parts(layer: Any) -> list[Any]:
    return list(layer._flatten_layers(include_self=False, recursive=False))


def _of_keras(kind: Any) -> bool:
    return str(kind.__module__).split(".")[0] in ("keras", "tf_keras")


def _version(model: Any) -> str:
    """Of the Keras that a model is of, "" where that does not say."""
    package = next((k.__module__.split(".")[0] for k in type(model).__mro__ if _of_keras(k)), "")
    return str(getattr(sys.modules.get(package), "__version__", ""))


def _kind(layer: Any) -> str:
    """The class of Keras that a layer is of, or derives from; none where it computes otherwise."""
    for kind in type(layer).__mro__:
        if _of_keras(kind):
            return kind.__name__
        if "call" in vars(kind) or "inner_loop" in vars(kind):
            break
    return ""


def _config(layer: Any) -> dict[str, Any]:
    """The config of a layer as a file has it, made up of its parts where it does not say them itself."""
    try:
        config = dict(layer.get_config())
    except Exception:  # a layer of the user's own need not describe itself
        config = {}
    kind, parts = _kind(layer), _parts(layer)
    told = kind in RECURRENT or any(
        kind and isinstance(config.get(n), list | dict) for n in ("layers", "layer", "cell", "cells")
    )
    if parts and not told:
        kind, config = "", {"layers": [_config(part) for part in parts]}
    return {"class_name": kind, "config": config | {"name": layer.name}}


def _places(layer: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The layer and all in it by the names of what holds them; a cell goes by that of its RNN."""
    yield path, layer
    for part in _parts(layer):
        inside = part is getattr(layer, "cell", None)
        yield from _places(part, path if inside else f"{path}/{part.name}")


def _weights(layer: Any, path: str) -> Iterator[tuple[str, Any]]:
    """The variables of a layer itself by its name."""
    theirs = {id(value) for part in _parts(layer) for value in part.weights}
    for value in layer.weights:
        if id(value) not in theirs:
            yield f"{path}/{value.name.rpartition('/')[2].partition(':')[0]}", value


def _own_functions(layer: Any) -> list[str]:
    """The activations that are functions of the user's own, which a config may call as Keras' are called."""
    functions = (getattr(layer, name, None) for name in ("activation", "recurrent_activation"))
    return [
        str(getattr(function, "__name__", "")) or "?"
        for function in functions
        if callable(function) and not _of_keras(type(function) if hasattr(function, "call") else function)
    ]


def _told(found: Found, own: list[str]) -> Found:
    """A layer, refused where its activations are not what its config calls them."""
    if not own:
        return found
    return replace(found, cells=(), problem=f"has as activation {listed(own)}, a function of the user's own")


def _owners(layer: Any, path: str, rnn: Any = None) -> Iterator[tuple[str, Any]]:
    """By the paths of ``_weights`` the layer that is called: of cells in an RNN that."""
    rnn = rnn if rnn is not None else layer if hasattr(layer, "cell") else None
    yield path, layer if rnn is None else rnn
    for part in _parts(layer):
        inside = part is getattr(layer, "cell", None)
        yield from _owners(part, path if inside else f"{path}/{part.name}", rnn)
