"""The figures of the documentation come from benchmarks: what these look at has to be there."""

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# mypy sees what is imported; what is timed is named by strings.
LOOK = "import where; [getattr(owner, name) for _, owner, name in where.RUN + where.ANALYSIS + where.PROCESS]"


def test_what_is_timed_is_there():
    done = subprocess.run([sys.executable, "-c", LOOK], cwd=BENCHMARKS, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
