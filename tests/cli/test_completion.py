"""Completion as the shells do it: lines are typed, Tab is pressed, and what stands there then is read."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What is typed, and what stands there after Tab.
TYPED = {
    "gradscope an": "gradscope analyze",
    "gradscope analyze --forg": "gradscope analyze --forget-bias",
    "gradscope analyze --cell lstm-p": "gradscope analyze --cell lstm-peephole",
    "gradscope analyze --cell=lstm-p": "gradscope analyze --cell=lstm-peephole",
    "gradscope analyze --inputs z": "gradscope analyze --inputs zeros",
    "gradscope analyze mod": "gradscope analyze model.pt",
    "gradscope analyze --inputs=mod": "gradscope analyze --inputs=model.pt",
    "gradscope config swe": "gradscope config sweep",
}


@pytest.fixture
def shell(tmp_path):
    """Program -> the environment in which it is started; a folder with one file, gradscope on the path."""
    program = tmp_path / "bin" / "gradscope"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m gradscope "$@"\n')
    program.chmod(0o755)
    (tmp_path / "model.pt").touch()
    path = f"{program.parent}:{os.environ['PATH']}"
    return {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "TERM": "dumb", "LC_ALL": "C"}


def installed(name):
    return pytest.param(name, marks=pytest.mark.skipif(not shutil.which(name), reason=f"{name} is not here"))


@pytest.mark.parametrize("name", [installed("fish")])
def test_fish(shell, tmp_path, name):
    """It says itself what it would complete; descriptions are whole."""
    script = "gradscope completion fish | source\n" + "".join(f"complete -C '{line}'\n" for line in TYPED)
    done = subprocess.run([name, "-c", script], env=shell, cwd=tmp_path, capture_output=True, text=True)
    found = [line.partition("\t")[0] for line in done.stdout.splitlines()]
    assert (found, done.stderr) == ([line.split(" ")[-1] for line in TYPED.values()], "")
    asked = "gradscope completion fish | source; complete -C 'gradscope sug'"
    done = subprocess.run([name, "-c", asked], env=shell, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "suggest\tFind settings that reach a gain or a horizon, verified.\n"


@pytest.mark.parametrize(
    ("name", "setup"),
    [
        pytest.param(
            "zsh",
            "autoload -Uz compinit && compinit -u; zle -N told; bindkey '^O' told\n"
            'told() { print -r -- "$BUFFER" >> told; zle kill-whole-line }\n',
            marks=installed("zsh").marks,
        ),
        pytest.param(
            "bash",
            'bind -x \'"\\C-o": printf "%s\\\\n" "$READLINE_LINE" >> told; READLINE_LINE=\'\n',
            marks=installed("bash").marks,
        ),
    ],
)
def test_zsh_and_bash(shell, tmp_path, name, setup):
    """In a terminal: after every line a key has it written down."""
    rc = tmp_path / (".zshrc" if name == "zsh" else ".bashrc")
    rc.write_text(f'{setup}eval "$(gradscope completion {name})"\ntouch ready\n')
    # A terminal in a process of its own: this one has threads, and is not to be forked.
    terminal = [sys.executable, "-c", "import pty, sys; pty.spawn(sys.argv[1:])", name, "-i"]
    how = {"stdin": subprocess.PIPE, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(terminal, env=shell, cwd=tmp_path, bufsize=0, **how) as process:
        try:
            wait_for(tmp_path / "ready", 0)
            for number, line in enumerate(TYPED, start=1):
                process.stdin.write(f"{line}\t\x0f".encode())
                wait_for(tmp_path / "told", number)
        finally:
            process.kill()
    found = (tmp_path / "told").read_text().splitlines()
    assert [line.rstrip() for line in found] == list(TYPED.values())


def wait_for(path, lines):
    """Until a file has so many lines."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists() and len(path.read_text().splitlines()) >= lines:
            return
        time.sleep(0.02)
    raise AssertionError(f"{path.name} has not got line {lines}")
