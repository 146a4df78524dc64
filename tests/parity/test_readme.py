"""The recipes of the site for the models of every framework do what they say."""

import re
import shlex
import sys

import pytest
from oracles.program import README, TOLD, run

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
    "map": (
        "w_ih, w_hh, b_ih, b_hh = numpy.ones((24, 3)), numpy.ones((24, 8)) / 9, *numpy.ones((2, 24))",
        "gru",
    ),
}
RECIPES = re.findall(r"<!-- model: (\w+) -->\n```python\n(.*?)```\n\n```sh\n(.*?)\n```", TOLD, re.DOTALL)


def test_the_python_of_readme(capsys):
    """Its one block, with a model and a batch as it says."""
    import torch

    torch.manual_seed(0)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(code, {"model": torch.nn.LSTM(3, 4, batch_first=True), "batch": torch.randn(2, 9, 3)})
    level, horizon = capsys.readouterr().out.split()
    assert (level, float(horizon)) == ("stable", 9)


def test_every_model_has_a_recipe():
    assert [name for name, *_ in RECIPES] == list(MODELS)


@pytest.mark.parametrize(("name", "save", "analyse"), RECIPES)
def test_recipes_of_your_model(name, save, analyse, tmp_path):
    setup, cell = MODELS[name]
    data = "import numpy, pathlib\nnumpy.save('x.npy', numpy.random.default_rng(0).normal(size=(30, 3)))\n"
    run([sys.executable, "-W", "ignore", "-c", data + setup + "\n" + save], tmp_path)
    assert f"{cell}, hidden 8, 30 steps" in run(shlex.split(analyse), tmp_path)


TOKENS = """
import numpy, torch
model = torch.nn.ModuleDict({"tokens": torch.nn.Embedding(50, 3), "rnn": torch.nn.LSTM(3, 8)})
ids, lengths = numpy.random.default_rng(0).integers(50, size=(4, 30)), [30, 12, 30, 21]
"""


def test_inputs_of_tokens(tmp_path):
    ((save, analyse),) = re.findall(
        r"<!-- inputs: tokens -->\n```python\n(.*?)```\n\n```sh\n(.*?)\n```", TOLD, re.DOTALL
    )
    run([sys.executable, "-W", "ignore", "-c", TOKENS + save], tmp_path)
    assert "lstm, hidden 8, 12 to 30 steps, batch 4" in run(analyse.split(), tmp_path)


BATCH = {
    "torch": (TORCH.replace("(3, 8)", "(3, 8, batch_first=True)"), "batch = torch.randn(4, 30, 3)"),
    "keras": (MODELS["keras"][0], "batch = numpy.ones((4, 30, 3))"),
    "linen": (
        "import jax, flax.linen as nn, numpy\nmodule, batch = nn.RNN(nn.LSTMCell(8)), numpy.ones((4, 30, 3))",
        "variables = module.init(jax.random.key(0), batch)",
    ),
    "nnx": (MODELS["nnx"][0], "batch = numpy.ones((4, 30, 3))"),
    "equinox": (
        "import equinox, jax, numpy\nclass Model(equinox.Module):\n    cell: equinox.nn.GRUCell\n"
        "    def __call__(self, x):\n"
        "        return jax.lax.scan(lambda h, x: (self.cell(x, h), 0), numpy.zeros(8, 'float32'), x)\n"
        "model = Model(equinox.nn.GRUCell(3, 8, key=jax.random.key(0)))",
        "batch = numpy.ones((4, 30, 3), 'float32')",
    ),
    "loop": ("import torch", "batch = torch.randn(4, 30, 8)"),
}
LIVE = re.findall(r"<!-- recorded: (\w+) -->\n```python\n(.*?)```", TOLD, re.DOTALL)
FILES = re.findall(
    r"<!-- recorded: file (\w+) -->\n```python\n(.*?)```\n\n```sh\n(.*?)\n```", TOLD, re.DOTALL
)


def test_every_library_has_a_recording():
    assert [name for name, _ in LIVE] == list(BATCH)
    assert [name for name, *_ in FILES] == ["torch", "keras", "loop"]


@pytest.mark.parametrize(("name", "live"), LIVE)
def test_a_recording(name, live, tmp_path):
    code = "\n".join(["import gradscope, numpy", *BATCH[name], live, "print(analysis.problem['inputs'])"])
    assert run([sys.executable, "-W", "ignore", "-c", code], tmp_path) == "recorded\n"


@pytest.mark.parametrize(("name", "save", "analyse"), FILES)
def test_a_recording_in_a_file(name, save, analyse, tmp_path):
    made = [dict(LIVE)[name].partition("\n\n\nanalysis")[0]] if name == "loop" else []
    code = "\n".join(["import gradscope, numpy", *BATCH[name], *made, save])
    run([sys.executable, "-W", "ignore", "-c", code], tmp_path)
    assert f"hidden {16 if made else 8}, 30 steps, batch 4" in run(analyse.split(), tmp_path)
