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


# What each recipe needs: names it uses, and what the analysis then says.
TORCH = "import torch, safetensors.torch\nmodel = torch.nn.Sequential(torch.nn.LSTM(3, 8))"
MODELS = {
    "torch": (TORCH, "lstm"),
    "safetensors": (TORCH, "lstm"),
    "keras": ("import keras\nmodel = keras.Sequential([keras.Input((30, 3)), keras.layers.GRU(8)])", "gru"),
    "linen": (
        "import jax, flax.linen as nn, flax.serialization\n"
        "params = nn.RNN(nn.LSTMCell(8)).init(jax.random.key(0), jax.numpy.ones((30, 3)))",
        "lstm",
    ),
    "nnx": (
        "import flax.serialization\nfrom flax import nnx\n"
        "model = nnx.RNN(nnx.GRUCell(3, 8, rngs=nnx.Rngs(0)), rngs=nnx.Rngs(1))",
        "gru",
    ),
    "onnx": (f"{TORCH}\nexample = torch.zeros(30, 1, 3)", "lstm"),
    "npz": ("W, R, b = numpy.ones((8, 3)), numpy.eye(8), numpy.zeros(8)", "rnn"),
}
RECIPES = re.findall(r"<!-- model: (\w+) -->\n```python\n(.*?)```\n\n```sh\n(.*?)\n```", README, re.DOTALL)


def test_every_model_has_a_recipe():
    assert [name for name, *_ in RECIPES] == list(MODELS)


@pytest.mark.parametrize(("name", "save", "analyse"), RECIPES)
def test_recipes_of_your_model(name, save, analyse, tmp_path):
    setup, cell = MODELS[name]
    data = "import numpy, pathlib\nnumpy.save('x.npy', numpy.random.default_rng(0).normal(size=(30, 3)))\n"
    run([sys.executable, "-W", "ignore", "-c", data + setup + "\n" + save], tmp_path)
    assert f"{cell}, hidden 8, 30 steps" in run(analyse.split(), tmp_path)


TOKENS = """
import numpy, torch
model = torch.nn.ModuleDict({"tokens": torch.nn.Embedding(50, 3), "rnn": torch.nn.LSTM(3, 8)})
ids, lengths = numpy.random.default_rng(0).integers(50, size=(4, 30)), [30, 12, 30, 21]
"""


def test_inputs_of_tokens(tmp_path):
    ((save, analyse),) = re.findall(
        r"<!-- inputs: tokens -->\n```python\n(.*?)```\n\n```sh\n(.*?)\n```", README, re.DOTALL
    )
    run([sys.executable, "-W", "ignore", "-c", TOKENS + save], tmp_path)
    assert "lstm, hidden 8, 12 to 30 steps, batch 4" in run(analyse.split(), tmp_path)


def test_every_cell_and_initialiser_is_named():
    from gradscope.cells import CELLS
    from gradscope.cells.initializers import INITIALIZERS

    for name in [*CELLS, *INITIALIZERS]:
        short = name.removeprefix("lstm")
        assert f"`{name}`" in README or f"`{short}`" in README, name


def test_every_option_of_the_first_lines_exists():
    from gradscope.cli.analyze import analyze
    from gradscope.cli.inspect import inspect

    known = {
        name
        for parameter in (*analyze.params, *inspect.params)
        for name in parameter.opts + parameter.secondary_opts
    }
    used = set(re.findall(r"(?<=[ `(])--[a-z-]+", re.sub(r"`?--from.*|#SBATCH.*", "", README)))
    assert used <= known, used - known


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!https?:)(.*?)\)", README):
        assert (ROOT / target).exists(), target


def test_version_is_in_the_changelog():
    import gradscope

    assert f"## {gradscope.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
