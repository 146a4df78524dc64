"""What a map may say of a layer whose gates are modules of their own: ``lstm.forget_gate.weights``."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Mapping

from gradscope.checkpoints.array_map import in_rule, with_shapes
from gradscope.checkpoints.found import Found

Shapes = Mapping[str, tuple[int, ...]]

_OF_GATE = re.compile(r"(?P<layer>.+)[./](?P<gate>[a-zA-Z]+?)_?(gate)?[./](?P<role>[^./]+)", re.S)
# What authors call the gates of each cell, and the arrays of a gate.
_GATES = {
    "LSTM": {"i": "i|in|input", "f": "f|forget", "z": "c|g|z|cell|candidate|new", "o": "o|out|output"},
    "GRU": {"r": "r|reset", "z": "z|u|update", "h": "h|c|n|cell|candidate|new"},
}
# Within the names of what is multiplied with the state.
RECURRENT = "rec|hh|h2h"
_ROLES = {
    "R": re.compile(rf"(?!.*bias).*({RECURRENT})\w*|[rRuU]", re.S),
    "p": re.compile(r".*peep.*|p", re.S),
    "b": re.compile(r".*bias.*|b", re.S),
    "W": re.compile(r".*(weight|kernel|ih|i2h|x2h).*|[wWxX]", re.S),
}
# Of other vectors (states, what is kept between calls) nothing need be said.
_AXES = {"W": 2, "R": 2}
# What they call the state before the first step, beside a layer's other arrays.
_BACKWARD = re.compile(r"(^|[^a-z])(bw|bwd|backwards?|rev|reversed?)([^a-z]|$)", re.I)
STATES = {
    "h0": re.compile(r"(hid(den)?_?)?init(ial)?(_state)?|h_?0", re.I),
    "c0": re.compile(r"cell_?init|c_?0", re.I),
}
_BEFORE = "; with --cell gru-reset-before as well where the reset comes before the product"


def apart(shapes: Shapes) -> dict[str, Found]:
    """Such layers by name, with the maps that would say so as their problem."""
    modules: dict[str, dict[str, dict[str, str]]] = {}
    for name in shapes:
        if match := _OF_GATE.fullmatch(name):
            own = match["role"]
            role = next((role for role, words in _ROLES.items() if words.fullmatch(own)), own)
            modules.setdefault(match["layer"], {}).setdefault(match["gate"].lower(), {})[role] = name
    found = {}
    for layer, gates in modules.items():
        for kind, words in _GATES.items():
            called = {g: [own for own in gates if re.fullmatch(word, own)] for g, word in words.items()}
            arrays = {g: gates[own[0]] for g, own in called.items() if len(own) == 1}
            if len(arrays) == len(words) and all(_is_gate(own, shapes) for own in arrays.values()):
                found[layer] = _offer(layer, kind, arrays, shapes)
    return found


def from_the_end(*names: str) -> list[str]:
    """The rule of a layer whose names say that it reads the sequence from its end."""
    return ["direction=backward"] if any(map(_BACKWARD.search, names)) else []


def states(layer: str, units: int, shapes: Shapes) -> dict[str, str]:
    """The arrays of the initial state that stand beside a layer's others, by our names."""
    beside = {
        name[len(layer) :].strip("./"): name
        for name, shape in shapes.items()
        if name.startswith(layer) and shape == (units,)
    }
    found = {key: [n for own, n in beside.items() if words.fullmatch(own)] for key, words in STATES.items()}
    return {key: names[0] for key, names in found.items() if names}


def _is_gate(arrays: Mapping[str, str], shapes: Shapes) -> bool:
    """Whether these are the weights of one gate: W (n, d), R (n, n), b (n,), and perhaps p (n,)."""
    if not {"W", "R", "b"} <= arrays.keys():
        return False
    if any(len(shapes[name]) != _AXES.get(role, 1) for role, name in arrays.items()):
        return False
    (units, columns), sides = shapes[arrays["R"]], shapes[arrays["W"]]
    return units == columns and units in sides and shapes[arrays["b"]] == (units,)


def _offer(layer: str, kind: str, arrays: Mapping[str, Mapping[str, str]], shapes: Shapes) -> Found:
    """The layer with its maps: matrices as they lie or turned, the update gate of a GRU either way round."""
    first = next(iter(arrays.values()))
    (units,), (rows, columns) = shapes[first["b"]], shapes[first["W"]]
    ends = [".T"] * (columns == units) + [""] * (rows == units)
    signs = ["", "-"] if kind == "GRU" else [""]
    start = states(layer, units, shapes)
    rest = [f"{key}={in_rule(name)}" for key, name in start.items() if kind == "LSTM" or key == "h0"]
    rest += ["c_h=0"] * (kind == "GRU")
    rest += from_the_end(layer)
    said = []
    for sign, end in itertools.product(signs, ends):
        rules = "; ".join(f"{layer}.{rule}" for rule in (*_rules(arrays, sign, end), *rest))
        said.append(f"{_in_words(kind, sign, end, len(ends) > 1)} --map {shlex.quote(rules)}")
    named = {name: shapes[name] for own in arrays.values() for role, name in own.items() if role in _ROLES}
    problem = f"no library calls its arrays {with_shapes(named, 4)}: say what they are: {'; or '.join(said)}"
    before = _BEFORE * (kind == "GRU")
    return Found(layer, {}, problem=problem + before, kind=f"{kind.lower()}?", keys=tuple(named))


def _in_words(kind: str, sign: str, end: str, either: bool) -> str:
    """What the arrays then are."""
    parts = [f"{'an' if kind == 'LSTM' else 'a'} {kind}"]
    if kind == "GRU":
        parts.append("whose update gate lets " + ("the candidate in" if sign else "the state stay"))
    if either:
        parts.append("of matrices (inputs, units)" if end else "of matrices (units, inputs)")
    return " ".join(parts)


def _rules(arrays: Mapping[str, Mapping[str, str]], sign: str, end: str) -> list[str]:
    """What every array of the gates is."""
    return [
        f"{letter}_{gate}={sign * (gate == 'z')}{in_rule(name)}{end * (letter in 'WR')}"
        for gate, own in arrays.items()
        for letter, name in own.items()
        if letter in _ROLES
    ]
