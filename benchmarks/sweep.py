"""``sweep`` of 16 x 16 points, hidden 64, T = 200: seconds, and gains of some points against ``analyze``.

Exit code 1 where it takes over two minutes, or a gain is off by more than a millionth of a decade.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from processes import ROOT, rows_of

HIDDEN, STEPS, COUNT = 64, 200, 16
GRID = [f"gain=0.5:2:{COUNT}", f"forget_bias=-1:5:{COUNT}"]
MOST_SECONDS, MOST_DECADES = 120.0, 1e-6
# Points that are analysed without the probe too.
COMPARED = range(0, COUNT * COUNT, 37)


def swept(folder: Path) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of the whole process, and the rows."""
    command = ["sweep", "--cell", "lstm", "--hidden", str(HIDDEN), "--steps", str(STEPS)]
    return rows_of([*command, *(word for axis in GRID for word in ("--grid", axis))], folder)


def main() -> int:
    """Measure, print, and say whether the targets are kept."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        seconds, rows = swept(folder)
        again, _ = swept(folder)
    sys.path.insert(0, str(ROOT))
    import gradscope

    off, horizons = 0.0, 0
    for number in COMPARED:
        row, at = rows[number], rows[number]["settings"]
        whole = gradscope.analyze(
            cell="lstm",
            hidden=HIDDEN,
            steps=STEPS,
            gain=at["gain"],
            biases={"b_f": at["forget_bias"]},
            only="gain",
        ).full
        off = max(off, abs(row["log10_norm"] - whole.log10_norm.median))
        horizons += row["horizon"] == whole.horizon.median
    print(f"{len(rows)} points ({' x '.join(GRID)}), LSTM, hidden {HIDDEN}, T = {STEPS}, one process")
    print(f"cold cache {seconds:.1f} s, warm {again:.1f} s (at most {MOST_SECONDS:.0f} s)")
    print(f"{len(COMPARED)} of them analysed: off by {off:.0e} decades at most, the same horizon {horizons}")
    return int(seconds > MOST_SECONDS or off > MOST_DECADES)


if __name__ == "__main__":
    sys.exit(main())
