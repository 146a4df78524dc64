"""What a map says of the arrays of Haiku's LSTM and GRU, which compute otherwise than other libraries' do.

As in ``haiku/_src/recurrent.py``: the LSTM has one kernel (d + n, 4 n) of the gates i, g, f, o, and adds 1 to
the forget gate as it runs; the GRU's reset gate comes before its product, and its update gate lets the
candidate in, where that of our cells lets the state stay.
"""

from __future__ import annotations

import re
import shlex

from gradscope.checkpoints.array_map import SIGNS, in_rule, with_shapes
from gradscope.checkpoints.found import Found
from gradscope.checkpoints.map_gates import Shapes, from_the_end

_LSTM = re.compile(r"(?P<layer>(.*[./])?lstm(_\d+)?)[./]linear(?P<dot>[./])w", re.S)
_GRU = re.compile(r"(?P<layer>.+)(?P<dot>[./])w_i", re.S)


def of_haiku(shapes: Shapes) -> dict[str, Found]:
    """Such layers by name, with the map that says what they are as their problem."""
    found = {}
    for name in shapes:
        if (match := _LSTM.fullmatch(name)) and (rules := _lstm(name, f"{name[:-1]}b", shapes)):
            found[match["layer"]] = _offer(match["layer"], "LSTM", (name, f"{name[:-1]}b"), rules, shapes)
        elif match := _GRU.fullmatch(name):
            keys = (name, *(f"{match['layer']}{match['dot']}{own}" for own in ("w_h", "b")))
            if rules := _gru(keys, shapes):
                found[match["layer"]] = _offer(match["layer"], "GRU", keys, rules, shapes)
    return found


def _lstm(kernel: str, bias: str, shapes: Shapes) -> list[str]:
    """The rules of an LSTM; none where the shapes are not those of one."""
    shape = shapes[kernel]
    units, left = divmod(shape[-1], 4) if len(shape) == 2 else (0, 0)
    if left or not 0 < units < shape[0] or shapes.get(bias) != shape[1:]:
        return []
    inputs, called = shape[0] - units, in_rule(kernel)
    return [
        f"W_i,W_z,W_f,W_o={called}[:{inputs}].T",
        f"R_i,R_z,R_f,R_o={called}[{inputs}:].T",
        f"b_i,b_z,b_f,b_o={in_rule(bias)}",
        "c_f=1",
    ]


def _gru(keys: tuple[str, ...], shapes: Shapes) -> list[str]:
    """The rules of a GRU; none where the shapes are not those of one."""
    w, r, b = (shapes.get(key, ()) for key in keys)
    units = r[0] if len(r) == 2 else 0
    if not units or r[1] != 3 * units or len(w) != 2 or w[1] != r[1] or b != r[1:]:
        return []
    columns = {"z": f":{units}", "r": f"{units}:{2 * units}", "h": f"{2 * units}:"}
    every = ":,", ":,", ""
    return [
        f"{letter}_{gate}={'-' * (gate == 'z')}{in_rule(key)}[{before}{of}]{'.T' * bool(before)}"
        for letter, key, before in zip("WRb", keys, every, strict=True)
        for gate, of in columns.items()
    ]


def _offer(layer: str, kind: str, keys: tuple[str, ...], rules: list[str], shapes: Shapes) -> Found:
    named = with_shapes({key: shapes[key] for key in keys})
    prefix = "" if SIGNS.search(layer) else f"{layer}."
    said = "; ".join(f"{prefix}{rule}" for rule in (*rules, *from_the_end(layer)))
    problem = (
        f"has the arrays of Haiku's {kind}, {named}: if it is one, say so by --map {shlex.quote(said)}; if "
        "its class is another, say in a map what that makes of them"
    )
    return Found(layer, {}, problem=problem, kind=f"{kind.lower()}?", keys=keys)
