"""Every example runs as its docstring says, and shows what it claims."""

import re
import sys

import pytest
from oracles.program import EXAMPLES, ROOT, run


def example(*command, code=0):
    """Output of a command started in the project's root."""
    return run(command, ROOT, code)


def python(name):
    return example(sys.executable, EXAMPLES / name)


def test_every_example_is_tested():
    names = {path.stem for path in EXAMPLES.rglob("*") if path.suffix in (".py", ".sh")}
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    # sunspots/analyse.sh is test_sunspots; adding_problem/ and remedies/ have tests of their own.
    assert names - tested == {"train", "analyse", "retrain"}


@pytest.mark.slow
def test_tanh_transition():
    rows = [line.split() for line in python("tanh_transition.py").splitlines()[2:]]
    verdicts = {float(row[0]): row[-1] for row in rows}
    assert verdicts[0.8] == "vanishing"
    assert verdicts[1.2] == "stable"
    assert verdicts[3.0] == "exploding"
    rates = {float(row[0]): float(row[2]) for row in rows}
    # At n = 128 and T = 200 the rate is near the limit that theory gives.
    for gain, limit in {0.8: -0.2231, 1.5: 0.0652, 2.0: 0.1547, 3.0: 0.3103}.items():
        assert rates[gain] == pytest.approx(limit, abs=0.05)


@pytest.mark.slow
def test_scalar_powers():
    rows = [line.split() for line in python("scalar_powers.py").splitlines()[1:]]
    assert len(rows) == 7
    for w, gain, *_ in rows:
        assert float(gain) == pytest.approx(float(w) ** 200, rel=1e-4)


@pytest.mark.slow
def test_lstm_paths():
    blocks = python("lstm_paths.py").strip().split("\n\n")
    table = [dict(re.findall(r"^ +(\w+) +gain +\S+ +(\w+)", block, re.MULTILINE)) for block in blocks]
    default, biased, gained, one_path, cut = table
    assert (default["carousel"], default["full"]) == ("vanishing", "vanishing")
    assert (biased["carousel"], biased["full"]) == ("stable", "stable")
    assert (gained["carousel"], gained["full"]) == ("stable", "exploding")
    assert (one_path["carousel"], one_path["R_z"], one_path["full"]) == (
        "vanishing",
        "exploding",
        "exploding",
    )
    assert cut["full"] == "vanishing"
    assert "R_z" not in cut


@pytest.mark.slow
def test_forget_bias_horizon():
    lines = python("forget_bias_horizon.py").splitlines()
    rows = [[int(n) for n in line.split()] for line in lines[2:-1]]
    whole = [row[1] for row in rows]
    assert whole == sorted(whole)
    assert whole[0] < 30 < 300 == whole[-1]
    assert [row[3] for row in rows[:4]] == [9, 22, 54, 142]  # ln 1e-3 / ln sigmoid(b)


@pytest.mark.slow
def test_cut_carousel():
    rows = {line[:22].strip(): line[22:].split() for line in python("cut_carousel.py").splitlines()[1:]}
    assert rows["lstm"][-1] == "stable"
    assert rows["lstm without carousel"][-1] == rows["rnn"][-1] == "vanishing"
    assert int(rows["lstm without carousel"][2]) < 20 > int(rows["rnn"][2])


@pytest.mark.slow
def test_custom_cell():
    assert "leak carries" in python("custom_cell.py")
    out = example(
        sys.executable, "-m", "gradscope", "analyze", "--cell", "examples.custom_cell:leaky", "--steps", "50"
    )
    assert re.search(r"^ leak .*\n R ", out, re.MULTILINE)
    out = example(
        sys.executable,
        "-m",
        "gradscope",
        "analyze",
        "--cell",
        "examples.custom_cell:unnamed",
        "--steps",
        "50",
    )
    assert "Who carries" not in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 0, "gradient check passed"),
        (["--cell", "rnn", "--init", "orthogonal", "--inputs", "zeros", "--gain", "1.5"], 1, "EXPLODING"),
        (["--cell", "no-such-cell"], 2, ""),
    ],
)
def test_ci_check(arguments, code, words):
    assert words in example("sh", EXAMPLES / "ci_check.sh", *arguments, code=code)


@pytest.mark.slow
def test_sunspots():
    out = example("sh", EXAMPLES / "sunspots" / "analyse.sh")
    assert "lstm, hidden 24, 309 steps" in out
    assert '"level"' in out
