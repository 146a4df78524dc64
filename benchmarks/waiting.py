"""How long one waits: the time that is said against the time it takes, and what the cheap question costs.

python benchmarks/waiting.py
python benchmarks/waiting.py --cpu    # on a machine that has other work: of one core, in its own time
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from processes import as_installed

GRADSCOPE = [sys.executable, "-m", "gradscope"]
COMMAND = [*GRADSCOPE, "analyze"]
# The same on one core, the small piece of work that times are told in timed by what this process had of it.
IN_CPU_TIME = """
import os, sys, time, types
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import gradscope.measure.cost
from gradscope.cli.main import main
gradscope.measure.cost.time = types.SimpleNamespace(perf_counter=time.thread_time)
sys.exit(main(sys.argv[1:]))
"""
# Arguments of runs whose time is said, and is then measured. LSTMs, each upon the one before, are a file.
SAID = {
    "two LSTMs of 32, 8 sequences": ["two.safetensors", "--inputs", "x.npy"],
    "the same, the verdict": ["two.safetensors", "--inputs", "x.npy", "--only", "verdict"],
    "two LSTMs of 32, 1 sequence": ["two.safetensors"],
    "LSTM of 128, 8 sequences": ["--hidden", "128", "--batch", "8"],
    "LSTM of 256": ["--hidden", "256"],
    "GRU of 64, 2000 steps": ["--cell", "gru", "--hidden", "64", "--steps", "2000"],
    "LSTM of 512, top 8": ["--hidden", "512", "--top", "8"],
    "three LSTMs of 128, 30 steps": ["three.safetensors", "--steps", "30"],
    "three LSTMs of 256, 30 steps": ["large.safetensors", "--steps", "30"],
    "LSTM of 64, 64 sequences": ["--hidden", "64", "--batch", "64"],
}
# The same of suggestions, whose evaluations are not known before.
SUGGESTED = {
    "suggest, LSTM of 32": ["--hidden", "32"],
    "suggest, two LSTMs of 32, b_f": ["two.safetensors", "--knob", "b_f"],
}
# One step's Jacobian of all states by autograd, multiplied up: what one writes without a tool.
NAIVE = """
import numpy, safetensors.torch, torch
model = torch.nn.LSTM(16, 32, 2)
model.load_state_dict(safetensors.torch.load_file("two.safetensors"))
def step(state, x):
    h, c = state.view(2, 2, 1, 32)
    _, (h, c) = model(x[None, None], (h, c))
    return torch.stack([h, c]).view(-1)
for sequence in torch.from_numpy(numpy.load("x.npy")).float():
    state, product = torch.zeros(128), torch.eye(128)
    for x in sequence:
        product = torch.func.jacrev(step)(state, x) @ product
        state = step(state, x).detach()
    torch.linalg.svdvals(product)[0]
"""


def run(command: list[str], folder: Path) -> tuple[float, float, str]:
    """Seconds, CPU seconds, and what was said on stderr."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(
        command, cwd=folder, env=as_installed(folder), capture_output=True, text=True, check=False
    )
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(done.stderr)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, cpu, done.stderr


def write_model(folder: Path) -> None:
    """Two LSTMs as PyTorch initialises them, and sequences; and two stacks of three, small and large."""
    rng = np.random.default_rng(0)
    _write_lstms(folder / "two.safetensors", 2, 32, rng)
    np.save(folder / "x.npy", rng.normal(size=(8, 200, 16)))
    _write_lstms(folder / "three.safetensors", 3, 128, rng)
    _write_lstms(folder / "large.safetensors", 3, 256, rng)


def _write_lstms(path: Path, count: int, hidden: int, rng: np.random.Generator) -> None:
    from safetensors.numpy import save_file

    kinds = {"weight_ih": None, "weight_hh": (hidden,), "bias_ih": (), "bias_hh": ()}
    shapes = {
        f"{kind}_l{layer}": (4 * hidden, *((hidden if layer else 16,) if columns is None else columns))
        for layer in range(count)
        for kind, columns in kinds.items()
    }
    bound = hidden**-0.5
    save_file({name: rng.uniform(-bound, bound, s).astype(np.float32) for name, s in shapes.items()}, path)


def seconds_said(stderr: str) -> float:
    """The time that was said; NaN where none was."""
    found = re.search(r": about (\d+) (s|min|h)\b", stderr)
    return float(found[1]) * {"s": 1, "min": 60, "h": 3600}[found[2]] if found else float("nan")


def main() -> None:
    """Print ratios; exit code 1 where a time that was said is off by more than three."""
    arguments = argparse.ArgumentParser(description=__doc__)
    runs = [*SAID, *SUGGESTED]
    arguments.add_argument(
        "--only",
        nargs="+",
        type=int,
        choices=range(len(runs)),
        metavar="N",
        help="of the times that are said these alone: "
        + ", ".join(f"{n} {what}" for n, what in enumerate(runs)),
    )
    arguments.add_argument("--cpu", action="store_true", help="compare CPU time, on one core")
    given = arguments.parse_args()
    chosen, wrong = given.only, 0
    command = [sys.executable, "-c", IN_CPU_TIME] if given.cpu else GRADSCOPE
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder)
        run([*COMMAND, "two.safetensors", "--only", "verdict"], folder)  # as a second start is
        said = {what: ["analyze", *arguments] for what, arguments in SAID.items()}
        said |= {what: ["suggest", *arguments] for what, arguments in SUGGESTED.items()}
        for number, (what, asked) in enumerate(said.items()):
            if chosen and number not in chosen:
                continue
            seconds, cpu, stderr = run([*command, *asked, "-o", os.devnull], folder)
            ratio = seconds_said(stderr) / (cpu if given.cpu else seconds)
            wrong += not (np.isnan(ratio) or 1 / 3 <= ratio <= 3)
            print(f"{what}: said / taken {ratio:.2f} ({seconds:.1f} s, {cpu:.1f} of CPU)", flush=True)
        if chosen:
            sys.exit(wrong > 0)
        model = [*COMMAND, "two.safetensors", "--inputs", "x.npy", "-o", os.devnull]
        ways = {
            "verdict": [*model, "--only", "verdict"],
            "gain": [*model, "--only", "gain"],
            "paths": [*model, "--only", "paths"],
            "all": model,
        }
        try:
            import torch  # noqa: F401

            ways["naive PyTorch loop"] = [sys.executable, "-c", NAIVE]
        except ImportError:
            print("without PyTorch no naive loop")
        cpu = {way: min(run(command, folder)[1] for _ in range(2)) for way, command in ways.items()}
        for way, taken in cpu.items():
            print(
                f"two LSTMs of 32, 8 x 200 steps, whole process: {way} / verdict {taken / cpu['verdict']:.2f}"
            )
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
