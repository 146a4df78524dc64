"""What a list of commands prints, recorded to be compared with what another version prints.

    python benchmarks/recordings.py record before          # in the one checkout
    python benchmarks/recordings.py record after           # in the other
    python benchmarks/recordings.py compare before after

For moves that must change nothing: every cell, cuts, views, top values, batches, lengths, stacks, losses,
chains, inspections and errors, as JSON, as tables, with exit codes. Texts must be the same to the letter,
numbers in JSON to 1e-12. Exit code 1 if anything differs.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import gradscope
from gradscope.cells import CELLS
from gradscope.cli.main import cli

ROOT = Path(__file__).resolve().parent.parent
CLOSE = 1e-12
SMALL = "--hidden 8 --input-size 5 --steps 40"

COMMANDS = {
    **{f"cell {cell}": f"analyze --cell {cell} {SMALL} --json" for cell in (*CELLS, "lstm-projected-3")},
    "table": f"analyze {SMALL}",
    "table, batch": f"analyze --cell gru {SMALL} --batch 3",
    "verdict alone": f"analyze {SMALL} -q",
    "own cell": "analyze --cell own:cell --hidden 6 --steps 20 --json",
    "cut": f"analyze {SMALL} --cut R_o --cut R_i --json",
    "cell view": f"analyze {SMALL} --view cell --json",
    "cell view, top": f"analyze {SMALL} --view cell --top 2 --json",
    "top": f"analyze {SMALL} --top 3 --json",
    "top, batch": f"analyze --cell gru {SMALL} --top 3 --batch 3 --json",
    "top, dense": f"analyze --cell gru-reset-before {SMALL} --top 3 --json",
    "batch": f"analyze {SMALL} --batch 3 --json",
    "long batch": "analyze --hidden 8 --steps 400 --batch 3 --json",
    "segments": "analyze --cell gru-reset-before --hidden 48 --steps 500 --json",
    "fast": "analyze --hidden 64 --steps 100 --accuracy fast --json",
    "float32": f"analyze {SMALL} --dtype float32 --json",
    "biases": f"analyze {SMALL} --forget-bias 3 --gain 2 --init keras --seed 4 --json",
    "chrono": f"analyze {SMALL} --init chrono --inputs zeros --json",
    "every lag": "analyze --cell rnn --hidden 3 --steps 1200 --lags all --json",
    "some lags": "analyze --cell rnn --hidden 3 --steps 1200 --json",
    "exploding": f"analyze --cell rnn --init gaussian --gain 3 {SMALL} --fail-on exploding",
    "file": "analyze one.safetensors --inputs x.npy --json",
    "file, table": "analyze one.safetensors --inputs x.npy",
    "native": "analyze native.npz --cell lstm-peephole --inputs x.npy --json",
    "lengths": "analyze one.safetensors --inputs xs.npy --lengths lengths.npy --json",
    "lengths, top": "analyze one.safetensors --inputs xs.npy --lengths lengths.npy --top 2 --json",
    "time major": "analyze one.safetensors --inputs xt.npy --time-major --json",
    "state": "analyze one.safetensors --inputs x.npy --initial-state state.npz --json",
    "embedding": "analyze one.safetensors --inputs ids.npy --embedding emb --json",
    "stack": "analyze two.safetensors --inputs x.npy --json",
    "stack, table": "analyze two.safetensors --inputs x.npy",
    "stack, cut": "analyze two.safetensors --inputs x.npy --cut 0->1 --json",
    "stack, top": "analyze two.safetensors --inputs x.npy --top 2 --json",
    "stack, cell view": "analyze two.safetensors --inputs x.npy --view cell --json",
    "upper layer": "analyze two.safetensors --layer l1 --inputs x.npy --json",
    "directions": "analyze both.safetensors --inputs x.npy --json",
    "directions, lengths": "analyze both.safetensors --inputs xs.npy --lengths lengths.npy --json",
    "readout": "analyze one.safetensors --inputs x.npy --readout head --json",
    "readout, table": "analyze one.safetensors --inputs x.npy --readout head --readout-at every",
    "readout of a stack": "analyze two.safetensors --inputs xs.npy --readout head --json",
    "adjoint of two directions": "analyze both.safetensors --inputs x.npy --adjoint adjoint.npy --json",
    "chain": "chain jacobians.npy --json",
    "chain, table": "chain jacobians.npy",
    "chain, top": "chain jacobians.npy --top 2 --json",
    "plot": "plot result.json lag",
    "report": "report result.json --embed-data",
    "check": "check one.safetensors --inputs x.npy --max log10_norm=3 --min horizon.R_o=1 --json",
    "compare": "compare one.safetensors two.safetensors --inputs x.npy",
    "inspect": "inspect two.safetensors --json",
    "track": "track one.safetensors two.safetensors missing.pt --inputs x.npy",
    "track, light": "track one.safetensors two.safetensors --inputs x.npy --light --json",
    "repair": "repair two.safetensors -o repaired.safetensors --knob b_f+=1 --inputs x.npy --json",
    "suggest": f"suggest {SMALL} --horizon 20 --knob b_f --json",
    "inspect, table": "inspect both.safetensors",
    "no such cell": "analyze --cell lstn",
    "no such file": "analyze missing.pt",
    "no such layer": "analyze two.safetensors --layer l7",
    "no such path": "analyze --cut R_x",
    "nothing left": "analyze --cell rnn --cut R",
    "wrong width": "analyze one.safetensors --inputs wide.npy",
    "wrong state": "analyze one.safetensors --inputs x.npy --initial-state x.npy",
    "two losses": "analyze one.safetensors --inputs x.npy --readout head --adjoint adjoint.npy",
    "hidden of a file": "analyze one.safetensors --hidden 4",
    "thresholds": "analyze --vanishing-below 5 --exploding-above 1",
    "negative": "analyze --hidden -4",
    "misspelt": "analyze --hiden 4",
    "version": "--version",
    **{f"help {name}": f"{name} --help" for name in ("", *cli.list_commands(None))},
}


def files(folder: Path) -> None:
    """Write what the commands read: small layers under PyTorch's names, inputs, states, losses."""
    rng = np.random.default_rng(0)

    def layer(suffix: str, width: int, hidden: int = 6) -> dict[str, np.ndarray]:
        shapes = {"weight_ih": (4 * hidden, width), "weight_hh": (4 * hidden, hidden)}
        shapes |= dict.fromkeys(("bias_ih", "bias_hh"), (4 * hidden,))
        return {f"rnn.{name}_l{suffix}": rng.normal(0, 0.4, shape) for name, shape in shapes.items()}

    head = {"head.weight": rng.normal(size=(2, 6)), "emb.weight": rng.normal(size=(11, 5))}
    save_file(layer("0", 5) | head, folder / "one.safetensors")
    save_file(layer("0", 5) | layer("1", 6) | head, folder / "two.safetensors")
    save_file(layer("0", 5) | layer("0_reverse", 5), folder / "both.safetensors")
    native = {f"W_{g}": rng.normal(size=(6, 5)) for g in "zifo"} | {
        f"R_{g}": rng.normal(size=(6, 6)) for g in "zifo"
    }
    native |= {f"b_{g}": rng.normal(size=6) for g in "zifo"} | {f"p_{g}": rng.normal(size=6) for g in "ifo"}
    np.savez(folder / "native.npz", **native)
    arrays = {
        "x": rng.normal(size=(30, 5)),
        "xs": rng.normal(size=(3, 30, 5)),
        "xt": rng.normal(size=(30, 3, 5)),
        "wide": rng.normal(size=(30, 7)),
        "lengths": np.array([30, 12, 21]),
        "ids": rng.integers(11, size=30),
        "adjoint": rng.normal(size=(30, 12)),
        "jacobians": rng.normal(size=(25, 6, 6)),
    }
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    np.savez(folder / "state.npz", h0=rng.normal(size=6), c0=rng.normal(size=6))
    gradscope.analyze(cell="lstm", hidden=4, input_size=3, steps=12).save(folder / "result.json")
    (folder / "own.py").write_text(
        "import jax.numpy as jnp\nfrom gradscope import Cell\n\n\n"
        "def cell():\n"
        "    shapes = lambda n, d: {'W': (n, d), 'R': (n, n)}\n"
        "    step = lambda p, x, s: jnp.tanh(p['W'] @ x + p['R'] @ s['R'] + 0.1 * s['leak'])\n"
        "    return Cell('own', shapes, step, paths=('R', 'leak'))\n"
    )


def record(folder: Path) -> None:
    """Run every command in ``folder`` and keep what it said there."""
    folder.mkdir(parents=True)
    files(folder)
    environment = os.environ | {
        "PYTHONPATH": str(ROOT),
        "GRADSCOPE_CACHE_DIR": str(folder / "cache"),
        "COLUMNS": "80",
        "NO_COLOR": "1",
    }

    def run(arguments: str) -> dict[str, object]:
        command = [sys.executable, "-m", "gradscope", *arguments.split()]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
        return {"code": done.returncode, "stdout": done.stdout, "stderr": done.stderr}

    with ThreadPoolExecutor(2) as pool:
        said = dict(zip(COMMANDS, pool.map(run, COMMANDS.values()), strict=True))
    (folder / "said.json").write_text(json.dumps(said, indent=1), "utf-8")
    print(f"{len(said)} commands recorded in {folder}")


def compare(before: Path, after: Path) -> int:
    """Print where two recordings differ; 1 if they do."""
    old, new = (json.loads((folder / "said.json").read_text("utf-8")) for folder in (before, after))
    differing = 0
    for name in old | new:
        found = list(differences(parsed(old.get(name)), parsed(new.get(name)), name))
        differing += bool(found)
        print(*found[:5], sep="\n", end="\n" * bool(found))
    print(f"{len(old | new) - differing} of {len(old | new)} agree")
    return int(differing > 0)


def parsed(said: dict[str, object] | None) -> object:
    """What was said, JSON as what it stands for."""
    if said and str(said["stdout"]).startswith("{"):
        return said | {"stdout": json.loads(str(said["stdout"]))}
    return said


def differences(old: object, new: object, where: str):
    """Lines on every place in which the two differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in old | new:
            yield from differences(old.get(key), new.get(key), f"{where}: {key}")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for number, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{where}[{number}]")
    elif isinstance(old, float) and isinstance(new, float):
        # An estimate of an error is a draw of it; a share may cancel.
        if not math.isclose(old, new, rel_tol=CLOSE, abs_tol=CLOSE):
            yield f"{where}: {old!r} became {new!r}"
    elif old != new:
        yield f"{where}: {old!r:.300} became {new!r:.300}"


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["record", folder]:
            record(Path(folder))
        case ["compare", before, after]:
            sys.exit(compare(Path(before), Path(after)))
        case _:
            sys.exit(__doc__)
