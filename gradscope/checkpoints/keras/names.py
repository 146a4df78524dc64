"""What the user calls the layers in a Keras file, which keeps them in places called by their classes."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from gradscope.checkpoints.keras.config import LONGEST, config_of, directions
from gradscope.errors import InputError
from gradscope.formats.budget import Budget
from gradscope.formats.hdf5 import HDF5
from gradscope.formats.json_text import parsed


def users_names(h5: HDF5) -> dict[str, str]:
    """The names that Keras 3.6 and later keeps in the file, by the place of the layer."""
    places = [path.removesuffix("/vars") for path in h5.headers if path.endswith("/vars")]
    return {place: h5.text(f"{place}/vars", "name") or "" for place in places}


def whole_name(path: str, names: Mapping[str, str]) -> str:
    """The names on the way to a place, "" where there are none."""
    parts = path.split("/")
    above = ["/".join(parts[: k + 1]) for k in range(len(parts))]
    return "/".join(filter(None, (names.get(place) for place in above if not place.endswith("/cell"))))


def names_by_place(text: str, budget: Budget) -> dict[str, str]:
    """The names in a config by the place where Keras keeps the layer: encoder of layers/lstm_1."""
    return dict(_inside(parsed(text, budget), "", "", budget))


def place_of(path: str) -> str:
    """The place of the layer that a cell is of; the models that TensorFlow saves are called otherwise."""
    return re.sub(r"(^|/)_layer_checkpoint_dependencies/", r"\1layers/", path).removesuffix("/cell")


def _inside(node: Any, place: str, name: str, budget: Budget) -> Iterator[tuple[str, str]]:
    """Place and name of everything in a layer."""
    if not (config := config_of(node)):
        return
    if isinstance(config.get("layers"), list):
        yield from _several(config["layers"], f"{place}layers/", name, budget)
    if node.get("class_name") == "Bidirectional":
        for side, (layer, called) in zip(("forward", "backward"), directions(config), strict=True):
            yield from _one(layer, f"{place}{side}_layer", f"{name}{called}", budget)
    else:
        inner = config.get("layer")
        yield from _one(inner, f"{place}layer", f"{name}{_called(inner)}", budget)
    cell = config.get("cell")
    if isinstance(cell, dict) and isinstance(cell.get("config"), dict):
        cells = cell["config"].get("cells")
        yield from _several(cells if isinstance(cells, list) else [], f"{place}cell/cells/", name, budget)


def _several(layers: list[Any], place: str, name: str, budget: Budget) -> Iterator[tuple[str, str]]:
    """Those of a list, numbered within their class."""
    used: Counter[str] = Counter()
    for layer in layers:
        kind = _snake(str(layer.get("class_name"))) if isinstance(layer, dict) else ""
        number = f"_{used[kind]}" if used[kind] else ""
        used[kind] += 1
        yield from _one(layer, f"{place}{kind}{number}", f"{name}{_called(layer)}", budget)


def _one(layer: Any, place: str, name: str, budget: Budget) -> Iterator[tuple[str, str]]:
    if len(place) > LONGEST or len(name) > LONGEST:
        raise InputError(f"has layers in a place, or of a name, of more than {LONGEST} characters")
    budget.draw(size=len(place) + len(name))  # a Bidirectional in a Bidirectional, and so on, doubles them
    yield place, name
    yield from _inside(layer, f"{place}/", f"{name}/", budget)


def _called(layer: Any) -> str:
    return str(config_of(layer).get("name", ""))


def _snake(kind: str) -> str:
    """simple_rnn of SimpleRNN, as Keras writes it."""
    words = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind))
    return re.sub("([a-z])([A-Z])", r"\1_\2", words).lower()
