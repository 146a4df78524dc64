"""Random small models of PyTorch, Keras and JAX's libraries: each is analysed right, or refused by a reason.

``python benchmarks/random_models.py [--draws 1000] [--first 0] [--only torch,loops,held,...]`` prints how
many were right and why others were refused, and every third outcome with its seed; exit code 1 if there is
one. Right is what the framework's own derivatives say. ``tests/parity`` runs the first few.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parents[1]
sys.path[:0] = [str(HERE), str(HERE / "tests"), str(HERE / "tests" / "parity")]
os.environ.setdefault("KERAS_BACKEND", "jax")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # it compiles more than it computes

# What is drawn, so many of eleven: modules of torch in memory that are called in a loop, and that loop
# themselves; models of JAX's libraries that do; files of torch, models of Keras, models of nnx.
SHARES = {"torch": 3, "loops": 2, "jax-loops": 1, "files": 3, "keras": 1, "nnx": 1}
# What is drawn where it is asked for: models of all of them that hold gradients back.
APART = {"held": 1}


def outcomes(kind: str, seed: int, folder: Path) -> str:
    """The outcome of one draw; AssertionError where it is a third."""
    if kind == "torch":
        from test_random_torch import outcome

        return outcome(seed)
    if kind == "loops":
        from test_random_loops import outcome

        return outcome(seed)
    if kind == "jax-loops":
        from test_random_jax_loops import outcome

        return outcome(seed)
    if kind == "held":
        from test_random_held import outcome

        return outcome(seed)
    if kind == "nnx":
        from test_random_nnx import outcome

        return outcome(seed)
    if kind == "files":
        from test_torch_random import outcome
    else:
        from test_random_keras import outcome
    return outcome(seed, folder)


def main() -> int:
    """Draw, count and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--only", default=",".join(SHARES))
    asked = parser.parse_args()
    shares = SHARES | APART
    kinds = [kind for kind in shares if kind in asked.only.split(",")]
    turns = [kind for kind in kinds for _ in range(shares[kind])]
    counts, wrong, began = Counter[tuple[str, str]](), 0, time.perf_counter()
    warnings.simplefilter("ignore")
    for seed in range(asked.first, asked.first + asked.draws):
        kind = turns[seed % len(turns)]
        with tempfile.TemporaryDirectory() as folder:
            try:
                counts[kind, outcomes(kind, seed, Path(folder))] += 1
            except Exception as error:  # a third outcome may be any
                wrong += 1
                print(f"{kind} {seed}: {type(error).__name__}: {str(error)[:400]}", flush=True)
    for (kind, outcome), count in sorted(counts.items()):
        print(f"{kind:9} {count:5}  {outcome}")
    print(f"{wrong} of {asked.draws} draws had a third outcome, {time.perf_counter() - began:.0f} s")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
