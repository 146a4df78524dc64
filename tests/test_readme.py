"""What README says is what happens: its blocks run, its output is the program's."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")
# Estimated errors depend on the machine's last digit.
ERRORS = re.compile(r"(?<=log10 error )\S+(?=\.)|(?<= )\de[-+]\d\d(?= )")


def blocks(kind, language):
    return re.findall(rf"<!-- {kind} -->\n```{language}\n(.*?)```", README, re.DOTALL)


def run(command, tmp_path):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "COLUMNS": "100", "NO_COLOR": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_output_shown_is_the_output(tmp_path):
    (command, shown), *others = re.findall(r"<!-- output: (.*?) -->\n```text\n(.*?)```", README, re.DOTALL)
    assert not others
    assert f"{command}\n```" in README, "the set-up command ends with it"
    assert ERRORS.sub("#", run(command.split(), tmp_path)) == ERRORS.sub("#", shown)


@pytest.mark.parametrize("code", blocks("run: python", "python"))
def test_python_blocks(code, tmp_path):
    assert "stable" in run([sys.executable, "-c", code], tmp_path)


@pytest.mark.parametrize("script", blocks("run: sh", "sh"))
def test_shell_blocks(script, tmp_path):
    assert run(["sh", "-euc", script], tmp_path).startswith("STABLE")


def test_torch_recipe(tmp_path):
    (recipe,) = re.findall(r"```python\n(from safetensors.*?)```", README, re.DOTALL)
    (command,) = re.findall(r"^(gradscope analyze model.safetensors .*)$", README, re.MULTILINE)
    setup = (
        "import numpy, torch\nmodel = torch.nn.Sequential(torch.nn.LSTM(3, 8))\n"
        "numpy.save('x.npy', numpy.random.default_rng(0).normal(size=(30, 3)))\n"
    )
    run([sys.executable, "-c", setup + recipe], tmp_path)
    assert "lstm, hidden 8, 30 steps" in run(command.split(), tmp_path)


def test_every_cell_and_initialiser_is_named():
    from gradscope.cells import CELLS
    from gradscope.initializers import INITIALIZERS

    for name in [*CELLS, *INITIALIZERS]:
        short = name.removeprefix("lstm")
        assert f"`{name}`" in README or f"`{short}`" in README, name


def test_every_option_of_the_first_lines_exists():
    from gradscope.cli.analyze import analyze

    known = {name for parameter in analyze.params for name in parameter.opts + parameter.secondary_opts}
    used = set(re.findall(r"(?<=[ `(])--[a-z-]+", re.sub(r"`?--from.*|#SBATCH.*", "", README)))
    assert used <= known, used - known


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)(.*?)\)", README):
        assert (ROOT / target).exists(), target


def test_version_is_in_the_changelog():
    import gradscope

    assert f"## {gradscope.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
