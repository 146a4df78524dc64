"""The axes of a grid: what is written as the values of an option, and what is refused with which words."""

import numpy as np
import pytest

from gradscope.errors import InputError
from gradscope.grid.axes import axes_of, check_fixed, point_name, points_of, settings_at
from gradscope.settings import Sweeping


@pytest.mark.parametrize(
    ("text", "name", "values"),
    [
        ("gain=0.5:2:4", "gain", (0.5, 1.0, 1.5, 2.0)),
        ("gain=0:1:11", "gain", tuple(k / 10 for k in range(11))),
        ("gain=2:1:3", "gain", (2.0, 1.5, 1.0)),
        ("forget_bias=-1:5:7", "forget_bias", (-1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0)),
        ("gain=1e-9:3e-9:3", "gain", (1e-9, 2e-9, 3e-9)),
        ("gain=1:1000:4:log", "gain", (1.0, 10.0, 100.0, 1000.0)),
        ("gain=0.5,1,2", "gain", (0.5, 1.0, 2.0)),
        ("--forget-bias=-1:1:3", "forget_bias", (-1.0, 0.0, 1.0)),
        ("b_f=0", "forget_bias", (0.0,)),
        ("steps=50:200:4", "steps", (50, 100, 150, 200)),
        ("seed=0,1,2", "seed", (0, 1, 2)),
        ("cell=lstm,gru", "cell", ("lstm", "gru")),
        ("init=gaussian, orthogonal", "init", ("gaussian", "orthogonal")),
        ("scale.R_*=0.5:1:2", "scale.R_*", (0.5, 1.0)),
        ("exploding-above=10,100", "exploding_above", (10.0, 100.0)),
        ("input-scale=0.1:10:3:log", "input_scale", (0.1, 1.0, 10.0)),
        ("clip=0.5:2:4", "clip", (0.5, 1.0, 1.5, 2.0)),
        ("clip=norm:1,value:0.5,3", "clip", ("norm:1", "value:0.5", 3.0)),
        ("zoneout=0:0.5:3", "zoneout", (0.0, 0.25, 0.5)),
        ("top=1:4:4", "top", (1, 2, 3, 4)),
        ("top=2,all", "top", (2, "all")),
        ("adjoint=a.npy,b.npy", "adjoint", ("a.npy", "b.npy")),
    ],
)
def test_values(text, name, values):
    (axis,) = axes_of(text)
    assert (axis.name, axis.values) == (name, values)
    assert [type(value) for value in axis.values] == [type(value) for value in values]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gain", "expected NAME=FROM:TO:COUNT or NAME=A,B,C"),
        ("gian=1,2", "there is no such option: did you mean gain?"),
        ("forget_bais=1,2", "did you mean forget_bias?"),
        ("sensitivity=1", "no axis, for it is what no row holds: give it to gradscope analyze at one point"),
        ("devices=1,2", "changes no number: give it beside the grid"),
        ("clip=1:x:3", "has 'x', expected a number"),
        ("clip=nan", "expected a finite number"),
        ("gain=0.5:2", "expected FROM:TO:COUNT such as 0.5:2:16"),
        ("gain=0.5:2:1", "a range has two ends and 2 to 10000 values; of one value give gain=0.5"),
        ("gain=1:1:5", "a range has two ends"),
        ("gain=0:1:5:log", "equal factors are of numbers above 0"),
        ("gain=a:2:5", "has 'a', expected a number"),
        ("gain=1,x", "has 'x', expected a number"),
        ("gain=1,inf", "expected a finite number"),
        ("gain=0:nan:3", "expected a finite number"),
        ("gain=0:1:99999999999", "2 to 10000 values"),
        ("gain=1,1.0", "has 1 twice"),
        ("steps=50:200:5", "which has 87.5, expected whole numbers: choose a count that divides the range"),
        ("steps=1.5", "expected a whole number"),
        ("view=state,cells", "expected one of state, cell"),
        ((), "a sweep has a grid: give --grid"),
        (("gain=1,2", "gain=3"), "gain is given twice"),
        (("gain=0:1:9999", "seed=0:9998:9999"), "the grid has 99980001 points, expected at most 1000000"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(InputError) as error:
        axes_of(text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_values_of_python():
    gain, cell, steps = axes_of(
        {"gain": np.linspace(0, 1, 3), "cell": ["rnn", "gru"], "steps": np.arange(2, 4)}
    )
    assert (gain.values, cell.values, steps.values) == ((0.0, 0.5, 1.0), ("rnn", "gru"), (2, 3))
    assert all(type(value) is int for value in steps.values)
    assert axes_of({"b_f": "0:1:2"})[0].values == (0.0, 1.0)
    for values in (3.0, [True], [None], [object()]):
        with pytest.raises(InputError, match="gain"):
            axes_of({"gain": values})


def test_points_and_their_settings():
    axes = axes_of(["gain=1,2", "forget_bias=0,3", "scale.R_o=0.5"])
    points = points_of(axes)
    assert [point_name(point) for point in points][:2] == [
        "gain=1, forget_bias=0, scale.R_o=0.5",
        "gain=1, forget_bias=3, scale.R_o=0.5",
    ]
    at = settings_at(axes, points[1], {"cell": "lstm", "biases": {"b_i": 1.0}, "scale": "R_*=2"})
    assert at == {
        "cell": "lstm",
        "gain": 1.0,
        "biases": {"b_i": 1.0, "b_f": 3.0},
        "scale": {"R_*": 2.0, "R_o": 0.5},
    }


def test_an_option_is_an_axis_or_given():
    check_fixed(axes_of("gain=1,2"), {"biases": {"b_f": 1.0}})
    for grid, fixed in (("gain=1,2", {"gain": 3.0}), ("b_f=1,2", {"biases": {"b_f": 1.0}})):
        with pytest.raises(
            InputError, match=r"is an axis of the grid, and --.* is given: leave one of them out"
        ):
            check_fixed(axes_of(grid), fixed)


def test_limits_say_how_much_is_measured():
    """Unless it is said: gain and horizon alone tell nothing of what a limit of shares is about."""
    assert Sweeping(grid="gain=1,2").measured(["gain"], "all") == "all"
    assert Sweeping(grid="gain=1,2", top=3).measured(["gain"], "gain") == "paths"
    assert Sweeping(grid="gain=1,2", only="gain").measured(["gain"], "all") == "gain"
