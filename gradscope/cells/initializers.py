"""Initial parameters of a cell: the defaults of the frameworks and the laws of the papers."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gradscope.cells.notation import is_bias, is_recurrent, kind
from gradscope.errors import InputError, as_option

if TYPE_CHECKING:
    from gradscope.cells.cell import Cell
    from gradscope.cells.units import Shapes

from gradscope.custom_types import Array
from gradscope.settings import INIT, STEPS

Shape = tuple[int, ...]
Parameters = dict[str, Array]

# Standard deviation of a standard normal cut off at +-2.
_TRUNCATED_STD = 0.87962566103423978


@dataclass(frozen=True)
class Draw:
    """What a law is given: the shapes of the cell, a random stream, the length of the chain."""

    rng: np.random.Generator
    cell: str
    shapes: Shapes
    hidden: int
    steps: int

    def kind(self, key: str) -> str:
        """W, R, b or p, see ``notation.kind``."""
        return kind(key, len(self.shapes[key]))

    def of_kind(self, kind: str) -> list[str]:
        """Keys of one kind, in the order of the cell."""
        return [key for key in self.shapes if self.kind(key) == kind]

    def each(self, **laws: Callable[[Shape], Array]) -> Parameters:
        """Every parameter by the law of its kind: ``each(W=..., R=..., b=..., p=...)``."""
        return {key: laws[self.kind(key)](shape) for key, shape in self.shapes.items()}

    def normal(self, shape: Shape) -> Array:
        """N(0, 1/fan_in)."""
        return np.asarray(self.rng.standard_normal(shape) / math.sqrt(_fan_in(shape)))

    def truncated(self, shape: Shape) -> Array:
        """LeCun normal: variance 1/fan_in, cut off at two standard deviations of the uncut normal."""
        values: Array = np.asarray(self.rng.standard_normal(shape))
        while (far := np.abs(values) > 2.0).any():
            values[far] = self.rng.standard_normal(int(far.sum()))
        values /= _TRUNCATED_STD * math.sqrt(_fan_in(shape))
        return values

    def orthogonal(self, shape: Shape) -> Array:
        """Uniform (Haar) over matrices with orthonormal columns, or rows if there are fewer rows.

        QR of a normal matrix; without the signs the result would not be uniform (Mezzadri 2007,
        arXiv math-ph/0609050). Keras and JAX do the same.
        """
        q, r = np.linalg.qr(self.rng.standard_normal((max(shape), min(shape))))
        columns: Array = q * np.sign(np.diagonal(r))
        return columns if shape[0] >= shape[1] else columns.T


def _fan_in(shape: Shape) -> int:
    """Columns of a matrix; a vector (peephole) has as many as its diagonal matrix."""
    return math.prod(shape[-1:])


def pytorch(draw: Draw) -> Parameters:
    """Everything U(-1/sqrt H, 1/sqrt H), H the hidden size (torch.nn.LSTM, GRU and RNN).

    Torch adds two biases, b_ih + b_hh, so a bias here is the sum of two draws, unless the cell keeps
    the two apart (b_h and c_h of the GRU with the reset after). Forget biases are not 1.
    """
    limit = 1.0 / math.sqrt(draw.hidden)

    def one(key: str) -> Array:
        summed = is_bias(key) and f"c{key[1:]}" not in draw.shapes
        draws = draw.rng.uniform(-limit, limit, (1 + summed, *draw.shapes[key]))
        return np.asarray(draws.sum(axis=0))

    return {key: one(key) for key in draw.shapes}


def keras(draw: Draw) -> Parameters:
    """Keras 3: glorot uniform W, one orthogonal matrix cut into the R of all gates, b_f = 1.

    Keras keeps the gates in one kernel: Glorot's fan_out counts all of them, and it is the stack of
    all R that has orthonormal columns, so a single R is a contraction. Other biases are 0.
    Peepholes, which Keras has not, follow glorot_uniform for a vector: U(-sqrt(3/n), sqrt(3/n)).
    """
    rows = sum(math.prod(draw.shapes[key][:-1]) for key in draw.of_kind("W"))

    def glorot(shape: Shape, fan_out: int) -> Array:
        limit = math.sqrt(6.0 / (_fan_in(shape) + fan_out))
        return draw.rng.uniform(-limit, limit, shape)

    parameters = draw.each(
        W=lambda shape: glorot(shape, rows),
        R=np.zeros,
        b=np.zeros,
        p=lambda shape: glorot(shape, _fan_in(shape)),
    )
    for shape in {draw.shapes[key]: None for key in draw.of_kind("R")}:
        keys = [key for key in draw.of_kind("R") if draw.shapes[key] == shape]
        stack = draw.orthogonal((len(keys) * shape[0], shape[1]))
        parameters |= dict(zip(keys, np.split(stack, len(keys)), strict=True))
    if "b_f" in parameters:
        parameters["b_f"] = np.ones(draw.shapes["b_f"])  # unit_forget_bias (Jozefowicz et al. 2015)
    return parameters


def flax(draw: Draw) -> Parameters:
    """Flax linen: LeCun normal (truncated) W, each R orthogonal, biases 0, forget bias too.

    Peepholes, which Flax has not, are LeCun normal with fan_in n.
    """
    return draw.each(W=draw.truncated, R=draw.orthogonal, b=np.zeros, p=draw.truncated)


def gaussian(draw: Draw) -> Parameters:
    """R and peepholes N(0, 1/n), W N(0, 1/d), biases 0: the setting of random matrix theory."""
    return draw.each(W=draw.normal, R=draw.normal, b=np.zeros, p=draw.normal)


def orthogonal(draw: Draw) -> Parameters:
    """Every R orthogonal on its own (Saxe et al. 2014, arXiv 1312.6120), the rest as ``gaussian``."""
    return draw.each(W=draw.normal, R=draw.orthogonal, b=np.zeros, p=draw.normal)


def identity(draw: Draw) -> Parameters:
    """IRNN: R = I, W N(0, 0.001^2), biases 0 (Le, Jaitly and Hinton 2015, arXiv 1504.00941).

    Peepholes are 0: the state is to be handed on unchanged, with nothing added.
    """
    return draw.each(
        W=lambda shape: draw.rng.normal(0.0, 1e-3, shape),
        R=lambda shape: np.eye(shape[0], shape[1]),
        b=np.zeros,
        p=np.zeros,
    )


def chrono(draw: Draw) -> Parameters:
    """Gate biases for memories of up to T steps (Tallec and Ollivier 2018, arXiv 1804.11188).

    b_f = log U[1, T - 1] and b_i = -b_f, or whichever of the two the cell has; where it has neither,
    the same b_z for the update gate of a GRU. Other biases are 0, weights as ``pytorch``.
    """
    gates = {"b_f": 1.0, "b_i": -1.0}
    if not gates.keys() & draw.shapes.keys():
        gates = {"b_z": 1.0}  # in an LSTM b_z is the block input's
    parameters = pytorch(draw) | {key: np.zeros(draw.shapes[key]) for key in draw.of_kind("b")}
    found = [key for key in gates if key in parameters]
    if not found:
        raise InputError(
            f"{as_option('init')} 'chrono' sets the bias b_f, b_i or b_z of a gate and cell "
            f"{draw.cell} has none: "
            f"choose another {as_option('init')}, such as identity or orthogonal"
        )
    memory = np.log(draw.rng.uniform(1.0, max(draw.steps - 1.0, 1.0), draw.shapes[found[0]]))
    return parameters | {key: gates[key] * memory for key in found}


INITIALIZERS: dict[str, Callable[[Draw], Parameters]] = {
    law.__name__: law for law in (pytorch, keras, flax, gaussian, orthogonal, identity, chrono)
}


def initialize(
    cell: Cell,
    hidden: int,
    input_size: int,
    *,
    init: str = INIT,
    gain: float = 1.0,
    biases: Mapping[str, float] = {},
    seed: int = 0,
    steps: int = STEPS,
) -> Parameters:
    """Parameters of a fresh cell, float64, with the keys and shapes of ``cell.parameters``.

    init : a name in ``INITIALIZERS``, whose docstrings give the laws. A cell that brings its own
        ``initialize`` uses that instead.
    gain : multiplies every recurrent matrix (keys ``R*``), whatever the init.
    biases : ``{"b_f": 1.0}`` sets every entry of that bias, after the init.
    seed : non-negative; the same on every platform, up to the rounding of a QR factorisation.
    steps : length of the chain, which is chrono's T.

    Raises InputError for an unknown init, a bias the cell does not have, an init that does not fit
    the cell, or a cell whose own ``initialize`` fails or returns something else than its shapes.
    """
    if init not in INITIALIZERS:
        raise _unknown(init)
    # A stream of its own: inputs drawn from the same seed must not repeat the weights.
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence(seed, spawn_key=(1,))))
    draw = Draw(rng, cell.name, cell.shapes(hidden, input_size), hidden, steps)
    parameters = INITIALIZERS[init](draw) if cell.initialize is None else _own(cell, draw, input_size)
    scaled = {key: gain * value if is_recurrent(key) else value for key, value in parameters.items()}
    return scaled | {key: np.full(draw.shapes[key], float(biases[key])) for key in _checked(biases, draw)}


def _checked(biases: Mapping[str, float], draw: Draw) -> list[str]:
    known = draw.of_kind("b")
    for key in biases:
        if key not in known:
            has = f"its biases are {', '.join(known)}" if known else "it has no biases"
            raise InputError(f"cell {draw.cell} has no bias {key}: {has}")
    return list(biases)


def _unknown(init: str) -> InputError:
    near = difflib.get_close_matches(init, INITIALIZERS, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(INITIALIZERS)}"
    return InputError(f"unknown {as_option('init')} {init!r}: {hint}")


def _own(cell: Cell, draw: Draw, input_size: int) -> Parameters:
    """The user's own initial values, if they are what the cell says it has."""
    assert cell.initialize is not None
    try:
        given: dict[str, Any] = dict(cell.initialize(draw.rng, draw.hidden, input_size))
        values = {key: np.array(value, dtype=np.float64) for key, value in given.items()}
    except (Exception, SystemExit) as error:  # the user's function may fail in any way
        raise InputError(f"initialize of cell {cell.name}: {type(error).__name__}: {error}") from error
    got = {key: value.shape for key, value in values.items()}
    for key in [*draw.shapes, *got]:
        if got.get(key) != draw.shapes.get(key):
            raise InputError(
                f"initialize of cell {cell.name}: {key} is {got.get(key, 'missing')}, "
                f"expected {draw.shapes.get(key, 'no such key')} as parameters() says"
            )
    return {key: values[key] for key in draw.shapes}
