"""What a map may say of arrays that have the shapes of a recurrent layer under no library's names."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from gradscope.cells.notation import key
from gradscope.checkpoints.array_map import SIGNS, in_rule, with_shapes
from gradscope.checkpoints.found import Found
from gradscope.checkpoints.map_gates import RECURRENT, Shapes, apart, from_the_end, states
from gradscope.checkpoints.map_haiku import of_haiku
from gradscope.errors import InputError
from gradscope.formats.tensors import Tensors

# By how many blocks of n a stacked matrix has: who orders them how.
_ORDERS: dict[int, dict[str, str]] = {
    4: {"PyTorch or Keras": "ifzo", "ONNX": "iofz", "TensorFlow 1 or haste": "izfo", "DyNet": "ifoz"},
    3: {"PyTorch or Flax": "rzh", "Keras, ONNX or haste": "zrh"},
    1: {"": ""},
}
_KINDS = {4: "an LSTM", 3: "a GRU", 1: "an RNN"}
# How authors call what is multiplied with the state, where shapes do not tell.
_RECURRENT = re.compile(rf"{RECURRENT}|state|(^|[^a-z])([ur]|w?_?h)([^a-z]|$)", re.I)
# Modules of the matrices alone: cell.x2h.weight and cell.h2h.weight are of the layer ``cell``.
_INPUT = re.compile(r"[xi]2h", re.I)
_MODULE = re.compile(r"(?P<layer>(.*?[./])??)([xih]2h[./])?[^./]*", re.S | re.I)
# What layer normalisation is called.
_NORM = re.compile(r"(^|[^a-z])(layer_?norm|norm|ln|gamma|beta|gain)", re.I)
# In a loop of TensorFlow 1 the constant that is added to the forget gate: rnn/while/rnn/lstm_cell/add/y.
_ADDED = re.compile(r"/(add/y|Const(_\d+)?)$")
_KERNEL = re.compile(r"(?P<cell>(.*/)?(basic_)?lstm_cell)/kernel", re.S)
# Shapes are told by reading: of arrays beyond this nobody asks which are a layer's.
_MOST_BYTES, _MOST_IN_MODULE = 2**28, 64
# Where there are more, shapes tell nothing.
_MOST_READINGS = 4


@dataclass(frozen=True)
class _Reading:
    """Matrices that may be the weights of one layer.

    gates : how many; matrices : W and R, with ``.T`` where their rows are the features; biases : one or two.
    start : the initial state, by our names.
    """

    gates: int
    matrices: tuple[str, str]
    biases: tuple[str, ...]
    start: Mapping[str, str]


def unnamed(tensors: Tensors) -> tuple[Found, ...]:
    """The layers that arrays may be of by their shapes, with the maps that would say so as their problem."""
    shapes = _shapes(tensors)
    kernels = [match for name in shapes if (match := _KERNEL.fullmatch(name))]
    found = {match["cell"]: _of_kernel(match, shapes, tensors) for match in kernels}
    gates = apart(shapes) | of_haiku(shapes)
    taken = tuple(f"{layer}{sign}" for layer in (*found, *gates) for sign in "./")
    groups = _groups([name for name in shapes if not name.startswith(taken)], shapes)
    for module, readings in groups.items():
        layer = f"{module}." if len(groups) > 1 and not SIGNS.search(module) else ""
        said = "; or ".join(choice for one in readings for choice in _choices(one, layer))
        named = {name: shapes[name] for name in _used(readings, shapes)}
        problem = f"no library calls its arrays {with_shapes(named)}: say what they are: {said}"
        if beside := _beside(module, named, shapes):
            problem = _with_more(named, beside, said)
        kind = f"{_KINDS[readings[0].gates].split()[1].lower()}?"
        found[module] = Found(module, {}, problem=problem, kind=kind, keys=tuple(named))
    return tuple(filter(None, (*gates.values(), *found.values())))


def _beside(module: str, named: Shapes, shapes: Shapes) -> dict[str, tuple[int, ...]]:
    """What else is in the module, which no map of it reads: its own arrays, and norms within it."""
    inside = {name: name.removeprefix(module).lstrip("./_") for name in shapes if name.startswith(module)}
    return {
        name: shapes[name]
        for name, own in inside.items()
        if _NORM.search(own) or (name not in named and not re.search(r"[./]", own))
    }


def _with_more(named: Shapes, beside: Shapes, said: str) -> str:
    """The problem of a layer with more arrays than those of an LSTM, a GRU or an RNN."""
    problem = (
        f"no library calls its arrays {with_shapes(named)}, and beside them there are {with_shapes(beside)}"
    )
    if any(map(_NORM.search, beside)):
        return (
            f"{problem}: it may have layer normalisation; give the model with a batch, as in "
            "gradscope.analyze(checkpoint=gradscope.from_torch(model, batch))"
        )
    return f"{problem}: if these are no part of the layer, say what the others are: {said}"


def _shapes(tensors: Tensors) -> dict[str, tuple[int, ...]]:
    """The shapes of the arrays, as far as they are read."""
    shapes, left = dict[str, tuple[int, ...]](), _MOST_BYTES
    for name, tensor in tensors.items():
        if (left := left - tensor.size) < 0:
            break
        try:
            array = tensor.load()
        except InputError:  # of no numbers
            continue
        left -= 0 if tensor.size else array.nbytes
        shapes[name] = array.shape
    return shapes


def _groups(names: Sequence[str], shapes: Shapes) -> dict[str, list[_Reading]]:
    """What the arrays of each module may be; a module is a path, or the first word of names without one."""
    modules: dict[str, list[str]] = {}
    for name in names:
        match = _MODULE.fullmatch(name)
        modules.setdefault(match["layer"] if match else "", []).append(name)
    found: dict[str, list[_Reading]] = {}
    for path, inside in modules.items():
        words: dict[str, list[str]] = {}
        for name in inside:
            words.setdefault(name[: len(path)] + name[len(path) :].partition("_")[0], []).append(name)
        whole = _readings({name: shapes[name] for name in inside}, path)
        single = {word: _readings({n: shapes[n] for n in own}, word) for word, own in words.items()}
        told = {word: readings for word, readings in single.items() if readings}
        found |= {path.rstrip("./"): whole} if whole and len(told) < 2 else told
    return found


def _readings(shapes: Shapes, module: str) -> list[_Reading]:
    """What the arrays of a module may be: a W and an R of as many rows, and biases as long."""
    found = []
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    pairs = itertools.permutations(matrices, 2) if len(shapes) <= _MOST_IN_MODULE else ()
    for (first, second), turned in itertools.product(pairs, (False, True)):
        w, r = (shapes[name][::-1] if turned else shapes[name] for name in (first, second))
        gates, left = divmod(r[0], r[1]) if r[1] else (0, 1)
        alike = w == r and _says_recurrent(first, module) and not _says_recurrent(second, module)
        # Of a plain RNN only a name tells: a Dense after another has such matrices too.
        dense = gates == 1 and not _says_recurrent(second, module)
        if left or gates not in _ORDERS or w[0] != r[0] or alike or dense:
            continue
        end = ".T" if turned else ""
        named = (in_rule(first) + end, in_rule(second) + end)
        start = states(module.rstrip("./"), r[1], shapes)
        others = {name: shape for name, shape in shapes.items() if name not in start.values()}
        found += [_Reading(gates, named, b, start) for b in _biases(gates, r[0], others, module)]
    return found if len(found) <= _MOST_READINGS else []


def _biases(gates: int, rows: int, shapes: Shapes, module: str) -> list[tuple[str, ...]]:
    """The biases, that of the inputs first, or both ways round where it matters and nothing tells."""
    biases = sorted(
        (name for name, shape in shapes.items() if shape == (rows,)),
        key=lambda name: _says_recurrent(name, module),
    )
    if len(biases) > 2:
        return []
    told = len({_says_recurrent(name, module) for name in biases}) == len(biases)
    ways = [biases] if told or gates != 3 else [biases, biases[::-1]]
    return [tuple(map(in_rule, way)) for way in ways]


def _says_recurrent(name: str, module: str) -> bool:
    own = name.removeprefix(module)
    return _RECURRENT.search(own) is not None and not _INPUT.search(own)


def _used(readings: Iterable[_Reading], shapes: Shapes) -> list[str]:
    """The arrays that any reading has."""
    named = {part.removesuffix(".T") for one in readings for part in (*one.matrices, *one.biases)}
    named |= {in_rule(name) for one in readings for name in one.start.values()}
    return [name for name in shapes if in_rule(name) in named]


def _choices(reading: _Reading, layer: str) -> list[str]:
    """The map of a reading, in every library's order of the gates."""
    turned = " of matrices (inputs, units)" * reading.matrices[0].endswith(".T")
    maps = {by: _map(reading, order, layer) for by, order in _ORDERS[reading.gates].items()}
    kinds = {by: _KINDS[reading.gates] + f" in the order of {by}" * bool(by) + turned for by in maps}
    return [f"{kinds[by]} --map {shlex.quote(rules)}" for by, rules in maps.items()]


def _map(reading: _Reading, order: str, layer: str) -> str:
    """The rules, with a ; between them."""
    letters = [*zip("WR", reading.matrices, strict=True), *zip("bc", reading.biases, strict=False)]
    if reading.gates == 3 and len(reading.biases) == 1:  # no second bias: that inside the product is none
        letters.append(("c_h", "0"))
    letters += [
        (state, in_rule(name)) for state, name in reading.start.items() if reading.gates == 4 or state == "h0"
    ]
    keys = [
        letter if "_" in letter or "0" in letter else ",".join(key(letter, g) for g in order) or letter
        for letter, _ in letters
    ]
    rules = [f"{left}={name}" for left, (_, name) in zip(keys, letters, strict=True)]
    return "; ".join(f"{layer}{rule}" for rule in (*rules, *from_the_end(layer, reading.matrices[1])))


def _of_kernel(match: re.Match[str], shapes: Shapes, tensors: Tensors) -> Found | None:
    """An LSTM cell of TensorFlow 1: one kernel (d + n, 4 n), and a forget bias of its own."""
    kernel, bias = match[0], f"{match['cell']}/bias"
    shape = shapes[kernel]
    if len(shape) != 2 or shape[1] % 4 or shape[0] <= shape[1] // 4 or bias not in shapes:
        return None
    units = shape[1] // 4
    inputs = shape[0] - units
    layer = "" if SIGNS.search(match["cell"]) else f"{match['cell']}."
    added = _forget_bias(match["cell"], shapes, tensors)
    rules = "; ".join(
        f"{layer}{rule}"
        for rule in (
            f"W_i,W_z,W_f,W_o={kernel}[:{inputs}].T",
            f"R_i,R_z,R_f,R_o={kernel}[{inputs}:].T",
            f"b_i,b_z,b_f,b_o={bias}",
            f"c_f={1 if added is None else added:g}",
            *from_the_end(match["cell"]),
        )
    )
    told = "1 unless told otherwise" if added is None else f"{added:g} in this graph"
    problem = (
        f"is an LSTM cell of TensorFlow 1, which adds a forget bias, {told}, as it runs: say "
        f"what its arrays are: --map {shlex.quote(rules)}"
    )
    return Found(match["cell"], {}, problem=problem, kind="lstm?", keys=(kernel, bias))


def _forget_bias(cell: str, shapes: Shapes, tensors: Tensors) -> float | None:
    """What a frozen graph adds to the forget gate as it loops over this cell, None if that is not told."""
    parts, told = cell.split("/"), set[float]()
    for name in (name for name, shape in shapes.items() if shape == () and _ADDED.search(name)):
        before, _, inside = _ADDED.sub("", name).rpartition("/while/")
        above = len(parts) - len(inside.split("/"))
        if "/".join(parts[above:]) == inside and before.startswith("/".join(parts[:above])):
            value = tensors[name].load()
            told |= {float(value)} if value.dtype.kind == "f" else set()
    return told.pop() if len(told) == 1 else None
