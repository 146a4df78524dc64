"""Sequences of different length: each is analysed over its own, as if it were alone."""

from __future__ import annotations

import json

import jax
import jsonschema
import numpy as np
import pytest
from oracles import layouts
from oracles.asking import make_problem, make_problems

import gradscope
from gradscope.checkpoints import read
from gradscope.cli.main import main
from gradscope.errors import InputError
from gradscope.linearize import budget
from gradscope.linearize.system import reversed_within
from gradscope.report.table import render_table
from gradscope.report.terminal import Terminal
from gradscope.report.views import Look

LENGTHS = (7, 3, 5, 3)
X = np.random.default_rng(8).standard_normal((4, 7, 3))
BEYOND = np.arange(7) >= np.array(LENGTHS)[:, None]
SMALL = {"hidden": 4, "inputs": X, "gain": 2.0}
WIDE = Terminal(width=100)


# Sequences for which one program is compiled, whatever their length.
LONG = (24, 22, 21, 23)
INPUTS = np.random.default_rng(9).standard_normal((4, 24, 3))


def check_against_each_alone(together, each):
    for number, one in enumerate(each):
        for chain, expected in zip(together.chains, one.chains, strict=True):
            assert chain.name == expected.name
            spectrum, (other,) = chain.spectra[number], expected.spectra
            np.testing.assert_allclose(
                spectrum.log10_singular_values, other.log10_singular_values, rtol=0, atol=1e-9
            )
            assert spectrum.exact_zeros == other.exact_zeros
            assert chain.horizons[number] == expected.horizons[0]
            assert chain.lengths[number] == expected.steps
            np.testing.assert_allclose(
                np.asarray(spectrum.log10_norm_by_lag), other.log10_norm_by_lag, rtol=0, atol=1e-9
            )
    for chain in together.chains:
        of_each = [one.chain(chain.name) for one in each]
        for name in ("rate", "log10_norm", "log10_peak", "peak_lag"):
            expected = [getattr(one, name).median for one in of_each]
            assert getattr(chain, name).median == pytest.approx(np.median(expected))
            assert getattr(chain, name).max == pytest.approx(max(expected))


CASES = [
    {"cell": "lstm"},
    {"cell": "lstm", "view": "cell"},
    pytest.param({"cell": "lstm-peephole", "cut": "R_o"}, marks=pytest.mark.slow),
    pytest.param({"cell": "gru-reset-before"}, marks=pytest.mark.slow),
    {"cell": "rnn"},
]


@pytest.mark.parametrize("options", CASES, ids=lambda options: "-".join(map(str, options.values())))
def test_every_sequence_is_as_if_it_were_alone(options):
    options = options | {"hidden": 4, "gain": 2.0}
    together = gradscope.analyze(**options, inputs=INPUTS, lengths=LONG)
    each = [gradscope.analyze(**options, inputs=x[:n]) for x, n in zip(INPUTS, LONG, strict=True)]
    check_against_each_alone(together, each)
    longest = 24 - (options.get("view") == "cell")
    assert together.full.steps == longest
    for path, share in together.shares.items():
        assert share.shape == (longest,)
        for lag in range(1, longest + 1):
            reaching = [one.shares[path][-lag] for one in each if len(one.shares[path]) >= lag]
            assert share[-lag] == pytest.approx(np.mean(reaching), abs=1e-9)
        every = np.concatenate([one.shares[path] for one in each])
        assert together.mean_shares[path] == pytest.approx(every.mean(), abs=1e-9)
    assert sum(together.mean_shares.values()) == pytest.approx(1)
    for gate, statistics in together.gates.items():
        means = [one.gates[gate]["mean"] for one in each]
        assert statistics["mean"] == pytest.approx(np.average(means, weights=LONG))


@pytest.mark.slow
def test_top_values_of_sequences_of_different_length():
    given = {"cell": "rnn", **SMALL, "lengths": (3, 2, 3, 2)}
    top, whole = (gradscope.analyze(**given, top=top) for top in (2, "all"))
    assert top.full.lengths == whole.full.lengths == (3, 2, 3, 2)
    assert top.full.horizons == whole.full.horizons
    shown = top.full.lags - 1
    np.testing.assert_allclose(top.full.by_lag, whole.full.by_lag[:, shown], rtol=0, atol=1e-9)
    for few, every in zip(top.full.spectra, whole.full.spectra, strict=True):
        np.testing.assert_allclose(
            few.log10_singular_values, every.log10_singular_values[:2], rtol=0, atol=1e-9
        )
    np.testing.assert_allclose(top.shares["R"], whole.shares["R"], atol=1e-9)


def test_segments_of_sequences_of_different_length(monkeypatch):
    whole = gradscope.analyze(**SMALL, lengths=LENGTHS)
    cell = make_problem(**SMALL).system.cell
    monkeypatch.setattr("gradscope.linearize.sequence.SEGMENT_BYTES", 4 * budget.step_bytes(cell, 4))
    cut = gradscope.analyze(**SMALL, lengths=LENGTHS)
    np.testing.assert_allclose(cut.full.by_lag, whole.full.by_lag, rtol=0, atol=1e-10)
    for name, value in whole.gates["f"].items():
        for each, number in value.items() if isinstance(value, dict) else [("", value)]:
            found = cut.gates["f"][name]
            assert (found[each] if each else found) == pytest.approx(number), (name, each)


def test_padding_is_never_looked_at():
    other = np.where(BEYOND[..., None], 1e30, X)
    one, two = (gradscope.analyze(**SMALL | {"inputs": x}, lengths=LENGTHS).to_dict() for x in (X, other))
    assert one == two


def test_steps_cut_the_lengths_of_all_layers(tmp_path):
    model = read(
        layouts.saved(layouts.recurrent("lstm", 3, 2, layers=2, bidirectional=True), tmp_path / "m.pt")
    )
    cut = make_problems(model, jax.devices(), inputs=X, lengths=LENGTHS, steps=4).every
    whole = make_problems(model, jax.devices(), inputs=X[:, :4], lengths=[4, 3, 4, 3]).every
    for one, other in zip((p.system for p in cut), (p.system for p in whole), strict=True):
        assert one.lengths == other.lengths == (4, 3, 4, 3)
        for number, length in enumerate(one.lengths):
            np.testing.assert_array_equal(one.inputs[number, :length], other.inputs[number, :length])
    with pytest.raises(InputError, match="a length is 8, but the inputs have 7 steps"):
        make_problems(model, jax.devices(), inputs=X, lengths=[8, 3, 5, 3], steps=4)
    with pytest.raises(InputError, match="steps is 'many', expected a whole number"):
        make_problems(model, jax.devices(), inputs=X, steps="many")


def test_reversal_within_lengths():
    turned = reversed_within(X, LENGTHS)
    for one, other, length in zip(turned, X, LENGTHS, strict=True):
        np.testing.assert_array_equal(one[:length], np.flip(other[:length], 0))
        np.testing.assert_array_equal(one[length:], other[length:])
    np.testing.assert_array_equal(reversed_within(turned, LENGTHS), X)
    np.testing.assert_array_equal(reversed_within(X, None), np.flip(X, 1))


# What is said


def test_json_and_table():
    analysis = gradscope.analyze(**SMALL, lengths=LENGTHS)
    result = json.loads(json.dumps(analysis.to_dict(), allow_nan=False))
    jsonschema.validate(result, gradscope.schema())
    assert result["problem"]["lengths"] == list(LENGTHS)
    assert result["problem"]["steps"] == 7
    assert result["profile"]["lag"] == list(range(1, 8))
    known = np.array([[value is not None for value in row] for row in result["profile"]["log10_norm"]])
    np.testing.assert_array_equal(known, ~BEYOND)
    table = render_table(analysis, Look(WIDE))
    assert "lstm, hidden 4, 3 to 7 steps, batch 4" in table
    assert "Over 3 to 7 steps the gradient's gain (sigma_1 of the product, median of 4 sequences)" in table
    assert "(medians)" in table
    assert "lag 7" in table


def test_sequences_that_carry_nothing(tmp_path):
    """A gradient that dies at the third step from the end, in those that are so long."""
    np.savez(tmp_path / "x.npz", W=np.eye(2), R=np.eye(2), b=np.zeros(2))
    x = np.ones((2, 6, 2))
    x[0, 3] = -9  # relu is dead there
    options = {"checkpoint": tmp_path / "x.npz", "cell": "rnn-relu", "inputs": x}
    analysis = gradscope.analyze(**options, lengths=[6, 2])
    assert analysis.full.horizons == (2, 2)
    np.testing.assert_array_equal(analysis.full.by_lag[0], [0, 0, *[-np.inf] * 4])
    np.testing.assert_array_equal(analysis.full.by_lag[1], [0, 0, *[np.nan] * 4])
    assert analysis.mean_shares == {"R": pytest.approx(1)}
    table = render_table(analysis, Look(WIDE))
    assert "full: exactly 0 over a sequence's own length" in table
    dead = gradscope.analyze(**options, lengths=[6, 1], steps=5)
    assert dead.problem["lengths"] == [5, 1]
    assert dead.full.lengths == (5, 1)


# What is given


def test_lengths_from_a_file_on_the_command_line(tmp_path, capfd):
    np.save(tmp_path / "x.npy", X)
    (tmp_path / "n.csv").write_text("steps\n" + "\n".join(map(str, LENGTHS)))
    arguments = ["--inputs", tmp_path / "x.npy", "--lengths", tmp_path / "n.csv", "--hidden", "4", "--json"]
    assert main(["analyze", *map(str, arguments)]) == 0
    assert json.loads(capfd.readouterr().out)["problem"]["lengths"] == list(LENGTHS)


def test_lengths_and_steps():
    assert make_problem(inputs=X, hidden=4, lengths=LENGTHS, steps=4).system.lengths == (4, 3, 4, 3)
    shorter = make_problem(inputs=X, hidden=4, lengths=[2, 3, 1, 3]).system
    assert (shorter.steps, shorter.lengths) == (3, (2, 3, 1, 3))
    drawn = make_problem(hidden=4, lengths=LENGTHS).system
    assert (drawn.batch, drawn.steps, drawn.lengths) == (4, 7, LENGTHS)
    assert make_problem(hidden=4, lengths=LENGTHS, steps=6).system.lengths == (6, 3, 5, 3)
    turned = make_problem(inputs=X.swapaxes(0, 1), time_major=True, hidden=4, lengths=LENGTHS)
    assert turned.system.steps == 7


REFUSED = {
    "half a step": ([1, 2, 2.5, 3], {}, "lengths hold 2.5 at index [2], expected whole numbers at least 1"),
    "no steps": ([1, 2, 0, 3], {}, "lengths hold 0 at index [2], expected whole numbers at least 1"),
    "beyond": ([1, 2, 3, 8], {}, "a length is 8, but the inputs have 7 steps"),
    "too few": ([1, 2], {}, "got 2 lengths for 4 sequences: they must agree"),
    "batch of others": ([1, 2], {"inputs": "normal", "batch": 3}, "2 lengths for 3 sequences"),
    "a table": (np.ones((2, 2)), {}, "lengths have shape (2, 2), expected (B,), one for each sequence"),
    "a number": (5, {}, "lengths have shape (), expected (B,)"),
    "none": ([], {}, "lengths have shape (0,), expected (B,)"),
    "words": (["a"], {}, "lengths has dtype <U1, expected real numbers"),
    "googol": ([1, 2, 3, 1e100], {}, "lengths hold 1e+100 at index [3]"),
    "no file": ("n.txt", {}, "'n.txt': expected a .npy, .npz, .safetensors or .csv file"),
    "one step in the cell view": (
        (*LENGTHS[:3], 1),
        {"view": "cell"},
        "expected steps of at least 2, got 1",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_lengths_that_cannot_be_meant(name):
    lengths, options, expected = REFUSED[name]
    with pytest.raises(InputError) as caught:
        make_problem(**{"inputs": X, "hidden": 4} | options, lengths=lengths)
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()
