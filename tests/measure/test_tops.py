"""The whole analysis from the top values alone, against the one from all Jacobians."""

from __future__ import annotations

import json

import jax
import jsonschema
import numpy as np
import pytest
from oracles.any_exponent import log10_norms, step_of

import gradscope
from gradscope.cli.main import main
from gradscope.linearize.system import System
from gradscope.linearize.trajectory import states_of
from gradscope.report.analysis import Analysis

SMALL = {"hidden": 6, "input_size": 3, "steps": 40, "gain": 2.0}


def both(**options: object) -> tuple[Analysis, Analysis]:
    options = SMALL | options
    return gradscope.analyze(**options, top=3), gradscope.analyze(**options, top="all")


@pytest.mark.parametrize(
    "options",
    [
        {"cell": "rnn", "batch": 2},
        pytest.param({"cell": "gru-reset-before"}, marks=pytest.mark.slow),
        pytest.param({"cell": "lstm", "cut": "R_o"}, marks=pytest.mark.slow),
        {"cell": "lstm", "view": "cell"},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
@pytest.mark.usefixtures("paths_alone")
def test_top_tells_what_all_values_tell(options: dict[str, object]) -> None:
    top, whole = both(**options)
    assert [chain.name for chain in top.chains] == [chain.name for chain in whole.chains]
    assert top.levels == whole.levels
    for few, all_ in zip(top.chains, whole.chains, strict=True):
        assert few.steps == all_.steps
        assert few.horizons == all_.horizons
        assert few.log10_rms is None
        for one, other in zip(few.spectra, all_.spectra, strict=True):
            expected = other.log10_singular_values[: len(one.log10_singular_values)]
            np.testing.assert_allclose(one.log10_singular_values, expected, rtol=1e-12, atol=1e-9)
    expected = whole.full.by_lag[:, top.full.lags - 1]
    np.testing.assert_allclose(top.full.by_lag, expected, rtol=1e-12, atol=1e-9)
    for path, share in whole.shares.items():
        np.testing.assert_allclose(top.shares[path], share, atol=1e-9)
    for gate, statistics in whole.gates.items():
        for name, value in statistics.items():
            value = value["saturated"] if name == "sequences" else value
            found = top.gates[gate][name]
            assert (found["saturated"] if name == "sequences" else found) == pytest.approx(value), (
                gate,
                name,
            )


def test_json_leaves_out_what_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    top, _ = both(cell="rnn", steps=50)
    result = json.loads(json.dumps(top.to_dict(), allow_nan=False))
    jsonschema.validate(result, gradscope.schema())
    assert (result["problem"]["top"], result["engine"]) == (3, "blocks")
    for chain in result["chains"]:
        assert not {"exact_zeros", "log10_rms"} & set(chain)
        assert [len(values) for values in chain["log10_singular_values"]] == [3]
    profile = result["profile"]
    assert 10 < len(profile["lag"]) < 50
    assert profile["lag"][-1] == 50
    assert (
        {len(profile["log10_norm"][0])}
        == {len(s) for s in profile["share"].values()}
        == {len(profile["lag"])}
    )


@pytest.mark.slow
def test_a_sequence_of_the_batch_is_what_it_is_alone() -> None:
    inputs = np.random.default_rng(3).normal(size=(3, 40, 3))
    options = {"cell": "rnn", "hidden": 6, "inputs": inputs, "top": 2}
    together = gradscope.analyze(**options).full.spectra
    for one, sequence in zip(together, inputs, strict=True):
        alone = gradscope.analyze(**options | {"inputs": sequence}).full.spectra[0]
        np.testing.assert_allclose(one.log10_singular_values, alone.log10_singular_values, atol=1e-11)


def test_long_chain_in_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"cell": "rnn", "hidden": 5, "input_size": 3, "steps": 300, "top": 2}
    whole = gradscope.analyze(**options)
    monkeypatch.setattr("gradscope.measure.top_values.SEGMENT_BYTES", 40_000)
    cut = gradscope.analyze(**options)
    np.testing.assert_allclose(cut.full.by_lag, whole.full.by_lag, atol=1e-10)
    for path, share in whole.shares.items():
        np.testing.assert_allclose(cut.shares[path], share, atol=1e-10)


@pytest.mark.parametrize(("given", "said"), [((), True), (("--top", "all"), False), (("--top", "2"), False)])
def test_large_states_get_their_top_by_default_and_are_told(
    given: tuple[str, ...], said: bool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("gradscope.problem.problem.MOST_FOR_ALL", 15)
    monkeypatch.setattr("gradscope.problem.problem.DEFAULT_TOP", 4)
    assert (
        main(
            [
                "analyze",
                "--hidden",
                "16",
                "--input-size",
                "2",
                "--steps",
                "10",
                "--cell",
                "rnn",
                "--json",
                *given,
            ]
        )
        == 0
    )
    out, err = capfd.readouterr()
    assert ("top 4 of 16" in err) == said
    counts = {"": 4, "all": 16, "2": 2}
    assert len(json.loads(out)["chains"][0]["log10_singular_values"][0]) == counts["".join(given[1:])]


@pytest.mark.parametrize("top", ["0", "-1", "17", "many", "2.5"])
def test_a_top_that_cannot_be(top: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", "--hidden", "8", "--steps", "5", "--top", top]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert "top is" in err


def test_chain_of_a_file(tmp_path, capfd: pytest.CaptureFixture[str]) -> None:
    stack = np.random.default_rng(0).normal(size=(20, 70, 70)) / 8
    np.save(tmp_path / "j.npy", stack)
    assert main(["chain", str(tmp_path / "j.npy"), "--top", "2", "--json"]) == 0
    found = json.loads(capfd.readouterr().out)["chains"][0]
    expected = np.log10(np.linalg.svd(np.linalg.multi_dot(stack[::-1]), compute_uv=False)[:2])
    np.testing.assert_allclose(found["log10_singular_values"][0], expected, atol=1e-11)
    assert main(["chain", str(tmp_path / "j.npy"), "--top", "2"]) == 0
    assert "  -  " in capfd.readouterr().out


@pytest.fixture
def saved(tmp_path):
    """Options for the weights of a cell."""

    def options(cell):
        np.savez(tmp_path / "cell.npz", **cell)
        return {"checkpoint": tmp_path / "cell.npz"}

    return options


def test_top_values_of_saturated_units(monkeypatch, saved):
    # Units that do not meet: the gain of each is the product of its slopes, R / cosh^2 a.
    monkeypatch.setattr("gradscope.measure.batch.sooner_without_jacobians", lambda problem: True)
    cell = {"W": np.eye(5), "R": 0.5 * np.eye(5), "b": np.zeros(5)}
    x = np.random.default_rng(0).uniform(-200, 200, size=(20, 5))
    h, log10 = np.zeros(5), np.zeros(5)
    for row in x:
        a = row + 0.5 * h
        log10 += np.log10(0.5 * 4) - 2 * (np.abs(a) + np.log1p(np.exp(-2 * np.abs(a)))) / np.log(10)
        h = np.tanh(a)
    found = gradscope.analyze(**saved(cell), cell="rnn", inputs=x, top=3).full.spectra[0]
    expected = np.sort(log10)[::-1][:3]
    np.testing.assert_allclose(
        found.log10_singular_values, expected, rtol=0, atol=max(1e-9, found.log10_error)
    )
    assert found.log10_error < 1e-6


@pytest.mark.slow
def test_a_gain_that_drowns_beside_blocks_is_not_0(monkeypatch, saved):
    # States that are 1 in float64: blocks have what is left beside it, and lose the slopes in rounding.
    monkeypatch.setattr("gradscope.measure.batch.sooner_without_jacobians", lambda problem: True)
    monkeypatch.setattr("gradscope.measure.batch.SATURATED_LOGS", 1e9)
    rng, found = np.random.default_rng(1), gradscope.cells.find("gru")
    cell = {
        key: 30 * rng.normal(size=shape) / np.sqrt(shape[-1]) for key, shape in found.shapes(3, 2).items()
    }
    x = 3 * rng.normal(size=(1, 10, 2))
    states = states_of(System(found, 3, cell, x, np.zeros((1, 3))), jax.devices()[:1])[0]
    expected = log10_norms(step_of("gru"), cell, x[0], states)[-1]
    top = gradscope.analyze(**saved(cell), cell="gru", inputs=x, top=1, only="gain").full.spectra[0]
    assert abs(top.log10_singular_values[0] - expected) <= top.log10_norm_error < 1e-9


def test_top_values_know_of_the_largest_gain_on_the_way(monkeypatch, saved):
    rng, n = np.random.default_rng(0), 24
    x = np.concatenate([0.1 * rng.normal(size=(200, n)), 5 * np.sign(rng.normal(size=(34, n)))])
    cell = {"W": np.eye(n), "R": 3 * rng.normal(size=(n, n)) / np.sqrt(n), "b": np.zeros(n)}
    whole = gradscope.analyze(**saved(cell), cell="rnn", inputs=x).full.log10_largest_gain.median
    monkeypatch.setattr("gradscope.measure.batch.sooner_without_jacobians", lambda problem: True)
    top = gradscope.analyze(**saved(cell), cell="rnn", inputs=x, top=1)
    assert whole > 12
    assert whole - 2 <= top.full.log10_largest_gain.median <= whole + 0.8
    assert any("amplifies the forward pass's rounding" in note for note in top.verdict.notes)
