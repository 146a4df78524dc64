"""Trained recurrent layers: a module for each library turns the names of its tensors into layers.

Public: ``read``, ``read_all``, ``Layer``, ``Model``, and ``from_torch`` and its like.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from gradscope.cells import CELLS, find
from gradscope.cells.cell import Cell
from gradscope.checkpoints import dynet_names, haste_names, native
from gradscope.checkpoints.array_map import mapped
from gradscope.checkpoints.found import ACTIVATIONS, Contents, Found, Named, holder_of, names_of
from gradscope.checkpoints.jax import flax_names as flax_names
from gradscope.checkpoints.layer import Layer
from gradscope.checkpoints.live import Live
from gradscope.checkpoints.map_choices import unnamed
from gradscope.checkpoints.model_part import model_only
from gradscope.checkpoints.reads import connected
from gradscope.checkpoints.recorded_steps import in_checkpoint
from gradscope.checkpoints.recording import Recorded, Recording
from gradscope.checkpoints.recording_file import is_recording, recorded_model
from gradscope.checkpoints.tensorflow import names as tensorflow_names
from gradscope.checkpoints.torch import names as torch_names
from gradscope.checkpoints.torch.quantised import dequantised, told_quantised
from gradscope.checkpoints.torch.told import told_by_file
from gradscope.errors import InputError, about, listed, quoted, shown
from gradscope.formats.reading import TENSOR_FILES, kind_of, load, open_tensors, suffix
from gradscope.formats.tensors import Tensors
from gradscope.formats.torch_file import Saved
from gradscope.settings import LAYOUTS

__all__ = [
    "ACTIVATIONS",
    "Contents",
    "Decided",
    "Found",
    "Layer",
    "Live",
    "Model",
    "Named",
    "Recorded",
    "Recording",
    "by_derivatives",
    "choose",
    "contents_of",
    "holder_of",
    "read",
    "read_all",
]

# suffix -> module:function that reads a file which says more than the names of its tensors.
_MODELS = {
    ".keras": "gradscope.checkpoints.keras.file:read_keras",
    ".h5": "gradscope.checkpoints.keras.file:read_hdf5",
    ".hdf5": "gradscope.checkpoints.keras.file:read_hdf5",
    ".onnx": "gradscope.checkpoints.onnx.graph:read_onnx",
}
# The same as named arrays alone, of which a map says what they are.
_ARRAYS = {
    ".keras": "gradscope.checkpoints.keras.file:open_keras",
    ".h5": "gradscope.checkpoints.keras.file:open_hdf5",
    ".hdf5": "gradscope.checkpoints.keras.file:open_hdf5",
    ".onnx": "gradscope.checkpoints.onnx.graph:open_onnx",
}
# suffix -> module:function that runs a model on its inputs, where the layers do not read these.
_RUNS = {".onnx": "gradscope.checkpoints.onnx.running:recorded_on"}
_HINTS = {
    ".eqx": "an .eqx file has no names: save its arrays with numpy.savez under W_z, R_z, b_z, ...",
}

_UNCONNECTED = "reads the inputs, for the file does not say what reads what: --reads LAYER=BELOW does"

_LIBRARIES = (torch_names, flax_names, tensorflow_names, dynet_names, haste_names)

# Nobody wants to read more verdicts.
MOST_LAYERS = 64


def read_all(
    path: str | os.PathLike[str] | Live,
    cell: Cell | None = None,
    *,
    max_size: int | None = None,
    also: Iterable[str] = (),
    rules: Sequence[str] = (),
    config: str | os.PathLike[str] | None = None,
) -> Contents:
    """Every recurrent layer in a checkpoint, whether or not gradscope can analyse it.

    path : of its file or of a recording, or what ``gradscope.from_torch`` and its like return.
    cell : whose names a native file's arrays have, needed where it is not a built-in one.
    max_size : bytes the file may unpack to, by default a small multiple of its size.
    also : other tensors whose values are wanted: their names, or those of their modules, or a unique end.
    rules : of a map, which then alone says what the layers are; see ``array_map``.
    config : a file of Keras' ``model.to_json()``, which its weights alone lack.
    Raises InputError for a file that is damaged, too large, or lacks a recurrent layer or those tensors.
    """
    if isinstance(path, Live):
        with about(str(path)):
            _check_tensors(path, (*also, *rules))
            return _mapped(path.tensors, rules, cell, also) if rules else path.contents(also)
    if not isinstance(path, str | os.PathLike):
        expected = "a file, or what gradscope.from_torch and its like make of a model"
        raise InputError(f"checkpoint is {quoted(path)}, expected {expected}")
    kind = kind_of(path)
    if config is not None and (rules or kind not in (".h5", ".hdf5")):
        raise InputError(f"--config {shown(config)} is about weights of Keras (.h5) alone: leave it out")
    if rules and kind in _ARRAYS | TENSOR_FILES:
        with _open_arrays(path, max_size) as tensors:
            return contents_of(tensors, cell, also, rules)
    if kind in _MODELS:
        told = {} if config is None else {"config": config}
        contents: Contents = load(_MODELS[kind])(path, max_size, also, **told)
        return contents
    if kind not in TENSOR_FILES:
        raise _unknown_format(path)
    with open_tensors(path, max_size) as tensors:
        if not is_recording(tensors):
            return contents_of(tensors, cell, also)
    model = recorded_model(path)
    assert model is not None
    return read_all(model, cell, also=also)


def _check_tensors(model: Live, asked: Sequence[str]) -> None:
    """Raise InputError where a recording is asked for what its model's checkpoint alone has."""
    if asked and not model.tensors and model.recorded and model.recorded.found:
        raise InputError(
            f"is a recording, which has no tensors, but {quoted(asked[0])} is asked for: give the "
            f"checkpoint, and this by --inputs {shown(model)}"
        )


def _open_arrays(path: str | os.PathLike[str], max_size: int | None) -> AbstractContextManager[Tensors]:
    """The named arrays of a file, whatever else it says."""
    kind = kind_of(path)
    if kind not in _ARRAYS:
        return open_tensors(path, max_size)
    opened: AbstractContextManager[Tensors] = load(_ARRAYS[kind])(path, max_size)
    return opened


def _beside(
    recorded: Recorded,
    path: str | os.PathLike[str],
    read_it: Callable[[], Contents],
    also: Sequence[str],
    max_size: int | None,
) -> Contents:
    """What is in a checkpoint beside layers whose steps were recorded; it may have no others."""
    try:
        contents = read_it()
    except InputError:
        if recorded.layers:
            raise
        contents = None
    with _open_arrays(path, max_size) as tensors, about(str(path)):
        layers = in_checkpoint(recorded.steps, contents.layers if contents else (), tensors, recorded.label)
        if contents is None:
            contents = Contents.of((), tensors, also)
    order = {one.name: number for number, one in enumerate(recorded.found)}
    layers.sort(key=lambda one: order.get(one.name, len(order)))
    return replace(contents, layers=tuple(layers))


def contents_of(
    tensors: Tensors, cell: Cell | None, also: Iterable[str] = (), rules: Sequence[str] = ()
) -> Contents:
    """The same of tensors, by the rules of a map or by their names."""
    return _mapped(tensors, rules, cell, also) if rules else _layers_by_name(tensors, cell, also)


@dataclass(frozen=True)
class Model:
    """The layers of a checkpoint that are to be analysed, and what else that needs.

    layers : those chosen and those whose outputs they read, each after the layers that it reads.
    chosen : the names of the first; arrays : other tensors, by what they were asked for as.
    named : those of the chosen that were asked for by name, none where all were taken.
    recorded : what the layers read and put out in a forward pass of the model's own, if that is known.
    reading : the layers of which the user says what they read.
    """

    layers: tuple[Layer, ...]
    chosen: tuple[str, ...]
    arrays: Mapping[str, Named] = field(default_factory=dict)
    named: tuple[str, ...] = ()
    recorded: Recorded | None = None
    reading: frozenset[str] = frozenset()


def read(
    path: str | os.PathLike[str] | Live,
    cell: str | Cell | None = None,
    *,
    layers: Iterable[str] | None = None,
    activation: str | None = None,
    layout: str | None = None,
    max_size: int | None = None,
    also: Iterable[str] = (),
    reads: Iterable[str] = (),
    rules: Sequence[str] = (),
    config: str | os.PathLike[str] | None = None,
    recorded: Recorded | None = None,
    inputs: Any = None,
) -> Model:
    """The recurrent layers of a checkpoint, by default all of them.

    layers : names of layers, or of modules for all in them, or ends of such names that no other has; None
        is all.
    cell : a built-in name, ``package.module:factory`` or a Cell; activation : one of ACTIVATIONS; layout :
        one of LAYOUTS. They decide what the file leaves open, and must not contradict it.
    also, rules, config : as for ``read_all``; reads : LAYER=BELOW, as for ``connected``.
    recorded : from a file of ``gradscope.record``, where the checkpoint does not bring its own.
    inputs : that are given, an array or a file, of which a graph may make what its layers read (ONNX).
    Raises InputError for what ``read_all`` refuses, and for a layer that gradscope has no cell for.
    """
    wanted = find(cell) if isinstance(cell, str) else cell
    path = path if isinstance(path, Live) else recorded_model(path) or path
    read_it = partial(read_all, path, wanted, max_size=max_size, also=also, rules=rules, config=config)
    if isinstance(path, Live) or not (recorded and recorded.steps):
        contents = read_it()
    else:
        contents = _beside(recorded, path, read_it, tuple(also), max_size)
    if isinstance(path, Live) and path.recorded:
        recorded = path.recorded
    if inputs is not None and not isinstance(path, Live) and (run := _RUNS.get(kind_of(path))):
        names = [layer.name for layer in contents.layers]
        named = [full for name in layers or () for full in names_of(name, names)]
        recorded = recorded or load(run)(path, contents.layers, named, inputs, max_size)
        if recorded is None:
            own = [_on_its_own(one) if one.name in named else one for one in contents.layers]
            contents = replace(contents, layers=tuple(own))
    with about(str(path)):
        decided = Decided(wanted, activation, layout)
        return choose(contents, decided, layers or (), str(path), reads, recorded)


@dataclass(frozen=True)
class Decided:
    """What the user decides where a file leaves it open."""

    cell: Cell | None
    activation: str | None
    layout: str | None

    def __post_init__(self) -> None:
        allowed = {"activation": ACTIVATIONS, "layout": LAYOUTS}
        for name, choices in allowed.items():
            if (value := getattr(self, name)) not in (None, *choices):
                raise InputError(f"{name} is {quoted(value)}, expected one of {', '.join(choices)}")

    def settle(self, found: Found, fits: Mapping[str, bool]) -> Layer:
        """The layer, with what of this is for it."""
        return found.settle(
            self.cell if fits["cell"] else None,
            self.activation if fits["activation"] else None,
            self.layout if fits["layout"] else None,
        )


def choose(
    contents: Contents,
    decided: Decided,
    names: Iterable[str],
    source: str,
    reads: Iterable[str] = (),
    recorded: Recorded | None = None,
) -> Model:
    """The layers of these names, or all, and those below them, with what is open decided; as ``read``."""
    alone = {layer.name: layer for layer in contents.layers}
    found = connected(alone, reads)
    reading = frozenset(name for name, layer in found.items() if layer.below != alone[name].below)
    if recorded:
        recorded = recorded.named(list(found))
        found = {name: recorded.told(layer) for name, layer in found.items()}
    _check_unread(found)
    asked = dict.fromkeys(full for name in names for full in names_of(name, list(found)))
    chosen = tuple(asked) or tuple(found)
    if len(chosen) > MOST_LAYERS:
        raise InputError(
            f"holds {len(chosen)} recurrent layers ({listed(chosen)}): choose at most {MOST_LAYERS}, "
            f"as in --layer {shown(chosen[0])}"
        )
    if recorded:
        found = {name: recorded.on_its_own(layer, chosen) for name, layer in found.items()}
    needed: set[str] = set()
    waiting = list(chosen)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += found[name].below or ()
    layers = [layer for name, layer in found.items() if name in needed]
    settled = [replace(one, source=source) for one in _settled(_assuming(layers), decided)]
    return Model(
        tuple(settled),
        tuple(name for name in found if name in chosen),
        contents.arrays,
        tuple(asked),
        recorded and recorded.with_steps(settled),
        reading,
    )


def by_derivatives(model: Model, layer: Layer) -> Model:
    """The model with the module that a layer is in differentiated by its own framework.

    Raises InputError where that cannot be done.
    """
    assert model.recorded is not None
    own = model.recorded.own
    module = holder_of(layer.name, own)
    mates = [one for one in model.layers if holder_of(one.name, own) == module]
    names = {one.name for one in mates}
    above = {one.name for one in model.layers if one.name not in names and names & {*(one.below or ())}}
    for name in above:
        if name in model.reading or model.recorded.layers[name].inputs is None:
            raise InputError(f"{shown(name)} reads it by --reads: leave that out")
    made = replace(
        own[module].layer(module),
        source=layer.source,
        not_applied=tuple(dict.fromkeys(said for one in mates for said in one.not_applied)),
        assumed=tuple(dict.fromkeys(said for one in mates for said in one.assumed)),
    )

    def renamed(some: Iterable[str]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(module if name in names else name for name in some))

    others = [
        made if one is mates[0] else replace(one, below=None) if one.name in above else one
        for one in model.layers
    ]
    return replace(
        model,
        layers=tuple(one for one in others if one is made or one.name not in names),
        chosen=renamed(model.chosen),
        named=renamed(model.named),
        recorded=model.recorded.with_steps([made]),
    )


def _check_unread(found: Mapping[str, Found]) -> None:
    """Raise InputError where a layer without equations is said to read another, or to be read."""
    for name, layer in found.items():
        for other in layer.below or ():
            if wrong := next((one for one in (layer, found[other]) if one.derivatives), None):
                raise InputError(
                    f"--reads {shown(name)}={shown(other)}: {shown(wrong.name)} is differentiated by its own "
                    "framework on what it was recorded to read: leave that out"
                )


def _on_its_own(layer: Found) -> Found:
    """A layer that was asked for by name, with whose inputs those given are."""
    said = (
        "the inputs are what this layer itself reads, for --layer names it: without it they are the model's"
    )
    return replace(layer, assumed=(*layer.assumed, said)) if layer.below is None else layer


def _assuming(layers: list[Found]) -> list[Found]:
    """The layers, with what is taken to be so where several modules stand unconnected in a file."""
    alone = [layer.module for layer in layers if layer.alone]
    if len(set(alone)) < 2:
        return layers
    return [replace(one, assumed=(*one.assumed, _UNCONNECTED)) if one.alone else one for one in layers]


def _settled(found: list[Found], decided: Decided) -> list[Layer]:
    """What is open decided; of several layers, every decision is for those it fits."""
    if len(found) == 1:
        return [decided.settle(found[0], dict.fromkeys(("cell", "activation", "layout"), True))]
    cell, activation = decided.cell, decided.activation
    fits = [
        {
            "cell": cell is not None and one.may_be(cell),
            "activation": activation in one.activations.split(" or "),
            "layout": decided.layout in one.layouts,
        }
        for one in found
    ]
    for name, given in (("cell", cell and cell.name), ("activation", activation), ("layout", decided.layout)):
        if given is not None and not any(fit[name] for fit in fits):
            labels = [one.label for one in found]
            raise InputError(f"holds {listed(labels)}: --{name} {given} is of none of these layers")
    layers, refused = [], list[tuple[str, InputError]]()
    for one, fit in zip(found, fits, strict=True):
        try:
            layers.append(decided.settle(one, fit))
        except InputError as error:
            refused.append((one.name, error))
    if refused:
        name, why = refused[0]
        free = _without_those(found, {name for name, _ in refused})
        others = f"; or choose others with --layer: {listed(free)}" if free else ""
        raise InputError(f"layer {shown(name)}: {why}{others}") from why
    return layers


def _without_those(found: Sequence[Found], refused: set[str]) -> list[str]:
    """The layers that neither are refused nor read, at any remove, one that is."""
    spoilt = set(refused)
    for one in found:  # each after those that it reads
        if spoilt.intersection(one.below or ()):
            spoilt.add(one.name)
    return [one.name for one in found if one.name not in spoilt]


def _mapped(tensors: Tensors, rules: Sequence[str], cell: Cell | None, also: Iterable[str]) -> Contents:
    return Contents.of(mapped(tensors, rules, cell), tensors, also)


def _layers_by_name(tensors: Tensors, cell: Cell | None, also: Iterable[str]) -> Contents:
    """Layers told by the names of their tensors: PyTorch's, Flax', else our own."""
    ours, left_out = model_only(tensors)
    saved = tensors if isinstance(tensors, Saved) else None
    ours, rounded = dequantised(ours, saved.facts if saved else lambda _: {})
    found = tuple(layer for names in _LIBRARIES for layer in names.layers(ours))
    if not found:
        found = () if native.has_keys(ours, cell) else unnamed(ours)
        found = found or (native.layer(ours, cell),)
    found = tuple(told_quantised(one, rounded) for one in found)
    if saved:
        found = tuple(told_by_file(one, saved) for one in found)
    if left_out:
        found = tuple(replace(one, assumed=(*one.assumed, left_out)) for one in found)
    return Contents.of(found, ours, also)


def _unknown_format(path: str | os.PathLike[str]) -> InputError:
    if str(path) in CELLS:
        return InputError(f"checkpoint {path}: expected a file; for a fresh cell say --cell {path}")
    if Path(path).is_dir():
        return InputError(
            f"checkpoint {shown(path)}: is a folder, expected a file {', '.join(TENSOR_FILES | _MODELS)}"
        )
    hint = _HINTS.get(
        suffix(path),
        "of another kind, numpy.savez its arrays, and say by --map what they are",
    )
    return InputError(
        f"checkpoint {shown(path)}: expected a file {', '.join(TENSOR_FILES | _MODELS)}; {hint}"
    )
