"""The LSTM family, after Greff et al., LSTM: A Search Space Odyssey (arXiv 1503.04069)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from gradscope.cells.activated import with_activations
from gradscope.cells.cell import Cell, unit_cell
from gradscope.cells.late import applied, one_minus
from gradscope.cells.mean import Sum, mean_of
from gradscope.cells.notation import is_recurrent
from gradscope.cells.units import Parameters, Shapes, Units


@dataclass(frozen=True)
class _Variant:
    """Which parts of the vanilla block a variant keeps."""

    gates: tuple[str, ...] = ("z", "i", "f", "o")
    coupled: bool = False
    peepholes: bool = True
    activations: tuple[str, ...] = ("tanh", "sigmoid", "tanh")  # of block input, gates and output

    @property
    def looks_back(self) -> tuple[str, ...]:
        """Gates whose peephole sees c_(t-1); the output gate's sees c_t, inside the step."""
        return tuple(g for g in ("i", "f") if self.peepholes and g in self.gates)

    @property
    def looks_at_new(self) -> tuple[str, ...]:
        return ("p_o",) if self.peepholes and "o" in self.gates else ()


def _lstm(name: str, variant: _Variant) -> Cell:
    block_input, opening, squash = map(applied, variant.activations)
    closed = one_minus(variant.activations[1])
    mean = mean_of(variant.activations[0])
    stays = None if variant.coupled else "f" if "f" in variant.gates else ""

    def parameters(hidden: int, input_size: int) -> Shapes:
        shapes: Shapes = {f"W_{g}": (hidden, input_size) for g in variant.gates}
        shapes |= {f"R_{g}": (hidden, hidden) for g in variant.gates}
        shapes |= {f"b_{g}": (hidden,) for g in variant.gates}
        peepholes = (*(f"p_{g}" for g in variant.looks_back), *variant.looks_at_new)
        return shapes | dict.fromkeys(peepholes, (hidden,))

    def drive(params: Parameters, x: Any) -> dict[str, Any]:
        return {g: params[f"W_{g}"] @ x + params[f"b_{g}"] for g in variant.gates}

    def core(c: Any, pre: Mapping[str, Any], p: Mapping[str, Any]) -> Any:
        gate = {g: opening(pre[g]) for g in variant.gates if g in ("i", "f")}
        i = gate.get("i", 1.0)
        if variant.coupled:
            new = mean(c, closed(pre["i"]), i, pre["z"])
        else:
            new = gate.get("f", 1.0) * c + i * block_input(pre["z"])
        if "o" in variant.gates:
            gate["o"] = opening(pre["o"] + p.get("p_o", 0.0) * new)
        return (new, gate.get("o", 1.0) * squash(new)), gate

    units = Units(
        gates=variant.gates,
        drive=drive,
        weights=tuple((g, f"W_{g}") for g in variant.gates),
        core=core,
        own="carousel",
        peepholes=variant.looks_back,
        constants=variant.looks_at_new,
        squash=squash,
    )
    return unit_cell(name, units, parameters, ("c", "h"), Sum(variant.activations[0], stays))


def projected(size: int) -> Cell:
    """h_t = M (o tanh c_t), of ``size`` features, is what the gates and the layers above read.

    Sak, Senior and Beaufays 2014 (arXiv 1402.1128) without peepholes: PyTorch's LSTM with proj_size, whose
    weight_hr is M (size, n); R_g is (n, size). M mixes the units, so there is no per-unit form.
    """
    vanilla = lstm()
    assert vanilla.units is not None
    units = vanilla.units

    def parameters(hidden: int, input_size: int) -> Shapes:
        shapes = vanilla.parameters(hidden, input_size)
        shapes |= {key: (hidden, size) for key in shapes if is_recurrent(key)}
        return shapes | {"M": (size, hidden)}

    def advance(params: Parameters, x: Any, copies: Mapping[str, Any]) -> Any:
        import jax.numpy as jnp

        def read(path: str) -> Any:
            c, h = jnp.split(copies[path], [len(params["b_z"])])
            return h if is_recurrent(path) else c

        return units.advance(params, units.drive(params, x), read)

    def step(params: Parameters, x: Any, copies: Mapping[str, Any]) -> Any:
        import jax.numpy as jnp

        c, out = advance(params, x, copies)[0]
        return jnp.concatenate([c, params["M"] @ out])

    def gates(params: Parameters, x: Any, state: Any) -> dict[str, Any]:
        return dict(advance(params, x, dict.fromkeys(vanilla.paths, state))[1])

    return Cell(
        name=f"lstm-projected-{size}",
        parameters=parameters,
        step=step,
        paths=vanilla.paths,
        components=vanilla.components,
        gates=gates,
        sizes=lambda hidden: (hidden, size),
        reads=units.reads,
        adds=vanilla.adds,
    )


def _activated(name: str, variant: _Variant, activations: tuple[str, ...]) -> Cell:
    return _lstm(
        with_activations(name, activations), replace(variant, activations=activations or variant.activations)
    )


def lstm(*activations: str) -> Cell:
    """Forget gate, no peepholes: what PyTorch and Keras call LSTM (Gers et al. 2000)."""
    return _activated("lstm", _Variant(peepholes=False), activations)


def original(*activations: str) -> Cell:
    """Hochreiter and Schmidhuber 1997: no forget gate (f = 1), no peepholes."""
    return _activated("lstm-1997", _Variant(gates=("z", "i", "o"), peepholes=False), activations)


def peephole(*activations: str) -> Cell:
    """The Odyssey's vanilla LSTM: every gate with a peephole (Gers and Schmidhuber 2000)."""
    return _activated("lstm-peephole", _Variant(), activations)


def nig() -> Cell:
    """No input gate: i = 1."""
    return _lstm("lstm-nig", _Variant(gates=("z", "f", "o")))


def nfg() -> Cell:
    """No forget gate: f = 1."""
    return _lstm("lstm-nfg", _Variant(gates=("z", "i", "o")))


def nog() -> Cell:
    """No output gate: o = 1."""
    return _lstm("lstm-nog", _Variant(gates=("z", "i", "f")))


def niaf() -> Cell:
    """No input activation function: z is its pre-activation."""
    return _lstm("lstm-niaf", _Variant(activations=("linear", "sigmoid", "tanh")))


def noaf() -> Cell:
    """No output activation function: h = o c."""
    return _lstm("lstm-noaf", _Variant(activations=("tanh", "sigmoid", "linear")))


def cifg(*activations: str) -> Cell:
    """Coupled input and forget gate: f = 1 - i."""
    return _activated("lstm-cifg", _Variant(gates=("z", "i", "o"), coupled=True), activations)
