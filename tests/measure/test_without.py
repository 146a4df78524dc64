"""The whole chain without each path: the oracles are --cut, closed forms and plain products."""

from __future__ import annotations

import numpy as np
import pytest

import gradscope
from gradscope.cells.cell import Cell
from gradscope.report.table import render_table
from gradscope.report.views import Look, Terminal

SIZES = {"hidden": 4, "input_size": 3, "steps": 30}


def told(**options):
    return gradscope.analyze(**options).to_dict()


@pytest.mark.parametrize(("cell", "top"), [("lstm", None), pytest.param("gru", 2, marks=pytest.mark.slow)])
def test_it_is_what_cut_leaves(cell, top):
    found = told(cell=cell, gain=2.0, batch=2, top=top, **SIZES)["without"]
    assert list(found) == [chain["name"] for chain in told(cell=cell, top=top, **SIZES)["chains"][1:]]
    for path in (next(iter(found)), list(found)[-1]):
        cut = told(cell=cell, gain=2.0, batch=2, top=top, cut=path, **SIZES)
        full, one = cut["chains"][0], found[path]
        for name in ("log10_norm", "horizon"):
            assert one[name] == pytest.approx(full[name], abs=1e-9)
        assert one["verdict"] == full["verdict"]
        ours, theirs = one["profile"], cut["profile"]
        both = np.intersect1d(ours["lag"], theirs["lag"])
        assert len(both) > 3 if top else ours["lag"] == theirs["lag"]
        for k in range(2):
            a, b = (dict(zip(p["lag"], p["log10_norm"][k], strict=True)) for p in (ours, theirs))
            ours_at, theirs_at = (np.array([p[t] for t in both]) for p in (a, b))
            above = theirs_at > -3  # upper bounds else
            np.testing.assert_allclose(ours_at[above], theirs_at[above], atol=1e-6 if top else 1e-9)
            assert (ours_at >= theirs_at - 1e-6).all()


def two_paths(a, r):
    """h = a h + r h of one unit, in two paths."""

    def step(parameters, x, copies):
        return parameters["a"] * copies["own"] + parameters["r"] * copies["other"]

    def initialize(*_):
        return {"a": np.array([a]), "r": np.array([r])}

    shapes = lambda hidden, input_size: {"a": (1,), "r": (1,)}  # noqa: E731
    return Cell("two", shapes, step, ("own", "other"), ("h",), initialize=initialize)


@pytest.mark.parametrize("top", [None, 1])
def test_an_explosion_in_which_every_path_alone_vanishes(top):
    """.75 + .75 grows by 1.5 a step; each alone halves by three quarters."""
    analysis = gradscope.analyze(cell=two_paths(0.75, 0.75), hidden=1, input_size=1, steps=50, top=top)
    found = analysis.to_dict()
    assert (found["verdict"]["level"], {c["verdict"] for c in found["chains"][1:]}) == (
        "exploding",
        {"vanishing"},
    )
    for one in found["without"].values():
        assert one["log10_norm"]["median"] == pytest.approx(50 * np.log10(0.75), abs=1e-12)
        assert one["horizon"]["median"] == 24  # .75^24 > .001 > .75^25
        assert one["verdict"] == "vanishing"
    said = "Without own it is vanishing (gain 5.66e-07), without other it is vanishing (gain 5.66e-07)"
    assert any(sentence.startswith(said) for sentence in found["verdict"]["reasons"])
    table = render_table(analysis, Look(Terminal(80)))
    assert "Without: the whole chain but for one path" in table


def test_one_that_leaves_it_stable_is_named_first():
    found = told(cell=two_paths(1.0, 0.5), hidden=1, input_size=1, steps=40)
    assert found["without"]["other"]["verdict"] == "stable"
    assert any(s.startswith("Without other it is stable (gain 1.00)") for s in found["verdict"]["reasons"])
    both = told(cell=two_paths(2.0, 2.0), hidden=1, input_size=1, steps=40)
    assert any("without any one of them it still does" in s for s in both["verdict"]["reasons"])


def test_the_carousel_where_no_matrix_is_left(tmp_path):
    """Of an LSTM all of whose R are zero but R_z the rest is triangular: its gain is that of both halves."""
    rng = np.random.default_rng(0)
    arrays = {
        f"{role}_{g}": rng.standard_normal((4, 3 if role == "W" else 4)) for role in "WR" for g in "zifo"
    }
    arrays |= {f"b_{g}": rng.standard_normal(4) for g in "zifo"}
    arrays |= {f"R_{g}": np.zeros((4, 4)) for g in "ifo"}
    np.savez(tmp_path / "x.npz", **arrays)
    x = rng.standard_normal((1, 12, 3))
    found = told(checkpoint=tmp_path / "x.npz", cell="lstm", inputs=x)
    sigmoid = lambda a: 1 / (1 + np.exp(-a))  # noqa: E731
    product, h, c = np.eye(8), np.zeros(4), np.zeros(4)
    for step in x[0]:
        z, i, f, o = (arrays[f"W_{g}"] @ step + arrays[f"R_{g}"] @ h + arrays[f"b_{g}"] for g in "zifo")
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(z)
        jacobian = np.zeros((8, 8))
        jacobian[:4, :4] = np.diag(sigmoid(f))
        jacobian[4:, :4] = np.diag(sigmoid(o) * (1 - np.tanh(c) ** 2) * sigmoid(f))
        h = sigmoid(o) * np.tanh(c)
        product = jacobian @ product
    gain = np.log10(np.linalg.norm(product, 2))
    assert found["without"]["R_z"]["log10_norm"]["median"] == pytest.approx(gain, abs=1e-10)
    full = found["chains"][0]["log10_norm"]["median"]
    assert found["without"]["R_i"]["log10_norm"]["median"] == pytest.approx(full, abs=1e-12)


def test_of_a_stack_and_of_what_is_not_asked(tmp_path):
    rng = np.random.default_rng(0)
    names = {"weight_ih": (8, 3), "weight_hh": (8, 2), "bias_ih": (8,), "bias_hh": (8,)}
    arrays = {f"{name}_l0": rng.standard_normal(shape) for name, shape in names.items()}
    arrays |= {
        f"{name}_l1": rng.standard_normal((shape[0], *[2] * (len(shape) - 1)))
        for name, shape in names.items()
    }
    np.savez(tmp_path / "x.npz", **arrays)
    found = told(checkpoint=tmp_path / "x.npz", inputs=rng.standard_normal((9, 3)))
    assert list(found["without"]) == ["layer0", "layer1", "0->1"]
    layers = {
        f"layer{k}": layer["chains"][0]["log10_norm"]["median"] for k, layer in enumerate(found["layers"])
    }
    # Without what layer 0 does to layer 1 they stand side by side.
    alone = found["without"]["0->1"]["log10_norm"]["median"]
    assert alone == pytest.approx(max(layers.values()), abs=1e-10)
    assert set(found["layers"][0]["without"]) == {"carousel", "R_z", "R_i", "R_f", "R_o"}
    for only in ("verdict", "gain"):
        assert "without" not in told(cell="lstm", only=only, **SIZES)
    assert "without" in told(cell="lstm", only="paths", **SIZES)
    assert "without" not in told(cell="rnn", **SIZES)
    assert list(told(cell="lstm", view="cell", cut="R_i", **SIZES)["without"]) == ["carousel", "R_z", "R_f"]
