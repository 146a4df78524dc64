"""Names of PyTorch state dicts: every layer of LSTM, GRU and RNN, and their cells, anywhere in a model."""

from __future__ import annotations

import itertools
import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from gradscope.checkpoints.found import Found, added_up, attempt, blocks, gated, projected_name, take
from gradscope.checkpoints.torch.norms import normed
from gradscope.custom_types import Array
from gradscope.errors import InputError, listed
from gradscope.formats.tensors import Tensors

# lstm.weight_ih_l0, encoder.gru.bias_hh_l1_reverse, weight_hh (LSTMCell), lstm.weight_hr_l0 (proj_size);
# with weight norm lstm.weight_hh_l0_g and _v, or lstm.parametrizations.weight_hh_l0.original0 and 1; with
# weight drop lstm.weight_hh_l0_raw; pruned lstm.weight_hh_l0_orig and _mask.
_ROLE = r"(?P<role>(weight|bias)_(ih|hh|hr))(?P<place>(_l(?P<depth>\d{1,3}))?(_reverse)?)"
_IN_PARTS = r"(?P<part>_[gv]|\.original[01]|_raw|_orig|_mask)?"
_TENSOR = re.compile(rf"(?P<prefix>(.*?\.)??)(parametrizations\.)?{_ROLE}{_IN_PARTS}", re.S)
_PART = {None: "", ".original0": "/g", ".original1": "/v"}
_PART |= {f"_{part}": f"/{part}" for part in ("g", "v", "raw", "orig", "mask")}
_PRUNED = {"_orig", "_mask"}
# What a parametrisation or a hook makes a weight of: weight_hh_l0_u, parametrizations.weight_hh_l0.0.base.
_MADE_OF = re.compile(rf"(parametrizations\.)?{_ROLE}[._].*", re.S)
# What a module is called within one that adds adapters to it, as LoRA's, which are beside it.
_WRAPPED = re.compile(r"(.*\.)?(base_layer|base_module|original_module|wrapped)\.", re.S)
# No module is nested deeper, and to look at every prefix of a long name takes the square of its length.
_DEEPEST = 64

# By how many blocks of H rows weight_hh (G H, H) has: the gates in that order, the cells it may be.
_FAMILIES: dict[int, tuple[tuple[str, ...], tuple[str, ...]]] = {
    4: (("i", "f", "z", "o"), ("lstm",)),
    3: (("r", "z", "h"), ("gru",)),
    1: (("",), ("rnn", "rnn-relu")),
}
_WHICH_RNN = "holds a torch RNN, whose nonlinearity is not in the file: add --cell rnn or --cell rnn-relu"

# A bias that is not in two, as torch's are: to leave it out must not be silent.
_BIAS = re.compile(r"bias[^.]*", re.S)
_DROPPED = "{} is read, as it is before weight drop: what training drops out of it is not dropped"

Place = tuple[str, str]  # of a layer: the prefix of its module, the suffix of its tensors


def layers(tensors: Tensors) -> list[Found]:
    """Every torch layer among these names, modules in the order in which they first occur.

    Those of a module of several are told apart by ``.l0``, ``.l0_reverse``, ``.l1``, and are in that order.
    """
    places = _places(tensors)
    beside = {prefix: _Beside.of(prefix, keys) for prefix, keys in _beside(tensors, places).items()}
    count = Counter(prefix for prefix, _ in places)
    first = {prefix: k for k, prefix in enumerate(dict.fromkeys(prefix for prefix, _ in places))}
    names = {
        place: place[0].rstrip(".") if count[place[0]] == 1 else place[0] + place[1].lstrip("_")
        for place in sorted(places, key=lambda place: (first[place[0]], _depth(place), place[1]))
    }
    at_depth: dict[tuple[str, int], list[str]] = {}
    for place, name in names.items():
        at_depth.setdefault((place[0], _depth(place)), []).append(name)
    found = []
    for place, name in names.items():
        make = partial(_layer, tensors, places[place], place, beside.get(place[0], _Beside()))
        below = tuple(at_depth.get((place[0], _depth(place) - 1), ()))
        layer = attempt(make, name, places[place].values())
        lower = below or (None if _depth(place) else ())
        found.append(replace(layer, depth=_depth(place), below=lower, alone=not below))
    return found


def is_of_layer(name: str) -> bool:
    """Whether a tensor of this name is one of a layer's weights."""
    return _TENSOR.fullmatch(name) is not None


def _places(names: Collection[str]) -> dict[Place, dict[str, str]]:
    """{role: name of the tensor} of every layer; a weight before its weight drop has the role ``.../raw``."""
    places: dict[Place, dict[str, str]] = {}
    raw: list[tuple[Place, str, str]] = []
    for key in names:
        if match := _TENSOR.fullmatch(key):
            place, role = (match["prefix"], match["place"] or ""), match["role"] + _PART[match["part"]]
            if match["part"] in _PRUNED and not _is_pruned(key.removesuffix(match["part"]), names):
                continue  # spectral norm's, or beside the weight itself
            if match["part"] == "_raw":
                raw.append((place, role, key))
            else:
                places.setdefault(place, {})[role] = key
    for (prefix, suffix), role, key in raw:
        # fastai keeps it in the module that wraps the layer, Salesforce in the layer itself.
        inner = f"{prefix}module.", suffix
        places.setdefault(inner if inner in places else (prefix, suffix), {})[role] = key
    return places


def _is_pruned(weight: str, names: Collection[str]) -> bool:
    """Whether torch.nn.utils.prune keeps it: as it was, and a mask of what is left, in its place."""
    return weight not in names and all(weight + part in names for part in _PRUNED)


def _beside(names: Iterable[str], places: Mapping[Place, Mapping[str, str]]) -> dict[str, list[str]]:
    """By the prefix of a module that has layers' weights: the other tensors in it and in what it holds."""
    owner = {key: prefix for (prefix, _), roles in places.items() for key in roles.values()}
    prefixes = {prefix for prefix, _ in places}
    outer = {found[1] or "": prefix for prefix in prefixes if (found := _WRAPPED.fullmatch(prefix))}
    beside: dict[str, list[str]] = {}
    for key in names:
        ends = [0, *itertools.islice((dot.end() for dot in re.finditer(r"\.", key)), _DEEPEST)]
        around = {outer[key[:end]] for end in ends if key[:end] in outer}
        for prefix in prefixes.intersection(key[:end] for end in ends) | around:
            if owner.get(key) != prefix:
                beside.setdefault(prefix, []).append(key)
    return beside


@dataclass(frozen=True)
class _Beside:
    """What else is in a module that has layers' weights, and in what it holds.

    parts : by the suffix of a layer, role and name of what one of its weights is made of; foreign : names of
        all else; biases : of these, those that are not in two, as torch's are.
    """

    parts: Mapping[str, list[tuple[str, str]]] = field(default_factory=dict)
    foreign: tuple[str, ...] = ()
    biases: tuple[str, ...] = ()

    @classmethod
    def of(cls, prefix: str, keys: Iterable[str]) -> _Beside:
        """Of these keys beside the layers of a prefix."""
        parts: dict[str, list[tuple[str, str]]] = {}
        foreign = []
        for key in keys:
            if part := _MADE_OF.fullmatch(key, len(prefix)):
                parts.setdefault(part["place"] or "", []).append((part["role"], key))
            else:
                foreign.append(key)
        biases = (key for key in foreign if _BIAS.fullmatch(key, len(prefix)))
        return cls(parts, tuple(foreign), tuple(biases))


def _depth(place: Place) -> int:
    """The k of ``_l<k>``."""
    digits = re.search(r"\d+", place[1])
    return int(digits[0]) if digits else 0


def _layer(tensors: Tensors, roles: Mapping[str, str], place: Place, beside: _Beside) -> Found:
    raw = {role.removesuffix("/raw") for role in roles if role.endswith("/raw")}
    kept = {role.removesuffix("/raw"): key for role, key in roles.items() if role not in raw}
    foreign = _check_whole(kept, place, beside)
    read, dtype = take(tensors, kept.values())
    arrays = _put_together({role: read[key] for role, key in kept.items()})
    if {"weight_ih", "weight_hh"} - arrays.keys() or ("bias_ih" in arrays) != ("bias_hh" in arrays):
        raise InputError(
            f"holds {listed(list(roles.values()))} alone, expected weight_ih and weight_hh, "
            "and bias_ih and bias_hh or neither"
        )
    forms, norms = normed(tensors, foreign, place[0], arrays) if _of_lstm(arrays) else ({}, "")
    projection = arrays.pop("weight_hr", None)
    count = 4 if projection is not None else blocks("weight_hh", arrays["weight_hh"], _FAMILIES)
    _check_rows(arrays, count)
    gates, cells = _FAMILIES[count]
    if projection is not None:
        cells = (projected_name(projection, "weight_hr"),)
    names = {"weight_ih": "W", "weight_hh": "R", "bias_ih": "b", "bias_hh": "c"}
    ours = gated(gates, {names[role]: a for role, a in arrays.items()}, reset_after=cells == ("gru",))
    if projection is not None:
        ours["M"] = projection
    return Found(
        "",
        ours,
        cells,
        question=_WHICH_RNN if len(cells) > 1 else "",
        twice=added_up(ours) if "bias_hh" in arrays else (),
        direction="backward" if place[1].endswith("_reverse") else "forward",
        dtype=dtype,
        not_applied=(_DROPPED.format(listed([kept[role] for role in sorted(raw)])),) if raw else (),
        doubt=_own(next(iter(kept.values())), foreign, cells, norms) if foreign else "",
        forms=forms,
    )


def _of_lstm(arrays: Mapping[str, Array]) -> bool:
    """Whether the weights are whole and of an LSTM without projection."""
    matrices = [arrays[role] for role in ("weight_ih", "weight_hh")]
    rows = 4 * matrices[1].shape[-1]
    return "weight_hr" not in arrays and all(m.ndim == 2 and len(m) == rows for m in matrices)


def _own(key: str, foreign: Sequence[str], cells: Sequence[str], norms: str) -> str:
    """The doubt about a layer that has tensors which no layer of torch's has."""
    options = " or ".join(f"--cell {cell}" for cell in cells)
    return (
        f"beside {listed([key])} there are {listed(foreign)}, which no layer of torch's has: it may be of a "
        f"class of the user's own; {norms}if it computes what torch's does all the same, add {options}"
    )


def _check_whole(roles: Mapping[str, str], place: Place, beside: _Beside) -> Sequence[str]:
    """What is beside a layer and is no part of any layer's weights.

    Raises InputError where parts of its own weights are, or a bias that is not in two, as torch's are.
    """
    made: dict[str, list[str]] = {}
    twice = []
    for role, key in beside.parts.get(place[1], ()):
        if role in roles:
            twice.append(key)
        else:
            made.setdefault(place[0] + role + place[1], []).append(key)
    if made:
        name, parts = next(iter(made.items()))
        raise InputError(
            f"keeps {listed([name])} as {listed(parts)}, of which only the module itself can make it: "
            "give that, as in gradscope.analyze(checkpoint=gradscope.from_torch(model))"
        )
    if beside.biases and "bias_ih" not in roles:
        raise InputError(
            f"{listed(beside.biases)} beside {listed([*roles.values()][:1])}: expected bias_ih and bias_hh "
            f"of a torch layer, or neither: {_of_equinox(place[0], beside.biases)}numpy.savez the arrays as "
            "W_z, R_z, b_z, ..."
        )
    return (*twice, *beside.foreign) if twice else beside.foreign


def _of_equinox(prefix: str, biases: Collection[str]) -> str:
    """The map of a cell of Equinox whose arrays these are by their names, "" where they are not.

    Its LSTMCell has one ``bias``, its GRUCell another inside the reset product, ``bias_n``; the gates are in
    torch's order.
    """
    own = {name.removeprefix(prefix) for name in biases}
    if own not in ({"bias"}, {"bias", "bias_n"}):
        return ""
    kind, gates = ("GRU", "rzh") if "bias_n" in own else ("LSTM", "ifzo")
    parts = {"W": "weight_ih", "R": "weight_hh", "b": "bias"}
    rules = [
        f"{prefix}{','.join(f'{letter}_{gate}' for gate in gates)}={prefix}{name}"
        for letter, name in parts.items()
    ]
    rules += [f"{prefix}c_h={prefix}bias_n"] * (kind == "GRU")
    return f"of Equinox's {kind}Cell add --map {shlex.quote('; '.join(rules))}; of another class "


def _check_rows(arrays: Mapping[str, Array], count: int) -> None:
    rows = arrays["weight_hh"].shape[:1]
    for role, array in arrays.items():
        axes = 2 if role.startswith("weight") else 1
        if array.ndim != axes or array.shape[:1] != rows or rows[0] % count:
            raise InputError(
                f"{role} has shape {array.shape}, expected {axes} axes and {listed([*map(str, rows)])} rows "
                "as weight_hh"
            )


def _put_together(arrays: Mapping[str, Array]) -> dict[str, Array]:
    """The weights, those in two parts (of weight norm, or of pruning) as what torch makes of them."""
    result = {role: array for role, array in arrays.items() if "/" not in role}
    for role in sorted({role.partition("/")[0] for role in arrays if "/" in role}):
        parts = {key.removeprefix(f"{role}/"): a for key, a in arrays.items() if key.startswith(f"{role}/")}
        if parts.keys() == {"orig", "mask"} and role not in result:
            result[role] = _pruned(role, **parts)
        elif parts.keys() == {"g", "v"} and role not in result:
            result[role] = _normalised(role, **parts)
        else:
            raise InputError(
                f"{role} has a part of a weight norm or of pruning ({listed(list(parts))}), expected both "
                "magnitude and direction, or both what is pruned and its mask, and no other weight"
            )
    return result


def _normalised(role: str, g: Array, v: Array) -> Array:
    """g v / |v| of a magnitude g and a direction v (Salimans and Kingma 2016)."""
    if g.ndim not in (0, v.ndim) or any(a not in (1, b) for a, b in zip(g.shape, v.shape, strict=False)):
        raise InputError(f"{role} has a weight norm of shapes {g.shape} and {v.shape}, which do not fit")
    # g keeps the axes along which the norm is not taken; without axes it is taken along all.
    along = tuple(axis for axis, size in enumerate(g.shape) if size == 1) if g.ndim else None
    norm = np.sqrt((v**2).sum(axis=along, keepdims=g.ndim > 0))
    if not norm.all():
        raise InputError(f"{role} has a weight norm whose direction is 0: the weight is not defined")
    weight: Array = g * v / norm
    return weight


def _pruned(role: str, orig: Array, mask: Array) -> Array:
    """What a mask leaves of a weight: their product, exact in every format since the mask is of 0 and 1."""
    if mask.shape != orig.shape or not np.isin(mask, (0, 1)).all():
        raise InputError(
            f"{role} of shape {orig.shape} is pruned by a mask of shape {mask.shape}, expected its shape and "
            "entries of 0 and 1"
        )
    return orig * mask
