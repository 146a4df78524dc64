"""Chains that compiled programs take: when that pays, and that the analysis is the same."""

import jax
import jsonschema
import numpy as np
import pytest
from oracles.reference import reference
from oracles.two_layers import two_lstms

import gradscope
from gradscope.api import analyze_problems
from gradscope.compiled_svd import passes
from gradscope.compiled_svd.engine import compiled_spectra
from gradscope.compiled_svd.step_arrays import LayerShape, Shape
from gradscope.linearize.segmented import SegmentedChain, keeping_recent
from gradscope.linearize.sequence import Linearized
from gradscope.measure import programs
from gradscope.product_svd.spectrum import spectrum
from gradscope.schemas import schema

SIZES = {"hidden": 5, "input_size": 3}


@pytest.fixture
def at_once(monkeypatch):
    """Every program pays."""
    monkeypatch.setattr(programs, "PROGRAM", -1)
    monkeypatch.setattr(programs, "_compiled", set())


def same(one, other):
    """Two spectra within their estimates, lags too where the gain has not vanished."""
    assert one.exact_zeros == other.exact_zeros
    some = np.isfinite(one.log10_singular_values)
    assert (some == np.isfinite(other.log10_singular_values)).all()
    apart = np.abs(one.log10_singular_values[some] - other.log10_singular_values[some])
    assert (apart <= one.log10_error + other.log10_error).all()
    there = np.asarray(other.log10_norm_by_lag) > -3  # below, the host may say a bound
    np.testing.assert_allclose(
        np.asarray(one.log10_norm_by_lag)[there], np.asarray(other.log10_norm_by_lag)[there], atol=1e-11
    )
    assert len(one.log10_norm_by_lag) == len(other.log10_norm_by_lag)


@pytest.mark.parametrize("segments", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_analysis_is_the_same(at_once, monkeypatch, compiled, segments):
    """Of an LSTM, whose forget gate's first step is zero, with sequences of two lengths.

    segments : of time side by side, as on an accelerator.
    """
    monkeypatch.setattr(passes, "one_for_each_core", lambda devices: not segments)
    asked = {**SIZES, "steps": 32, "batch": 2, "lengths": [32, 31]}
    programs_of_it, compiled = compiled, gradscope.analyze(**asked)
    assert not segments or len(programs_of_it) <= 4, programs_of_it
    monkeypatch.setattr(programs, "_worth", lambda *_: frozenset())
    host = gradscope.analyze(**asked)
    engines = {chain.name: chain.engine for chain in compiled.chains}
    assert engines == {n: "host" if n == "carousel" else "compiled" for n in engines}
    for one, other in zip(compiled.chains, host.chains, strict=True):
        assert other.engine == "host"
        for spectra in zip(one.spectra, other.spectra, strict=True):
            same(*spectra)
        assert one.horizons == other.horizons
    assert compiled.verdict.level == host.verdict.level
    for path, share in compiled.mean_shares.items():
        assert share == pytest.approx(host.mean_shares[path], abs=1e-9)
    told = compiled.to_dict()
    jsonschema.validate(told, schema())
    assert told["engine"] == "compiled"
    assert [chain.get("engine") for chain in told["chains"]].count("host") == 1


def test_a_stack_against_exact_arithmetic(monkeypatch):
    """Its steps are formed of those of its layers and what one reads of the other, some at a time."""
    monkeypatch.setattr("gradscope.linearize.sequence.SEGMENT_BYTES", 1)
    sequence = Linearized(two_lstms(6, 2, 3).stacks[0].problem.system, 0, jax.devices()[0])
    chain = SegmentedChain(keeping_recent(sequence.segment), sequence.starts, sequence.steps)
    assert len(chain.starts) > 1
    entry_error = 4 * float(np.finfo(float).eps)
    (found,) = compiled_spectra([chain], jax.devices(), entry_error)
    true = reference(np.stack([chain[t] for t in range(6)]))
    assert np.abs(true.log10_errors(found.log10_singular_values)).max() <= found.log10_error < 1e-9
    same(found, spectrum(chain, by_lag=True, entry_error=entry_error))


@pytest.mark.slow  # programs of its own
def test_a_stack_on_an_accelerator(at_once, monkeypatch, compiled):
    monkeypatch.setattr(passes, "one_for_each_core", lambda devices: False)
    problems = two_lstms(11, 2, 3)
    compiled.clear()
    found = analyze_problems(problems)
    assert 1 <= len(compiled) <= 8, compiled
    monkeypatch.setattr(programs, "_worth", lambda *_: frozenset())
    host = analyze_problems(problems)
    engines = {chain.name: chain.engine for chain in found.chains}
    assert engines == {"full": "compiled", "layer0": "compiled", "layer1": "compiled", "0->1": "host"}
    for one, other in zip(found.chains, host.chains, strict=True):
        same(*one.spectra, *other.spectra)


def test_what_is_in_doubt_is_measured_all_the_same(at_once):
    found = gradscope.analyze(**SIZES, steps=30, cell="rnn-relu", seed=1)
    assert found.full.engine == "host"
    assert found.full.exact_zeros[0] > 0


def test_a_program_is_compiled_when_it_would_have_paid(monkeypatch):
    monkeypatch.setattr(programs, "PROGRAM", 1000.0)
    monkeypatch.setattr(programs, "_compiled", set())
    monkeypatch.setattr(programs, "_missed", programs.Counter())
    monkeypatch.setattr(programs, "saved_by_program", lambda *_: 4.0)
    shape, other = (Shape((LayerShape(*one, 32, False),)) for one in ((2, 4, 1), (1, 1, 0)))
    assert programs._worth([shape, other, other], 100) == {other} - {other}
    assert programs._worth([shape, other, other], 100) == {other}  # 1600 by now, and 800
    assert programs._worth([shape], 60) == {shape}
    assert programs._worth([shape, other], 1) == {shape, other}
    assert programs._worth([], 1) == frozenset()


def test_large_chains_stay_on_the_host():
    """There the host multiplies with half of a matrix, and is as quick."""
    assert programs.saved_by_program(64) > 0
    assert programs.saved_by_program(1024) == 0
    assert programs.saved_by_program(1024, accelerator=True) > 0
