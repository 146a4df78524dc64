"""The file of analyses and budgets: what it may hold, and what is said of the rest."""

from dataclasses import replace
from pathlib import Path

import pytest

from gradscope import InputError
from gradscope.config_file import find_config, read_config
from gradscope.gate.budgets import MetricBudget
from gradscope.gate.config import PlannedRun, planned

WHOLE = """
baseline = "base.json"
[analyses.small]
cell = "gru"
checkpoint = "model.pt"
inputs = "x.npz:a"
steps = 30
clip = 5
gain = 2
top = "all"
max_size = "2K"
cut = ["R_h"]
layer = "l0"
biases = {b_z = 1}
time_major = true
seed = [3, 1, 3]
aggregation = "pessimistic"
[analyses.small.budgets]
log10_norm = {max = 3, severity = "warn"}
"horizon.carry" = {min = 10, aggregation = "median"}
horizon.R_h.min = 1
[analyses.small.budgets.rate]
min = -1
max = 1
R_h = {max = 0}
"""


def read(folder, text, name="gradscope.toml"):
    (folder / name).write_text(text)
    return planned(read_config(folder / name))


def test_everything_that_it_may_hold(tmp_path):
    (small,) = read(tmp_path, WHOLE)
    assert small.settings == {
        "cell": "gru",
        "checkpoint": str(tmp_path / "model.pt"),
        "inputs": str(tmp_path / "x.npz:a"),
        "steps": 30,
        "clip": 5,
        "gain": 2,
        "top": "all",
        "max_size": 2048,
        "cut": ["R_h"],
        "layer": "l0",
        "biases": {"b_z": 1},
        "time_major": True,
    }
    assert (small.name, small.seeds) == ("small", (3, 1))
    assert set(small.budgets) == {
        MetricBudget("log10_norm", max=3, severity="warn", aggregation="pessimistic"),
        MetricBudget("horizon.carry", min=10),
        MetricBudget("horizon.R_h", min=1, aggregation="pessimistic"),
        MetricBudget("rate", min=-1, max=1, aggregation="pessimistic"),
        MetricBudget("rate.R_h", max=0, aggregation="pessimistic"),
    }
    lines = {name: place.line for name, place in small.places.items()}
    assert lines == {"log10_norm": 19, "horizon.carry": 20, "horizon.R_h": 21, "rate": 22, "rate.R_h": 25}


def test_in_the_file_of_a_project(tmp_path):
    text = "[tool.ruff]\n[tool.gradscope.analyses.x.budgets]\nrate = {max = 1}\n"
    (one,) = read(tmp_path, text, "pyproject.toml")
    assert (one.name, one.places["rate"].line) == ("x", 3)


def test_files_are_looked_for_beside_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "ci").mkdir()
    text = '[analyses.a]\ninputs = "x.npy"\n[analyses.b]\ninputs = "zeros"\nmap = ["l.W=W.T", "rules.txt"]\n'
    (tmp_path / "ci" / "g.toml").write_text(text)
    one, other = planned(read_config(Path("ci/g.toml")))
    assert one.settings["inputs"] == "ci/x.npy"
    assert other.settings == {"inputs": "zeros", "map": ["l.W=W.T", "ci/rules.txt"]}


def test_files_are_told_from_where_the_command_is_called(tmp_path, monkeypatch):
    """Results name them: no absolute path where none was given, and one that was is left as it is."""
    (tmp_path / "gradscope.toml").write_text('[analyses.a]\ninputs = "x.npy"\nembedding = "e"\n')
    (tmp_path / "sub").mkdir()
    for folder, told in ((tmp_path, "x.npy"), (tmp_path / "sub", str(Path("..") / "x.npy"))):
        monkeypatch.chdir(folder)
        found = find_config()
        assert planned(found)[0].settings["inputs"] == told
        assert found.beside(str(tmp_path / "y.npy")) == str(tmp_path / "y.npy")


def test_what_goes_before_what():
    one = PlannedRun("x", {"steps": 3, "hidden": 4}, (1, 2), (), {})
    both = one.between({"steps": 5, "dtype": "float32", "seed": 7}, {"hidden": 6})
    assert both.settings == {"steps": 3, "hidden": 6, "dtype": "float32"}
    assert both.seeds == (1, 2)
    assert one.between({}, {"seed": 9}).seeds == (9,)
    assert replace(one, seeds=()).between({"seed": 7}, {}).seeds == (7,)
    assert replace(one, seeds=()).between({}, {}).seeds == (0,)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("analyses = 1", "analyses is 1, expected a table of tables"),
        ("analyses.x = 1", "analyses.x is 1, expected a table"),
        ("analyses.x.hiden = 1", "analyses.x: unknown key 'hiden': did you mean hidden?"),
        ("analyses.x.forget_bias = 1", "unknown key 'forget_bias': write biases = {b_f = ...}"),
        ("analyses.x.input-size = 1", "unknown key 'input-size': did you mean input_size?"),
        ("analyses.x.distributed = true", "unknown key 'distributed'"),
        ("analyses.x.hidden = '8'", "hidden is '8', expected a whole number"),
        ("analyses.x.hidden = true", "hidden is True, expected a whole number"),
        ("analyses.x.gain = 'big'", "gain is 'big', expected a number"),
        ("analyses.x.view = 'cells'", "view is 'cells', expected one of state, cell"),
        ("analyses.x.time_major = 1", "time_major is 1, expected true or false"),
        ("analyses.x.max_size = 'big'", "max_size: 'big' is no size"),
        ("analyses.x.cut = [1]", "cut is 1, expected a text"),
        ("analyses.x.steps = [1]", "steps is [1], expected a whole number"),
        ("analyses.x.biases = {b_q = 1}", "unknown key 'b_q'"),
        ("analyses.x.biases = {b_f = '1'}", "biases.b_f is '1', expected a number"),
        ("analyses.x.seed = 'a'", "seed is 'a', expected a whole number or a list of them"),
        ("analyses.x.seed = []", "seed is [], expected a whole number or a list of them"),
        ("analyses.x.budgets = 1", "budgets is 1, expected a table such as {rate = {max = 0.1}}"),
        ("analyses.x.budgets.rate = 1", "budget rate is 1, expected such as {max = 3}"),
        ("analyses.x.budgets.rate = {}", "budget rate: has no limit, give min or max"),
        ("analyses.x.budgets.rte.max = 1", "no metric 'rte': did you mean rate?"),
        ("analyses.x.budgets.rate.mx = 1", "budget rate: unknown key 'mx': did you mean max?"),
        ("analyses.x.aggregation = 'mean'\n[analyses.x.budgets]\nrate.max = 1", "aggregation is 'mean'"),
        ("[analyses.x.budgets]\nrate.a.max = 1\n'rate.a' = {max = 2}", "budget rate.a stands there twice"),
    ],
)
def test_what_it_may_not_hold(tmp_path, text, said):
    with pytest.raises(InputError) as error:
        read(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'gradscope.toml'}: ")
    assert said in str(error.value)
