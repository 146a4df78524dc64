"""Limits rounded outward, in a file that keeps its comments."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles.made_up import LSTM, analysis

from gradscope import InputError
from gradscope.config_file import read_config
from gradscope.gate.baseline import entry_of
from gradscope.gate.checks import Checking, Checks, places_of
from gradscope.gate.config import planned
from gradscope.gate.update import outward, updated


@given(st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300), st.booleans())
def test_outward_is_never_within_and_never_far(value, up):
    limit = outward(value, up=up)
    assert limit >= value if up else limit <= value
    assert abs(limit - value) <= 0.1 * abs(value) + 5e-324
    assert len(Decimal(repr(limit)).normalize().as_tuple().digits) <= 2


@pytest.mark.parametrize(
    ("value", "up", "limit"),
    [
        *(
            (3.21, True, 3.3),
            (3.21, False, 3.2),
            (-9.87, True, -9.8),
            (-9.87, False, -9.9),
            (13.0, False, 13),
        ),
        *((123.0, False, 120), (123.0, True, 130), (0.0, True, 0), (1.1, True, 1.1), (0.1 + 0.2, True, 0.31)),
    ],
)
def test_outward(value, up, limit):
    assert outward(value, up=up) == limit
    assert isinstance(limit, int) <= isinstance(outward(value, up=up), int)


TEXT = """\
# of the team
[analyses.small]   # deployed
cell = "lstm"
[analyses.small.budgets]
log10_norm = {max = -12, severity = "error"}   # decades
"horizon.carousel" = { min = 100 }
rate.min = -0.5  # dotted
share.R_z.max = 0.5
[analyses.small.budgets.log10_largest_gain]
max = -1  # own table
"""


def run(path):
    config = read_config(path)

    def analyze(**_):
        return analysis(LSTM)

    plan = [one.between({}, {}) for one in planned(config)]
    run = Checking(analyze, len(plan), {"small": entry_of([analysis(LSTM)])})
    return config, Checks(tuple(map(run, plan)), places_of(plan))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_only_broken_limits_change_and_every_comment_stays(tmp_path, end):
    pytest.importorskip("tomlkit")
    path = tmp_path / "gradscope.toml"
    path.write_bytes(TEXT.replace("\n", end).encode())
    config, checks = run(path)
    difference, text, left = updated(config, checks)
    expected = TEXT.replace("max = -12", "max = -9.9").replace("min = 100", "min = 5")  # 6 at the threshold
    expected = expected.replace("min = -0.5 ", "min = -0.58 ").replace("max = -1 ", "max = -0.24 ")
    assert text == expected.replace("\n", end)
    assert left == []
    removed = [
        line for line in difference.splitlines() if line.startswith("-") and not line.startswith("---")
    ]
    assert len(removed) == 4
    path.write_bytes(text.encode())
    assert run(path)[1].exit_code == 0


def test_what_no_limit_would_hold_is_said(tmp_path):
    pytest.importorskip("tomlkit")
    path = tmp_path / "pyproject.toml"
    path.write_text("[tool.gradscope.analyses.x.budgets]\nlog10_norm.R_f.min = -3\nrate.max = -1\n")
    config, checks = run(path)
    _, text, left = updated(config, checks)
    assert "min = -3\nrate.max = -0.57\n" in text
    (line,) = left
    assert line.startswith("no limit would hold: x: log10_norm.R_f is -inf decades, below min -3")


def test_without_the_library(monkeypatch):
    from gradscope.gate import update

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"needs tomlkit: pip install 'gradscope\[ci\]'"):
        update.check_toml_writer()
    assert math.isfinite(outward(1e300, up=True))
