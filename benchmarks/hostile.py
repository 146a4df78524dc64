"""Files that are small and would take much: seconds and peak memory of ``inspect``, at two sizes of each.

``python benchmarks/hostile.py [WORD...]`` tries those whose names have one of the words. A reader is linear
where four times the file takes four times as long, until the budget of a file refuses it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parents[1]
sys.path[:0] = [str(HERE), str(HERE / "tests")]

from oracles.bombs import BOMBS

SIZES = (250_000, 1_000_000)
SECONDS = 120
# In a process of its own, whose peak is counted from when all is imported.
CHILD = """
import sys, time
from pathlib import Path
from gradscope.checkpoints.keras import file as keras_file
from gradscope.checkpoints.onnx import graph as onnx_graph
from gradscope.errors import InputError
from gradscope.formats import msgpack_file, safetensors_file, torch_file
from gradscope.report.inspection import inspect
from gradscope.report.terminal import Terminal
from gradscope.report.views import Look, render
import safetensors, scipy.sparse.linalg
if sys.argv[1].endswith(".onnx"):
    import onnx
def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024
Path("/proc/self/clear_refs").write_text("5")
before, start = peak(), time.perf_counter()
try:
    found = inspect(sys.argv[1])
    for name in ("json", "table"):
        render(found, name, Look(Terminal()))
    said = f"{len(found.contents.layers)} layers"
except InputError as error:
    said = str(error).partition(": ")[2]
print(f"{time.perf_counter() - start:.2f}\\t{peak() - before:.1f}\\t{said}")
"""


def measured(path: Path) -> tuple[str, str, str]:
    """Seconds, MiB, and what was said."""
    try:
        command = [sys.executable, "-c", CHILD, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, cwd=HERE)
    except subprocess.TimeoutExpired:
        return f"> {SECONDS}", "?", "no end"
    if done.returncode:
        return "?", "?", done.stderr.strip()[-200:]
    seconds, memory, said = done.stdout.strip().split("\t")
    return seconds, memory, said


def main() -> None:
    """Print a line for each file."""
    print(f"{'file':28} {'KiB':>8} {'seconds':>8} {'MiB':>7} {'MiB/MiB':>8}  what was said")
    with tempfile.TemporaryDirectory() as folder:
        for name, (suffix, make) in BOMBS.items():
            if any(word in name for word in sys.argv[1:] or [""]):
                for size in SIZES:
                    path = Path(folder) / f"model{suffix}"
                    path.write_bytes(make(size))
                    there = path.stat().st_size
                    seconds, memory, said = measured(path)
                    times = f"{float(memory) * 2**20 / there:.0f}" if memory != "?" else "?"
                    print(f"{name:28} {there / 1024:8.1f} {seconds:>8} {memory:>7} {times:>8}  {said[:70]}")


if __name__ == "__main__":
    main()
