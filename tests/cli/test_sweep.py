"""gradscope sweep: rows of a grid, kept, dealt out, merged, and what is drawn of them."""

import json
import math
import os
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import gradscope
from gradscope.report.terminal import Terminal
from gradscope.report.views import Look, render
from gradscope.schemas import schema

GOLDEN = Path(__file__).parents[1] / "golden"
# A linear network of an orthogonal matrix: sigma_1 of T steps is gain ** T, exactly.
LINEAR = [
    "--cell",
    "linear",
    "--init",
    "orthogonal",
    "--hidden",
    "3",
    "--input-size",
    "1",
    "--inputs",
    "zeros",
]
GRID = [*LINEAR, "--grid", "gain=0.25,0.5,1,2", "--grid", "steps=4,8,12"]


def rows_in(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_linear_network_has_the_gains_of_its_closed_form(run):
    code, out, err = run("sweep", *GRID, "--format", "jsonl")
    assert code == 0
    assert err.startswith(
        "gradscope: 3 shapes (steps): as many programs are compiled at most, seconds each\n"
    )
    rows = rows_in(out)
    assert [row["index"] for row in rows] == list(range(12))
    for row in rows:
        jsonschema.validate(row, schema("sweep"))
        gain, steps = row["settings"]["gain"], row["settings"]["steps"]
        assert row["point"] == f"gain={gain:g}, steps={steps}"
        assert row["log10_norm"] == pytest.approx(steps * math.log10(gain), abs=1e-11)
        assert row["rate"] == pytest.approx(math.log(gain), abs=1e-11)
        # The largest lag at which gain ** lag is 1e-3 or more.
        reach = steps if gain >= 1 else min(steps, math.floor(-3 / math.log10(gain) + 1e-9))
        assert row["horizon"] == reach
        assert row["verdict"] == (
            "exploding" if gain == 2 and steps == 12 else "vanishing" if reach < steps else "stable"
        )
        assert row["converged"]
    assert len({row["key"] for row in rows}) == 12


def test_it_is_what_analyze_finds():
    given = {"cell": "gru", "hidden": 5, "input_size": 2, "steps": 9, "batch": 2}
    found = gradscope.sweep(**given, grid={"gain": [0.5, 3.0], "update_bias": [-1, 2], "seed": [1]})
    for row in found.points:
        at = row["settings"]
        whole = gradscope.analyze(
            **given, gain=at["gain"], biases={"b_z": at["update_bias"]}, seed=1, only="gain"
        )
        assert row["log10_norm"] == pytest.approx(whole.full.log10_norm.median, abs=1e-6)
        assert (row["horizon"], row["verdict"]) == (whole.full.horizon.median, whole.verdict.level)
    assert found.axes == {"gain": [0.5, 3.0], "update_bias": [-1.0, 2.0], "seed": [1]}


def test_a_gain_that_does_not_settle_is_measured_in_another_way(tmp_path):
    """Singular values a part in ten thousand apart: passes of the probe tell them apart but slowly."""
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(40, 40)))[0]
    path = tmp_path / "close.npz"
    np.savez(path, W=np.zeros((40, 1)), R=turn @ np.diag(np.linspace(1, 0.9, 40)), b=np.zeros(40))
    (row,) = gradscope.sweep(checkpoint=path, cell="linear", steps=1, grid="gain=2").points
    assert row["log10_norm"] == pytest.approx(math.log10(2), abs=1e-9)
    assert row["converged"]


def test_the_whole_analysis_has_shares_and_gates(run):
    given = ["--cell", "lstm", "--hidden", "3", "--steps", "6"]
    (row,) = rows_in(run("sweep", *given, "--only", "all", "--grid", "gain=1.5", "--format", "jsonl")[1])
    whole = gradscope.analyze(cell="lstm", hidden=3, steps=6, gain=1.5)
    assert row["shares"] == whole.mean_shares
    assert row["saturated"] == max(gate["saturated"] for gate in whole.gates.values())
    jsonschema.validate(row, schema("sweep"))


@pytest.mark.slow
def test_what_training_does_is_that_of_analyze():
    """Clipping, truncation and masks: rows have what changes, tables and pictures show it."""
    given = {"cell": "rnn", "hidden": 3, "input_size": 2, "steps": 6}
    loss = {"adjoint": [0.5, -1.0, 2.0], "clip": "value:0.2"}
    truncated = gradscope.sweep(**given, **loss, grid={"tbptt": [2, 6]})
    masked = gradscope.sweep(**given, masks=3, grid={"zoneout": [0.0, 0.5], "input_scale": [0.5, 1]})
    for row in (*truncated.points, *masked.points):
        jsonschema.validate(row, schema("sweep"))
    row, whole = truncated.points[0]["loss"], gradscope.analyze(**given, **loss, tbptt=2).loss
    assert row["clip"]["factor"] == whole.clip.factor[0] < 1
    assert row["tbptt"]["bias"] == whole.tbptt.at("R")[0] > 0
    norms = 10 ** np.array([*whole.log10_gradients.values()])
    assert row["log10_gradient"] == pytest.approx(math.log10(np.linalg.norm(norms)), abs=1e-12)
    row, whole = masked.points[2], gradscope.analyze(**given, masks=3, zoneout=0.5, input_scale=0.5)
    assert row["masks"]["log10_norm"] == whole.masks.drawn.log10_norm.median
    assert row["rate"] == whole.full.rate.median
    assert "bias of truncated BPTT" in str(truncated.figure())
    assert "Rate under masks" in str(masked.figure())
    assert truncated.rows()[1]["tbptt_bias"] == pytest.approx(0, abs=1e-12)
    shown = render(masked, "table", Look(Terminal(80)))
    assert "log10 gain under masks, zoneout to the right, input_scale upwards" in shown
    shown = render(truncated, "table", Look(Terminal(80)))
    assert "bias of truncated BPTT, |G - G_K| / |G|, tbptt to the right" in shown


def test_a_scale_of_the_inputs_is_that_of_the_inputs():
    inputs = np.random.default_rng(0).normal(size=(6, 2))
    given = {"cell": "rnn", "hidden": 3, "only": "gain"}
    scaled = gradscope.analyze(**given, inputs=inputs, input_scale=3)
    assert scaled.full.log10_norm == gradscope.analyze(**given, inputs=3.0 * inputs).full.log10_norm
    assert scaled.problem["input_scale"] == 3
    assert "inputs x 3" in str(scaled)


def test_a_point_that_fails_is_a_row_and_ends_no_other(run):
    given = [
        "--cell",
        "rnn-exponential",
        "--init",
        "gaussian",
        "--hidden",
        "4",
        "--steps",
        "300",
        "--input-size",
        "1",
    ]
    code, out, err = run("sweep", *given, "--grid", "gain=1e-9,500,2e-9", "--format", "jsonl")
    assert code == 2
    good, bad, other = rows_in(out)
    assert "infinite or NaN in float64 after step" in bad["error"]
    assert (bad["verdict"], bad["log10_norm"], bad["settings"]) == (None, None, {"gain": 500.0})
    assert good["verdict"] == "vanishing"
    assert isinstance(other["log10_norm"], float)
    jsonschema.validate(bad, schema("sweep"))
    assert "gradscope: not measured: 1 of 3 points (gain=500)" in err


def test_where_no_point_can_be_measured_there_is_one_line(run):
    code, out, err = run("sweep", "--cell", "lstmm", "--grid", "gain=0.5:2:3")
    assert (code, out) == (2, "")
    assert err.startswith("gradscope: error: no point of the grid could be measured: ")
    assert "lstmm" in err
    assert err.count("\n") == 1
    with pytest.raises(gradscope.InputError, match="no point of the grid could be measured"):
        gradscope.sweep(cell="lstmm", grid={"gain": [1.0]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "give --grid NAME=FROM:TO:COUNT"),
        (["--grid", "gian=1,2"], "did you mean gain?"),
        (["--grid", "gain=1:2"], "expected FROM:TO:COUNT"),
        (["--grid", "gain=1,2", "--gain", "3"], "leave one of them out"),
        (
            ["--grid", "gain=1,2", "--top", "3", "--only", "gain"],
            "but --only gain does not measure what it changes: leave one of them out, or give --only paths",
        ),
        (["--grid", "clip=1,2", "--only", "paths"], "or give --only all"),
        (["--grid", "masks=1,2"], "masks are an axis, but there are none: give --h-detach, say"),
        (["--grid", "clip=1,2"], "of the gradient of a loss, but none is given: add --readout or --adjoint"),
        (["--grid", "gain=1,2", "--shard", "4/4"], "has none of 2 points"),
        (
            ["--grid", "gain=1,2", "--cell", "lstm", "--view", "cell", "--only", "gain"],
            "or give --only paths",
        ),
        (["--grid", "gain=1,2", "--format", "bmf"], "format bmf does not show a sweep"),
    ],
)
def test_usage(run, arguments, message):
    code, out, err = run("sweep", *LINEAR, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1


def test_shards_resume_and_merge_to_what_one_process_finds(run, tmp_path):
    folder = f"{tmp_path}/rows/"
    whole = rows_in(run("sweep", *GRID, "--format", "jsonl")[1])
    for number in (1, 2):
        assert run("sweep", *GRID, "-o", folder, "--shard", f"{number}/2", "-q")[0] == 0
    kept = (tmp_path / "rows" / "rows.2-of-2.jsonl").read_text("utf-8")
    code, out, err = run("merge", folder)
    assert (code, err) == (0, "")
    assert rows_in(out) == whole
    # Torn midway, the shard goes on; what is there is not measured again.
    lines = kept.splitlines(keepends=True)
    (tmp_path / "rows" / "rows.2-of-2.jsonl").write_text("".join(lines[:2]) + lines[2][:40], "utf-8")
    code, _, err = run("merge", folder)
    assert code == 2
    assert "missing: 4 of 12 points" in err
    assert "1 torn by a process that was stopped" in run("sweep", *GRID, "-o", folder, "--shard", "2/2")[2]
    again = (tmp_path / "rows" / "rows.2-of-2.jsonl").read_text("utf-8").splitlines()
    assert [line for line in again if line == lines[0].strip()] == [lines[0].strip()]
    assert rows_in(run("merge", folder)[1]) == whole


def test_limits_and_verdicts_set_the_exit_code(run):
    code, _, err = run("sweep", *GRID, "-q", "--fail-on", "exploding")
    assert code == 1
    assert "--fail-on matched: 1 of 12 points (gain=2, steps=12)" in err
    code, out, err = run("sweep", *GRID, "-q", "--min", "horizon=4", "--format", "jsonl")
    assert (code, err) == (0, "")
    assert len(rows_in(out)) == 12
    code, _, err = run("sweep", *GRID, "-q", "--max", "log10_norm=2")
    assert code == 1
    assert "beyond a limit: 2 of 12 points (gain=2, steps=8; gain=2, steps=12)" in err


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A grid of an LSTM at rest, with its critical line, and a point that could not be measured."""
    found = gradscope.sweep(
        cell="lstm",
        hidden=6,
        steps=30,
        inputs="zeros",
        init="gaussian",
        grid=["gain=0.5:2.25:8", "forget_bias=-1:5:7"],
    )
    path = tmp_path_factory.mktemp("swept") / "rows.jsonl"
    rows = [dict(row) for row in found.points]
    for row in rows:  # the last digits are those of a machine
        row |= {
            name: row[name] and float(f"{row[name]:.6g}") for name in ("log10_norm", "rate", "theory_rate")
        }
    rows[10] |= {"error": "it is made up", **dict.fromkeys(("log10_norm", "rate", "horizon", "verdict"))}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_diagram(run, swept, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = run("merge", swept, "--format", "table")
    assert code == 2
    golden = GOLDEN / f"sweep_{width}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(out, "utf-8")
    assert out == golden.read_text("utf-8")
    assert max(map(len, out.splitlines())) <= width


def test_without_unicode_and_with_colour(run, swept, monkeypatch):
    coloured = run("merge", swept, "--format", "table", "--color", "always")[1]
    assert "\x1b[" in coloured
    monkeypatch.setattr("gradscope.report.terminal._unicode", lambda: False)
    plain = run("merge", swept, "--format", "table")[1]
    assert plain.isascii()
    assert "\x1b[" not in plain


def test_rows_of_two_grids_are_no_diagram(run, tmp_path):
    rows = tmp_path / "rows.jsonl"
    for axis in ("gain=0.5,1", "input_scale=0.5,1"):
        assert run("sweep", *LINEAR, "--steps", "4", "--grid", axis, "-o", rows, "-q")[0] == 0
    code, out, err = run("merge", rows, "--format", "table")
    assert (code, out) == (2, "")
    assert (
        "the rows are of 2 grids (gain; input_scale), expected one: give each call a file of its own" in err
    )
    assert run("merge", rows, "--format", "csv")[1].count("\n") == 5
    for steps in ("4", "5"):  # of one grid, asked in two ways
        assert (
            run("sweep", *LINEAR, "--steps", steps, "--grid", axis, "-o", tmp_path / "x.jsonl", "-q")[0] == 0
        )
    code, _, err = run("plot", tmp_path / "x.jsonl", "phase")
    assert code == 2
    assert "2 rows are of the point input_scale=0.5, asked with other options or by another version" in err


def test_formats(run, swept):
    table = run("merge", swept, "--format", "csv")[1].splitlines()
    assert table[0].startswith("gain,forget_bias,log10_norm,")
    assert len(table) == 57
    assert "| gain | forget_bias | log10_norm |" in run("merge", swept, "--format", "markdown")[1]
    told = json.loads(run("merge", swept, "--format", "json")[1])
    jsonschema.validate(told, schema("swept"))
    assert len(told["rows"]) == 56


def test_the_picture(run, swept, tmp_path):
    code, out, _ = run("plot", swept, "phase")
    assert code == 0
    assert out.startswith("<svg")
    for said in ("measured: rate 0", "theory: rate 0", "not measured", "forget_bias"):
        assert said in out
    assert run("plot", swept)[1] == out  # which there is of rows
    assert run("plot", swept, "training")[2].startswith("gradscope: error: the rows are 'gradscope/sweep/1'")
    assert "lag is drawn of a result, these are rows: they have phase" in run("plot", swept, "lag")[2]
    assert "made up" not in out


def test_one_axis_is_a_list_and_a_line(run, tmp_path):
    rows = tmp_path / "rows.jsonl"
    code, out, err = run("sweep", *LINEAR, "--steps", "5", "--grid", "gain=0.5:2:4", "-o", rows)
    assert code == 0
    assert f"keeps 4 points: gradscope plot {rows}" in err
    said = run("sweep", *LINEAR, "--steps", "5", "--grid", "gain=0.5:2:4", "-o", tmp_path / "x.html")
    assert (said[0], "x.jsonl, and --also html=" in said[2], (tmp_path / "x.html").exists()) == (
        2,
        True,
        False,
    )
    assert "gain=0.5" in out
    assert "rate, nats per step, gain to the right" in out
    assert "Nearest to a rate of zero: gain=1, gain 1.00, rate" in out
    assert "polyline" in run("plot", rows, "phase")[1]
    assert run("sweep", *LINEAR, "--grid", "cell=linear,rnn", "--format", "table")[0] == 2
