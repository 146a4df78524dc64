"""A checkpoint of any kind read: a module for each library turns the names of its tensors into layers."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any

from gradscope.cells import CELLS, find
from gradscope.cells.cell import Cell
from gradscope.checkpoints import dynet_names, haste_names, native
from gradscope.checkpoints.array_map import mapped
from gradscope.checkpoints.choosing import Decided, Model, choose
from gradscope.checkpoints.folders import check_no_folder, inside_zip
from gradscope.checkpoints.found import Contents, Found, names_of
from gradscope.checkpoints.fronts import placed_in, with_fronts
from gradscope.checkpoints.jax import flax_names
from gradscope.checkpoints.live import Live
from gradscope.checkpoints.map_choices import unnamed
from gradscope.checkpoints.model_part import model_only
from gradscope.checkpoints.recorded_steps import in_checkpoint
from gradscope.checkpoints.recording import Recorded
from gradscope.checkpoints.recording_file import is_recording, recorded_model
from gradscope.checkpoints.shards import index_hint, of_part, told_part
from gradscope.checkpoints.tensorflow import names as tensorflow_names
from gradscope.checkpoints.torch import names as torch_names
from gradscope.checkpoints.torch.quantised import dequantised, told_quantised
from gradscope.checkpoints.torch.told import told_by_file
from gradscope.errors import InputError, about, quoted, shown
from gradscope.formats.reading import TENSOR_FILES, kind_of, load, open_tensors, suffix
from gradscope.formats.tensors import Tensors
from gradscope.formats.torch_file import Saved

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

_LIBRARIES = (torch_names, flax_names, tensorflow_names, dynet_names, haste_names)


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
    check_no_folder(path, (TENSOR_FILES | _MODELS).keys())
    kind = kind_of(path)
    if config is not None and (rules or kind not in (".h5", ".hdf5")):
        raise InputError(f"--config {shown(config)} is about weights of Keras (.h5) alone: leave it out")
    if rules and kind in _ARRAYS | TENSOR_FILES:
        with _open_arrays(path, max_size) as tensors:
            found = contents_of(tensors, cell, also, rules)
        return _alone(found) if kind in _ARRAYS else told_part(found, path)
    if kind in _MODELS:
        told = {} if config is None else {"config": config}
        contents: Contents = load(_MODELS[kind])(path, max_size, also, **told)
        return contents
    if kind not in TENSOR_FILES:
        raise _unknown_format(path)
    with open_tensors(path, max_size) as tensors, of_part(path):
        if not is_recording(tensors):
            return told_part(contents_of(tensors, cell, also), path)
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


def _on_its_own(layer: Found) -> Found:
    """A layer that was asked for by name, with whose inputs those given are."""
    said = (
        "the inputs are what this layer itself reads, for --layer names it: without it they are the model's"
    )
    return replace(layer, assumed=(*layer.assumed, said)) if layer.below is None else layer


def _mapped(tensors: Tensors, rules: Sequence[str], cell: Cell | None, also: Iterable[str]) -> Contents:
    contents = Contents.of(mapped(tensors, rules, cell), tensors, also)
    return replace(contents, layers=with_fronts(contents.layers, contents.others, tensors))


def _alone(contents: Contents) -> Contents:
    """What a map found in a file that says more of its model than arrays have names for."""
    said = (
        "that the inputs are what the layer itself reads, and that no step is masked: of a model whose "
        "arrays are mapped nothing else is read"
    )
    layers = (replace(one, assumed=(*one.assumed, said)) for one in contents.layers)
    return replace(contents, layers=tuple(layers))


def _layers_by_name(tensors: Tensors, cell: Cell | None, also: Iterable[str]) -> Contents:
    """Layers told by the names of their tensors: PyTorch's, Flax', else our own."""
    ours, left_out = model_only(tensors)
    saved = tensors if isinstance(tensors, Saved) else None
    ours, rounded = dequantised(ours, saved.facts if saved else lambda _: {})
    found = tuple(layer for names in _LIBRARIES for layer in names.layers(ours))
    if not found:
        found = () if native.has_keys(ours, cell) else unnamed(ours)
        found = found or (native.layer(ours, cell),)
    found = tuple(told_quantised(_with_scale(one), rounded) for one in found)
    if saved:
        found = tuple(told_by_file(one, saved) for one in found)
    if left_out:
        found = tuple(replace(one, assumed=(*one.assumed, left_out)) for one in found)
    contents = Contents.of(found, ours, also)
    return placed_in(contents, ours)


def _with_scale(layer: Found) -> Found:
    """A layer, with a problem if its weights are whole numbers of 8 bits, which stand for others."""
    eights = set(layer.dtype.split(", ")) & {"int8", "uint8"}
    scaled = (
        f"has weights of {min(eights)}, which stand for other numbers by a scale that is not known: save "
        "them as float32"
        if eights
        else ""
    )
    return replace(layer, problem=layer.problem or scaled)


def _unknown_format(path: str | os.PathLike[str]) -> InputError:
    if str(path) in CELLS:
        return InputError(f"checkpoint {path}: expected a file; for a fresh cell say --cell {path}")
    expected = f"expected a file {', '.join(TENSOR_FILES | _MODELS)}"
    if not os.access(path, os.F_OK):
        return InputError(f"checkpoint {shown(path)}: No such file or directory, {expected}")
    usual = "of another kind, numpy.savez its arrays, and say by --map what they are"
    hint = index_hint(path) if suffix(path) == ".json" else inside_zip(path, list(TENSOR_FILES | _MODELS))
    hint = hint or _HINTS.get(suffix(path), usual)
    return InputError(f"checkpoint {shown(path)}: {expected}; {hint}")
