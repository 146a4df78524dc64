"""Keras files (``.keras``, ``.weights.h5``, ``.h5``): weights and config, the model is never loaded."""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

from gradscope.checkpoints.found import (
    SIMPLE,
    Contents,
    Found,
    Layout,
    added_up,
    attempt,
    blocks,
    gated,
    take,
)
from gradscope.checkpoints.keras import cudnn as keras_cudnn
from gradscope.checkpoints.keras.activations import activated_cells, choice, question
from gradscope.checkpoints.keras.config import MOST_TEXT, Spec, specs
from gradscope.checkpoints.keras.names import names_by_place, place_of, users_names, whole_name
from gradscope.checkpoints.keras.weights import of_model, unconnected
from gradscope.checkpoints.map_choices import unnamed
from gradscope.custom_types import Array, PathLike
from gradscope.errors import InputError, listed, shown
from gradscope.formats.budget import Budget
from gradscope.formats.hdf5 import HDF5
from gradscope.formats.json_text import parsed
from gradscope.formats.tensors import Tensors, members, opened
from gradscope.settings import LAYOUTS

# Keras 3: layers/lstm/cell/vars/0; Keras 2: model_weights/lstm/lstm/lstm_cell/recurrent_kernel:0
_VARIABLE = re.compile(
    r"(?P<cell>.+)/(vars/(?P<index>[012])|(?P<role>kernel|recurrent_kernel|bias)(:0)?)", re.S
)
_CELL = re.compile(r"(.*/)?(cell(/cells/[^/]+)?|(lstm|gru|simple_rnn)_cell(_\d+)?)", re.S)
_LONGEST_VERSION = 64
_NOT_OF_KERAS = "is no layer of Keras' own in the config"
_ROLES = ("kernel", "recurrent_kernel", "bias")
_ORDER = {4: ("i", "f", "z", "o"), 3: ("z", "r", "h"), 1: ("",)}


def read_keras(path: PathLike, max_size: int | None, also: Iterable[str] = ()) -> Contents:
    """The recurrent layers of a ``.keras`` file, a zip of a config and weights."""
    with _archive(path, max_size) as (archive, budget):
        config = archive.read("config.json").decode("utf-8")
        there = "metadata.json" in archive.namelist()
        version = _version(archive.read("metadata.json"), budget) if there else ""
        return _contents(archive.read("model.weights.h5"), budget, also, config, version)


@contextmanager
def open_keras(path: PathLike, max_size: int | None) -> Iterator[Tensors]:
    """The weights in a ``.keras`` file by their paths."""
    with _archive(path, max_size) as (archive, budget):
        yield _weights(HDF5(archive.read("model.weights.h5"), budget), budget)


@contextmanager
def open_hdf5(path: PathLike, max_size: int | None) -> Iterator[Tensors]:
    """The arrays in an HDF5 file by their paths."""
    with opened(path, ".h5", max_size) as (file, budget):
        budget.unpack(budget.size)
        yield _weights(HDF5(file.read(), budget), budget)


@contextmanager
def _archive(path: PathLike, max_size: int | None) -> Iterator[tuple[zipfile.ZipFile, Budget]]:
    """The zip of a ``.keras`` file, and what it may take."""
    with opened(path, ".keras", max_size) as (file, budget), zipfile.ZipFile(file) as archive:
        there = {member.filename for member in members(archive, budget)}
        if missing := {"config.json", "model.weights.h5"} - there:
            raise InputError(
                f"lacks {listed(sorted(missing))}, expected what model.save('model.keras') writes"
            )
        yield archive, budget


def _weights(h5: HDF5, budget: Budget) -> Tensors:
    """The tensors of the model in a file."""
    tensors = h5.tensors()
    budget.unpack(sum(tensor.size for tensor in tensors.values()))
    return of_model(tensors)


def read_hdf5(
    path: PathLike, max_size: int | None, also: Iterable[str] = (), config: PathLike | None = None
) -> Contents:
    """The recurrent layers of weights alone (``.weights.h5``) or of a whole model in HDF5 (``.h5``).

    config : the file of the model's ``to_json()``, of weights alone.
    """
    told, version = _beside(config) if config is not None else (None, "")
    with opened(path, ".h5", max_size) as (file, budget):
        budget.unpack(budget.size)
        contents = _contents(file.read(), budget, also, told, version)
        if told and all(layer.question.startswith(_NOT_OF_KERAS) for layer in contents.layers):
            names = listed([layer.name for layer in contents.layers])
            raise InputError(f"has weights of {names}, and --config {shown(config)} says nothing of these")
        return contents


def _beside(path: PathLike) -> tuple[str, str]:
    """A config in a file of its own, and the version of Keras that it is of."""
    with opened(path, ".json") as (file, budget):
        if budget.size > MOST_TEXT:
            raise InputError(f"has {budget.size} bytes, expected what model.to_json() returns")
        text = file.read().decode("utf-8")
        root = parsed(text, budget)
        if not isinstance(root, dict) or not isinstance(root.get("config"), dict | list):
            raise InputError("holds no config of a model, expected what model.to_json() returns")
        return text, str(root.get("keras_version", ""))[:_LONGEST_VERSION]


def _version(metadata: bytes, budget: Budget) -> str:
    told = parsed(metadata.decode(), budget)
    return str(told.get("keras_version", ""))[:_LONGEST_VERSION] if isinstance(told, dict) else ""


def _contents(
    data: bytes, budget: Budget, also: Iterable[str], config: str | None = None, version: str = ""
) -> Contents:
    """Of weights, with the config and the version of Keras that wrote them, or what they say of these."""
    tensors = _weights(h5 := HDF5(data, budget), budget)
    own = h5.text("", "model_config")
    if config and own:
        raise InputError("holds the config of its model: leave out --config")
    config = config or own
    version = version or (h5.text("", "keras_version") or "")[:_LONGEST_VERSION]
    known = specs(config, h5.text("", "training_config"), version, budget) if config else None
    places = names_by_place(config, budget) if config else {}

    names = users_names(h5)

    def name(path: str) -> str:
        return whole_name(path, names) or places.get(place_of(path), "")

    found = layers(tensors, known, lambda path: name(path) or _by_scope(path), version)
    found = found if config else unconnected(found, tensors, h5.headers)
    found = found or list(unnamed(tensors))
    if not found:
        raise InputError(
            f"holds no LSTM, GRU or SimpleRNN of Keras ({listed(list(tensors)) or 'nothing'}): if these "
            "are the weights of one all the same, say by --map what they are"
        )
    # Other variables too go by what the user calls their layer: readout/vars/0 of layers/dense/vars/0.
    called = {key: name(key.rpartition("/vars/")[0]) for key in tensors}
    for key in (key for layer in found for key in layer.keys):
        called[key] = ""
    full = {key: f"{own}/vars/{key.rpartition('/')[2]}" if own else key for key, own in called.items()}
    count = Counter(full.values())
    named = {own if count[own] == 1 else key: tensors[key] for key, own in full.items()}
    return Contents.of(found, named, also)


def layers(
    tensors: Tensors, known: dict[str, Spec] | None, name: Callable[[str], str], version: str = ""
) -> list[Found]:
    """The recurrent layers among these tensors, each after those that it reads, forward before backward.

    known : what the config says of them, None where there is none; name : of a cell's layer, by its path;
    version : of Keras, "" where it is not known.
    """
    cells: dict[str, dict[str, str]] = {}
    for key in tensors:
        match = _VARIABLE.fullmatch(key)
        if match and (match["role"] or _CELL.fullmatch(match["cell"])):
            cells.setdefault(match["cell"], {})[match["role"] or _ROLES[int(match["index"])]] = key
    cells = {path: keys for path, keys in cells.items() if _is_recurrent(path, keys, name(path), known)}
    called = _distinct({path: name(path) for path in cells})
    told = _told(set(called.values()), known or {})
    found = []
    for path, keys in cells.items():
        spec = told.get(called[path])
        make = partial(_layer, tensors, keys, spec, version)
        layer = attempt(make, called[path], keys.values())
        if known is not None and spec is None and not layer.problem:
            layer = replace(layer, question=_unknown(layer, version), below=None)
        # Bidirectional makes a backward layer from the one it is given, and calls it so.
        made = any(part.startswith("backward_") for part in path.split("/"))
        found.append(replace(layer, direction="backward" if (spec.reverse if spec else made) else "forward"))
    return sorted(found, key=lambda layer: (layer.depth, layer.direction == "backward", layer.name))


def _is_recurrent(path: str, keys: Collection[str], name: str, known: Collection[str] | None) -> bool:
    """Whether weights are of a recurrent layer, by what there is of them, or by what the config has there."""
    lost = name in known if known is not None else path.endswith("_cell") and _CELL.fullmatch(path)
    return "recurrent_kernel" in keys or bool(lost)


def _told(names: Collection[str], known: Mapping[str, Spec]) -> dict[str, Spec]:
    """What the config says of the layers of these names, what is below them told by these names too."""
    paths = {name: name for name in names if name in known}
    # HDF5 files of whole models name more, or less, of what is between the model's layer and the cell's.
    # Of a layer that is in another (TimeDistributed) the name of that one alone.
    for part in (_ends, _first):
        rest = _by(part, [name for name in names if name not in paths])
        there = _by(part, [path for path in known if path not in paths.values()])
        alike = [key for key in rest.keys() & there.keys() if part is _ends or rest[key] == key]
        paths |= {rest[key]: there[key] for key in alike}
    named = {path: name for name, path in paths.items()}
    return {name: replace(known[path], below=_below(known[path], named)) for name, path in paths.items()}


def _ends(path: str) -> str:
    """Its first and its last name, without what Keras 2 puts before that of a backward layer it is given."""
    return "/".join([path.split("/")[0], path.split("/")[-1].removeprefix("backward_")])


def _first(path: str) -> str:
    return path.split("/")[0]


def _by(part: Callable[[str], str], paths: Sequence[str]) -> dict[str, str]:
    """The paths by a part of them, where that is of one alone."""
    count = Counter(map(part, paths))
    return {key: path for path in paths if count[key := part(path)] == 1}


def _below(spec: Spec, named: Mapping[str, str]) -> tuple[str, ...] | None:
    if spec.below is None or any(path not in named for path in spec.below):
        return None
    return tuple(named[path] for path in spec.below)


def _distinct(names: Mapping[str, str]) -> dict[str, str]:
    """The names by path, with that of the cell where the first is of several."""
    count = Counter(names.values())
    return {
        path: name if count[name] == 1 else f"{name}/{path.rpartition('/')[2]}"
        for path, name in names.items()
    }


def _by_scope(path: str) -> str:
    """bi/forward_lstm of model_weights/bi/sequential/bi/forward_lstm/lstm_cell."""
    layer, *scope = path.removeprefix("model_weights/").split("/")
    if layer in scope[:-1]:
        scope = scope[len(scope) - scope[::-1].index(layer) :]
    return "/".join([layer, *scope[:-1]])


def _unknown(layer: Found, version: str) -> str:
    """The question of a layer that the config does not have as one of Keras'."""
    return f"{_NOT_OF_KERAS}: if it computes the same as one, {choice(layer.cells, version)}"


def _layer(tensors: Tensors, keys: Mapping[str, str], spec: Spec | None, version: str) -> Found:
    read, dtype = take(tensors, keys.values())
    weights = {role: read[key] for role, key in keys.items()}
    if missing := {"kernel", "recurrent_kernel"} - weights.keys():
        raise InputError(f"lacks its {listed(sorted(missing))}: truncated or damaged")
    packed = keras_cudnn.is_packed(weights)
    forms = {name: keras_cudnn.unpacked(weights, name) for name in LAYOUTS} if packed else {"": weights}
    layouts = {name: _native(form, spec)[0] for name, form in forms.items()}
    # A layer that is to be made of such weights, of whatever class, Keras gives them in cuDNN's layout.
    arrays, count, reset_after = _native(next(iter(forms.values())), spec)
    if spec:
        units = weights["recurrent_kernel"].shape[0]
        spec.check(count, units, reset_after, has_bias="bias" in weights)
    cells, open_, problem = _cells(count, reset_after, spec, version)
    twice = added_up(arrays) if reset_after and "bias" in weights else ()
    found = Found("", arrays, cells, open_, problem, kind=_KINDS[count], dtype=dtype, twice=twice)
    if packed and spec is None:
        told = {name: Layout(form, keras_cudnn.SAID[name]) for name, form in layouts.items()}
        return replace(found, question=keras_cudnn.which_layout(found.kind), layouts=told)
    if spec is None:
        return replace(found, free=True)
    said: dict[str, Any] = {name: getattr(spec, name) for name in _SAID}
    return replace(found, activation="" if cells else spec.activation, **said)


# What a Spec says that is the same of a Found.
_SAID = ("depth", "below", "reads", "table", "mask", "given_state", "not_applied", "time_major")
_KINDS = {4: "lstm", 3: "gru", 1: "rnn"}
# By the number of gates, and whether a GRU's reset gate comes after its product.
_BASES: dict[tuple[int, bool | None], tuple[str, ...]] = {
    (1, None): ("rnn",),
    (4, None): ("lstm",),
    (3, True): ("gru",),
    (3, False): ("gru-reset-before",),
    (3, None): ("gru", "gru-reset-before"),
}


def _native(weights: dict[str, Array], spec: Spec | None) -> tuple[dict[str, Array], int, bool | None]:
    """Our arrays, the number of gates, and where the GRU's reset gate is (None: the file does not say)."""
    kernel, recurrent = weights["kernel"], weights["recurrent_kernel"]
    if kernel.ndim == recurrent.ndim and kernel.ndim in (3, 4, 5):
        raise InputError(
            f"is a ConvLSTM (kernels {kernel.shape} and {recurrent.shape}), for which gradscope has no "
            "equations: give its one-step Jacobians (T, m, m) to gradscope chain"
        )
    if kernel.ndim != 2 or recurrent.ndim != 2 or kernel.shape[1] != recurrent.shape[1]:
        raise InputError(
            f"kernel and recurrent_kernel have shapes {kernel.shape} and {recurrent.shape}, "
            "expected (d, G n) and (n, G n)"
        )
    count = blocks("recurrent_kernel, transposed,", recurrent.T, _ORDER)
    ours, bias = {"W": kernel.T, "R": recurrent.T}, weights.get("bias")
    reset_after = spec.reset_after if spec and count == 3 else None
    if bias is not None:
        reset_after = bias.ndim == 2 if count == 3 else None
        expected = (2, kernel.shape[1]) if reset_after else (kernel.shape[1],)
        if bias.shape != expected:
            raise InputError(f"bias has shape {bias.shape}, expected {expected}")
        ours |= {"b": bias[0], "c": bias[1]} if reset_after else {"b": bias}
    return gated(_ORDER[count], ours, reset_after=bool(reset_after)), count, reset_after


def _cells(
    count: int, reset_after: bool | None, spec: Spec | None, version: str
) -> tuple[tuple[str, ...], str, str]:
    """The cells it may be, what is open, and why there is none."""
    bases = _BASES[count, reset_after]
    if spec is None:
        return (tuple(SIMPLE.values()) if count == 1 else bases), question(_KINDS[count], bases, version), ""
    cells, open_, problem = activated_cells(bases, spec.activation, spec.recurrent_activation, version)
    if len(bases) > 1 and not problem:
        choice = " or ".join(f"--cell {cell}" for cell in cells)
        open_ = f"does not say whether the GRU resets after the product: add {choice}"
    return cells, open_, problem
