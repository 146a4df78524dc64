"""Where options come from: the command line, the environment, the settings file, their defaults."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from functools import reduce
from pathlib import Path

import jsonschema
import numpy as np
import pytest

import gradscope
from gradscope.config_file import find_config, read_config
from gradscope.errors import InputError
from gradscope.schemas import SCHEMAS, schema

ROOT = Path(gradscope.__file__).parents[1]
SMALL = ["analyze", "--hidden", "4", "--input-size", "3", "--cell", "rnn", "--only", "verdict", "-q"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write the settings file of the current folder."""
    monkeypatch.chdir(tmp_path)

    def write(text, name="gradscope.toml"):
        (tmp_path / name).write_text(text, "utf-8")
        return tmp_path

    return write


# -- which of them counts ----------------------------------------------------------------------------


def test_flags_before_environment_before_file_before_default(run, project, monkeypatch):
    def steps(*more):
        return run(*SMALL, *more)[1].split(", ")[2]

    assert steps() == "200 steps"
    project("steps = 20\n")
    assert steps() == "20 steps"
    project("steps = 20\n[analyze]\nsteps = 21\n")
    assert steps() == "21 steps"
    monkeypatch.setenv("GRADSCOPE_ANALYZE_STEPS", "22")
    assert steps() == "22 steps"
    assert steps("--steps", "23") == "23 steps"
    monkeypatch.setenv("GRADSCOPE_ANALYZE_STEPS", "")
    assert steps() == "21 steps"


def test_every_kind_of_option_can_be_set(run, project):
    project(
        '[analyze]\nhidden = 3\ninput_size = 2\nsteps = 5\nfail_on = "stable"\nformat = "json"\n'
        'max_size = "2G"\ncut = ["R_o"]\ncompile_cache = false\nvanishing_below = 1e-9\ntop = 2\n'
        "forget_bias = 2\n"
    )
    code, out, _ = run("analyze")
    assert code == 2  # --max-size is about a checkpoint
    project(
        '[analyze]\nhidden = 3\ninput_size = 2\nsteps = 5\nfail_on = "stable"\nformat = "json"\n'
        'cut = ["R_o"]\n'
        "compile_cache = false\nvanishing_below = 1e-9\ntop = 2\nforget_bias = 2\n"
    )
    code, out, _ = run("analyze")
    told = json.loads(out)
    assert (code, told["verdict"]["matched"]) == (1, [{"level": "stable", "layer": None}])
    assert (
        told["problem"] | {"hidden": 3, "cut": ["R_o"], "biases": {"b_f": 2.0}, "top": 2} == told["problem"]
    )
    assert told["thresholds"]["vanishing_below"] == 1e-9
    assert run("analyze", "--format", "table")[1].startswith("STABLE")


def test_several_values_of_the_environment(run, monkeypatch):
    monkeypatch.setenv("GRADSCOPE_ANALYZE_FAIL_ON", "exploding stable")
    monkeypatch.setenv("GRADSCOPE_ANALYZE_FORMAT", "json")
    code, out, _ = run(*SMALL, "--steps", "3")
    assert (code, json.loads(out)["verdict"]["level"]) == (1, "stable")
    assert run(*SMALL, "--steps", "3", "--format", "table")[1].startswith("STABLE")


def test_files_are_meant_from_the_settings_file(run, project, monkeypatch):
    folder = project('[analyze]\ninputs = "data/x.npy"\n')
    (folder / "data").mkdir()
    (folder / ".git").mkdir()
    np.save(folder / "data" / "x.npy", np.ones((7, 3)))
    (folder / "deep" / "er").mkdir(parents=True)
    monkeypatch.chdir(folder / "deep" / "er")
    assert "7 steps" in run("analyze", "--hidden", "4", "--cell", "rnn", "-q")[1]


def test_the_nearest_file_of_the_same_repository_counts(tmp_path):
    inner = tmp_path / "repository" / "inner"
    inner.mkdir(parents=True)
    (tmp_path / "gradscope.toml").write_text("steps = 1\n")
    assert find_config(inner).table == {"steps": 1}
    (tmp_path / "repository" / ".git").mkdir()
    assert find_config(inner) is None
    (tmp_path / "repository" / "pyproject.toml").write_text("[tool.gradscope]\nsteps = 2\n")
    assert find_config(inner).table == {"steps": 2}
    (inner / "pyproject.toml").write_text("[tool.ruff]\n")
    assert find_config(inner).table == {"steps": 2}
    (inner / "pyproject.toml").write_text("this is no TOML")  # and none of our business
    assert find_config(inner).table == {"steps": 2}
    with pytest.raises(InputError, match=r"has no \[tool.gradscope\]"):
        read_config(inner / "pyproject.toml")


# -- what is wrong -----------------------------------------------------------------------------------

WRONG = {
    "[analyze]\nstep = 3": "analyze.step is no option of gradscope analyze: did you mean steps?",
    "[analyze]\ninput-size = 3": "did you mean input_size?",
    "[analyze]\ngrid = 'gain=1,2'": "no option of gradscope analyze: it is an option of gradscope sweep",
    "stepz = 3": "stepz is neither a command, nor an option of any, nor analyses: did you mean steps?",
    "[analyse]\nsteps = 3": "did you mean analyses?",
    "[analyze]\nsteps = true": "steps is True, expected text, or a number",
    "[analyze]\ndistributed = 1": "distributed is 1, expected true or false",
    "[analyze]\nsteps = [1, 2]": "steps is [1, 2], expected one value",
    "[analyze]\nsteps = {min = 3}": "steps is {'min': 3}, expected text, or a number",
    "[analyze]\nview = 'cells'": "(view in ",
    "analyze = 3": "analyze is 3, expected a table of gradscope analyze's options",
    "steps = ": "is no TOML",
    "steps = '\x00'": "is no TOML",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_file_is_one_line_that_names_it(run, project, text):
    folder = project(text)
    code, out, err = run("analyze")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert WRONG[text] in err
    assert str(folder / "gradscope.toml") in err
    assert run("analyze", "--help")[0] == 0
    assert run("analyze", "-h")[0] == 0


def test_a_wrong_variable_is_named(run, monkeypatch):
    monkeypatch.setenv("GRADSCOPE_ANALYZE_STEPS", "many")
    assert "(GRADSCOPE_ANALYZE_STEPS)" in run("analyze")[2]
    monkeypatch.delenv("GRADSCOPE_ANALYZE_STEPS")
    monkeypatch.setenv("GRADSCOPE_ANALYZE_STEPZ", "3")
    code, _, err = run("analyze")
    assert code == 2
    assert "no such option: did you mean GRADSCOPE_ANALYZE_STEPS?" in err


def test_a_file_that_is_too_large_is_not_read(project):
    folder = project("# " + "x" * 2**20)
    with pytest.raises(InputError, match="over 1 MiB"):
        find_config(folder)


# -- gradscope config --------------------------------------------------------------------------------


def test_config_says_where_each_value_is_from(run, project, monkeypatch):
    folder = project(
        '[tool.gradscope]\ndtype = "float32"\n[tool.gradscope.analyses.a]\ncell = "gru"\n', "pyproject.toml"
    )
    monkeypatch.setenv("GRADSCOPE_ANALYZE_STEPS", "22")
    code, out, err = run("config", "--json")
    told = json.loads(out)
    jsonschema.validate(told, schema("config"))
    assert (code, err, told["file"]) == (0, "", str(folder / "pyproject.toml"))
    found = {one["option"]: one for one in told["settings"] if one["command"] == "analyze"}
    assert (
        found["steps"] | {"value": 22, "source": "environment", "where": "GRADSCOPE_ANALYZE_STEPS"}
        == found["steps"]
    )
    assert found["dtype"] | {"value": "float32", "source": "file"} == found["dtype"]
    assert found["seed"] | {"value": 0, "source": "default", "where": ""} == found["seed"]
    assert found["fail_on"]["value"] is None
    text = run("config", "analyze")[1]
    assert "  GRADSCOPE_ANALYZE_STEPS\n" in text
    assert text.endswith("Analyses of check: a\n")
    shown = run("config", "--set")[1]
    assert "dtype" in shown
    assert "seed" not in shown


def test_config_finds_what_is_wrong(run, project, monkeypatch):
    assert run("config", "analyse")[2].endswith("did you mean analyze?\n")
    monkeypatch.setenv("GRADSCOPE_ANALYSE_STEPS", "3")
    told = "GRADSCOPE_ANALYSE_STEPS is set, but stands for nothing: did you mean GRADSCOPE_ANALYZE_STEPS?"
    for command in (["config"], ["schema"], ["schema", "track"]):  # whatever is asked, once
        assert run(*command)[2] == f"gradscope: {told}\n"
    project("[chain]\ntop = 'x'\n")
    assert "(top in " in run("config")[2]


# -- schema and completion ---------------------------------------------------------------------------


def test_every_schema_is_listed_and_sound(run, monkeypatch):
    files = {path.name for path in (ROOT / "gradscope").rglob("*.schema.json")}
    assert files == {file.partition("#")[0] for _, file, _ in SCHEMAS.values()}
    listed = [line.split()[0] for line in run("schema")[1].splitlines()]
    monkeypatch.setenv("COLUMNS", "40")
    narrow = run("schema")[1]
    assert max(map(len, narrow.splitlines())) <= 40
    assert [line.split()[0] for line in narrow.splitlines() if line[0] != " "] == listed
    assert listed == sorted(SCHEMAS)
    for name in listed:
        code, out, err = run("schema", name)
        assert (code, err) == (0, "")
        jsonschema.Draft202012Validator.check_schema(json.loads(out))
        assert json.loads(out) == schema(f"gradscope/{name}/1")
        for path in re.findall(r'"\$ref": "#/([^"]+)"', out):  # whole as it is printed
            reduce(lambda inner, key: inner[key], path.split("/"), json.loads(out))
    assert (
        run("schema", "anlysis")[2]
        == "gradscope: error: no schema is called 'anlysis': did you mean analysis?\n"
    )


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell(run, shell):
    code, out, err = run("completion", shell)
    assert (code, err) == (0, "")
    assert f"_GRADSCOPE_COMPLETE={shell}_complete" in out
    if program := shutil.which(shell):
        assert (
            subprocess.run([program, "-n"], input=out, text=True, capture_output=True, check=True).stderr
            == ""
        )


def test_bash_completes_and_imports_no_jax(tmp_path):
    """As bash does it: the script is read, its function called, its replies taken."""
    code = "import sys; from gradscope.cli.main import main\ntry: main()\n"
    code += "finally: print(*sys.modules, file=sys.stderr)"
    program = tmp_path / "gradscope"
    program.write_text(f"#!/bin/sh\nexec {sys.executable} -c '{code}' \"$@\"\n")
    program.chmod(0o755)
    script = (
        'eval "$(gradscope completion bash 2>/dev/null)"\nCOMP_WORDS=(gradscope analyze --cell lstm-p)\n'
        'COMP_CWORD=3\n_gradscope_completion gradscope\necho "${COMPREPLY[@]}"\n'
    )
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert "lstm-peephole" in done.stdout.split()
    assert "gradscope.cli.analyze" in done.stderr.split()
    assert not {"jax", "numpy", "rich"} & set(done.stderr.split())


@pytest.mark.slow
def test_the_wheel_has_manual_and_schemas(tmp_path):
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT]
    subprocess.run(command, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    manual = {name.rpartition("/")[2] for name in names if "/data/share/man/man1/" in name}
    assert manual == {path.name for path in (ROOT / "docs" / "man").iterdir()}
    files = {file.partition("#")[0] for _, file, _ in SCHEMAS.values()}
    assert files <= {name.rpartition("/")[2] for name in names}
