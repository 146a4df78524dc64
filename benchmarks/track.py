"""``track --light`` of 200 checkpoints, hidden 64, T = 200: seconds, and gains against ``analyze --top 1``.

Exit code 1 where it takes over 20 s, or a gain that has settled is off by more than a millionth of a decade.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from processes import rows_of
from safetensors.numpy import save_file

COUNT, HIDDEN, INPUT, STEPS = 200, 64, 32, 200
MOST_SECONDS, MOST_DECADES = 20.0, 1e-6
# Checkpoints that are analysed without --light too.
COMPARED = range(0, COUNT, 20)


def write_run(folder: Path) -> list[str]:
    """An LSTM as PyTorch initialises it, whose weights grow and drift as in training."""
    rng, bound = np.random.default_rng(0), HIDDEN**-0.5
    shapes = {"weight_ih_l0": (4 * HIDDEN, INPUT), "weight_hh_l0": (4 * HIDDEN, HIDDEN)}
    shapes |= {"bias_ih_l0": (4 * HIDDEN,), "bias_hh_l0": (4 * HIDDEN,)}
    weights = {f"rnn.{name}": rng.uniform(-bound, bound, shape) for name, shape in shapes.items()}
    names = []
    for number in range(COUNT):
        weights = {
            name: value * 1.003 + rng.normal(size=value.shape) * 0.01 for name, value in weights.items()
        }
        names.append(f"step_{number}.safetensors")
        save_file({name: value.astype(np.float32) for name, value in weights.items()}, folder / names[-1])
    return names


def tracked(names: list[str], folder: Path, *options: str) -> tuple[float, list[dict[str, Any]]]:
    """Seconds of the whole process, and the rows."""
    return rows_of(["track", *names, "--steps", str(STEPS), *options], folder)


def main() -> int:
    """Measure, print, and say whether the targets are kept."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = write_run(folder)
        seconds, rows = tracked(names, folder, "--light")
        again, _ = tracked(names, folder, "--light")
        some = [names[number] for number in COMPARED]
        whole, exact = tracked(some, folder, "--top", "1", "--only", "gain")
    settled = [number for number in COMPARED if rows[number]["converged"]]
    by_number = dict(zip(COMPARED, exact, strict=True))
    off = max(abs(rows[number]["log10_norm"] - by_number[number]["log10_norm"]) for number in settled)
    horizons = sum(rows[number]["horizon"] == by_number[number]["horizon"] for number in COMPARED)
    print(f"{COUNT} checkpoints, hidden {HIDDEN}, T = {STEPS}, one process")
    print(f"cold cache {seconds:.1f} s, warm {again:.1f} s (at most {MOST_SECONDS:.0f} s)")
    print(f"analyze --top 1 --only gain of {len(some)}: {whole:.1f} s, {whole / len(some):.2f} s each")
    print(f"settled {sum(row['converged'] for row in rows)} of {COUNT}, off by {off:.0e} decades at most")
    print(f"the same horizon: {horizons} of {len(some)}")
    return int(seconds > MOST_SECONDS or off > MOST_DECADES)


if __name__ == "__main__":
    sys.exit(main())
