"""Initialisers against the laws of the papers and of the frameworks' documentation."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from gradscope.cells import CELLS, find
from gradscope.cells.cell import Cell
from gradscope.cells.initializers import INITIALIZERS, initialize
from gradscope.errors import InputError

N, D = 64, 32
Arrays = dict[str, np.ndarray]


def draw(cell: str, init: str, hidden: int = N, input_size: int = D, **options: Any) -> Arrays:
    return initialize(find(cell), hidden, input_size, init=init, **options)


SUPPORT = {  # largest possible |W| at n = 64, d = 32, and |p|
    "pytorch": (1 / 8, 1 / 8),
    "keras": (np.sqrt(6 / (32 + 256)), np.sqrt(3 / 64)),
    "flax": (2 / 0.8796 / np.sqrt(32), 2 / 0.8796 / 8),
}


@pytest.mark.parametrize("init", SUPPORT)
def test_support(init: str) -> None:
    p = draw("lstm-peephole", init)
    for kind, limit, near in zip("Wp", SUPPORT[init], (0.98, 0.9), strict=True):
        largest = max(np.abs(p[key]).max() for key in p if key[0] == kind)
        assert near * limit < largest < 1.0001 * limit


LAWS = {  # of an LSTM's W, as each framework documents its default
    "pytorch": stats.uniform(-1 / 8, 2 / 8),  # U(-1/sqrt(n), 1/sqrt(n))
    "keras": stats.uniform(-SUPPORT["keras"][0], 2 * SUPPORT["keras"][0]),  # Glorot over the whole kernel
    "flax": stats.truncnorm(-2, 2, scale=1 / 0.8796 / np.sqrt(32)),  # LeCun: variance 1/d after truncation
}


@pytest.mark.parametrize("init", LAWS)
def test_input_weights_have_the_documented_law(init: str) -> None:
    p = draw("lstm", init)
    assert stats.kstest(np.concatenate([p[f"W_{g}"].ravel() for g in "zifo"]), LAWS[init].cdf).pvalue > 1e-3


@pytest.mark.parametrize(("cell", "summed"), [("rnn", 2), ("lstm", 2), ("lstm-cifg", 2), ("gru", 1)])
def test_two_torch_biases_add_unless_the_cell_keeps_them_apart(cell: str, summed: int) -> None:
    """A uniform draw has variance limit^2 / 3, so the sum of two has triangular law and 2/3."""
    keys = {"rnn": ("b",), "gru": ("b_h", "c_h")}.get(cell, ("b_z", "b_i"))
    draws = [draw(cell, "pytorch", seed=seed, input_size=1) for seed in range(30)]
    values = np.concatenate([p[key] for p in draws for key in keys]) * np.sqrt(N)
    law = stats.triang(0.5, -2, 4) if summed == 2 else stats.uniform(-1, 2)
    assert stats.kstest(values, law.cdf).pvalue > 1e-3


@pytest.mark.parametrize("init", ["keras", "flax", "gaussian", "orthogonal"])
def test_peepholes_have_variance_one_over_n(init: str) -> None:
    draws = [draw("lstm-peephole", init, seed=seed) for seed in range(20)]
    values = np.concatenate([p[key] for p in draws for key in ("p_i", "p_f", "p_o")])
    np.testing.assert_allclose(N * np.mean(values**2), 1.0, atol=4 * np.sqrt(2 / values.size))


def test_forget_bias_is_one_in_keras_alone() -> None:
    for init in INITIALIZERS:
        for cell in ("lstm", "lstm-peephole", "lstm-nig"):
            assert np.all(draw(cell, init)["b_f"] == 1.0) == (init == "keras")


# The laws of the papers


@pytest.mark.parametrize("cell", ["rnn", "lstm-peephole", "gru"])
def test_gaussian(cell: str) -> None:
    p = draw(cell, "gaussian")
    for key, value in p.items():
        if key[0] in "WR":
            assert stats.kstest(value.ravel() * np.sqrt(value.shape[1]), "norm").pvalue > 1e-3
        elif key[0] != "p":
            assert not value.any()


def test_orthogonal_differs_from_gaussian_in_the_recurrent_matrices() -> None:
    p = draw("lstm", "orthogonal")
    for gate in "zifo":
        np.testing.assert_allclose(p[f"R_{gate}"] @ p[f"R_{gate}"].T, np.eye(N), atol=1e-13)
        assert stats.kstest(p[f"W_{gate}"].ravel() * np.sqrt(D), "norm").pvalue > 1e-3
        assert not p[f"b_{gate}"].any()


@pytest.mark.parametrize("init", ["orthogonal", "flax", "keras"])
def test_orthogonal_matrices_are_uniform(init: str) -> None:
    """Haar: the trace has mean 0 and variance 1. Bare QR, with LAPACK's signs, has trace < 0."""
    traces = np.array([np.trace(draw("rnn", init, hidden=8, seed=seed)["R"]) for seed in range(400)])
    assert abs(traces.mean()) < 4 / np.sqrt(400)
    assert abs(traces.var() - 1.0) < 4 * np.sqrt(2 / 400)


def test_identity() -> None:
    p = draw("lstm-peephole", "identity")
    for gate in "zifo":
        np.testing.assert_array_equal(p[f"R_{gate}"], np.eye(N))
        assert stats.kstest(p[f"W_{gate}"].ravel() / 1e-3, "norm").pvalue > 1e-3
    assert not any(p[key].any() for key in p if key[0] in "bp")


CHRONO = {  # cell -> sign of each bias that holds a memory
    "lstm": {"b_f": 1, "b_i": -1},
    "lstm-peephole": {"b_f": 1, "b_i": -1},
    "lstm-nog": {"b_f": 1, "b_i": -1},
    "lstm-nig": {"b_f": 1},
    "lstm-1997": {"b_i": -1},
    "lstm-nfg": {"b_i": -1},
    "lstm-cifg": {"b_i": -1},
    "gru": {"b_z": 1},
    "gru-reset-before": {"b_z": 1},
}


@pytest.mark.parametrize("cell", CHRONO)
def test_chrono_memories_are_uniform(cell: str) -> None:
    p, steps = draw(cell, "chrono", hidden=500, steps=100), 100
    memories = [np.exp(sign * p[key]) for key, sign in CHRONO[cell].items()]
    for memory in memories:
        np.testing.assert_allclose(memory, memories[0], rtol=1e-14)
        assert 1.0 <= memory.min() < memory.max() <= steps - 1.0
        assert stats.kstest(memory, stats.uniform(1, steps - 2).cdf).pvalue > 1e-3
    others = [key for key in p if key[0] in "bc" and key not in CHRONO[cell]]
    assert not any(p[key].any() for key in others)
    limit = 1 / np.sqrt(500)
    for key in p:
        if key[0] in "WRp":
            assert stats.kstest(p[key].ravel(), stats.uniform(-limit, 2 * limit).cdf).pvalue > 1e-3


def test_chrono_keeps_at_most_one_part_in_e_over_the_chain() -> None:
    """The longest memory, T - 1, has sigmoid(b_f)^T = (1 - 1/T)^T, just under 1/e."""
    steps = 300
    kept = (1 + np.exp(-draw("lstm", "chrono", hidden=2000, input_size=1, steps=steps)["b_f"])) ** -steps
    assert 0.99 * (1 - 1 / steps) ** steps < kept.max() <= (1 + 1e-12) * (1 - 1 / steps) ** steps < np.exp(-1)


@pytest.mark.parametrize("steps", [1, 2])
def test_chrono_of_a_chain_too_short_to_remember_over(steps: int) -> None:
    p = draw("lstm", "chrono", steps=steps)
    assert not p["b_f"].any()
    assert not p["b_i"].any()


@pytest.mark.parametrize("cell", ["linear", "rnn", "rnn-relu", "rnn-sigmoid"])
def test_chrono_without_a_gate(cell: str) -> None:
    with pytest.raises(InputError, match=f"cell {cell} has none: choose another init"):
        draw(cell, "chrono")


# Every cell, every law

PAIRS = [(cell, init) for cell in CELLS for init in INITIALIZERS if init != "chrono" or cell in CHRONO]


@pytest.mark.parametrize(("cell", "init"), PAIRS)
def test_shapes_seeds_and_gain(cell: str, init: str) -> None:
    p, again, other, scaled = (
        draw(cell, init, hidden=6, input_size=4, seed=seed, gain=gain)
        for seed, gain in ((3, 1.0), (3, 1.0), (4, 1.0), (3, 2.5))
    )
    assert {key: value.shape for key, value in p.items()} == find(cell).parameters(6, 4)
    assert all(value.dtype == np.float64 for value in p.values())
    for key, value in p.items():
        np.testing.assert_array_equal(value, again[key])
        np.testing.assert_array_equal(scaled[key], 2.5 * value if key[0] == "R" else value)
    assert any(not np.array_equal(value, other[key]) for key, value in p.items())


@pytest.mark.parametrize(("hidden", "input_size"), [(1, 1), (1, 5), (5, 1)])
@pytest.mark.parametrize("init", INITIALIZERS)
def test_smallest_sizes(init: str, hidden: int, input_size: int) -> None:
    p = draw("lstm-peephole", init, hidden=hidden, input_size=input_size)
    assert all(np.isfinite(value).all() for value in p.values())


def test_stream_is_the_same_on_every_machine_and_version() -> None:
    p = draw("rnn", "pytorch", hidden=4, input_size=1)
    pinned = [0.1771968569751019, -0.2570132514571788, 0.11176379632181188, -0.07690017017886519]
    np.testing.assert_allclose(p["W"][:, 0], pinned, rtol=1e-15)


def test_inputs_drawn_from_the_same_seed_do_not_repeat_the_weights() -> None:
    inputs = np.random.default_rng(0).standard_normal(N * D)
    weights = draw("rnn", "gaussian", seed=0)["W"].ravel()
    assert abs(np.corrcoef(inputs, weights)[0, 1]) < 4 / np.sqrt(N * D)


# Biases


@pytest.mark.parametrize("init", INITIALIZERS)
def test_bias_is_set_after_the_law(init: str) -> None:
    p, plain = draw("lstm", init, biases={"b_f": 2.0, "b_o": -1}), draw("lstm", init)
    np.testing.assert_array_equal(p["b_f"], np.full(N, 2.0))
    np.testing.assert_array_equal(p["b_o"], np.full(N, -1.0))
    for key in p.keys() - {"b_f", "b_o"}:
        np.testing.assert_array_equal(p[key], plain[key])


def test_inner_bias_of_the_gru_can_be_set() -> None:
    np.testing.assert_array_equal(draw("gru", "keras", biases={"c_h": 0.5})["c_h"], np.full(N, 0.5))


@pytest.mark.parametrize("key", ["b_f", "R_o", "p_i", "forget"])
def test_bias_that_the_cell_has_not(key: str) -> None:
    with pytest.raises(InputError, match=f"cell lstm-1997 has no bias {key}: its biases are b_z, b_i, b_o$"):
        draw("lstm-1997", "pytorch", biases={key: 1.0})


def test_bias_of_a_cell_without_biases() -> None:
    cell = custom({"R": (3, 3)})
    with pytest.raises(InputError, match="cell mine has no bias b: it has no biases"):
        initialize(cell, 3, 2, biases={"b": 1.0})


def test_unknown_init_names_the_nearest() -> None:
    with pytest.raises(InputError, match="unknown init 'kersa': did you mean keras"):
        draw("lstm", "kersa")


def test_unknown_init_without_a_near_name_lists_all() -> None:
    with pytest.raises(InputError, match=f"choose one of {', '.join(INITIALIZERS)}$"):
        draw("lstm", "xyz")


# Cells of users


def custom(shapes: Mapping[str, tuple[int, ...]], values: Any = None) -> Cell:
    """A cell of the given parameters; ``values`` is what its own initialize returns or raises."""

    def own(rng: np.random.Generator, hidden: int, input_size: int) -> Any:
        if isinstance(values, Exception):
            raise values
        return values

    cell = replace(find("rnn"), name="mine", parameters=lambda hidden, input_size: dict(shapes))
    return cell if values is None else replace(cell, initialize=own)


@pytest.mark.parametrize("init", [name for name in INITIALIZERS if name != "chrono"])
def test_keys_of_other_names_are_drawn_by_their_rank(init: str) -> None:
    shapes = {"W": (6, 4), "R": (6, 6), "R_slow": (6,), "U": (6, 4), "tau": (6,), "scale": ()}
    p = initialize(custom(shapes), 6, 4, init=init, gain=3.0, biases={"tau": 7.0})
    plain = initialize(custom(shapes), 6, 4, init=init)
    assert {key: value.shape for key, value in p.items()} == shapes
    assert plain["U"].std() > 0
    np.testing.assert_array_equal(p["tau"], np.full(6, 7.0))
    for key in ("R", "R_slow"):
        np.testing.assert_array_equal(p[key], 3.0 * plain[key])


def test_own_initialize_replaces_the_law() -> None:
    cell = custom({"R": (2, 2), "b": (2,)}, {"b": [1, 2], "R": [[1, 2], [3, 4]]})
    p = initialize(cell, 2, 1, init="orthogonal", gain=2.0)
    assert list(p) == ["R", "b"]
    np.testing.assert_array_equal(p["R"], [[2.0, 4.0], [6.0, 8.0]])
    np.testing.assert_array_equal(p["b"], [1.0, 2.0])
    np.testing.assert_array_equal(initialize(cell, 2, 1, biases={"b": 9.0})["b"], [9.0, 9.0])


def test_own_initialize_draws_from_the_seed() -> None:
    cell = replace(
        custom({"R": (3, 3)}), initialize=lambda rng, hidden, input_size: {"R": rng.normal(size=(3, 3))}
    )
    first, again, other = (initialize(cell, 3, 1, seed=seed)["R"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"R": np.eye(3), "b": np.zeros(2)}, r"R is \(3, 3\), expected \(2, 2\)"),
        ({"R": np.eye(2)}, r"b is missing, expected \(2,\)"),
        ({"R": np.eye(2), "b": np.zeros(2), "V": 1.0}, r"V is \(\), expected no such key"),
        ({"R": np.eye(2), "b": ["x", "y"]}, "ValueError: could not convert"),
        (3, "TypeError"),
        (RuntimeError("no luck"), "RuntimeError: no luck"),
    ],
)
def test_own_initialize_that_does_not_fit(values: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"initialize of cell mine: .*{message}"):
        initialize(custom({"R": (2, 2), "b": (2,)}, values), 2, 1)


def test_names_are_known_without_jax() -> None:
    """Help and messages list them."""
    code = "import sys, gradscope.cells.initializers; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
