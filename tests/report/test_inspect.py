"""``gradscope inspect``, and choosing what to analyse of what it lists."""

from __future__ import annotations

import json
import subprocess
import sys

import jsonschema
import numpy as np
import pytest
from oracles import layouts

import gradscope
from gradscope.checkpoints.live import Live
from gradscope.errors import InputError
from gradscope.report.inspection import inspect
from gradscope.schemas import schema

STATE = layouts.module(
    encoder=layouts.recurrent("lstm", 3, 4, layers=2),
    decoder=layouts.recurrent("rnn", 3, 5),
    small=layouts.recurrent("lstm", 3, 6, projection=2),
) | layouts.dense("fc", 4, 2)


@pytest.fixture
def model(tmp_path):
    """A file of two recurrent modules, a head and a projected layer."""
    return layouts.saved(STATE, tmp_path / "model.pt")


def test_json_follows_its_schema(run, model):
    code, out, err = run("inspect", model, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    jsonschema.validate(result, schema("inspection"))
    layers = {layer["name"]: layer for layer in result["layers"]}
    assert list(layers) == ["encoder.l0", "encoder.l1", "decoder", "small"]  # as in the file
    assert layers["decoder"]["cells"] == ["rnn", "rnn-relu"]
    assert "add --cell rnn or --cell rnn-relu" in layers["decoder"]["open"]
    assert layers["small"]["cells"] == ["lstm-projected-2"]
    assert [layer["depth"] for layer in layers.values()] == [0, 1, 0, 0]
    assert [layer["below"] for layer in layers.values()] == [[], ["encoder.l0"], [], []]
    assert result["others"] == ["fc.weight", "fc.bias"]
    assert layers["small"]["matrices"][0]["spectral_radius"] is None
    recurrent = STATE["decoder.weight_hh_l0"].astype(float)
    (matrix,) = layers["decoder"]["matrices"]
    # The largest eigenvalue of R^T R, and of R.
    gram = np.linalg.eigvalsh(recurrent.T @ recurrent)[-1]
    assert matrix["spectral_norm"] == pytest.approx(np.sqrt(gram), rel=1e-12)
    radius = np.abs(np.linalg.eigvals(recurrent)).max()
    assert matrix["spectral_radius"] == pytest.approx(radius, rel=1e-12)


def test_table(run, model, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, err = run("inspect", model)
    assert (code, err) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0].startswith("4 RECURRENT LAYERS in ")
    assert "decoder rnn or rnn-relu 5 3 forward inputs float32 tanh or relu?" in lines
    assert "encoder.l1 lstm 4 4 forward encoder.l0 float32 tanh" in lines
    assert "small lstm-projected-2 6 3 forward inputs float32 tanh" in lines
    assert "Also in the file: 2 other tensors: fc.weight, fc.bias" in lines
    assert sum(line.startswith("encoder.l0 R_") for line in lines) == 4


def test_in_python_a_file_or_a_model_in_memory(model):
    """As the command tells it, and as a notebook shows it; of a model what from_torch and its like make."""
    found = gradscope.inspect(model)
    names = {one["name"] for one in found.to_dict()["layers"]}
    assert names == {"decoder", "encoder.l0", "encoder.l1", "small"}
    assert found._repr_html_().startswith("<pre")
    assert "decoder" in found._repr_html_()
    live = Live("memory", found.contents.layers, {})
    again = gradscope.inspect(live).to_dict()
    assert again["source"] == "memory"
    assert again["layers"] == found.to_dict()["layers"]


def test_output_to_a_file(run, model, tmp_path):
    assert run("inspect", model, "-o", tmp_path / "x.json", "--json") == (0, "", "")
    assert json.loads((tmp_path / "x.json").read_text())["layers"]
    assert run("inspect", model, "-o", "-", "--json")[1].startswith("{")
    code, _, err = run("inspect", model, "-o", model)
    assert (code, err.count("\n")) == (2, 1)


def test_names_that_a_terminal_would_obey(run, tmp_path):
    state = layouts.recurrent("lstm", 3, 4)
    layouts.saved({f"\x1b[31m[red].{key}": value for key, value in state.items()}, tmp_path / "x.pt")
    code, out, _ = run("inspect", tmp_path / "x.pt")
    assert code == 0
    assert "\x1b" not in out
    assert "[red]" in out


def test_arrays_that_do_not_fit_are_a_problem(run, tmp_path):
    np.savez(tmp_path / "x.npz", W=np.ones((8, 3)), R=np.eye(7), b=np.ones(8))
    code, out, _ = run("inspect", tmp_path / "x.npz", "--json")
    (layer,) = json.loads(out)["layers"]
    assert code == 0
    assert layer["problem"].startswith("R has shape (7, 7), expected (8, 8) for 8 units and 3 inputs")
    assert (layer["cells"], layer["hidden"], layer["matrices"]) == ([], None, [])


CHOICES = {
    "one of all open": ([], "layer decoder: holds a torch RNN, whose nonlinearity is not in the file"),
    "for none of several": (["--cell", "gru"], "--cell gru is of none of these layers"),
    "no such": (["--layer", "x"], "layer 'x' is no recurrent layer, expected one of encoder.l0, encoder.l1"),
    "end of several": (["--layer", ""], "layer '' is the end of several"),
    "open": (["--layer", "decoder"], "add --cell rnn or --cell rnn-relu"),
    "another cell": (["--layer", "l0", "--cell", "gru"], "holds a layer that is lstm, not --cell gru"),
    "another activation": (
        ["--layer", "l0", "--activation", "relu"],
        "with activation tanh, not --activation relu",
    ),
    "no activation": (
        ["--layer", "l0", "--activation", "gelu"],
        "activation is 'gelu', expected one of tanh, relu",
    ),
    "small": (
        ["--layer", "l0", "--max-size", "1K"],
        "more than the 1024 allowed: if you trust it, say --max-size",
    ),
    "no size": (["--max-size", "much"], "'much' is no size, expected bytes or such as 500M or 2G"),
}


@pytest.mark.parametrize("name", CHOICES)
def test_choices_that_do_not_fit(name, run, model):
    arguments, words = CHOICES[name]
    code, out, err = run("analyze", model, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


@pytest.mark.parametrize(
    ("option", "value"), [("--layer", "l0"), ("--activation", "tanh"), ("--max-size", "1G")]
)
def test_choices_without_a_checkpoint(option, value, run):
    code, _, err = run("analyze", option, value)
    assert code == 2
    assert "that is about a checkpoint: give its file as well" in err


def test_a_chosen_layer_is_analysed(run, model, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((6, 3)))
    code, out, _ = run(
        "analyze", model, "--layer", "l1", "--inputs", tmp_path / "x.npy", "--json", "--max-size", "1M"
    )
    assert code == 0
    problem = json.loads(out)["problem"]
    assert (problem["layer"], problem["direction"], problem["source"]) == (
        "encoder.l1",
        "forward",
        str(model),
    )
    for activation, cell in (("tanh", "rnn"), ("relu", "rnn-relu")):
        code, out, _ = run(
            "analyze", model, "--layer", "decoder", "--activation", activation, "--steps", 3, "--json"
        )
        assert json.loads(out)["problem"]["cell"] == cell


def test_backward_layer_reads_from_the_end(tmp_path):
    state = layouts.recurrent("rnn", 3, 4, bidirectional=True, seed=1)
    layouts.saved(state, tmp_path / "x.pt")
    x = np.random.default_rng(0).standard_normal((5, 3))
    twin = {k.replace("_reverse", ""): v for k, v in state.items() if "reverse" in k}
    layouts.saved(twin, tmp_path / "y.pt")
    backward = gradscope.analyze(checkpoint=tmp_path / "x.pt", cell="rnn", layer="l0_reverse", inputs=x)
    forward = gradscope.analyze(checkpoint=tmp_path / "y.pt", cell="rnn", inputs=x[::-1])
    np.testing.assert_array_equal(
        backward.full.spectra[0].log10_singular_values, forward.full.spectra[0].log10_singular_values
    )


def test_a_missing_library_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    (tmp_path / "x.onnx").write_bytes(b"x")
    with pytest.raises(InputError, match=r"onnx reads it: pip install 'gradscope\[onnx\]'"):
        inspect(tmp_path / "x.onnx")


def test_a_cell_of_ones_own(run, tmp_path, monkeypatch):
    (tmp_path / "own_cells_to_inspect.py").write_text(
        "import gradscope\n\ndef decay():\n"
        "    def parameters(n, d):\n        return {'W': (n, d), 'R': (n, n), 'tau': (n,)}\n"
        "    step = lambda p, x, h: p['tau'] * h + p['R'] @ h + p['W'] @ x\n"
        "    return gradscope.Cell('decay', parameters, step)\n"
    )
    np.savez(tmp_path / "x.npz", W=np.ones((4, 2)), R=np.eye(4), tau=np.ones(4))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    code, out, _ = run("inspect", "x.npz", "--cell", "own_cells_to_inspect:decay", "--json")
    assert code == 0
    (layer,) = json.loads(out)["layers"]
    assert (layer["cells"], layer["hidden"], layer["input_size"]) == (["decay"], 4, 2)


def test_reading_a_file_imports_no_jax(model, tmp_path):
    native = tmp_path / "native.npz"
    np.savez(native, W=np.ones((2, 3)), R=np.ones((2, 2)), b=np.ones(2))
    code = (
        "import sys\n"
        "from gradscope.report.inspection import inspect\n"
        "assert all(inspect(path).contents.layers for path in sys.argv[1:])\n"
        "print(*(name for name in sys.modules if name.split('.')[0] in ('jax', 'jaxlib')))"
    )
    command = [sys.executable, "-c", code, str(model), str(native)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == "\n"


@pytest.mark.parametrize("form", ["--json", "--color=never"])
def test_norms_beyond_float64(run, tmp_path, form):
    path = tmp_path / "large.npz"
    np.savez(path, W=np.ones((4, 3)), R=np.full((4, 4), 1e308), b=np.ones(4))
    code, out, err = run("inspect", path, form)
    assert (code, err) == (0, "")
    if form == "--json":
        (matrix,) = json.loads(out)["layers"][0]["matrices"]
        assert matrix == {"name": "R", "spectral_norm": None, "spectral_radius": None}
        jsonschema.validate(json.loads(out), schema("inspection"))
    else:
        assert out.count("above 1e308") == 2


def test_a_table_lists_the_first_layers(run, tmp_path):
    state = layouts.module(**{f"m{k}": layouts.recurrent("rnn", 1, 1) for k in range(70)})
    path = layouts.saved(state, tmp_path / "many.pt")
    code, out, _ = run("inspect", path)
    assert code == 0
    assert "70 RECURRENT LAYERS" in out
    assert "and 6 more, which --json lists" in out
    assert len(json.loads(run("inspect", path, "--json")[1])["layers"]) == 70
