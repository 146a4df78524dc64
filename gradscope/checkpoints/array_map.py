"""Arrays under names of their author's own: rules such as ``W_r,W_z,W_h=enc.w_ih`` say what they are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from gradscope.cells import find
from gradscope.cells.cell import Cell
from gradscope.cells.notation import is_recurrent
from gradscope.checkpoints.found import Found, attempt
from gradscope.checkpoints.layer import assemble
from gradscope.checkpoints.native import cells_of, projected_cell
from gradscope.custom_types import Array
from gradscope.errors import InputError, listed, quoted, shown
from gradscope.formats.tensors import Tensors, as_float64

_EXAMPLE = "W_f=enc/wf[:,0:64].T"
# Nobody has more to say; a file of rules is read whole.
_MOST, _LONGEST, _LONGEST_TEXT = 4096, 2**20, 2**14
_COMMENT = re.compile(r"(^|\s)#.*")
_KEY = re.compile(r"((?P<layer>.+)\.)?(?P<key>\w+)", re.S)
# A key that is no array: how the layer reads its inputs.
_DIRECTION = "direction"
_DIRECTIONS = ("forward", "backward")
# What cannot stand in a rule as it is; in quotes it can.
SIGNS = re.compile(r"[][+;,='\"]|\s|^-|\.T$")
_QUOTED = r"\"[^\"]*\"|'[^']*'"
_TERM = re.compile(rf"(?P<name>{_QUOTED}|[^\[\]]+?)(?P<views>(\[[^\[\]]*\]|\.T)*)", re.S)
_VIEW = re.compile(r"\[([^\]]*)\]|\.T")
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", re.I)
_RANGE = re.compile(r"(-?\d{1,9})?(:(-?\d{1,9})?(:(-?\d{1,9})?)?)?")


@dataclass(frozen=True)
class _Rule:
    """What some keys of a layer are, and the text that says so."""

    layer: str
    keys: tuple[str, ...]
    expression: str
    text: str


def rules_of(given: Any) -> tuple[str, ...]:
    """The rules in what the user gives: texts with a ; between rules, files of such lines, a mapping.

    Raises InputError for what is none of these.
    """
    if given is None:
        return ()
    if isinstance(given, Mapping):
        return tuple(f"{key}={value}" for key, value in given.items())
    entries = [given] if isinstance(given, str | Path) else list(given)
    found = tuple(rule for entry in entries for rule in _texts(entry))
    if len(found) > _MOST:
        raise InputError(f"map has {len(found)} rules, expected at most {_MOST}")
    return found


def mapped(tensors: Tensors, rules: Sequence[str], cell: Cell | None) -> tuple[Found, ...]:
    """The layers that the rules make of the tensors of a file, by the names before their keys.

    cell : whose keys they are, needed where it is not a built-in one. Raises InputError for rules that
    say nothing; what does not fit the file is the problem of its layer.
    """
    layers: dict[str, list[_Rule]] = {}
    for text in rules:
        rule = _parsed(text)
        layers.setdefault(rule.layer, []).append(rule)
    found = []
    for name, own in layers.items():
        reader = _Reader(tensors, {}, set())
        layer = attempt(partial(_layer, reader, own, cell), name, ())
        found.append(replace(layer, keys=tuple(reader.read)))
    return tuple(found)


def _texts(entry: Any) -> Iterator[str]:
    """The rules of one text, or of a file of them."""
    if isinstance(entry, str) and "=" in entry:
        yield from _split(entry, ";")
        return
    if not isinstance(entry, str | Path) or not Path(entry).is_file():
        raise InputError(
            f"map is {quoted(str(entry))}, expected a rule such as {_EXAMPLE}, or a file of them"
        )
    if Path(entry).stat().st_size > _LONGEST:
        raise InputError(
            f"map {shown(entry)}: is larger than {_LONGEST} bytes, expected a rule in every line"
        )
    for line in Path(entry).read_text("utf-8", "replace").splitlines():
        yield from _split(_COMMENT.sub("", line), ";")


def _parsed(text: str) -> _Rule:
    """A rule; the name before its first key is of all of them."""
    left, sign, expression = text.partition("=")
    keys = [_KEY.fullmatch(part.strip()) for part in left.split(",")]
    if not sign or not expression.strip() or not all(keys):
        raise InputError(f"map has {quoted(text)}, expected KEY=ARRAY or KEY,KEY=ARRAY, as in {_EXAMPLE}")
    layers = [key["layer"] for key in keys if key and key["layer"]]
    if len(set(layers)) > 1:
        raise InputError(
            f"map has {quoted(text)}, expected the keys of one layer: {listed(layers)} are several"
        )
    return _Rule((layers or [""])[0], tuple(key["key"] for key in keys if key), expression.strip(), text)


def _layer(reader: _Reader, rules: Sequence[_Rule], cell: Cell | None) -> Found:
    """The layer that the rules describe."""
    arrays: dict[str, Array] = {}
    direction = "forward"
    for rule in rules:
        if rule.keys == (_DIRECTION,):
            direction = _one_of(rule)
            continue
        parts = _parts(reader.value(rule.expression), rule)
        if twice := arrays.keys() & set(rule.keys):
            raise InputError(f"map says twice what {listed(sorted(twice))} is: keep one of the rules")
        arrays |= dict(zip(rule.keys, parts, strict=True))
    arrays = _folded(_filled(arrays), cell)
    cells = cells_of(arrays.keys(), cell or projected_cell(arrays.get("M")))
    assemble(cell or find(cells[0]), arrays)  # says which array does not fit the others
    question = f"the keys are those of {', '.join(cells)}: say which one, as in --cell {cells[0]}"
    said = f"what the arrays are, by the map: {listed([rule.text for rule in rules], 16)}"
    return Found(
        "",
        arrays,
        cells,
        question if len(cells) > 1 else "",
        direction=direction,
        dtype=", ".join(sorted(reader.dtypes)),
        assumed=(said,),
        alone=True,
    )


def _one_of(rule: _Rule) -> str:
    if rule.expression not in _DIRECTIONS:
        raise InputError(f"map has {quoted(rule.text)}, expected {' or '.join(_DIRECTIONS)}")
    return rule.expression


def _parts(value: Array, rule: _Rule) -> list[Array]:
    """The value, or as many even parts of its first axis as there are keys."""
    count = len(rule.keys)
    if count == 1:
        return [value]
    rows = value.shape[0] if value.ndim else 0
    if not rows or rows % count:
        raise InputError(
            f"map {quoted(rule.text)}: the array has shape {value.shape}, expected a first axis of {count} "
            "even parts (.T turns it)"
        )
    # Gates may have an axis of their own: (3, n, d) for W_r,W_z,W_h.
    return list(value) if value.ndim == 3 else np.split(value, count)


def _filled(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The arrays, a number that stands for a bias in every unit."""
    units = next((len(a) for name, a in arrays.items() if is_recurrent(name) and a.ndim), 1)
    return {name: a if a.ndim else np.full(units, float(a)) for name, a in arrays.items()}


def _folded(arrays: Mapping[str, Array], cell: Cell | None) -> dict[str, Array]:
    """The arrays, second biases (c_i, c) added to the first, but for c_h, which a GRU may keep apart."""
    result = dict(arrays)
    apart = "c_h" in cell.parameters(1, 1) if cell else "R_r" in arrays
    for name in arrays:
        if not re.fullmatch(r"c(_\w+)?", name) or (name == "c_h" and apart):
            continue
        first, second = f"b{name[1:]}", result.pop(name)
        if first in result and result[first].shape != second.shape:
            raise InputError(
                f"map: {name} has shape {second.shape}, expected {result[first].shape} as {first}, which it "
                "is added to"
            )
        result[first] = as_float64(result.get(first, 0.0) + second, "the sum of the two biases")
    return result


@dataclass
class _Reader:
    """Reads what rules name of the tensors of a file, and remembers it."""

    tensors: Tensors
    read: dict[str, Array]
    dtypes: set[str]

    def value(self, expression: str) -> Array:
        """The sum of the terms."""
        terms = [expression] if expression in self.tensors else _split(expression, "+")
        values = [self._term(term) for term in terms]
        if len({v.shape for v in values if v.ndim}) > 1:
            shapes = listed([str(v.shape) for v in values])
            raise InputError(
                f"map: the terms of {quoted(expression)} have shapes {shapes}, expected them alike"
            )
        return as_float64(sum(values[1:], values[0]), f"map: the sum {quoted(expression)}")

    def _term(self, text: str) -> Array:
        """A number, or the view that slices and .T make of an array; with a - before it its negative."""
        if text not in self.tensors:
            if _NUMBER.fullmatch(text):
                return np.asarray(float(text))
            if text.startswith("-"):
                return -self._view(text[1:].strip())
        return self._view(text)

    def _view(self, text: str) -> Array:
        """What slices and .T make of an array."""
        match = _TERM.fullmatch(text)
        if text in self.tensors or not match:
            name, views = text, ""
        else:
            name, views = match["name"].strip(), match["views"]
        quotes = name[:1] in "\"'" and name[-1:] == name[:1] and len(name) > 1
        value = self._array(name[1:-1] if quotes else name)
        for view in _VIEW.finditer(views):
            value = value.T if view[0] == ".T" else _sliced(value, view[1], text)
        return value

    def _array(self, name: str) -> Array:
        """The array of this name, or of the only name that ends so."""
        full = [name] if name in self.tensors else [key for key in self.tensors if key.endswith(name)]
        if len(full) != 1:
            several = "is the end of several" if full else "is the name of none"
            raise InputError(
                f"map: {quoted(name)} {several}, expected one of {listed(full or [*self.tensors])}"
            )
        (key,) = full
        if key not in self.read:
            loaded = self.tensors[key].load()
            self.dtypes.add("bfloat16" if loaded.dtype == "V2" else str(loaded.dtype))
            self.read[key] = as_float64(loaded, self.tensors[key].called)
        return self.read[key]


def _sliced(value: Array, text: str, term: str) -> Array:
    """The part of an array that a slice names; raises InputError for one that reaches beyond it."""
    ranges = [_RANGE.fullmatch(part.strip()) for part in text.split(",")]
    if not all(part and part[0] for part in ranges) or len(ranges) > value.ndim:
        raise InputError(
            f"map: {quoted(term)} of shape {value.shape}, expected a range "
            "for each axis, such as [0:64] or [:,0]"
        )
    places = [_place(part, size) for part, size in zip(ranges, value.shape, strict=False) if part]
    if any(place is None for place in places):
        raise InputError(f"map: {quoted(term)} reaches beyond the shape {value.shape}, expected a part of it")
    return value[tuple(places)]


def _place(part: re.Match[str], size: int) -> int | slice | None:
    """The index or the slice, None if it has nothing in an axis of this size or reaches beyond it."""
    start, end, step = (int(part[k]) if part[k] else None for k in (1, 3, 5))
    if not part[2]:
        return start if start is not None and -size <= start < size else None
    reaches = any(bound is not None and not -size <= bound <= size for bound in (start, end))
    return None if reaches or step == 0 or not range(size)[start:end:step] else slice(start, end, step)


def in_rule(name: str) -> str:
    """An array's name as it stands in a rule."""
    return name if not SIGNS.search(name) else f'"{name}"'


def with_shapes(shapes: Mapping[str, Any], most: int = 12) -> str:
    """Names with the shapes of their arrays: ``enc_w_ih (48, 8)``."""
    return listed([f"{shown(name[:80])} {shape}" for name, shape in shapes.items()], most)


def _split(text: str, sign: str) -> list[str]:
    """The parts between signs that stand neither in quotes nor in brackets."""
    if len(text) > _LONGEST_TEXT:  # to look for the ends of brackets takes the square of that
        raise InputError(f"map has a text of {len(text)} characters, expected a rule in every line of a file")
    parts = re.findall(rf"(?:{_QUOTED}|\[[^\]]*\]|[^{re.escape(sign)}])+", text)
    return [part.strip() for part in parts if part.strip()]
