"""LayerNorms beside the weights of an LSTM: what they may be of, by their names and sizes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from gradscope.checkpoints.found import take
from gradscope.custom_types import Array
from gradscope.errors import InputError, listed
from gradscope.formats.tensors import Tensors

# lncell's ln_ih, layernorm_i of torch's own example, norm_x; ...hh, _h, _r; ...ho, _c, _cell.
_PART = re.compile(
    r"(?P<norm>.*?(norm|ln)s?[._]?(?P<of>[a-z0-9]+))[._](?P<role>weight|bias|gamma|beta)", re.I
)
_OF = {
    **dict.fromkeys(("ih", "i", "x", "i2h", "x2h", "input", "w"), "W"),
    **dict.fromkeys(("hh", "h", "h2h", "r", "hidden", "recurrent"), "R"),
    **dict.fromkeys(("ho", "c", "cell", "co", "out", "o"), "c"),
}
_LONGEST = 100  # characters of a norm's name
_GATES = ("i", "f", "z", "o")


def normed(
    tensors: Tensors, foreign: Sequence[str], prefix: str, arrays: Mapping[str, Array]
) -> tuple[dict[str, dict[str, Array]], str]:
    """Our arrays by the cells that a layer with these tensors beside its own may be, and how to say which.

    arrays : of its own, by role, gates' rows together. None and "" where they are not norms of an LSTM's.
    """
    norms: dict[str, dict[str, str]] = {}
    for key in foreign:
        match = _PART.fullmatch(key.removeprefix(prefix)) if len(key) - len(prefix) < _LONGEST else None
        of = _OF.get(match["of"].lower()) if match else None
        if not match or of is None:
            return {}, ""
        role = "gain" if match["role"].lower() in ("weight", "gamma") else "shift"
        if norms.setdefault(of, {}).setdefault(role, key) != key:
            return {}, ""
    if not {"W", "R"} <= norms.keys() or any("gain" not in roles for roles in norms.values()):
        return {}, ""
    rows = len(arrays["weight_hh"])
    sizes = {"W": (rows,), "R": (rows,), "c": (rows // 4,)}
    try:
        read, _ = take(tensors, [key for roles in norms.values() for key in roles.values()])
    except InputError:
        return {}, ""
    if any(read[key].shape != sizes[of] for of, roles in norms.items() for key in roles.values()):
        return {}, ""
    ours = _ours(arrays, {of: {k: read[key] for k, key in roles.items()} for of, roles in norms.items()})
    if "c" not in norms:
        said = "of W x + b_ih and of R h + b_hh, add --cell lstm-layernorm-gates"
        return {"lstm-layernorm-gates": ours}, _question(norms, said)
    said = (
        "of W x + b_ih, of R h + b_hh and of c on its way to the output alone, add --cell lstm-layernorm; "
        "if c is kept as the norm makes it, --cell lstm-layernorm-carried"
    )
    return dict.fromkeys(("lstm-layernorm", "lstm-layernorm-carried"), ours), _question(norms, said)


def _question(norms: Mapping[str, Mapping[str, str]], said: str) -> str:
    return f"if {listed([norms[of]['gain'] for of in 'WRc' if of in norms])} are LayerNorms {said}; "


def _ours(arrays: Mapping[str, Array], norms: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
    rows = len(arrays["weight_hh"])
    zero = np.zeros(rows)
    stacked = {
        "W": arrays["weight_ih"],
        "R": arrays["weight_hh"],
        "a_W": arrays.get("bias_ih", zero),
        "a_R": arrays.get("bias_hh", zero),
        "g_W": norms["W"]["gain"],
        "g_R": norms["R"]["gain"],
        "b": norms["W"].get("shift", zero) + norms["R"].get("shift", zero),
    }
    ours = {
        f"{role}_{gate}": part
        for role, array in stacked.items()
        for gate, part in zip(_GATES, np.split(array, 4), strict=True)
    }
    if "c" in norms:
        ours |= {"g_c": norms["c"]["gain"], "s_c": norms["c"].get("shift", np.zeros(rows // 4))}
    return ours
