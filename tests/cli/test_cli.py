"""The command line as a script sees it: streams, exit codes, JSON, and everything that can be wrong."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from safetensors.numpy import save_file

import gradscope
from gradscope.cli.progress import progress_bar
from gradscope.measure import batch

SMALL = ["analyze", "--hidden", "4", "--input-size", "3", "--steps", "6"]


@pytest.fixture
def shell(tmp_path):
    """Call the command line as a process of its own."""

    def call(*arguments, **options):
        environment = os.environ | options.pop("env", {})
        command = [sys.executable, "-m", "gradscope", *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, env=environment, cwd=tmp_path, **options
        )

    return call


# -- what comes out ---------------------------------------------------------------------------------


def test_json_follows_its_schema_and_is_strict(run):
    code, out, err = run(*SMALL, "--json", "--batch", "3")
    assert (code, err) == (0, "")
    result = json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    jsonschema.validate(result, gradscope.schema())
    assert result["schema"] == "gradscope/analysis/1"
    assert [c["name"] for c in result["chains"]] == ["full", "carousel", "R_z", "R_i", "R_f", "R_o"]
    full, forget = result["chains"][0], result["chains"][4]
    assert full["size"] == 8
    assert [len(values) for values in full["log10_singular_values"]] == [8, 8, 8]
    assert all(values == sorted(values, reverse=True) for values in full["log10_singular_values"])
    # c_0 = 0: nothing flows through the forget gate in the first step.
    assert forget["exact_zeros"] == [4, 4, 4]
    assert forget["log10_singular_values"][0] == [None] * 4
    assert forget["log10_norm"] == {"median": None, "min": None, "max": None}
    assert result["profile"]["lag"] == [1, 2, 3, 4, 5, 6]
    assert [len(values) for values in result["profile"]["log10_norm"]] == [6, 6, 6]
    assert sum(result["shares"].values()) == pytest.approx(1, abs=1e-12)
    assert (
        set(result["profile"]["share"]) == set(result["shares"]) == {c["name"] for c in result["chains"][1:]}
    )
    assert set(result["gates"]) == {"i", "f", "o"}
    assert [m["name"] for m in result["matrices"]] == ["R_z", "R_i", "R_f", "R_o"]
    assert result["problem"]["backend"] == "cpu"


@pytest.mark.parametrize("cell", ["linear", "rnn", "rnn-relu", "lstm-peephole", "gru", "gru-reset-before"])
def test_every_kind_of_cell_gives_valid_json_and_a_table(run, cell):
    code, out, _ = run(*SMALL, "--cell", cell, "--json")
    assert code == 0
    jsonschema.validate(json.loads(out), gradscope.schema())
    code, out, _ = run(*SMALL, "--cell", cell)
    assert code == 0
    assert out.split(":")[0] in ("VANISHING", "STABLE", "EXPLODING", "UNDECIDED")


def test_format_json_is_json(run):
    assert run(*SMALL, "--json") == run(*SMALL, "--format", "json")


def test_lags_of_a_long_chain(run):
    arguments = [
        "analyze",
        "--cell",
        "linear",
        "--hidden",
        "1",
        "--input-size",
        "1",
        "--steps",
        "1500",
        "--json",
    ]
    lags = json.loads(run(*arguments)[1])["profile"]["lag"]
    assert (lags[0], lags[-1]) == (1, 1500)
    assert 500 < len(lags) <= 1000
    assert json.loads(run(*arguments, "--lags", "all")[1])["profile"]["lag"] == list(range(1, 1501))


def test_output_file_holds_what_stdout_would(run, tmp_path):
    _, out, _ = run(*SMALL, "--json")
    target = tmp_path / "result.json"
    target.write_text("older")
    assert run(*SMALL, "--json", "-o", target) == (0, "", "")
    assert target.read_text() == out
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_quiet_is_the_verdict_alone(run):
    code, out, err = run(*SMALL, "--quiet")
    assert (code, err) == (0, "")
    assert out.count("\n") == 1
    assert out.startswith("STABLE: lstm, hidden 4, 6 steps, gain ")


def test_quiet_of_a_stack_measures_no_layer_alone(run, tmp_path, monkeypatch):
    """But where --fail-on looks for it; and prints the line that the whole does."""
    names = ("weight_ih_l0", "weight_hh_l0", "weight_ih_l1", "weight_hh_l1")
    rng = np.random.default_rng(0)
    save_file(
        {name: rng.normal(size=(12, 3)).astype(np.float32) for name in names}, tmp_path / "m.safetensors"
    )
    measured, measure = [], batch._measured
    monkeypatch.setattr(batch, "_measured", lambda *given: measured.append(given[0]) or measure(*given))
    command = ("analyze", tmp_path / "m.safetensors", "--steps", "5")
    code, out, err = run(*command, "-q")
    assert (code, err) == (0, "")
    assert [len(problem.system.cell.members) for problem in measured] == [2]
    whole = run(*command, "--only", "verdict")[1]
    assert " ".join(whole.split()).startswith(" ".join(out.split()))
    level = out.partition(":")[0].lower()
    measured.clear()
    code, out, err = run(*command, "-q", "--fail-on", level)
    assert (code, len(measured)) == (1, 3)
    assert f"--fail-on matched: {level}" in err


def test_chain_of_a_file(run, tmp_path):
    rng = np.random.default_rng(0)
    stack = rng.normal(size=(5, 3, 3))
    np.save(tmp_path / "j.npy", stack)
    code, out, _ = run("chain", tmp_path / "j.npy", "--json")
    result = json.loads(out)
    jsonschema.validate(result, gradscope.schema())
    assert code == 0
    assert [c["name"] for c in result["chains"]] == ["full"]
    product = np.linalg.multi_dot(stack[::-1])
    expected = np.log10(np.linalg.svd(product, compute_uv=False))
    np.testing.assert_allclose(result["chains"][0]["log10_singular_values"][0], expected, atol=1e-12)
    assert run("chain", tmp_path / "j.npy")[0] == 0


@pytest.mark.slow
def test_chain_of_a_pipe(tmp_path):
    """From stdin, and from what the shell calls a command's output; what is no .npy is not read on."""
    np.save(tmp_path / "j.npy", np.random.default_rng(0).normal(size=(5, 3, 3)))
    call = f"{sys.executable} -m gradscope chain"
    commands = {
        f"{call} j.npy -q": ("j.npy", ""),
        f"cat j.npy | {call} - -q": ("stdin", ""),
        f"{call} - -q < j.npy": ("stdin", ""),
        f"{call} <(cat j.npy) -q": ("/dev/fd/", ""),
        f"{call} - < /dev/zero": ("", "stdin: does not begin as a .npy does"),
        f"head -c 200 j.npy | {call} -": ("", "truncated"),
    }
    gains = set()
    for command, (source, words) in commands.items():
        done = subprocess.run(
            ["bash", "-c", command], capture_output=True, text=True, cwd=tmp_path, check=False
        )
        assert done.returncode == 2 * bool(words), done.stderr
        assert words in done.stderr
        assert source in done.stdout
        gains |= {done.stdout.rpartition(" ")[2]} - {""}
    assert len(gains) == 1


def test_some_of_the_sequences_are_taken(run, tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 6, 3))
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "first.npy", x[:2])
    np.save(tmp_path / "lengths.npy", [6, 4, 5])
    np.save(tmp_path / "two.npy", [6, 4])
    arguments = ["analyze", "--hidden", "4", "--json", "--inputs"]
    some = run(*arguments, tmp_path / "x.npy", "--batch", "2")[1]
    whole = run(*arguments, tmp_path / "first.npy")[1]
    assert json.loads(some)["chains"] == json.loads(whole)["chains"]
    lengths = "--lengths", tmp_path / "lengths.npy", "--batch", "2"
    some = run(*arguments, tmp_path / "x.npy", *lengths)[1]
    whole = run(*arguments, tmp_path / "first.npy", "--lengths", tmp_path / "two.npy")[1]
    assert json.loads(some)["chains"] == json.loads(whole)["chains"]


def test_what_matched_is_said(run):
    code, out, err = run(*SMALL, "-q", "--fail-on", "vanishing", "--fail-on", "stable")
    assert (code, err) == (1, "gradscope: --fail-on matched: stable\n")
    assert out.startswith("STABLE")
    result = json.loads(run(*SMALL, "--json", "--fail-on", "stable")[1])
    assert result["verdict"]["matched"] == [{"level": "stable", "layer": None}]
    assert json.loads(run(*SMALL, "--json")[1])["verdict"]["matched"] == []


def test_more_devices_than_cores_are_told(run, monkeypatch):
    monkeypatch.setattr("gradscope.machine.cores", lambda: 1)
    monkeypatch.setattr("gradscope.api.find_devices", lambda *_: __import__("jax").local_devices())
    assert "--devices 9 on 1 core: one sequence was measured at a time" in run(*SMALL, "--devices", "9")[2]


def test_examples_fit_a_terminal(run):
    for command in (
        [],
        ["analyze"],
        ["chain"],
        ["inspect"],
        ["config"],
        ["schema"],
        ["completion"],
        ["track"],
        ["merge"],
        ["plot"],
        ["suggest"],
        ["repair"],
        ["report"],
    ):
        assert max(map(len, run(*command, "--help")[1].partition("Options:")[0].splitlines())) <= 80


def test_what_was_changed_is_in_the_heading(run, files, monkeypatch):
    monkeypatch.chdir(files)
    given = ["--gain", "1.5", "--forget-bias", "2", "--inputs", "zeros", "--steps", "5"]
    words = "recurrent matrices x 1.5, b_f = 2, inputs all zero"
    assert words in " ".join(run("analyze", "good.npz", "--cell", "lstm", *given)[1].split())
    assert "random inputs, N(0, 1)" in run("analyze", "good.npz", "--cell", "lstm", "--steps", "5", "-q")[1]
    assert "init orthogonal" in run(*SMALL, "--init", "orthogonal", "-q")[1]


def test_python_and_shell_agree(run):
    result = json.loads(run(*SMALL, "--cell", "gru", "--gain", "2", "--seed", "3", "--json")[1])
    analysis = gradscope.analyze(cell="gru", hidden=4, input_size=3, steps=6, gain=2.0, seed=3)
    assert analysis.to_dict() == result


def test_help_begins_with_examples(run):
    for arguments in (["--help"], ["analyze", "-h"], ["chain", "-h"]):
        code, out, err = run(*arguments)
        assert (code, err) == (0, "")
        assert out.index("Examples:") < out.index("Options:")
        assert max(map(len, out.splitlines())) <= 100
        assert out.replace("\n", "").isprintable()


def test_every_example_of_the_help_has_a_line_of_its_own(run):
    for arguments, count in (
        (["--help"], 11),
        (["analyze", "-h"], 5),
        (["analyze", "--help"], 10),
        (["chain", "-h"], 3),
        (["inspect", "-h"], 2),
        (["check", "-h"], 5),
        (["check", "--help"], 7),
        (["compare", "-h"], 3),
        (["suggest", "--help"], 4),
        (["repair", "--help"], 5),
        (["schema", "-h"], 2),
        (["track", "-h"], 5),
        (["sweep", "-h"], 5),
        (["merge", "-h"], 4),
        (["plot", "-h"], 8),
        (["report", "--help"], 4),
        (["completion", "-h"], 3),
    ):
        examples = run(*arguments)[1].partition("Examples:\n")[2].partition("\n\n")[0].splitlines()
        assert len(examples) == count
        assert all(line.startswith("    gradscope ") for line in examples)


def test_the_list_of_commands_says_what_they_do(run):
    commands = run("--help")[1].partition("Commands:\n")[2].split("\n")
    assert [line.split(None, 1)[1] for line in commands if line] == [
        "Measure how the gradient flows through a recurrent cell.",
        "Measure the product of a stack of Jacobians.",
        "Write a result as one HTML page.",
        "Draw a picture of a result.",
        "List the recurrent layers in a checkpoint.",
        "Hold analyses to budgets: exit 1 if one is broken.",
        "Show what has changed between two results.",
        "Measure the checkpoints of a run, a row each.",
        "Measure a grid of options: a phase diagram.",
        "Put the rows of many processes together.",
        "Find settings that reach a gain or a horizon, verified.",
        "Write a checkpoint with knobs set, and verify it.",
        "Say what every option is set to, and where.",
        "Print the JSON Schema of what a command writes.",
        "Print a script that completes options in your shell.",
    ]


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("analyze --init ", {"pytorch", "keras", "orthogonal"}),
        ("analyze --cell lstm-p", {"lstm-peephole"}),
        ("analyze --only ", {"verdict", "gain", "paths", "all"}),
        ("analyze --fail-on ex", {"exploding"}),
        ("analyze --inputs z", {"zeros"}),
        ("analyze --activation r", {"relu"}),
        ("analyze --forget", {"--forget-bias"}),
        ("ch", {"chain"}),
    ],
)
def test_completion(monkeypatch, typed, expected):
    """As a shell asks for it: what is typed, and which of its words is to be completed."""
    words = ["gradscope", *typed.split(" ")]
    from click.shell_completion import BashComplete

    from gradscope.cli.main import cli

    monkeypatch.setenv("COMP_WORDS", " ".join(words))
    monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
    found = {item.value for item in _completed(BashComplete(cli, {}, "gradscope", "_GRADSCOPE_COMPLETE"))}
    assert found >= expected
    assert all(name.startswith(words[-1]) for name in found)


def _completed(shell):
    return shell.get_completions(*shell.get_completion_args())


def test_version(run):
    assert run("--version") == (0, f"gradscope {gradscope.__version__}\n", "")


# -- exit codes -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("gain", "level"), [("0.1", "vanishing"), ("1", "stable"), ("10", "exploding")])
def test_fail_on(run, gain, level):
    arguments = [
        "analyze",
        "--cell",
        "linear",
        "--init",
        "identity",
        "--hidden",
        "2",
        "--steps",
        "9",
        "--gain",
        gain,
    ]
    for other in ("vanishing", "stable", "exploding", "undecided"):
        code, out, _ = run(*arguments, "--fail-on", other)
        assert code == int(other == level)
        assert out.startswith(level.upper())
    assert run(*arguments, "--fail-on", "vanishing", "--fail-on", "exploding")[0] == int(level != "stable")


def test_a_gain_on_the_threshold_is_undecided(run):
    arguments = ["analyze", "--cell", "linear", "--init", "identity", "--hidden", "2", "--steps", "9"]
    code, out, _ = run(*arguments, "--vanishing-below", "1", "--fail-on", "undecided")
    assert code == 1
    assert out.startswith("UNDECIDED")


def test_nothing_asked_is_a_usage_error(run):
    code, out, err = run()
    assert (code, out) == (2, "")
    assert err == run("--help")[1]


def test_a_closed_pipe_is_141(tmp_path):
    command = f"{sys.executable} -m gradscope {' '.join(SMALL)} --json; echo $? >&2"
    done = subprocess.run(
        ["bash", "-c", f"({command}) | true"], stderr=subprocess.PIPE, text=True, cwd=tmp_path, check=False
    )
    assert done.stderr == "141\n"


FULL, CLOSED = "stdout: No space left on device", "stdout: Bad file descriptor"


@pytest.mark.parametrize(
    ("arguments", "redirection", "code", "words"),
    [
        (SMALL, ">/dev/full", 2, FULL),
        (["--version"], ">/dev/full", 2, FULL),
        (["analyze", "--help"], ">/dev/full", 2, FULL),
        (SMALL, ">&-", 2, CLOSED),
        (["--help"], ">&-", 2, CLOSED),
        (SMALL, "<&- >&- 2>&-", 2, ""),
        ([*SMALL, "-o", "file"], ">&-", 0, ""),
        (SMALL, "2>&-", 0, ""),
        (["analyse"], "2>/dev/full", 2, ""),
    ],
)
def test_streams_that_are_full_or_closed(tmp_path, arguments, redirection, code, words):
    command = f"{shlex.join([sys.executable, '-m', 'gradscope', *arguments])} {redirection}"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == code
    assert done.stderr == (f"gradscope: error: {words}\n" if words else "")
    assert bool(done.stdout) == (code == 0 and ">&-" not in redirection.split())
    assert [p.read_text()[:6] for p in tmp_path.iterdir()] == ["STABLE"] * ("file" in arguments)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_an_interrupt_cannot_be_lost(shell, tmp_path):
    """As it could be in an import, or in a callback that swallows exceptions."""
    (tmp_path / "deaf.py").write_text(
        "import os, signal, time\n"
        "try:\n    os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\nexcept BaseException:\n    pass\n"
    )
    done = shell(*SMALL, "--cell", "deaf:cell")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "gradscope: interrupted\n")


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.parametrize("delay", [0.6, 1.2, 1.8, 2.4, 3.0])
def test_an_interrupt_is_130(delay, tmp_path):
    """Of all processes of a terminal, as Ctrl-C is; no thread is waited for."""
    options = ["--hidden", "32", "--steps", "20000", "--batch", "3", "--devices", "3", "--platform", "cpu"]
    process = subprocess.Popen(
        [sys.executable, "-m", "gradscope", "analyze", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        start_new_session=True,
    )
    time.sleep(delay)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err.splitlines()[-1]) == (130, b"", b"gradscope: interrupted")
    assert err.count(b"\n") <= 2  # before it, what will be measured and how long it takes


def test_a_bug_is_3_with_a_traceback_on_request(run, monkeypatch):
    def broken(*_, **__):
        raise RuntimeError("several\nlines")

    monkeypatch.setattr("gradscope.linearize.sequence.split", broken)
    monkeypatch.delenv("GRADSCOPE_TRACEBACK", raising=False)
    code, out, err = run(*SMALL)
    assert (code, out) == (3, "")
    assert err.startswith("gradscope: internal error: RuntimeError: several lines;")
    assert err.count("\n") == 1
    monkeypatch.setenv("GRADSCOPE_TRACEBACK", "1")
    code, out, err = run(*SMALL)
    assert (code, out) == (3, "")
    assert "Traceback" in err


def test_a_cell_that_prints_does_not_disturb_stdout(shell, tmp_path):
    (tmp_path / "noisy.py").write_text(
        "from gradscope.cells.rnn import elman as tanh\nimport os\n"
        "def cell():\n    print('hello'); os.write(1, b'there\\n'); return tanh()\n"
    )
    done = shell(*SMALL, "--cell", "noisy:cell", "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout)["problem"]["cell"] == "rnn"
    assert "hello" in done.stderr
    assert "there" in done.stderr


def test_quiet_keeps_the_warnings_of_libraries_from_stderr(shell, tmp_path):
    (tmp_path / "noisy.py").write_text(
        "import logging, warnings\nfrom gradscope.cells.rnn import elman as tanh\n"
        "def cell():\n    warnings.warn('hello'); logging.getLogger('jax').warning('there'); return tanh()\n"
    )
    loud = shell(*SMALL, "--cell", "noisy:cell")
    assert "hello" in loud.stderr
    assert "there" in loud.stderr
    quiet = shell(*SMALL, "--cell", "noisy:cell", "--quiet")
    assert (quiet.returncode, quiet.stderr) == (0, "")


def test_short_work_draws_no_progress(tmp_path):
    """Not even the codes that hide the cursor and show it again."""
    ours, theirs = os.openpty()
    code = f"import sys, gradscope.cli.progress as p; p._SILENT_SECONDS = 600; sys.argv[1:] = {SMALL}; "
    command = [sys.executable, "-c", f"{code}from gradscope.cli.start import entry; entry()"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=theirs, cwd=tmp_path, check=False)
    assert done.returncode == 0
    os.write(theirs, b"end")
    assert os.read(ours, 1000) == b"end"
    os.close(ours)
    os.close(theirs)


def test_long_work_draws_progress_and_leaves_the_cursor(monkeypatch):
    ours, theirs = os.openpty()
    drawn = b""

    def read_until(end):
        nonlocal drawn
        while end not in drawn:
            drawn += os.read(ours, 10_000)

    monkeypatch.setattr("gradscope.cli.progress._SILENT_SECONDS", 0)
    monkeypatch.setenv("TERM", "xterm")
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress_bar(quiet=False) as pace:
            pace.report(1, 2)
            read_until(b"50 %")
            assert b"\x1b[?25l" in drawn
        read_until(b"\x1b[?25h")
        monkeypatch.undo()
    os.close(ours)


# -- the output file --------------------------------------------------------------------------------


def test_output_through_links_goes_to_their_target(run, tmp_path):
    (tmp_path / "there").write_text("older")
    for name in ("there", "not_there"):
        link = tmp_path / f"link_to_{name}"
        link.symlink_to(name)
        assert run(*SMALL, "-q", "-o", link)[0] == 0
        assert link.is_symlink()
        assert (tmp_path / name).read_text().startswith("STABLE")
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize("linked", [False, True])
def test_devices_and_pipes_are_written_not_replaced(run, tmp_path, linked):
    received, fifo = [], tmp_path / "fifo"
    os.mkfifo(fifo)
    (tmp_path / "link").symlink_to(fifo)
    reader = threading.Thread(target=lambda: received.append(fifo.read_text()))
    reader.start()
    assert run(*SMALL, "-q", "-o", tmp_path / ("link" if linked else "fifo")) == (0, "", "")
    reader.join()
    assert received[0].startswith("STABLE")
    assert fifo.is_fifo()
    assert run(*SMALL, "-o", "/dev/null") == (0, "", "")
    assert Path("/dev/null").is_char_device()


def test_what_a_descriptor_stands_for_is_not_replaced(run, tmp_path):
    file = tmp_path / "file"
    with file.open("w") as stream:
        before = file.stat().st_ino
        assert run(*SMALL, "-q", "-o", f"/dev/fd/{stream.fileno()}") == (0, "", "")
    assert file.read_text().startswith("STABLE")
    assert file.stat().st_ino == before


@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_stdout_by_its_names(run, name):
    assert run(*SMALL, "-q", "-o", name) == run(*SMALL, "-q")


@pytest.mark.parametrize(
    "arguments",
    [
        ["analyze", "good.npz", "-o", "good.npz"],
        ["analyze", "good.npz", "-o", "link"],
        ["analyze", "--inputs", "x.npy", "-o", "./x.npy"],
        ["analyze", "--inputs", "good.npz:W_z", "-o", "good.npz"],
        ["chain", "x.npy", "-o", "x.npy"],
    ],
)
def test_what_is_read_is_not_overwritten(run, files, monkeypatch, arguments):
    monkeypatch.chdir(files)
    Path("link").symlink_to("good.npz")
    before = {name: Path(name).read_bytes() for name in ("good.npz", "x.npy")}
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err.endswith("is a file to be read, choose another\n")
    assert before == {name: Path(name).read_bytes() for name in before}


@pytest.mark.parametrize(
    ("name", "words"), [("x" * 300, "too long"), ("loop", "symbolic links"), ("file/below", "irectory")]
)
def test_names_that_cannot_be_written(run, tmp_path, monkeypatch, name, words):
    monkeypatch.setattr("gradscope.linearize.sequence.split", lambda *_: pytest.fail("the work began"))
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("precious")
    code, out, err = run(*SMALL, "-o", tmp_path / name)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert words in err


def test_a_write_that_fails_leaves_nothing_behind(run, tmp_path, monkeypatch):
    (tmp_path / "result").write_text("precious")

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    line = f"gradscope: error: -o {tmp_path}/result: No space left on device\n"
    assert run(*SMALL, "-o", tmp_path / "result") == (2, "", line)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("result", "precious")]


# -- colour and encodings ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "choice", "coloured"),
    [
        ({}, "auto", False),
        ({}, "always", True),
        ({"FORCE_COLOR": "1"}, "auto", True),
        ({"FORCE_COLOR": "1"}, "never", False),
        ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, "auto", False),
        ({"NO_COLOR": "1"}, "always", True),
    ],
)
def test_colour(run, monkeypatch, environment, choice, coloured):
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    out = run(*SMALL, "--color", choice)[1]
    assert ("\x1b[" in out) == coloured
    # The words are the same either way.
    plain = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert plain == run(*SMALL, "--color", "never")[1]


def test_ascii_terminals_get_ascii(shell):
    done = shell(*SMALL, env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0
    assert done.stdout.isascii()
    assert "Chains" in done.stdout


@pytest.mark.parametrize("columns", ["abc", "-5", "0", ""])
def test_a_width_that_is_no_positive_number_is_ignored(run, monkeypatch, columns):
    monkeypatch.delenv("COLUMNS", raising=False)
    plain = run(*SMALL)
    monkeypatch.setenv("COLUMNS", columns)
    assert run(*SMALL) == plain


# -- bad input: exit 2, one line on stderr, nothing on stdout ----------------------------------------


@pytest.fixture
def files(tmp_path):
    """A folder of things that are wrong in one way each."""
    rng = np.random.default_rng(0)
    weights = {
        f"{k}_{g}": rng.normal(size=s) for g in "zifo" for k, s in (("W", (4, 3)), ("R", (4, 4)), ("b", (4,)))
    }
    np.savez(tmp_path / "good.npz", **weights)
    np.savez(tmp_path / "missing_key.npz", **{k: v for k, v in weights.items() if k != "R_o"})
    np.savez(tmp_path / "wrong_shape.npz", **(weights | {"R_o": np.ones((4, 3))}))
    np.savez(tmp_path / "nan.npz", **(weights | {"R_o": np.full((4, 4), np.nan)}))
    np.savez(tmp_path / "object.npz", **(weights | {"R_o": np.array([[{}]])}))
    np.savez(tmp_path / "ambiguous.npz", W=np.ones((4, 3)), R=np.eye(4), b=np.zeros(4))
    np.save(tmp_path / "x.npy", rng.normal(size=(5, 3)))
    np.save(tmp_path / "wide.npy", rng.normal(size=(5, 7)))
    np.save(tmp_path / "inf.npy", np.array([[np.inf, 0, 0]]))
    np.save(tmp_path / "complex.npy", np.ones((5, 3), complex))
    np.save(tmp_path / "strings.npy", np.array([["a"]]))
    np.save(tmp_path / "object.npy", np.array([[None]]), allow_pickle=True)
    np.save(tmp_path / "vector.npy", np.ones(5))
    np.save(tmp_path / "no_steps.npy", np.ones((0, 3)))
    np.save(tmp_path / "empty_stack.npy", np.ones((0, 3, 3)))
    np.save(tmp_path / "not_square.npy", np.ones((2, 3, 4)))
    np.save(tmp_path / "no_size.npy", np.ones((2, 0, 0)))
    np.save(tmp_path / "stack.npy", np.ones((2, 3, 3)))
    np.save(tmp_path / "nan_stack.npy", np.full((2, 2, 2), np.nan))
    whole = (tmp_path / "good.npz").read_bytes()
    (tmp_path / "truncated.npz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "truncated.npy").write_bytes((tmp_path / "x.npy").read_bytes()[:-40])
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (9999999, 9999, 99), }"
    header += b" " * (63 - (len(header) + 10) % 64) + b"\n"
    (tmp_path / "huge.npy").write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.safetensors").write_text("hello")
    (tmp_path / "model.pt").write_bytes(b"PK\x03\x04")
    (tmp_path / "folder.npz").mkdir()
    (tmp_path / "broken_cell.py").write_text("def cell():\n    raise ValueError('two\\nlines')\n")
    (tmp_path / "exiting.py").write_text("import sys\nsys.exit(0)\n")
    (tmp_path / "mine.py").write_text(
        "import sys\nfrom gradscope import Cell\nfrom gradscope.cells.rnn import elman as tanh\n"
        "def one(n, d):\n    return {'R': (n, n), 'W': (n, d), 'b': (n,)}\n"
        "def made(parameters=one, **more):\n"
        "    return Cell('mine', parameters, lambda p, x, h: h, **more)\n"
        "def leaves():\n    sys.exit(0)\n"
        "def shapes_leave():\n    return made(lambda n, d: sys.exit(0))\n"
        "def shapes_fail():\n    return made(lambda n, d: 1 / 0)\n"
        "def shapes_of_one():\n    return made(lambda n: {})\n"
        "def values_leave():\n    return made(initialize=lambda rng, n, d: sys.exit(0))\n"
        "def called_full():\n    return made(paths=('full',))\n"
    )
    return tmp_path


# arguments -> words that the line must contain
BAD = {
    "unknown command": (["analyse"], ["analyse", "did you mean analyze"]),
    "unknown option": ([*SMALL, "--hiden", "3"], ["--hiden", "--hidden"]),
    "unknown cell": ([*SMALL, "--cell", "lstn"], ["lstn", "did you mean lstm"]),
    "unknown init": ([*SMALL, "--init", "pytroch"], ["pytroch", "pytorch"]),
    "no such module": ([*SMALL, "--cell", "nowhere:cell"], ["nowhere"]),
    "no such factory": ([*SMALL, "--cell", "json:cell"], ["json:cell"]),
    "not a cell": ([*SMALL, "--cell", "builtins:dict"], ["dict", "gradscope.Cell"]),
    "failing factory": ([*SMALL, "--cell", "broken_cell:cell"], ["ValueError", "two lines"]),
    "unknown cell in capitals": ([*SMALL, "--cell", "GRU"], ["GRU", "did you mean gru"]),
    "module that exits": ([*SMALL, "--cell", "exiting:cell"], ["exiting:cell", "SystemExit"]),
    "factory that exits": ([*SMALL, "--cell", "mine:leaves"], ["mine:leaves", "SystemExit"]),
    "parameters that exit": ([*SMALL, "--cell", "mine:shapes_leave"], ["cell mine", "SystemExit"]),
    "parameters that fail": ([*SMALL, "--cell", "mine:shapes_fail"], ["cell mine", "ZeroDivisionError"]),
    "parameters of one size": ([*SMALL, "--cell", "mine:shapes_of_one"], ["cell mine", "TypeError"]),
    "initialize that exits": ([*SMALL, "--cell", "mine:values_leave"], ["cell mine", "SystemExit"]),
    "path called full": ([*SMALL, "--cell", "mine:called_full"], ["cell mine", "'full'"]),
    "option without its value": (
        ["analyze", "--gain"],
        ["gradscope analyze: error: option '--gain' requires"],
    ),
    "value of no choice": ([*SMALL, "--dtype", "int"], ["analyze: error: --dtype: 'int' is not one of"]),
    "no such file of no kind": (
        ["inspect", "absent"],
        ["absent: No such file or directory, expected a file"],
    ),
    "misspelt option": ([*SMALL, "--cel", "gru"], ["--cel", "did you mean --cell?"]),
    "option of another command": (
        [*SMALL, "--shard", "1/2"],
        ["no such option --shard: it is an option of gradscope check, track and sweep"],
    ),
    "option of analyze in a sweep": (
        ["sweep", "--sensitivity"],
        ["no such option --sensitivity: it is a number for every parameter", "gradscope analyze tells it"],
    ),
    "option of fresh cells in track": (
        ["track", "a.pt", "--hidden", "3"],
        ["--hidden: it is of a fresh cell"],
    ),
    "option of cells in chain": (["chain", "a.npy", "--forget-bias", "1"], ["it is about a cell"]),
    "verdict in check": (["check", "--fail-on", "stable"], ["check by limits: give --max log10_norm=3"]),
    "bias in repair": (["repair", "a.pt", "--forget-bias", "1"], ["--forget-bias: it changes the weights"]),
    "bias that is no number": ([*SMALL, "--forget-bias", "nan"], ["--forget-bias is nan"]),
    "init of a checkpoint": (["analyze", "good.npz", "--init", "keras"], ["leave --init out"]),
    "layer without a checkpoint": ([*SMALL, "--layer", "l0"], ["--layer is", "give its file"]),
    "top beyond the state": ([*SMALL, "--top", "99"], ["--top is 99", "1 to 8"]),
    "a folder as a checkpoint": (["analyze", "."], ["checkpoint .: is a folder"]),
    "a folder to look into": (["inspect", "."], ["is a folder"]),
    "a folder with a suffix to look into": (["inspect", "folder.npz"], ["is a folder"]),
    "chain of a model": (["chain", "good.npz"], [".npz file", "gradscope analyze good.npz"]),
    "chain of no pipe": (["chain", "-"], ["stdin"]),
    "chain top beyond the state": (["chain", "stack.npy", "--top", "4"], ["--top is 4", "1 to 3"]),
    "hidden 0": ([*SMALL, "--hidden", "0"], ["--hidden is 0"]),
    "input size -1": ([*SMALL, "--input-size", "-1"], ["--input-size", "-1"]),
    "steps 0": ([*SMALL, "--steps", "0"], ["steps", "0"]),
    "batch 0": ([*SMALL, "--batch", "0"], ["batch", "0"]),
    "seed -1": ([*SMALL, "--seed", "-1"], ["seed", "-1"]),
    "steps not a number": ([*SMALL, "--steps", "ten"], ["--steps", "ten"]),
    "gain nan": ([*SMALL, "--gain", "nan"], ["gain", "nan"]),
    "gain inf": ([*SMALL, "--gain", "inf"], ["gain", "inf"]),
    "forget bias without forget gate": (
        [*SMALL, "--cell", "lstm-1997", "--forget-bias", "1"],
        ["b_f", "lstm-1997"],
    ),
    "huge": (["analyze", "--hidden", "1000000", "--steps", "10"], ["hidden", "GiB"]),
    "unknown path": ([*SMALL, "--cut", "R_x"], ["R_x", "carousel, R_z, R_i, R_f, R_o"]),
    "everything cut": ([*SMALL, "--cell", "rnn", "--cut", "R"], ["R"]),
    "view of a gru": ([*SMALL, "--cell", "gru", "--view", "cell"], ["gru"]),
    "unknown view": ([*SMALL, "--view", "gate"], ["gate", "state"]),
    "thresholds inverted": (
        [*SMALL, "--vanishing-below", "10", "--exploding-above", "1"],
        ["10", "1", "swap"],
    ),
    "threshold 0": ([*SMALL, "--vanishing-below", "0"], ["--vanishing-below", "positive"]),
    "threshold nan": ([*SMALL, "--exploding-above", "nan"], ["--exploding-above", "nan"]),
    "fail on what": ([*SMALL, "--fail-on", "bad"], ["--fail-on", "bad"]),
    "platform that is not there": ([*SMALL, "--platform", "gpu"], ["gpu", "--platform cpu"]),
    "no such platform": ([*SMALL, "--platform", "abacus"], ["abacus", "cpu, gpu, tpu"]),
    "output folder missing": ([*SMALL, "-o", "nowhere/x.json"], ["nowhere", "does not exist"]),
    "output is a folder": ([*SMALL, "-o", "."], ["directory"]),
    "checkpoint missing": (["analyze", "none.npz"], ["none.npz"]),
    "checkpoint a directory": (["analyze", "folder.npz"], ["folder.npz", "is a folder"]),
    "checkpoint that is no PyTorch file": (["analyze", "model.pt"], ["model.pt", "torch.save"]),
    "checkpoint truncated": (["analyze", "truncated.npz"], ["truncated.npz"]),
    "checkpoint not safetensors": (["analyze", "text.safetensors"], ["text.safetensors"]),
    "checkpoint without a key": (["analyze", "missing_key.npz", "--cell", "lstm"], ["R_o"]),
    "checkpoint of wrong shape": (["analyze", "wrong_shape.npz"], ["R_o", "(4, 3)", "(4, 4)"]),
    "checkpoint with NaN": (["analyze", "nan.npz"], ["R_o", "nan"]),
    "checkpoint with objects": (["analyze", "object.npz"], ["R_o"]),
    "checkpoint ambiguous": (["analyze", "ambiguous.npz"], ["--cell", "rnn-relu"]),
    "checkpoint and sizes": (["analyze", "good.npz", "--hidden", "8"], ["hidden"]),
    "inputs missing": ([*SMALL, "--inputs", "none.npy"], ["none.npy"]),
    "inputs too wide": (["analyze", "good.npz", "--inputs", "wide.npy"], ["inputs wide.npy have 7", "3"]),
    "inputs infinite": (["analyze", "--inputs", "inf.npy"], ["inf"]),
    "inputs complex": (["analyze", "--inputs", "complex.npy"], ["complex"]),
    "inputs strings": (["analyze", "--inputs", "strings.npy"], ["strings.npy"]),
    "inputs pickled": (["analyze", "--inputs", "object.npy"], ["object.npy"]),
    "inputs one-dimensional": (
        ["analyze", "--inputs", "vector.npy"],
        ["inputs vector.npy", "(5,)", "(T, d)"],
    ),
    "inputs without steps": (["analyze", "--inputs", "no_steps.npy"], ["(0, 3)"]),
    "inputs truncated": (["analyze", "--inputs", "truncated.npy"], ["truncated.npy"]),
    "inputs declared huge": (["analyze", "--inputs", "huge.npy"], ["huge.npy"]),
    "inputs empty": (["analyze", "--inputs", "empty.npy"], ["empty.npy"]),
    "steps beyond the inputs": (
        ["analyze", "--inputs", "x.npy", "--steps", "6"],
        ["6", "inputs x.npy have 5: at most 5"],
    ),
    "batch beyond the inputs": (["analyze", "--inputs", "x.npy", "--batch", "2"], ["batch"]),
    "chain missing": (["chain", "none.npy"], ["none.npy"]),
    "chain empty": (["chain", "empty_stack.npy"], ["(0, 3, 3)", "(T, m, m)"]),
    "chain not square": (["chain", "not_square.npy"], ["(2, 3, 4)", "(T, m, m)"]),
    "chain without size": (["chain", "no_size.npy"], ["(2, 0, 0)"]),
    "chain with NaN": (["chain", "nan_stack.npy"], ["nan"]),
    "chain of two dimensions": (["chain", "x.npy"], ["(5, 3)", "(T, m, m)"]),
    "chain without a file": (["chain"], ["FILE"]),
}


@pytest.mark.parametrize("case", BAD, ids=lambda name: name.replace(" ", "-"))
def test_bad_input(run, files, monkeypatch, case):
    arguments, words = BAD[case]
    monkeypatch.chdir(files)
    code, out, err = run(*arguments)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1
    assert err.startswith("gradscope")
    assert "Traceback" not in err
    for word in words:
        assert word.lower() in err.lower(), err


def test_an_unwritable_output_is_refused_before_the_work(run, tmp_path, monkeypatch):
    monkeypatch.setattr("gradscope.linearize.sequence.split", lambda *_: pytest.fail("the work began"))
    monkeypatch.setattr(os, "access", lambda *_: False)
    code, out, err = run(*SMALL, "-o", tmp_path / "x.json")
    assert (code, out) == (2, "")
    assert "permission denied" in err


def test_a_failed_analysis_leaves_the_output_file_alone(run, files, monkeypatch):
    monkeypatch.chdir(files)
    (files / "result.json").write_text("precious")
    assert run("analyze", "nan.npz", "-o", "result.json")[0] == 2
    assert (files / "result.json").read_text() == "precious"


def test_a_folder_that_was_deleted_and_a_home_that_is_not_there(tmp_path):
    """The first is no reason to fail, the second is not made."""
    gone, home = tmp_path / "gone", tmp_path / "home"
    gone.mkdir()
    unset = ("GRADSCOPE_CACHE_DIR", "XDG_CACHE_HOME")
    environment = {k: v for k, v in os.environ.items() if k not in unset} | {"HOME": str(home)}
    code = "import os, sys; os.rmdir(os.getcwd()); from gradscope.cli.main import main"
    code += "; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", code, *SMALL, "-q"]
    done = subprocess.run(command, cwd=gone, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout[:6]) == (0, "STABLE")
    assert not home.exists()


def test_too_little_memory_is_the_users_to_mend(run, monkeypatch):
    def broken(*_, **__):
        raise MemoryError

    monkeypatch.setattr("gradscope.linearize.sequence.split", broken)
    code, out, err = run(*SMALL)
    assert (code, out) == (2, "")
    assert err.splitlines()[-1].startswith("gradscope: error: too little memory: ")


@pytest.mark.skipif(sys.platform != "linux", reason="limits on addresses are Linux'")
def test_a_limit_that_jax_would_abort_at_is_told_before_it_is_imported():
    command = [sys.executable, "-m", "gradscope", *SMALL, "-q"]
    limited = f"ulimit -v 1000000; exec {shlex.join(command)}"
    done = subprocess.run(["bash", "-c", limited], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("gradscope: error: too little memory: ")
