"""Baselines and comparisons: what is kept of an analysis, and what counts as a change."""

import json
import math

import jsonschema
import pytest
from oracles.gated import HOSTILE, comparison
from oracles.made_up import LSTM, analysis

from gradscope import InputError
from gradscope.gate.baseline import baseline_text, entry_of, read_entries
from gradscope.gate.compare import Allowed, changes_between
from gradscope.gate.metrics import Metric
from gradscope.schemas import schema


def saved(folder, text, name="x.json"):
    (folder / name).write_text(text)
    return read_entries(folder / name)


def test_a_baseline_is_small_sorted_and_keeps_every_metric(tmp_path):
    entry = entry_of([analysis(LSTM, batch=3, layer="l0")])
    text = baseline_text({"b": entry, HOSTILE.replace("\ud800", ""): entry})
    metrics = [line.split('":')[0] for line in text.splitlines() if line.startswith("    ") and "{" in line]
    assert metrics == sorted(metrics[: len(metrics) // 2]) * 2
    assert text.index('"a') < text.index('"b"')
    jsonschema.validate(json.loads(text), schema("baseline"))
    back = saved(tmp_path, text)["b"]
    assert back.metrics.keys() == entry.metrics.keys()
    for name, one in entry.metrics.items():
        other = back.metrics[name]
        numbers = [(one.lowest, one.median, one.highest), (other.lowest, other.median, other.highest)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-9)
        assert (other.layer, other.part, other.unit) == (one.layer, one.part, one.unit)
    assert baseline_text({"b": back}) == baseline_text({"b": entry})


def test_layers_of_a_baseline_are_found_by_name(tmp_path):
    stack = analysis({"full": -0.3, "layer0": -0.1})
    layers = tuple(analysis(LSTM, layer=name) for name in ("a", "a.b"))
    entry = entry_of([type(stack)(**{**vars(stack), "layers": layers})])
    back = saved(tmp_path, baseline_text({"x": entry}))["x"]
    places = {name: (one.quantity, one.layer, one.part) for name, one in back.metrics.items()}
    assert places["log10_norm.a.b.R_z"] == ("log10_norm", "a.b", "R_z")
    assert places["log10_norm.a.R_z"] == ("log10_norm", "a", "R_z")
    assert places == {name: (one.quantity, one.layer, one.part) for name, one in entry.metrics.items()}


def test_the_json_of_an_analysis_is_as_good(tmp_path):
    made = analysis(LSTM, batch=3)
    one = saved(tmp_path, made.to_json())
    assert read_entries(tmp_path / "x.json") == one
    for other in (entry_of([made]), saved(tmp_path, baseline_text({"x": entry_of([made])}), "y.json")["x"]):
        result = changes_between(one, {"x": other}, ("x.json", "y"))
        assert result.changes == []
        assert [name for _, name in result.compared] == [*one[""].metrics]
        assert {*other.metrics} == {*one[""].metrics}
    made.save(tmp_path / "saved.json")
    assert changes_between(one, read_entries(tmp_path / "saved.json"), ("x", "s")).changes == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "damaged"),
        ("{}", "schema is None, expected a baseline"),
        ('{"schema": "gradscope/inspection/1"}', "schema is 'gradscope/inspection/1', expected a baseline"),
        ('{"schema": "gradscope/baseline/1"}', "damaged"),
        ('{"schema": "gradscope/baseline/1", "analyses": {"x": {"problem": 3}}}', "damaged"),
        ('{"schema": "gradscope/analysis/1", "chains": 3}', "damaged"),
        ("{" + '"a":{' * 100_000, "damaged"),
    ],
)
def test_a_strangers_json(tmp_path, text, said):
    with pytest.raises(InputError, match=rf"x\.json: .*{said}"):
        saved(tmp_path, text)


def test_what_is_no_json_is_a_checkpoint(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04")
    assert read_entries(tmp_path / "model.pt") is None
    with pytest.raises(InputError, match="No such file"):
        read_entries(tmp_path / "gone.json")


def entry(value, error):
    one = entry_of([analysis({"full": -0.25})])
    metrics = {"log10_norm": Metric("log10_norm", None, None, (value,), error)}
    return {"x": type(one)(one.gradscope, one.problem, metrics)}


@pytest.mark.parametrize(
    ("old", "new", "error", "delta"),
    [
        (-10.0, -10.0, 0.0, None),
        (-10.0, -10.0 + 1e-12, 0.0, None),
        (-10.0, -9.9, 0.06, None),  # each may be off by .06
        (-10.0, -9.9, 0.04, 0.1),
        (-10.0, -9.0, 1e-9, 1.0),
        (-math.inf, -math.inf, 0.0, None),
        (-10.0, -math.inf, 0.0, -math.inf),
        (-math.inf, -10.0, 0.0, math.inf),
    ],
)
def test_within_the_errors_of_both_nothing_has_changed(old, new, error, delta):
    result = changes_between(entry(old, error), entry(new, error), ("a", "b"), [Allowed("log10_norm", 0.5)])
    assert [one.delta for one in result.changes] == ([] if delta is None else [pytest.approx(delta)])
    assert result.exit_code == (delta is not None and abs(delta) > 0.5)
    json.dumps(result.to_dict(), allow_nan=False)


def test_a_change_at_the_limit_is_within_the_error():
    result = changes_between(entry(-10.0, 0.1), entry(-9.45, 0.1), ("a", "b"), [Allowed("log10_norm", 0.5)])
    assert result.exit_code == 0
    assert "the 0.5 that is allowed is within the error" in result.findings()[0].message


def test_what_changed_is_told_by_path_and_what_else_is_another():
    told = comparison().to_dict()
    found = {(one["analysis"], one["chain"], one["metric"]): one for one in told["changes"]}
    whole = found["small", "full", "log10_norm"]
    assert (whole["old"], whole["new"], whole["delta"]) == (-10.0, -8.0, 2.0)
    dead = found["small", "R_z", "log10_norm"]
    assert (dead["old"], dead["new"], dead["delta"]) == (-240.0, None, None)
    assert ("small", "carousel", "log10_norm") not in found
    assert not any(one["analysis"] == "other" for one in told["changes"])
    assert {(one["field"], one["old"], one["new"]) for one in told["differences"]} == {
        ("steps", 40, 41),
        ("dtype", None, "float32"),
    }
    assert "R_new" in told["missing"][0]
    assert [(one["metric"], one["passed"]) for one in told["allowed"]] == [
        *(("log10_norm", False), ("log10_norm", True), ("horizon", True), ("horizon", True))
    ]
    assert comparison().exit_code == 1


def test_what_cannot_be_compared():
    one = entry(-10.0, 0.0)
    two = {"y": one["x"], "z": one["x"]}
    with pytest.raises(
        InputError, match="a has x, b has y, z: expected one analysis in each, or analyses of"
    ):
        changes_between(one, two, ("a", "b"))
    with pytest.raises(InputError, match="a has one analysis, b has y, z: "):
        changes_between({"": one["x"]}, two, ("a", "b"))
    with pytest.raises(
        InputError, match="--fail-on-change horizon: not in both results, which have log10_norm"
    ):
        changes_between(one, one, ("a", "b"), [Allowed("horizon", 1.0)])
    both = changes_between({**two, "w": one["x"]}, {**two, "v": one["x"]}, ("a", "b"))
    assert both.missing == ("only a has the analyses w.", "only b has the analyses v.")
    for text in ("log10_norm", "log10_norm:", "log10_norm:-1", "log10_norm:nan", "nrm:1"):
        with pytest.raises(InputError):
            Allowed.parse(text)


def test_where_files_lie_makes_no_difference():
    here, there = (entry_of([analysis(LSTM, inputs=f"/{place}/x.npy")]) for place in ("home", "runner"))
    assert changes_between({"x": here}, {"x": there}, ("a", "b")).notes() == []
    assert '"inputs": "x.npy"' in baseline_text({"x": here})
