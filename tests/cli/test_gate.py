"""``check`` and ``compare`` from the command line: what is run, what is written, and how they exit."""

import json
import re
import shlex

import jsonschema
import numpy as np
import pytest
from oracles.program import TOLD

import gradscope
from gradscope.gate.baseline import read_entries

TINY = ["--cell", "gru", "--hidden", "3", "--input-size", "2", "--steps", "6"]
FILE = """
baseline = "base.json"
[analyses.small]
cell = "gru"
hidden = 3
input_size = 2
steps = 6
seed = [0, 1, 2]
[analyses.small.budgets]
log10_norm = {max = 3}
"horizon.carry" = {min = 1, severity = "warn"}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "gradscope.toml"
    path.write_text(FILE)
    return path


def gain(seed):
    return gradscope.analyze(cell="gru", hidden=3, input_size=2, steps=6, seed=seed).full.log10_norm.median


def test_budgets_of_a_file(run, config):
    code, out, err = run("check", "--json")
    assert (code, err) == (0, "")
    one, other = json.loads(out)["checks"]
    gains = [gain(seed) for seed in (0, 1, 2)]
    assert one["value"] == pytest.approx(sorted(gains)[1], abs=1e-9)
    assert one["spread"] == pytest.approx(max(gains) - min(gains), abs=1e-9)
    assert (one["analysis"], one["metric"], one["max"], one["passed"]) == ("small", "log10_norm", 3, True)
    assert (other["severity"], other["min"]) == ("warn", 1)


@pytest.mark.parametrize(
    ("limit", "severity", "code"),
    [(-9, "error", 1), (-9, "warn", 0), (-9, "off", 0), (3, "error", 0)],
)
def test_exit_codes(run, config, limit, severity, code):
    config.write_text(FILE.replace("{max = 3}", f'{{max = {limit}, severity = "{severity}"}}'))
    found, out, _ = run("check", "--seed", "0")
    assert found == code
    assert out.startswith("FAILED" if code else "PASSED")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "nothing to check: has no analyses"),
        ("[analyses.x]\ncell = 'gru'\n", "nothing to check: has no budgets"),
        ("[analyses.x]\ncell = 'nope'\nbudgets.rate.max = 1\n", "x: unknown cell 'nope'"),
        ("[analyses.x]\nhiden = 1\n", "did you mean hidden?"),
    ],
)
def test_nothing_analysed_is_never_success(run, config, text, said):
    config.write_text(text)
    code, out, err = run("check")
    assert code == 2
    assert said in out.replace("\n", " ") + err


def test_without_a_file(run):
    code, out, err = run("check")
    assert (code, out) == (2, "")
    assert "no gradscope.toml, nor a pyproject.toml" in err
    code, out, _ = run(
        "check", *TINY, "--max", "log10_norm=3", "--min", "log10_norm=-50", "--min", "horizon=100"
    )
    assert code == 1
    assert "horizon is" in out
    assert "below min 100" in out
    assert run("check", *TINY, "--max", "log10_norm=3", "-q")[:2] == (
        0,
        "PASSED: 1 of 1 budget kept, 1 analysis\n",
    )
    code, out, err = run("check", "--cell", "gru", "--hidden", "0", "--max", "rate=1")
    assert code == 2
    assert "gru: --hidden is 0" in out
    assert "rate has a max already" in run("check", "--max", "rate=1", "--max", "rate=2")[2]


def test_a_checkpoint(run, tmp_path):
    np.savez(tmp_path / "w.npz", W=np.ones((3, 2)), R=np.eye(3) / 10, b=np.zeros(3))
    bounds = ["--max", "log10_norm=-5", "--min", "log10_norm=-7"]
    code, out, _ = run("check", "w.npz", "--cell", "rnn-linear", "--steps", "6", *bounds, "--json")
    (check,) = json.loads(out)["checks"]
    assert (code, check["analysis"]) == (0, "w.npz")
    assert check["value"] == pytest.approx(-6.0)


def test_a_loss_that_is_clipped(run, tmp_path):
    np.savez(tmp_path / "w.npz", W=np.ones((3, 2)), R=np.eye(3) / 10, b=np.zeros(3))
    np.save(tmp_path / "adjoint.npy", np.ones(3))
    asked = ["w.npz", "--cell", "rnn-linear", "--steps", "6", "--adjoint", "adjoint.npy", "--clip", "1e-3"]
    code, out, _ = run("check", *asked, "--max", "clip_factor=0.9", "--max", "masked_rate=0", "--json")
    clip, masked = json.loads(out)["checks"]
    assert (code, masked["value"]) == (2, None)
    assert masked["failure"].endswith("give masks by h_detach, recurrent_dropout or zoneout")
    assert 0 < clip["value"] < 0.1


def test_flags_go_before_the_file(run, config):
    code, out, _ = run("check", "--steps", "2", "--seed", "5", "--json")
    one = gradscope.analyze(cell="gru", hidden=3, input_size=2, steps=2, seed=5)
    assert json.loads(out)["checks"][0]["value"] == pytest.approx(one.full.log10_norm.median, abs=1e-9)
    assert code == 0


def test_settings_of_all_commands_stand_behind_an_analysis_own(run, config, monkeypatch):
    config.write_text(
        "steps = 2\nhidden = 9\nseed = 3\n" + FILE.replace("steps = 6", "").replace("seed = ", "# ")
    )
    one = gradscope.analyze(cell="gru", hidden=3, input_size=2, steps=2, seed=3)
    assert value(run("check", "--json")) == pytest.approx(one.full.log10_norm.median, abs=1e-9)
    monkeypatch.setenv("GRADSCOPE_CHECK_STEPS", "4")
    one = gradscope.analyze(cell="gru", hidden=3, input_size=2, steps=4, seed=3)
    assert value(run("check", "--json")) == pytest.approx(one.full.log10_norm.median, abs=1e-9)


def value(done):
    return json.loads(done[1])["checks"][0]["value"]


def test_another_file(run, config, tmp_path):
    (tmp_path / "other").mkdir()
    text = FILE.replace("max = 3", "max = -9") + '"change.rate" = {max = 0.1}\n'
    (tmp_path / "other" / "ci.toml").write_text("format = 'json'\n" + text)
    code, out, _ = run("check", "--config", "other/ci.toml")
    assert code == 1
    assert "other/base.json does not exist" in json.loads(out)["checks"][2]["failure"]
    assert "did you mean analyses?" in run("check", "--config", "gone.toml")[2] + _misspelt(run, tmp_path)


def _misspelt(run, folder):
    (folder / "x.toml").write_text("analysis.x.cell = 'gru'\n")
    return run("check", "--config", "x.toml")[2]


def test_changes_from_a_baseline(run, config):
    config.write_text(FILE + '"change.log10_norm" = {max = 0.01}\n')
    code, out, _ = run("check", "--json")
    assert code == 2
    assert "base.json does not exist" in json.loads(out)["checks"][2]["failure"]
    assert run("check", "--write-baseline", "base.json", "-q")[0] == 0  # from itself
    code, out, _ = run("check", "--json")
    assert code == 0
    assert json.loads(out)["checks"][2]["value"] == pytest.approx(0, abs=1e-8)
    code, out, _ = run("check", "--steps", "4")
    assert code == 1
    assert "the baseline is of another problem or maker: steps 6 -> 4" in " ".join(out.split())
    assert "horizon.R_h" in read_entries(config.parent / "base.json")["small"].metrics


def test_several_formats_in_one_run(run, config, tmp_path, monkeypatch):
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    (tmp_path / "summary.md").write_text("before\n")
    text = FILE.replace("max = 3", "max = -9")
    config.write_text(text)
    code, out, _ = run(
        "check", "--format", "github", "--also", "csv=r.csv", "--also", "json=-", "-o", "a.txt"
    )
    assert code == 1
    assert json.loads(out)["checks"][0]["passed"] is False
    line = 1 + text.splitlines().index("log10_norm = {max = -9}")
    assert f"::error file=gradscope.toml,line={line},title=" in (tmp_path / "a.txt").read_text()
    assert (tmp_path / "r.csv").read_text().startswith("analysis,metric,value")
    assert (tmp_path / "summary.md").read_text().startswith("before\n**FAILED**")
    assert not list(tmp_path.glob(".gradscope.*"))


@pytest.mark.parametrize(
    ("also", "said"),
    [
        ("csv", "--also is 'csv', expected FORMAT=FILE such as junit=report.xml"),
        ("cvs=x", "there is no format 'cvs': did you mean csv?"),
        ("csv=gone/x", "--also gone/x: folder"),
        ("csv=gradscope.toml", "--also gradscope.toml: is a file to be read"),
        ("csv=a.txt", "--also csv=a.txt: is written already"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(run, config, also, said):
    code, out, err = run("check", "-o", "a.txt", "--also", also)
    assert (code, out) == (2, "")
    assert said in err
    assert config.read_text() == FILE


def test_limits_that_hold(run, config):
    pytest.importorskip("tomlkit")
    config.write_text(FILE.replace("max = 3}", "max = -9}  # mine"))
    code, out, _ = run("check", "--update-budgets")
    assert code == 0
    assert "-log10_norm = {max = -9}  # mine" in out
    assert run("check")[0] == 0
    assert "# mine" in config.read_text()
    code, out, _ = run("check", "--update-budgets")
    assert out.startswith("PASSED")
    assert "rewrites a file" in run("check", *TINY, "--max", "rate=1", "--update-budgets")[2]


def test_one_of_several(run, config):
    config.write_text(FILE + "[analyses.other]\ncell = 'nope'\nbudgets.rate.max = 1\n")
    code, out, _ = run("check")
    assert code == 2  # something could not be measured
    assert "other: unknown cell 'nope'" in out
    assert run("check", "--name", "small")[0] == 0
    assert "did you mean small?" in run("check", "--name", "smal")[2]


def test_compare(run, tmp_path):
    assert run("analyze", *TINY, "-o", "old.json", "--json")[0] == 0
    assert run("analyze", *TINY, "--seed", "1", "--write-baseline", "new.json", "-q")[0] == 0
    assert run("compare", "old.json", "old.json")[:2] == (
        0,
        "UNCHANGED: nothing changed: old.json -> old.json\n",
    )
    code, out, _ = run("compare", "old.json", "new.json", "--json", "--fail-on-change", "log10_norm:1e-3")
    told = json.loads(out)
    (whole,) = (one for one in told["changes"] if (one["chain"], one["metric"]) == ("full", "log10_norm"))
    assert whole["delta"] == pytest.approx(gain(1) - gain(0), abs=1e-8)
    assert {key: told["differences"][0][key] for key in ("field", "old", "new")} == {
        "field": "seed",
        "old": 0,
        "new": 1,
    }
    assert code == 1
    assert run("compare", "old.json", "new.json", "--fail-on-change", "log10_norm:30")[0] == 0
    code, _, err = run("compare", "old.json", "new.json", "--fail-on-change", "log10_nrm:1")
    assert (code, "did you mean log10_norm?" in err) == (2, True)
    assert run("compare", "old.json", "gone.json")[0] == 2


def test_compare_checkpoints(run, tmp_path):
    for name, scale in (("a", 0.1), ("b", 0.01)):
        np.savez(tmp_path / f"{name}.npz", W=np.ones((3, 2)), R=scale * np.eye(3), b=np.zeros(3))
    asked = ["--cell", "rnn-linear", "--steps", "6", "--json"]
    told = json.loads(run("compare", "a.npz", "b.npz", *asked)[1])
    (whole,) = (one for one in told["changes"] if (one["chain"], one["metric"]) == ("full", "log10_norm"))
    assert (whole["old"], whole["new"], whole["delta"]) == pytest.approx((-6.0, -12.0, -6.0))


def test_the_json_of_analyze_stays_as_it_was(run):
    told = json.loads(run("analyze", *TINY, "--json", "--also", "markdown=a.md")[1])
    jsonschema.validate(told, gradscope.schema())


def test_the_recipe_for_ci(run, tmp_path, monkeypatch):
    """Every command of the workflow, in the order that it has them."""
    pytest.importorskip("junitparser")
    (budgets,) = re.findall(r"<!-- budgets: toml -->\n```toml\n(.*?)```", TOLD, re.DOTALL)
    (workflow,) = re.findall(r"<!-- budgets: yaml -->\n```yaml\n(.*?)```", TOLD, re.DOTALL)
    (tmp_path / "gradscope.toml").write_text(budgets)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(tmp_path / "summary.md"))
    codes = []
    (write,) = re.findall(r"`gradscope (check --write-baseline \S+)`", TOLD)
    for command in [write, *re.findall(r"- run: gradscope (.*?)(?: +#.*)?\n", workflow)]:
        code, _, err = run(*shlex.split(command))
        codes.append(code)
        assert "error" not in err
    assert codes == [0, 0, 0, 0]
    assert {"gradscope-baseline.json", "report.xml", "bencher.json", "summary.md"} <= {
        path.name for path in tmp_path.iterdir()
    }
