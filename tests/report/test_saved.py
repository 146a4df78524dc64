"""An Analysis in Python: saved and loaded, printed, as numbers and as a data frame."""

import dataclasses
import json
import math
import sys
import types

import jsonschema
import numpy as np
import pytest

import gradscope
from gradscope.errors import InputError
from gradscope.report.saved import _HOME

SIZES = {"hidden": 4, "input_size": 3, "steps": 12}


@pytest.fixture(scope="module")
def analysis():
    """Two sequences, one of which is shorter, and a path that is exactly zero."""
    return gradscope.analyze(**SIZES, batch=2, lengths=[12, 7], vanishing_below=1e-2)


@pytest.fixture(scope="module")
def several(analysis):
    """The same as two layers, with a loss."""
    layers = tuple(
        dataclasses.replace(analysis, problem={**analysis.problem, "layer": name, "direction": "forward"})
        for name in ("a<b>", "c")
    )
    lossy = gradscope.analyze(**SIZES, adjoint=np.ones(4))
    return dataclasses.replace(lossy, layers=layers).matching(["stable", "vanishing"])


def equal(one, other):
    """Whether two values are the same to the last digit, field by field."""
    if dataclasses.is_dataclass(one):
        assert type(one) is type(other)
        return all(equal(getattr(one, f.name), getattr(other, f.name)) for f in dataclasses.fields(one))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and one.tobytes() == other.tobytes() and one.shape == other.shape
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        same = type(one) is type(other) and len(one) == len(other)
        return same and all(equal(a, b) for a, b in zip(one, other, strict=True))
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


@pytest.mark.parametrize("which", ["analysis", "several"])
def test_what_is_saved_is_loaded(request, tmp_path, which):
    before = request.getfixturevalue(which)
    before.save(tmp_path / "a.json")
    after = gradscope.Analysis.load(tmp_path / "a.json")
    assert equal(before, after)
    assert after.to_dict() == before.to_dict()
    assert str(after) == str(before)
    told = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    jsonschema.validate(told, gradscope.schema())
    assert told.pop("saved")
    assert told == before.to_dict(all_lags=True)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "damaged"),
        ("[]", "damaged"),
        ("{}", "schema is None"),
        ('{"schema": "gradscope/analysis/2"}', "schema is 'gradscope/analysis/2'"),
        ('{"schema": "gradscope/analysis/1"}', "without what it is made of"),
        ('{"schema": "gradscope/analysis/1", "saved": {"tuple": []}}', "no Analysis"),
        ('{"schema": "gradscope/analysis/1", "saved": {"class": ["Popen", {"args": "ls"}]}}', "damaged"),
        ('{"schema": "gradscope/analysis/1", "saved": {"array": ["O", [1], ""]}}', "array of 'O'"),
        ('{"schema": "gradscope/analysis/1", "saved": {"array": ["f8", [9, 9], ""]}}', "damaged"),
    ],
)
def test_what_is_not_saved_is_not_loaded(tmp_path, text, words):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(InputError, match=words) as refused:
        gradscope.Analysis.load(tmp_path / "a.json")
    assert str(tmp_path) in str(refused.value)
    with pytest.raises(InputError, match="No such file"):
        gradscope.Analysis.load(tmp_path / "none.json")


def test_nothing_but_ours_is_made_from_a_file():
    assert all(home.startswith("gradscope.") for home in _HOME.values())


def test_shown(analysis, several):
    level = analysis.verdict.level
    assert repr(analysis).startswith(
        f"<Analysis {level.upper()}: lstm, hidden 4, 7 to 12 steps, batch 2, gain "
    )
    assert len(repr(several)) < 200
    assert str(analysis).splitlines()[0] == repr(analysis)[len("<Analysis ") : -1]
    assert "\nChains\n" in str(analysis)
    html = several._repr_html_()
    assert html.startswith("<pre")
    assert "a&lt;b&gt;" in html
    assert "<b>" not in html


def test_to_json_is_the_json(analysis):
    assert json.loads(analysis.to_json()) == analysis.to_dict()


def test_scalars(analysis, several):
    found = analysis.scalars()
    assert all(type(value) is float and math.isfinite(value) for value in found.values())
    assert found["log10_norm"] == analysis.full.log10_norm.median
    assert found["horizon"] == analysis.full.horizon.median
    assert found[f"verdict/{analysis.verdict.level}"] == 1.0
    assert sum(value for name, value in found.items() if name.startswith("verdict/")) == 1.0
    assert found["path/carousel/log10_norm"] == analysis.chain("carousel").log10_norm.median
    assert found["path/R_o/share"] == analysis.mean_shares["R_o"]
    assert found["gate/f/mean"] == analysis.gates["f"]["mean"]
    assert "path/R_f/log10_norm" not in found, "it is exactly zero"
    assert {"layer/a<b>/log10_norm", "layer/c/path/R_o/share"} <= several.scalars().keys()


def test_data_frame(analysis, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match="pip install pandas"):
        analysis.to_dataframe()
    monkeypatch.setitem(sys.modules, "pandas", types.SimpleNamespace(DataFrame=list))
    rows = analysis.to_dataframe()
    assert len(rows) == 2 * len(analysis.chains)
    assert [row["log10_norm"] for row in rows if row["chain"] == "full"] == [
        s.log10_singular_values[0] for s in analysis.full.spectra
    ]
    assert np.median([row["rate"] for row in rows if row["chain"] == "R_z"]) == pytest.approx(
        analysis.chain("R_z").rate.median
    )
    assert {row["verdict"] for row in rows if row["chain"] == "full"} == {analysis.verdict.level}


def test_a_chain_that_is_not_there(analysis):
    with pytest.raises(KeyError, match="no chain 'nope', expected one of full, carousel, R_z"):
        analysis.chain("nope")


def test_public_names():
    assert {"Analysis", "Chain", "Extremes", "LossGradient", "Spectrum", "Verdict"} <= set(dir(gradscope))
    assert all(getattr(gradscope, name).__name__ == name for name in ("Chain", "Extremes", "LossGradient"))
    assert {name for name in dir(gradscope) if not name.startswith("_")} == set(gradscope.__all__)
