"""gradscope track and merge: rows as they come, kept, dealt out, put together."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from oracles import layouts

import gradscope
from gradscope.gate.budgets import MetricBudget, judge_budget
from gradscope.gate.metrics import Metric
from gradscope.schemas import schema

ROOT = Path(gradscope.__file__).parents[1]
JSONL = "--format=jsonl"
LIGHT = ["--cell", "rnn", "--steps", "8", "--light"]
GOLDEN = Path(__file__).parents[1] / "golden"


def native(path, scale, n=4):
    rng = np.random.default_rng(0)
    np.savez(
        path, W=rng.normal(size=(n, 2)), R=scale * np.linalg.qr(rng.normal(size=(n, n)))[0], b=np.zeros(n)
    )
    return path


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Six checkpoints, in a folder of the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    return [str(native(Path("runs") / f"step_{10 * k}.npz", 0.4 + 0.2 * k)) for k in (1, 2, 5, 10, 20, 40)]


def rows_in(text):
    return [json.loads(line) for line in text.splitlines()]


def test_a_row_for_each_as_they_are_given(run, runs):
    code, out, err = run("track", *runs, *LIGHT, JSONL)
    assert (code, err) == (0, "")
    rows = rows_in(out)
    assert [row["checkpoint"] for row in rows] == runs
    for row in rows:
        jsonschema.validate(row, schema("track"))
        whole = gradscope.analyze(checkpoint=row["checkpoint"], cell="rnn", steps=8, top=1)
        assert row["log10_norm"] == pytest.approx(whole.full.log10_norm.median, abs=1e-6)
        assert row["rate"] == pytest.approx(whole.full.rate.median, abs=1e-6)
        assert (row["horizon"], row["verdict"], row["converged"]) == (
            whole.full.horizon.median,
            whole.verdict.level,
            True,
        )
    assert len({row["key"] for row in rows}) == len(rows)


def test_the_whole_analysis_has_shares_and_gates(run, tmp_path):
    rng = np.random.default_rng(0)
    weights = {f"{kind}_{gate}": rng.normal(size=shape) for gate in "zifo" for kind, shape in
               (("W", (3, 2)), ("R", (3, 3)), ("b", (3,)))}  # fmt: skip
    np.savez(tmp_path / "lstm.npz", **weights)
    (row,) = rows_in(run("track", tmp_path / "lstm.npz", "--cell", "lstm", "--steps", "8", JSONL)[1])
    whole = gradscope.analyze(checkpoint=tmp_path / "lstm.npz", cell="lstm", steps=8)
    assert row["shares"] == whole.mean_shares
    assert row["saturated"] == max(gate["saturated"] for gate in whole.gates.values())
    assert row["log10_norm"] == whole.full.log10_norm.median
    jsonschema.validate(row, schema("track"))


def test_rows_come_one_by_one(run, runs, monkeypatch):
    """Each is on stdout before the next is measured."""
    seen = []
    monkeypatch.setattr("gradscope.cli.track.write_result", lambda text, _: seen.append(text))
    run("track", *runs, *LIGHT, JSONL)
    assert len([text for text in seen if text]) == len(runs)


@pytest.mark.parametrize("width", [40, 80, 120])
def test_the_table(run, runs, monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    code, out, _ = run("track", *runs, "missing.npz", *LIGHT, "--max", "log10_norm=3")
    assert code == 2
    golden = GOLDEN / f"track_{width}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(out, "utf-8")
    assert out == golden.read_text("utf-8")
    assert max(map(len, out.splitlines())) <= width


def test_without_unicode_and_with_colour(run, runs, monkeypatch):
    monkeypatch.setattr("gradscope.report.terminal._unicode", lambda: False)
    assert run("track", *runs, *LIGHT)[1].isascii()
    assert "\x1b[" in run("track", *runs, *LIGHT, "--color", "always")[1]
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in run("track", *runs, *LIGHT)[1]


def test_order(run, runs):
    lexical = sorted(runs)
    assert lexical != runs
    _, out, err = run("track", *lexical, *LIGHT, JSONL)
    assert [row["checkpoint"] for row in rows_in(out)] == lexical
    assert "runs/step_100.npz stands before runs/step_20.npz" in err
    out, err = run("track", *lexical, *LIGHT, JSONL, "--sort")[1:]
    assert ([row["checkpoint"] for row in rows_in(out)], err) == (runs, "")


def test_what_training_makes_of_the_gradient_has_columns(run, runs):
    """In the table where there is room, in CSV, as limits, and in its course; merged too."""
    np.save("adjoint.npy", np.ones(4))
    asked = ["--cell", "rnn", "--steps", "8", "--adjoint", "adjoint.npy", "--tbptt", "3", "--zoneout", "0.5"]
    limits = ["--max", "tbptt_bias=0.5", "--min", "masked_horizon=1"]
    code, out, _ = run("track", *runs[:2], *asked, "--masks", "2", *limits, "-o", "rows.jsonl")
    rows = rows_in(Path("rows.jsonl").read_text())
    for row in rows:
        jsonschema.validate(row, schema("track"))
    biases = [row["loss"]["tbptt"]["bias"] for row in rows]
    assert [row["checks"][1]["value"] for row in rows] == biases
    assert code == int(max(biases) > 0.5)
    for heading in ("|dL/dp|", " bias", "log10 masked "):
        assert heading in out
    table = run("merge", "rows.jsonl", "--format", "table", "--also", "csv=rows.csv")[1]
    assert table.splitlines()[2:] == out.splitlines()[2:]
    assert "clipped to" not in table
    written = list(csv.DictReader(Path("rows.csv").read_text().splitlines()))
    assert [float(one["tbptt_bias"]) for one in written] == biases
    assert [one["masked_verdict"] for one in written] == [row["masks"]["verdict"] for row in rows]


def test_what_cannot_be_read_is_a_row_and_the_exit_code_says_so(run, runs):
    Path("runs/broken.npz").write_bytes(b"PK\x03\x04 nothing")
    code, out, err = run("track", runs[0], "runs/broken.npz", "runs/none.npz", runs[1], *LIGHT, JSONL)
    rows = rows_in(out)
    assert code == 2
    assert ["error" in row for row in rows] == [False, True, True, False]
    assert (rows[1]["verdict"], rows[2]["key"]) == (None, None)
    assert "not read: 2 of 4 checkpoints (runs/broken.npz; runs/none.npz)" in err
    for row in rows:
        jsonschema.validate(row, schema("track"))


def test_limits(run, runs):
    both = run("track", *runs, "missing.npz", *LIGHT, "--max", "log10_norm=1", "-q")
    assert both[:2] == (1, "")  # a broken limit is a finding, whatever could not be read besides
    code, out, err = run("track", *runs, *LIGHT, "--max", "log10_norm=1", "--min", "rate=-9", JSONL)
    rows = rows_in(out)
    assert code == 1
    broken = [row["checkpoint"] for row in rows if row["log10_norm"] > 1]
    assert 0 < len(broken) < len(rows)
    assert [row["checkpoint"] for row in rows if not row["checks"][-1]["passed"]] == broken
    assert f"beyond a limit: {len(broken)} of 6" in err
    code, out, err = run("track", runs[0], "missing.npz", *LIGHT, "--max", "log10_norm=99", "-q")
    assert (code, out) == (2, "")
    assert "gradscope: missing.npz: No such file or directory" in err  # no row says why
    assert run("track", *runs, *LIGHT, "--max", "log10_norm=99")[0] == 0
    assert run("track", *runs, *LIGHT, "--fail-on", "vanishing")[0] == 1
    assert "did you mean log10_norm?" in run("track", *runs, *LIGHT, "--max", "log10_nrm=1")[2]
    code, out, err = run("track", *runs, *LIGHT, "--min", "share.R=0.3")
    assert (code, out, "a limit is of share.R, but --light" in err) == (2, "", True)


def test_limits_of_the_settings_file(run, runs):
    Path("gradscope.toml").write_text('[track]\nmax = ["log10_norm=1"]\n')
    assert run("track", *runs, *LIGHT)[0] == 1


CONFIG = """
[track]
steps = 9
[analyses.decoder]
cell = "rnn"
steps = 8
[analyses.decoder.budgets]
log10_norm = {max = 1}
rate = {min = 9, severity = "warn"}
"change.rate" = {max = 0.1}
[analyses.other]
cell = "gru"
hidden = 4
input_size = 2
steps = 5
[analyses.other.budgets]
log10_norm = {max = 3}
"""


def test_options_and_budgets_of_an_analysis_of_the_file(run, runs):
    Path("gradscope.toml").write_text(CONFIG)
    code, out, _ = run("track", *runs, "--name", "decoder", "--light", JSONL)
    rows = rows_in(out)
    assert code == 1
    assert {row["steps"] for row in rows} == {8}
    assert [check["metric"] for check in rows[0]["checks"]] == ["log10_norm", "rate"]
    assert rows[0]["checks"][1]["severity"] == "warn"
    assert {row["steps"] for row in rows_in(run("track", runs[0], "--cell", "rnn", "--light", JSONL)[1])} == {
        9
    }
    assert (
        rows_in(run("track", runs[0], "--name", "decoder", "--steps", "7", "--light", JSONL)[1])[0]["steps"]
        == 7
    )
    assert "did you mean decoder?" in run("track", *runs, "--name", "decodr")[2]
    Path("gradscope.toml").unlink()
    assert "no settings file" in run("track", *runs, "--name", "decoder")[2]


CHECKED = CONFIG.replace('cell = "rnn"', 'cell = "rnn"\nhidden = 4\ninput_size = 2').replace(
    '"change.rate" = {max = 0.1}', ""
)


@pytest.mark.parametrize("name", ["json", "jsonl", "junit", "github", "table"])
def test_shards_of_check_make_what_one_process_makes(run, tmp_path, monkeypatch, name):
    if name == "junit":
        pytest.importorskip("junitparser")
    monkeypatch.chdir(tmp_path)
    text = CHECKED.replace("log10_norm = {max = 1}", "log10_norm = {max = -9}")
    Path("gradscope.toml").write_text(text + "[analyses.idle]\ncell = 'gru'\n[analyses.bad]\ncell = 'nope'\n"
                                      "budgets.rate.max = 1\n")  # fmt: skip
    code, whole, _ = run("check", "--format", name)
    assert code == 1
    monkeypatch.setenv("GRADSCOPE_SHARDS", "2")
    for number in (1, 2):
        monkeypatch.setenv("GRADSCOPE_SHARD_INDEX", str(number - 1))
        code, out, err = run("check", "--shard", "auto", "-o", "rows/")
        assert f"shard {number} of 2 (GRADSCOPE_SHARD_INDEX): 2 of 4 analyses" in err
        assert code == (1 if number == 1 else 2)  # of its own analyses
    found, out, _ = run("merge", "rows", "--format", name)
    assert (found, out) == (1, whole)
    for line in [line for path in Path("rows").iterdir() for line in path.read_text().splitlines()]:
        jsonschema.validate(json.loads(line), schema("check"))


def runs_of_check(monkeypatch):
    from gradscope import api

    seen, real = [], api.analyze
    monkeypatch.setattr(api, "analyze", lambda **asked: seen.append(asked["cell"]) or real(**asked))
    return seen


def test_a_shard_of_check_goes_on_where_it_was_stopped(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("gradscope.toml").write_text(CHECKED)
    seen = runs_of_check(monkeypatch)
    shard = ["check", "--shard", "1/1", "-o", "rows/"]
    assert run(*shard)[0] == 0
    file = Path("rows/rows.1-of-1.jsonl")
    file.write_bytes(file.read_bytes()[:-20])
    code, out, err = run(*shard)
    assert (code, seen) == (0, ["rnn", "gru", "gru"])
    assert "1 torn" in err
    assert out.startswith("PASSED")
    kept = file.read_bytes()
    assert (run(*shard)[0], file.read_bytes(), len(seen)) == (0, kept, 3)
    Path("gradscope.toml").write_text(CHECKED.replace("log10_norm = {max = 3}", "log10_norm = {max = -3}"))
    assert (run(*shard)[0], len(seen)) == (1, 4)  # another limit
    assert run("merge", "rows")[0] == 1
    Path("gradscope.toml").write_text(CHECKED)
    assert (run(*shard)[0], len(seen)) == (0, 4)
    assert run("merge", "rows", "-o", "all.txt")[0] == 0  # of both rows the one that was asked for last
    # An analysis more: the rows that are kept have another place in the whole.
    Path("gradscope.toml").write_text(
        "[analyses.a]\ncell = 'linear'\nsteps = 3\nbudgets.rate.max = 9\n" + CHECKED
    )
    assert (run(*shard)[0], len(seen)) == (0, 5)
    told = json.loads(run("merge", "rows", "--json")[1])
    assert [one["analysis"] for one in told["checks"]] == ["a", "decoder", "decoder", "other"]


def test_the_baseline_of_a_shard_is_that_of_one_process(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("gradscope.toml").write_text(CHECKED)
    assert run("check", "-q", "--write-baseline", "whole.json")[0] == 0
    for name in ("measured.json", "kept.json"):
        assert run("check", "-q", "--shard", "1/1", "-o", "rows/", "--write-baseline", name)[0] == 0
    assert (
        Path("measured.json").read_text() == Path("kept.json").read_text() == Path("whole.json").read_text()
    )


DAMAGE = [
    ("checks", 3),
    ("checks", [{}]),
    ("notes", None),
    ("measured", {"metrics": 3}),
    *((f"checks.{name}", value) for name, value in (
        *(("value", []), ("value", None), ("value", "x"), ("lowest", None), ("severity", "loud")),
        *(("metric", "nothing"), ("sequences", "many"), ("line", "1,title=x"), ("file", 3)),
    )),
]  # fmt: skip


@pytest.mark.parametrize("kind", ["check", "track"])
@pytest.mark.parametrize(("field", "value"), DAMAGE)
def test_rows_of_strangers(run, tmp_path, monkeypatch, kind, field, value):
    """Refused in one line, or left out of account; never an error of ours."""
    monkeypatch.chdir(tmp_path)
    check = judge_budget("a", MetricBudget("rate", max=1), Metric("rate", None, None, (0.0, 0.5), 1e-9))
    row = {"schema": f"gradscope/{kind}/1", "gradscope": "1", "index": 0, "of": 1, "key": "k"}
    row |= {"analysis": "a", "idle": False, "notes": []} if kind == "check" else {"checkpoint": "a"}
    row |= {"checks": [check.to_row() | {"file": "gradscope.toml", "line": 1}]}
    if field.startswith("checks."):
        row["checks"][0][field.removeprefix("checks.")] = value
    else:
        row[field] = value
    Path("rows.jsonl").write_text(json.dumps(row) + "\n")
    for name in ("table", "github", "markdown"):
        code, _, err = run("merge", "rows.jsonl", "--format", name)
        assert code in (0, 2)
        assert code == 0 or re.fullmatch(r"gradscope: error: (row of a|rows.jsonl: line 1): .*\n", err), err


def test_the_rows_of_a_settings_file(run, tmp_path, monkeypatch):
    (tmp_path / "gradscope.toml").write_text("[check]\noutput = 'rows/'\nshard = '1/1'\n" + CHECKED)
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    assert run("check", "-q")[0] == 0
    assert [path.name for path in (tmp_path / "rows").iterdir()] == ["rows.1-of-1.jsonl"]


def test_what_merge_says_of_a_check_that_is_not_whole(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("gradscope.toml").write_text(CHECKED)
    assert run("check", "--shard", "2/2", "-o", "rows/")[0] == 0
    code, out, err = run("merge", "rows", "--format", "table")
    assert code == 2
    assert "missing: 1 of 2 analyses (number 1)" in err
    assert out.startswith("NOT MEASURED")
    run("check", "--shard", "1/2", "--seed", "3", "-o", "rows/")
    run("check", "--shard", "1/2", "-o", "other.jsonl")
    assert (
        "'decoder' is in rows/rows.1-of-2.jsonl and in other.jsonl, with other options"
        in run("merge", "rows", "other.jsonl")[2]
    )
    assert "shard 3 of 3 has none of 2 analyses" in run("check", "--shard", "3/3")[2]
    assert "leave out --shard" in run("check", "--shard", "1/2", "--max", "log10_norm=3")[2]
    assert "leave out --shard" in run("check", "--shard", "1/2", "--update-budgets")[2]
    assert "is no file" in run("check", "--shard", "1/2", "-o", "/dev/null")[2]
    code, out, _ = run("check", "--shard", "1/2", JSONL)
    assert (code, json.loads(out)["schema"]) == (0, "gradscope/check/1")


# -- rows that are kept ------------------------------------------------------------------------------


def measured(monkeypatch):
    """The checkpoints that are really measured from here on."""
    from gradscope import api

    seen, real = [], api.analyze_light
    monkeypatch.setattr(
        api,
        "analyze_light",
        lambda settings, probe: seen.append(settings.checkpoint) or real(settings, probe),
    )
    return seen


def test_what_was_stopped_goes_on(run, runs, monkeypatch):
    whole = rows_in(run("track", *runs, *LIGHT, JSONL)[1])
    run("track", *runs[:3], *LIGHT, "-o", "rows.jsonl")
    file = Path("rows.jsonl")
    file.write_bytes(file.read_bytes()[:-20])  # the third was torn
    seen = measured(monkeypatch)
    code, out, err = run("track", *runs, *LIGHT, "-o", "rows.jsonl", JSONL)
    assert (code, out) == (0, "")
    assert "1 torn" in err
    assert [str(one) for one in seen] == runs[2:]
    assert rows_in(run("merge", "rows.jsonl")[1]) != []
    merged = {row["checkpoint"]: row["log10_norm"] for row in rows_in(run("merge", "rows.jsonl")[1])}
    assert merged == pytest.approx({row["checkpoint"]: row["log10_norm"] for row in whole}, abs=1e-7)
    before = file.read_bytes()
    assert run("track", *runs, *LIGHT, "-o", "rows.jsonl")[0] == 0
    assert (file.read_bytes(), len(seen)) == (before, 4)


def test_content_options_and_inputs_make_a_row_another(run, runs, monkeypatch):
    seen = measured(monkeypatch)

    def again(*more, of=runs[:1]):
        count = len(seen)
        run("track", *of, *LIGHT, *more, "-o", "rows.jsonl")
        return len(seen) - count

    assert [again(), again()] == [1, 0]
    assert [again("--seed", "3"), again("--seed", "3"), again("--max", "rate=3")] == [1, 0, 1]
    assert again("--platform", "cpu") == 0
    np.save("x.npy", np.ones((8, 2)))
    assert [again("--inputs", "x.npy"), again("--inputs", "x.npy")] == [1, 0]
    np.save("x.npy", np.zeros((8, 2)))
    assert again("--inputs", "x.npy") == 1
    Path("runs/best.npz").write_bytes(Path(runs[0]).read_bytes())
    assert again(of=["runs/best.npz"]) == 0  # the same content has a row of its own name, at no cost
    native(Path(runs[0]), 0.9)
    assert again() == 1
    source = "from gradscope.cells import find\n\n\ndef made():\n    return find('rnn')\n"
    Path("tracked_cell.py").write_text(source)
    assert [again("--cell", "tracked_cell:made"), again("--cell", "tracked_cell:made")] == [1, 0]
    Path("tracked_cell.py").write_text(f"# another\n{source}")
    assert again("--cell", "tracked_cell:made") == 1
    names = [row["checkpoint"] for row in rows_in(Path("rows.jsonl").read_text())]
    assert names.count("runs/best.npz") == 1


def test_shards_and_merge(run, runs, monkeypatch):
    whole = rows_in(run("track", *runs, *LIGHT, JSONL)[1])
    for number in (1, 2):
        err = run("track", *runs, *LIGHT, "--shard", f"{number}/4", "-o", "rows/")[2]
        assert f"shard {number} of 4 (--shard): 2 of 6 checkpoints" in err
    code, out, err = run("merge", "rows")
    assert (code, err) == (2, "gradscope: missing: 2 of 6 checkpoints (number 3, 4)\n")
    monkeypatch.setenv("GRADSCOPE_SHARDS", "4")
    for number in (2, 3):
        monkeypatch.setenv("GRADSCOPE_SHARD_INDEX", str(number))
        run("track", *runs, *LIGHT, "--shard", "auto", "-o", "rows/")
    assert sorted(path.name for path in Path("rows").iterdir()) == [
        f"rows.{n}-of-4.jsonl" for n in (1, 2, 3, 4)
    ]
    run("track", *runs[:2], *LIGHT, "-o", "rows/twice.jsonl")
    code, out, err = run("merge", *sorted(Path("rows").glob("rows.*")))
    assert (code, err) == (0, "")
    assert [row["checkpoint"] for row in rows_in(out)] == [row["checkpoint"] for row in whole]
    assert run("merge", "rows", "-o", "all.jsonl")[0] == 0
    assert [row["checkpoint"] for row in rows_in(Path("all.jsonl").read_text())] == runs
    assert run("merge", "all.jsonl", "--format", "table")[1].splitlines()[0] == "6 checkpoints in runs"
    assert (
        run("merge", "all.jsonl", "--format", "csv")[1].splitlines()[0].startswith("checkpoint,log10_norm,")
    )


def test_what_is_refused(run, runs):
    assert "expected I/N such as 2/8" in run("track", *runs, *LIGHT, "--shard", "2")[2]
    assert "has none of 6 checkpoints: ask for fewer" in run("track", *runs, *LIGHT, "--shard", "8/8")[2]
    assert "--light measures the gain alone" in run("track", *runs, *LIGHT, "--top", "2")[2]
    assert "is a file to be read" in run("track", *runs, *LIGHT, "-o", runs[0])[2]
    Path("other.jsonl").write_text('{"schema": "gradscope/analysis/1"}\n')
    assert "expected a row (gradscope/track/1)" in run("track", *runs, *LIGHT, "-o", "other.jsonl")[2]
    Path("whole.json").write_text('{"schema": "gradscope/tracked/1", "rows": []}\n')
    assert "write them by -o or --format jsonl" in run("plot", "whole.json", "training", "-o", "a.svg")[2]
    assert "No such file" in run("merge", "none.jsonl")[2]
    Path("empty").mkdir()
    assert "no rows" in run("merge", "empty")[2]


# -- real processes ----------------------------------------------------------------------------------

PAGE = (ROOT / "docs" / "many-checkpoints.md").read_text("utf-8")


def recipe(name):
    return re.search(rf"<!-- recipe: {name} -->\n```\w+\n(.*?)```", PAGE, re.DOTALL)[1]


# The command line as it is, but for what is measured: 36 processes that import JAX take minutes.
QUICK = """
import sys
from gradscope.cli import main, track
from gradscope.track import following
track._measuring = lambda *_, **__: str
following.row_of = lambda *_: {"log10_norm": 0.0, "rate": 0.0, "horizon": 1.0, "verdict": "stable"}
sys.exit(main.main())
"""


def python_env(folder, **more):
    """As on the machine of a user: gradscope and srun are programs."""
    (folder / "quick.py").write_text(QUICK)
    programs = {
        "gradscope": f'exec {sys.executable} {folder}/quick.py "$@"',
        "srun": 'for i in 0 1 2 3; do SLURM_STEP_ID=0 SLURM_PROCID=$i SLURM_NTASKS=4 "$@" || exit 1; done',
    }
    for name, text in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    return (
        os.environ | {"PATH": path, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "JAX_PLATFORMS": "cpu"} | more
    )


@pytest.fixture
def project(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "runs").mkdir()
    for number in range(12):
        layouts.saved(
            layouts.recurrent("gru", 2, 3, seed=number), tmp_path / "runs" / f"step_{number}.safetensors"
        )
    return tmp_path


def shell(script, folder, **more):
    done = subprocess.run(
        ["sh", "-euc", script],
        cwd=folder,
        env=python_env(folder / "bin", **more),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def complete(folder):
    rows = rows_in(shell("gradscope merge rows/", folder))
    assert [row["checkpoint"] for row in rows] == [
        f"runs/step_{number}.safetensors" for number in sorted(range(12), key=str)
    ]
    assert not any("error" in row for row in rows)


@pytest.mark.slow
def test_the_recipe_for_slurm(project):
    for task in range(8):
        told = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_ARRAY_TASK_MIN": "0"}
        shell(recipe("slurm"), project, SLURM_JOB_ID="1", SLURM_PROCID="0", SLURM_NTASKS="1", **told)
    shell(recipe("merge"), project)
    complete(project)


@pytest.mark.slow
def test_the_recipe_for_srun(project):
    for task in range(2):
        told = {"SLURM_ARRAY_TASK_ID": str(task), "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_ARRAY_TASK_MIN": "0"}
        shell(recipe("srun"), project, SLURM_JOB_ID="1", **told)
    complete(project)


@pytest.mark.slow
def test_the_recipe_for_kubernetes(project):
    (command,) = re.findall(r"- (gradscope .*)", recipe("kubernetes"))
    count = int(re.search(r"completions: (\d+)", recipe("kubernetes"))[1])
    for index in range(count):
        shell(command, project, JOB_COMPLETION_INDEX=str(index))
    complete(project)


@pytest.mark.slow
def test_the_recipe_for_github(project):
    commands = re.findall(r"- run: (gradscope .*)", recipe("github"))
    shards = json.loads(re.search(r"shard: (\[.*?\])", recipe("github"))[1])
    told = dict(re.findall(r'(GRADSCOPE_\w+): "(.*?)"', recipe("github")))
    for index in range(len(shards)):
        values = {"${{ strategy.job-index }}": str(index), "${{ strategy.job-total }}": str(len(shards))}
        shell(commands[0], project, **{name: values[value] for name, value in told.items()})
    assert "12 checkpoints" in shell(commands[1], project)
    complete(project)


@pytest.mark.slow
def test_the_recipe_for_check(project):
    """The same exit code and table as without shards."""
    settings = "".join(
        f"[analyses.a{size}]\ncell = 'rnn'\nhidden = {size}\nsteps = 5\nbudgets.log10_norm.max = 3\n"
        for size in (2, 3)
    )
    (project / "gradscope.toml").write_text(settings)
    script = recipe("check").replace("gradscope ", f"{sys.executable} -m gradscope ")
    assert "PASSED: 2 of 2 budgets kept, 2 analyses" in shell(script, project)


@pytest.mark.slow
def test_the_recipe_without_a_scheduler(project):
    shell(recipe("shell"), project)
    complete(project)


@pytest.mark.slow
def test_the_recipe_for_parallel(project):
    """By GNU parallel itself; where that is not installed the same calls side by side, by xargs."""
    line = recipe("parallel")
    command, _, items = line.removeprefix("parallel ").partition(" ::: ")
    found = shutil.which("parallel")
    of_gnu = found and "GNU" in subprocess.run([found, "--version"], capture_output=True, text=True).stdout
    shell(line if of_gnu else f"printf '%s\n' {items.strip()} | xargs -P 3 -I {{}} {command}", project)
    complete(project)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["submitit", "ray", "dask"])
def test_the_lines_for_what_others_run_already(project, name):
    """As a script of their own, with what it starts by itself: the same machine."""
    pytest.importorskip({"dask": "distributed"}.get(name, name))
    (project / "script.py").write_text(recipe(name))
    out = shell(f"rm bin/srun; {sys.executable} script.py", project)  # by which submitit knows Slurm
    assert "[0, 0, 0, 0]" in out.splitlines()
    complete(project)


def started(project, command, number, folder="rows/"):
    return subprocess.Popen(
        [sys.executable, "-m", "gradscope", *command, "--shard", f"{number}/2", "-o", folder],
        cwd=project,
        env=python_env(project / "bin"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def killed_and_started_again(project, command, of):
    """Two shards at once; one is killed with SIGKILL after a few rows, and started again: how both exit."""
    first, second = started(project, command, 1), started(project, command, 2)
    file = project / "rows" / "rows.1-of-2.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and (not file.exists() or file.read_bytes().count(b"\n") < 3):
        time.sleep(0.01)
    first.send_signal(signal.SIGKILL)
    first.wait()
    kept = file.read_bytes()
    assert 3 <= kept.count(b"\n") < of // 2
    file.write_bytes(kept + b'{"schema": "gradscope/')  # as if within a line
    codes = started(project, command, 1).wait(), second.wait()
    assert file.read_bytes().startswith(kept)
    lines = [json.loads(line) for path in (project / "rows").iterdir()
             for line in path.read_text().splitlines() if line.endswith("}")]  # fmt: skip
    assert sorted(line["index"] for line in lines) == list(range(of))  # nothing lost, nothing twice
    return codes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_process_that_is_killed_loses_nothing_and_nothing_is_twice(project):
    many = 120  # more than are measured before a busy machine sees the third
    names = [f"runs/many_{number}.npz" for number in range(many)]
    for name in names:
        native(project / name, 1.0, n=20)
    command = ["track", *names, "--cell", "rnn", "--steps", "50"]
    assert killed_and_started_again(project, command, many) == (0, 0)
    rows = rows_in(shell("gradscope merge rows/ 2>/dev/null", project))
    assert [row["checkpoint"] for row in rows] == names


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_check_that_is_killed_loses_nothing_and_nothing_is_twice(project):
    many = 30
    (project / "gradscope.toml").write_text(
        "".join(
            f"[analyses.a{number}]\ncell = 'rnn'\nhidden = 20\nsteps = {50 + number}\n"
            f"budgets.log10_norm.max = {-99 if number == 6 else 99}\n"
            for number in range(many)
        )
    )
    assert killed_and_started_again(project, ["check"], many) == (1, 0)
    whole = [sys.executable, "-m", "gradscope", "check", "--json"]
    ran, merged = (
        subprocess.run(command, cwd=project, env=python_env(project / "bin"), capture_output=True, text=True)
        for command in (whole, [*whole[:3], "merge", "rows/", "--json"])
    )
    assert (ran.returncode, merged.returncode) == (1, 1)
    assert json.loads(merged.stdout) == json.loads(ran.stdout)
