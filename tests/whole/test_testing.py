"""gradscope.testing: an assertion for the tests of others."""

import pytest

import gradscope
from gradscope.errors import InputError
from gradscope.testing import assert_gradient_flow

SMALL = {"cell": "lstm", "hidden": 4, "input_size": 3, "steps": 12}


@pytest.fixture(scope="module")
def analysis():
    return gradscope.analyze(**SMALL)


def test_what_flows_is_returned(analysis):
    assert assert_gradient_flow(analysis) is analysis
    found = assert_gradient_flow(**SMALL, max={"log10_norm": 1.0, "log10_largest_gain": 1.0})
    assert found.full.log10_norm.median == pytest.approx(analysis.full.log10_norm.median, abs=1e-10)
    assert found.only == "gain"
    assert assert_gradient_flow(**SMALL, min={"share.carousel": -9.0}).only == "paths"


def test_a_limit_that_is_not_kept_shows_the_table(analysis):
    norm = analysis.full.log10_norm.median
    with pytest.raises(AssertionError) as caught:
        assert_gradient_flow(analysis, max={"log10_norm": norm - 2}, min={"horizon": 3})
    first, empty, *table = str(caught.value).splitlines()
    assert first == f"log10_norm is {norm:.6g} decades, above max {norm - 2:g} by 2"
    assert (empty, "\n".join(table)) == ("", str(analysis))
    assert_gradient_flow(analysis, max={"log10_norm": norm + 1e-6}, min={"log10_norm": norm - 1e-6})


def test_verdicts(analysis):
    with pytest.raises(AssertionError, match=r"^the verdict is stable, expected vanishing or exploding\n"):
        assert_gradient_flow(analysis, verdict=("vanishing", "exploding"))
    with pytest.raises(AssertionError, match=r"^the verdict is vanishing, expected stable\n"):
        assert_gradient_flow(**{**SMALL, "cell": "linear", "gain": 0.01})
    assert_gradient_flow(**{**SMALL, "cell": "linear", "gain": 0.01}, verdict="vanishing")
    # A limit alone says nothing of the verdict.
    assert_gradient_flow(**{**SMALL, "cell": "linear", "gain": 0.01}, max={"log10_norm": 0.0})


def test_what_cannot_be_asked(analysis):
    with pytest.raises(InputError, match=r"did you mean log10_norm\?"):
        assert_gradient_flow(analysis, max={"log10_nrm": 3})
    with pytest.raises(InputError, match=r"verdict is 'stabel': did you mean stable\?"):
        assert_gradient_flow(analysis, verdict="stabel")
    with pytest.raises(InputError, match="steps: given beside an Analysis"):
        assert_gradient_flow(analysis, steps=3)
    with pytest.raises(InputError, match=r"horizon.R_x"):
        assert_gradient_flow(analysis, min={"horizon.R_x": 3})
    with pytest.raises(InputError, match=r"assert_gradient_flow.*expected a model of PyTorch"):
        assert_gradient_flow(object())
    with pytest.raises(TypeError, match="hiden"):
        assert_gradient_flow(hiden=3)


@pytest.mark.slow
def test_a_failure_as_pytest_shows_it(tmp_path):
    """One frame of the test, the sentence and the table; nothing of ours."""
    import subprocess
    import sys

    (tmp_path / "test_flow.py").write_text(
        "from gradscope.testing import assert_gradient_flow\n\ndef test_flow():\n"
        "    assert_gradient_flow(cell='linear', hidden=2, input_size=1, steps=9, gain=0.01)\n"
    )
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        "/dev/null",
        "test_flow.py",
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "E       AssertionError: the verdict is vanishing, expected stable" in done.stdout
    assert "VANISHING: linear, hidden 2, 9 steps" in done.stdout
    assert "gradscope/testing.py" not in done.stdout
