"""gradscope as a process: of the README, of an example, of a cluster."""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
README = (ROOT / "README.md").read_text("utf-8")
# What users are told: README, then the pages of the site but those that commands make.
PAGES = {path: path.read_text("utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
TOLD = "\n".join([README, *PAGES.values()])
ANALYZE = [sys.executable, "-m", "gradscope", "analyze"]
# This environment's ``gradscope`` before any other.
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def blocks(kind, language):
    """The blocks of README and the site under a comment of this kind."""
    return re.findall(rf"<!-- {kind} -->\n```{language}\n(.*?)```", TOLD, re.DOTALL)


def run(command, folder, code=0, **environment):
    """Output of a command started in a folder, with this environment's ``gradscope``."""
    environment = os.environ | {"PATH": PATH, "COLUMNS": "100", "NO_COLOR": "1"} | environment
    command = [str(part) for part in command]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def together(count, arguments, each=()):
    """Run ``count`` processes as one cluster: [(exit code, stdout, stderr)]. ``each``: more for one."""
    cluster = ["--distributed", "--coordinator", f"127.0.0.1:{free_port()}", "--num-processes", str(count)]
    processes = []
    for number in range(count):
        command = [*ANALYZE, *arguments, *dict(each).get(number, []), *cluster, "--process-id", str(number)]
        pipe = subprocess.PIPE
        processes.append(subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True))
    ended = [process.communicate(timeout=120) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, ended, strict=True)]


def module_of(folder, name):
    """A script of an example as a module."""
    spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
