"""Several real processes of jax.distributed against one: the same JSON, the same exit code, no hanging."""

import json
import os
import re
import shlex
import socket
import subprocess
import time

import numpy as np
import pytest
from oracles import layouts
from oracles.program import ANALYZE, PATH, TOLD, free_port, together

import gradscope
from gradscope.cli.cluster_place import check_place
from gradscope.measure.agreement import check_alike, fingerprint
from gradscope.problem.layers import make_problems
from gradscope.settings import Settings

SMALL = ["--hidden", "4", "--input-size", "2", "--steps", "20", "--json"]


@pytest.mark.slow
@pytest.mark.parametrize(("count", "batch"), [(2, 5), pytest.param(3, 2, marks=pytest.mark.slow)])
def test_processes_of_a_cluster_find_what_one_finds(count, batch):
    arguments = [*SMALL, "--batch", str(batch), "--devices", "2", "--gain", "0.01", "--fail-on", "vanishing"]
    alone = subprocess.run([*ANALYZE, *arguments], capture_output=True, text=True, check=False)
    (code, out, _), *others = together(count, arguments)
    assert json.loads(out) == json.loads(alone.stdout)
    assert code == alone.returncode == 1
    assert [(code, out) for code, out, _ in others] == [(1, "")] * (count - 1)


@pytest.mark.slow
def test_a_cluster_finds_what_one_process_finds_of_several_layers(tmp_path):
    layouts.saved(layouts.recurrent("lstm", 2, 3, layers=2), tmp_path / "model.pt")
    arguments = [str(tmp_path / "model.pt"), "--steps", "10", "--batch", "3", "--json"]
    alone = subprocess.run([*ANALYZE, *arguments], capture_output=True, check=True).stdout
    ended = together(2, arguments)
    assert json.loads(ended[0][1]) == json.loads(alone)
    assert ended[1][:2] == (0, "")


@pytest.mark.slow  # three processes compile it all
def test_a_cluster_finds_the_top_values_that_one_process_finds():
    """More processes than sequences; side by side they are multiplied in another order."""
    arguments = [*SMALL, "--batch", "2", "--top", "2"]
    alone = json.loads(subprocess.run([*ANALYZE, *arguments], capture_output=True, check=True).stdout)
    found = json.loads(together(3, arguments)[0][1])
    assert found["verdict"]["level"] == alone["verdict"]["level"]
    for one, other in zip(found["chains"], alone["chains"], strict=True):
        for name in ("log10_singular_values", "log10_norm", "horizon"):
            np.testing.assert_allclose(*(flat(chain[name]) for chain in (one, other)), rtol=0, atol=1e-10)


def flat(value):
    """The numbers of a JSON value; null is a zero, -inf in log10."""
    if isinstance(value, dict):
        value = list(value.values())
    return np.array([flat(v) if isinstance(v, list) else -np.inf if v is None else v for v in value])


@pytest.mark.slow
def test_what_fails_in_one_process_ends_all_of_them(tmp_path):
    for code, out, err in together(2, SMALL, {1: ["--inputs", str(tmp_path / "missing.npy")]}):
        assert (code, out) == (2, "")
        last = err.splitlines()[-1]
        assert last.startswith("gradscope: error: process 1: ")
        assert "missing.npy" in last


@pytest.mark.slow
def test_processes_with_other_options_are_refused():
    for code, out, err in together(2, SMALL, {1: ["--gain", "2"]}):
        assert (code, out) == (2, "")
        assert "process 1 has other weights than process 0" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ({"gain": 1.001}, "weights"),
        ({"seed": 1}, "weights, inputs"),
        ({"cell": "lstm-nfg"}, "options, weights"),
        ({"accuracy": "fast"}, "options"),
        ({"cut": ("R_o",)}, "options"),
        ({"steps": 6}, "inputs"),
        ({"adjoint": np.ones(3)}, "adjoints"),
    ],
)
def test_what_processes_must_have_in_common(other, differs):
    def said(**given):
        settings = Settings(**({"hidden": 3, "input_size": 2, "steps": 5} | given))
        problems = make_problems(settings, None, []).with_loss(None, None, settings.adjoint)
        return json.loads(json.dumps(fingerprint(problems, -3.0)))

    check_alike([said(), said(), said()])
    with pytest.raises(gradscope.InputError, match=f"process 2 has other {differs} than process 0"):
        check_alike([said(), said(), said(**other)])


SHORT = ["--distributed", "--cluster-timeout", "2", "--num-processes", "2"]


def clustered(port, number, *arguments):
    place = ["--coordinator", f"127.0.0.1:{port}", "--process-id", str(number)]
    pipe = subprocess.PIPE
    return subprocess.Popen([*ANALYZE, *SHORT, *place, *arguments], stdout=pipe, stderr=pipe, text=True)


def refusal(process):
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    last = err.splitlines()[-1]
    assert last.startswith("gradscope: error: --distributed: ")
    assert not re.search(r"Traceback|^\s+@ |^F\d{4}", err, re.M)
    return last


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_cluster_that_does_not_meet_ends_in_one_line(number):
    assert "(--cluster-timeout)" in refusal(clustered(free_port(), number, *SMALL))


@pytest.mark.slow
def test_a_port_that_is_taken_is_said_so():
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        refusal(clustered(taken.getsockname()[1], 0, *SMALL))


@pytest.mark.slow
@pytest.mark.parametrize("number", [0, 1])
def test_a_process_that_is_killed_ends_the_others_in_one_line(number):
    port = free_port()
    long = ["--hidden", "64", "--steps", "20000", "--batch", "2"]
    processes = [clustered(port, k, *long) for k in range(2)]
    time.sleep(6)
    processes[number].kill()
    refusal(processes[1 - number])
    processes[number].communicate(timeout=60)  # its child goes too


@pytest.mark.slow
def test_an_output_that_cannot_be_written_is_refused_before_the_work(tmp_path):
    for code, out, err in together(2, [*SMALL, "-o", str(tmp_path / "no" / "result.json")]):
        assert (code, out) == (2, "")
        assert "does not exist" in err


@pytest.mark.parametrize(
    ("cluster", "expected"),
    [
        (("h:1", None, None), "--num-processes and --process-id not given"),
        ((None, 2, 0), "--coordinator not given"),
        (("h", 2, 0), "coordinator is 'h', expected HOST:PORT"),
        (("h:x", 2, 0), "coordinator is 'h:x', expected HOST:PORT"),
        (("h:1", 2, 2), "process-id is 2, expected 0 to 1"),
        (("h:1", 0, 0), "num-processes is 0, expected at least 1"),
    ],
)
def test_clusters_that_cannot_be_meant(cluster, expected):
    with pytest.raises(gradscope.InputError, match=re.escape(expected)):
        check_place(*cluster)


@pytest.mark.parametrize("arguments", [["--distributed"], ["--num-processes", "2"]])
def test_options_that_are_not_enough(arguments):
    environment = {name: v for name, v in os.environ.items() if not name.startswith(("SLURM", "OMPI"))}
    done = subprocess.run(
        [*ANALYZE, *SMALL, *arguments], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "--num-processes" in done.stderr


@pytest.mark.slow
def test_the_shell_example_of_the_readme(tmp_path):
    (script,) = re.findall(r"```sh\n(for process in .*?)```", TOLD, re.DOTALL)
    script = script.replace("localhost:9876", f"localhost:{free_port()}")
    done = subprocess.run(
        ["sh", "-euc", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": PATH},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert done.stdout.startswith("VANISHING: lstm")
    assert ", batch 8, " in done.stdout


def test_the_slurm_example_of_the_readme_is_a_shell_script_with_known_options():
    scripts = re.findall(r"```sh\n(#!/bin/sh\n#SBATCH.*?)```", TOLD, re.DOTALL)
    for script in scripts:
        subprocess.run(["sh", "-n"], input=script, text=True, check=True)
    lines = "".join(scripts).splitlines()
    (command,) = [line for line in lines if line.startswith("srun gradscope analyze ")]
    from gradscope.cli.analyze import analyze

    words = shlex.split(command)
    analyze.make_context("analyze", words[words.index("analyze") + 1 :])
