"""The figures of the documentation come from benchmarks: what these look at has to be there."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# mypy sees what is imported; what is timed is named by strings.
LOOK = "import where; [getattr(owner, name) for _, owner, name in where.RUN + where.ANALYSIS + where.PROCESS]"


def test_what_is_timed_is_there():
    done = subprocess.run([sys.executable, "-c", LOOK], cwd=BENCHMARKS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_what_programs_within_strings_import_is_there(path):
    for module, names in re.findall(r"^\s*from (gradscope[\w.]*) import ([\w, ]+)$", path.read_text(), re.M):
        for name in re.findall(r"(\w+)(?: as \w+)?", names):
            found = importlib.import_module(module)
            assert hasattr(found, name) or importlib.import_module(f"{module}.{name}")
