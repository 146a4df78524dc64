"""Options: declared once, and the same for the shell, for Python and for type checkers.

UPDATE_GOLDEN=1 pytest tests/cli/test_settings.py writes the help anew; read the difference before committing.
"""

import inspect
import os
import re
import runpy
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import get_args

import pytest

import gradscope
from gradscope.as_arguments import takes
from gradscope.cells.initializers import INITIALIZERS
from gradscope.cli import analyze, chain
from gradscope.cli.main import cli
from gradscope.cli.options import Process, pick, pick_settings
from gradscope.cli.output import Output
from gradscope.errors import InputError, flag
from gradscope.option import number_or_word, option, option_of, size_in_bytes
from gradscope.problem.checks import check_choices
from gradscope.settings import Init, Policy, Settings

GOLDEN = Path(__file__).parent.parent / "golden"
# Not an option of the shell.
PYTHON_ONLY = {"progress", "plan", "trying"}


COMMANDS = cli.list_commands(None)


@pytest.mark.parametrize(
    "asked", ["--help", *(f"{name} --help" for name in COMMANDS), "analyze -h", "track -h"]
)
def test_help(run, monkeypatch, asked):
    monkeypatch.setenv("COLUMNS", "80")
    code, text, err = run(*asked.split())
    assert (code, err) == (0, "")
    command = asked.removesuffix("--help").replace("-h", "brief").split() or ["gradscope"]
    golden = GOLDEN / f"help_{'_'.join(command)}.txt"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(text, "utf-8")
    assert text == golden.read_text("utf-8")


def test_the_reference_and_the_manual_are_of_these_commands():
    generate = runpy.run_path(str(Path(__file__).parents[2] / "docs" / "generate.py"))
    if os.environ.get("UPDATE_GOLDEN"):
        generate["main"]()
    pages = generate["pages"]()
    assert {path: path.read_text("utf-8") for path in pages} == pages
    assert {path for folder in ("reference", "man") for path in (generate["DOCS"] / folder).iterdir()} == {
        *pages
    }


def test_every_setting_is_an_option_and_every_option_a_field():
    settings = {key for field in fields(Settings) for key in option_of(field).keys or [field.name]}
    of_the_shell = {field.name for asked in (Process, Output) for field in fields(asked)}
    params = [param.name for param in analyze.analyze.params]
    assert set(params) == settings - PYTHON_ONLY | of_the_shell
    assert {param.name for param in chain.chain.params} == {"file", "top"} | {
        field.name for asked in (Policy, Output) for field in fields(asked) if field.name != "details"
    }


def test_every_setting_is_an_argument_of_analyze():
    parameters = inspect.signature(gradscope.analyze).parameters
    assert list(parameters) == [field.name for field in fields(Settings)]
    for field in fields(Settings):
        parameter = parameters[field.name]
        assert (parameter.default, parameter.kind) == (field.default, inspect.Parameter.KEYWORD_ONLY)
        assert parameter.annotation == field.type


def test_every_setting_is_explained_to_python():
    heading, rule, *lines = inspect.cleandoc(gradscope.analyze.__doc__).split("\n\n")[1].splitlines()
    assert (heading, rule) == ("Parameters", "-" * len("Parameters"))
    named = [line.split(" : ")[0] for line in lines if not line.startswith(" ")]
    assert named == [field.name for field in fields(Settings)]
    assert "--" not in "".join(lines), "that is how the shell says it"
    for field in fields(Settings):
        said = option_of(field)
        assert (said.doc or said.help).endswith(".")


def test_types_of_the_shell_are_those_of_python():
    for asked in (Settings, Policy, Process, Output):
        for field in fields(asked):
            said = option_of(field)
            if said.parse in (int, float):
                assert said.parse.__name__ in field.type
            if said.choices:
                assert field.default in (None, (), *said.choices)


def test_what_is_misspelt_is_told_of_the_function():
    with pytest.raises(TypeError, match=r"^analyze\(\) got an unexpected keyword argument 'hiden'$"):
        gradscope.analyze(hiden=3)
    with pytest.raises(TypeError, match=r"^analyze\(\) too many positional arguments$"):
        gradscope.analyze("model.pt")


@pytest.mark.parametrize("name", ["view", "accuracy", "dtype", "readout_at", "platform"])
def test_choices(name):
    for choice in (None, "Full", 3):
        if choice is not getattr(Settings(), name):
            with pytest.raises(InputError, match=f"^{name} is {choice!r}, expected "):
                check_choices(Settings(**{name: choice}))
    (field,) = (field for field in fields(Settings) if field.name == name)
    for choice in option_of(field).choices:
        check_choices(Settings(**{name: choice}))


def test_a_function_of_ones_own_settings():
    @dataclass(kw_only=True)
    class Own:
        size: int = option(3, help="How large.")
        name: str | None = option(None, help="What in the shell.", doc="What.", choices=("a", "b"))

    @takes(Own)
    def call(own: Own) -> str:
        """Call it."""
        return f"{own.name} {own.size}"

    assert call(name="a") == "a 3"
    assert call.__doc__ == (
        "Call it.\n\nParameters\n----------\n"
        "size : <class 'int'>, default 3\n    How large.\nname : {'a', 'b'}, optional\n    What."
    )


def test_what_the_shell_gives():
    given = {field.name: field.default for field in fields(Settings) if field.name != "biases"}
    given |= {"forget_bias": 3.0, "input_bias": None, "output_bias": None, "update_bias": 0.0}
    given |= {"reset_bias": None, "hidden": 8, "cut": ("R_o",), "quiet": True, "coordinator": "x:1"}
    assert pick(Process, given) == Process(coordinator="x:1")
    assert pick(Output, given) == Output(quiet=True)
    settings = pick_settings(given)
    assert not given
    assert settings["biases"] == {"b_f": 3.0, "b_z": 0.0}
    assert (settings["hidden"], settings["cut"], settings["seed"]) == (8, ("R_o",), 0)
    assert not {"layer", "steps", "progress", "plan"} & settings.keys()


def test_texts_and_what_they_stand_for():
    assert [size_in_bytes(text) for text in ("7", "500M", "2G", "1KiB")] == [7, 500 * 2**20, 2**31, 1024]
    with pytest.raises(ValueError, match="'-1' is no size, expected bytes or such as 500M or 2G"):
        size_in_bytes("-1")
    assert [number_or_word(text) for text in ("8", "all", "-1")] == [8, "all", "-1"]
    assert flag("initial_state") == "--initial-state"


CALLS = {
    "analyze(hidden=3, view='cell', top='all', biases={'b_f': 1.0}).verdict.level": "",
    "analyze(hidden='x')": 'Argument "hidden" to "analyze" has incompatible type "str"',
    "analyze(init='pytroch')": 'Argument "init" to "analyze" has incompatible type "Literal[\'pytroch\']"',
    "analyze(only='paths', activation='relu', init='flax').scalars()['rate']": "",
    "analyze(hiden=3)": 'Unexpected keyword argument "hiden" for "analyze"; did you mean "hidden"?',
    "analyze(view='cells')": 'Argument "view" to "analyze" has incompatible type "Literal[\'cells\']"',
    "analyze('model.pt')": 'Too many positional arguments for "analyze"',
}


@pytest.mark.slow
def test_type_checkers_see_every_argument(tmp_path):
    pytest.importorskip("mypy")
    file = tmp_path / "calls.py"
    file.write_text("\n".join(["from gradscope import analyze", *CALLS]) + "\n")
    root = Path(gradscope.__file__).parent.parent
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file", root / "pyproject.toml", file]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    said = re.findall(r"calls\.py:(\d+): error: (.*)", done.stdout)
    wrong = [(str(line), text) for line, text in enumerate(CALLS.values(), 2) if text]
    assert len(said) == len(wrong), done.stdout + done.stderr
    for (line, text), (expected_line, expected) in zip(said, wrong, strict=True):
        assert line == expected_line
        assert text.startswith(expected)


def test_the_help_of_init_names_every_initialisation():
    (init,) = (one for one in fields(Settings) if one.name == "init")
    assert set(re.findall(r"\w+", option_of(init).help)) >= INITIALIZERS.keys()
    assert set(get_args(Init)) == INITIALIZERS.keys()
