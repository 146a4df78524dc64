"""Output formats: a row of a table each, which every command renders through."""

import importlib
import json

import numpy as np
import pytest

from gradscope.report import views

ROWS = [(name, kind) for name, kinds in views.FORMATS.items() for kind in kinds]


@pytest.mark.parametrize(("name", "kind"), ROWS)
def test_every_row_leads_somewhere(name, kind):
    module, _, function = views.FORMATS[name][kind].partition(":")
    for library in views.LIBRARIES.get(name, ()):
        pytest.importorskip(library)
    assert callable(getattr(importlib.import_module(module), function))


@pytest.fixture
def native(tmp_path):
    np.savez(tmp_path / "native.npz", W=np.ones((2, 3)), R=np.eye(2), b=np.zeros(2))
    np.save(tmp_path / "jacobians.npy", np.ones((4, 2, 2)))
    return tmp_path


def test_a_new_format_is_a_module_and_a_row(run, native, monkeypatch):
    """Of analyses alone: what it cannot show it says, and what can."""
    (native / "lines.py").write_text(
        "def render(analysis, look):\n    return f'{analysis.verdict.level} {look.all_lags}\\n'\n"
    )
    monkeypatch.syspath_prepend(native)
    monkeypatch.setitem(views.FORMATS, "json", {"Analysis": "lines:render"})
    assert run("chain", native / "jacobians.npy", "--json")[1] == "stable False\n"
    small = ["analyze", native / "native.npz", "--cell", "rnn", "--steps", "4"]
    assert run(*small, "--format", "json", "--lags", "all")[1] == "stable True\n"
    code, out, err = run("inspect", native / "native.npz", "--cell", "rnn", "--json")
    assert (code, out) == (2, "")
    assert err == "gradscope: error: format json does not show an inspection: choose table\n"
    code, out, err = run("inspect", native / "native.npz", "--cell", "rnn", "--format", "csv")
    assert err == "gradscope: error: format csv does not show an inspection: choose table\n"


def test_the_commands_offer_what_is_in_the_table(run, native):
    for command in ("analyze", "chain", "inspect", "check", "compare"):
        assert f"--format [{'|'.join(views.FORMATS)}]" in run(command, "--help")[1]
    done = run("inspect", native / "native.npz", "--cell", "rnn", "--format", "json")
    assert json.loads(done[1])["schema"] == "gradscope/inspection/1"
