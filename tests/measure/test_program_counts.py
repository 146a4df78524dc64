"""How many programs a first call compiles: sizes that no other test has, so that all are new."""

import numpy as np
import pytest
from oracles.two_layers import two_lstms

import gradscope
from gradscope.advise.network import Network
from gradscope.api import analyze_problems
from gradscope.measure.all_values import JacobianChains
from gradscope.problem.problem import make_problem
from gradscope.settings import Settings


def test_a_default_analysis(compiled):
    gradscope.analyze(hidden=13, input_size=2, steps=11)
    assert 1 <= len(compiled) <= 4, compiled
    known = len(compiled)
    gradscope.analyze(hidden=13, input_size=2, steps=11, seed=3)
    gradscope.analyze(hidden=13, input_size=2, steps=11, gain=2.0)
    assert len(compiled) == known


def test_top_values(compiled, monkeypatch):
    """As a command decides: of so few states all values are sooner."""
    monkeypatch.setattr("gradscope.measure.batch.sooner_without_jacobians", lambda _: False)
    gradscope.analyze(hidden=14, input_size=2, steps=11, top=8)
    assert 1 <= len(compiled) <= 6, compiled


def test_top_values_without_jacobians(compiled):
    """Trajectory, gates, shares; of the full chain and of all paths one program for blocks, one for lags."""
    gradscope.analyze(hidden=7, input_size=2, steps=11, top=2)
    assert 1 <= len(compiled) <= 11, compiled


@pytest.mark.slow
def test_evaluations_of_suggestions_share_their_programs(compiled, monkeypatch):
    """After the first nothing is compiled, however many knobs and calls there are; a dozen each at most."""
    calls, after, changed = [], [], Network.changed

    def counted(*given, **options):
        calls[-1] += 1
        found = changed(*given, **options)
        after.append(len(compiled))
        return found

    monkeypatch.setattr(Network, "changed", counted)
    gradscope.suggest(
        hidden=5,
        input_size=2,
        steps=61,
        knob=["b_f", "R_z", "R_*"],
        trying=lambda line: calls.append(0) if "trying" in line else None,
    )
    assert len(calls) == 3
    assert 5 < sum(calls) == len(after)
    assert max(calls) <= 12
    assert after[-1] == after[0] <= 12, compiled
    known = len(compiled)
    gradscope.suggest(hidden=5, input_size=2, steps=61, gain=0.1, knob="R_o")
    assert len(compiled) == known


def test_two_layers(compiled):
    problems = two_lstms(11, 15, 2)
    compiled.clear()
    analyze_problems(problems)
    assert 1 <= len(compiled) <= 8, compiled


def test_check(compiled, run, tmp_path, monkeypatch):
    """Of several analyses of one size."""
    monkeypatch.chdir(tmp_path)
    one = 'cell = "lstm"\nhidden = 18\ninput_size = 2\nsteps = 11\nseed = [0, 1]\n'
    names = ("a", "b")
    text = "".join(
        f"[analyses.{name}]\n{one}gain = {gain}\n[analyses.{name}.budgets]\nlog10_norm = {{max = 9}}\n"
        for gain, name in enumerate(names, 1)
    )
    (tmp_path / "gradscope.toml").write_text(text)
    assert run("check")[0] == 0
    assert 1 <= len(compiled) <= 4, compiled


def test_what_is_not_printed_is_not_computed(compiled, run, monkeypatch):
    """Of a verdict and a gain one program and one chain, the full one; ``-q`` is the verdict."""
    asked, spectrum = [], JacobianChains._spectrum

    def noted(chains, name, ask):
        asked.append(name)
        return spectrum(chains, name, ask)

    monkeypatch.setattr(JacobianChains, "_spectrum", noted)
    monkeypatch.setattr(JacobianChains, "_without", lambda *_: asked.append("without") or {})
    one = ["analyze", "--hidden", 20, "--input-size", 2, "--steps", 11]
    for only in (["--only", "verdict"], ["--only", "gain"], ["-q"]):
        assert run(*one, *only)[0] == 0
    assert asked == 3 * ["full"]
    assert compiled == ["jit(_linearized)"]
    assert run(*one, "--only", "paths")[0] == 0
    assert set(asked) == {"full", "carousel", "R_i", "R_f", "R_z", "R_o", "without"}


def test_commands_on_what_is_measured_compile_nothing(compiled, run, tmp_path):
    weights, saved, other = (tmp_path / name for name in ("w.npz", "one.json", "two.json"))
    np.savez(weights, **make_problem(Settings(hidden=23, input_size=2)).system.parameters)
    np.save(stack := tmp_path / "stack.npy", np.random.default_rng(0).normal(size=(9, 4, 4)))
    one = ["analyze", weights, "--cell", "lstm", "--steps", "11"]
    for path in (saved, other):
        assert run(*one, "--json", "-o", path)[0] == 0
    compiled.clear()
    for command in (
        ["inspect", weights],
        ["chain", stack],
        ["report", saved, "-o", tmp_path / "one.html"],
        ["plot", saved, "-o", tmp_path / "one.svg"],
        ["compare", saved, other],
    ):
        assert run(*command)[0] == 0, command
    assert not compiled


@pytest.mark.slow
def test_repair(compiled, run, tmp_path):
    """Of the network as it was, and of that which is written."""
    weights = tmp_path / "w.npz"
    np.savez(weights, **make_problem(Settings(hidden=5, input_size=2, gain=0.1)).system.parameters)
    compiled.clear()
    run("repair", weights, "--cell", "lstm", "--steps", 20, "--knob", "b_f=2", "-o", tmp_path / "n.npz")
    assert (tmp_path / "n.npz").exists()
    assert 1 <= len(compiled) <= 8, compiled


def test_track_light(compiled, run, tmp_path):
    """However many checkpoints."""
    paths = []
    for number in range(4):
        weights = make_problem(Settings(hidden=19, input_size=2, seed=number)).system.parameters
        np.savez(path := tmp_path / f"step_{number}.npz", **weights)
        paths.append(path)
    compiled.clear()
    asked = ["--cell", "lstm", "--steps", "11", "--light", "--format", "jsonl"]
    assert run("track", *paths[:2], *asked)[0] == 0
    assert 1 <= len(compiled) <= 6, compiled
    known = len(compiled)
    assert run("track", *paths[2:], *asked)[0] == 0
    assert len(compiled) == known


def test_a_grid_of_one_shape(compiled):
    """Numbers, weights, and what paths carry are arguments of one program."""
    given = {"hidden": 6, "input_size": 2, "steps": 13}
    gradscope.sweep(**given, grid="gain=1")
    assert 1 <= len(compiled) <= 4, compiled
    known = len(compiled)
    gradscope.sweep(
        **given, grid=["gain=0.9,2", "forget_bias=0,1", "seed=1,2", "cut=R_i,R_f", "scale.R_*=0.9,1.5"]
    )
    gradscope.sweep(**given, grid=["input_scale=0.5,2", "init=gaussian,orthogonal", "exploding_above=10,100"])
    assert len(compiled) == known, compiled[known:]


@pytest.mark.slow
def test_a_grid_of_whole_analyses(compiled):
    """The factor of a path is an argument there too, that by which masks and losses go as well."""
    given = {"cell": "rnn", "hidden": 6, "input_size": 2, "steps": 14}
    for more in ({"only": "paths"}, {"adjoint": np.ones((14, 6)), "clip": 1.0}):
        gradscope.sweep(**given, **more, grid="scale.R=0.5")
        known = len(compiled)
        gradscope.sweep(**given, **more, grid=["scale.R=0.25,2", "gain=0.5,2"])
        assert len(compiled) == known, compiled[known:]


def test_a_grid_of_several_shapes(compiled, monkeypatch):
    """One program each, however the points of a shape are spread over the grid, in batches of one size."""
    monkeypatch.setattr("gradscope.grid.points._BESIDE", 4)
    monkeypatch.setattr("gradscope.grid.probe.one_by_one", lambda _: False)
    monkeypatch.setattr("gradscope.measure.light._at_once", lambda *_: 64)
    given = {"cell": "rnn", "input_size": 2, "steps": 9}
    grid = ["gain=0.5,0.7,1,2,3", "hidden=3,4"]  # five points a shape, as batches of three
    beside = gradscope.sweep(**given, grid=grid)
    programs = [f"jit({name})" for name in ("leading_vectors", "meeting", "steps_to_pass")]
    assert sorted(compiled) == sorted(2 * programs)
    monkeypatch.undo()
    alone = gradscope.sweep(**given, grid=grid)
    for one, other in zip(beside.points, alone.points, strict=True):
        assert one["settings"] == other["settings"]
        assert abs(one["log10_norm"] - other["log10_norm"]) < 1e-9
