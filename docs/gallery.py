"""Write docs/gallery.md and its pictures with gradscope itself: python docs/gallery.py.

A slow test draws them again and compares.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
_MADE = "Made by docs/gallery.py."
_ADDING = "examples/adding_problem"
_SEQUENCES = f"--inputs {_ADDING}/sequences.npy --batch 4"

# File -> the Python that writes it, from this folder.
MADE = {
    "stack.npz": """
import numpy as np

rng, units = np.random.default_rng(0), 24
shapes = {"weight_ih": (4 * units, units), "weight_hh": (4 * units, units), "bias_ih": (4 * units,)}
weights = {
    f"lstm.{kind}_l{layer}": rng.uniform(-1, 1, shape) / units**0.5
    for layer in range(3)
    for kind, shape in shapes.items()
}
for layer, forget_bias in enumerate((1.0, 3.0, 5.0)):
    weights[f"lstm.bias_ih_l{layer}"][units : 2 * units] += forget_bias
np.savez("stack.npz", **{f"lstm.bias_hh_l{layer}": np.zeros(4 * units) for layer in range(3)}, **weights)
""",
}
# Result -> what makes it; then, of each, the pictures and what is to be seen in them.
RESULTS = {
    "lstm.json": "analyze --cell lstm --hidden 32 --steps 200 --json",
    "trained.json": f"analyze {_ADDING}/lstm_6000.safetensors {_SEQUENCES} --json",
    "tanh.json": "analyze --cell rnn --hidden 64 --steps 200 --gain 2.6 --json",
    "stack.json": "analyze stack.npz --steps 60 --json",
    "learning.jsonl": f"track {_ADDING}/lstm_*.safetensors {_SEQUENCES} --light",
    "critical.jsonl": "sweep --cell lstm --init gaussian --inputs zeros --hidden 32 --steps 100 "
    "--grid gain=0.5:2:12 --grid forget_bias=-1:5:12",
}
PICTURES = [
    (
        "lstm.json",
        "lag",
        "An LSTM as PyTorch initialises it: a straight line down, below the threshold of 1e-3 after "
        "fifteen steps. Of the paths alone the carousel reaches furthest.",
    ),
    ("lstm.json", "share", "Who carries it: the carousel, with the block input's matrix as the second."),
    (
        "lstm.json",
        "spectrum",
        "All singular values of the product of 200 Jacobians, hundreds of decades of them.",
    ),
    (
        "lstm.json",
        "heatmap",
        "The gradient that survives best, on its way back to each unit: lost in all of them alike.",
    ),
    ("lstm.json", "gates", "Gates of a fresh cell are half open."),
    ("lstm.json", "eigenvalues", "The recurrent matrices have radius .6, well inside the unit circle."),
    (
        "trained.json",
        "lag",
        "An LSTM that has learned to remember for 100 steps (`examples/adding_problem`): a level line.",
    ),
    ("trained.json", "gates", "Training has shut some of its gates and opened others for good."),
    (
        "tanh.json",
        "lag",
        "A tanh RNN whose matrix is 2.6 times as large as PyTorch's: over 200 steps it neither vanishes nor "
        "explodes.",
    ),
    (
        "tanh.json",
        "eigenvalues",
        "And that though many of its eigenvalues lie beyond the unit circle: the inputs saturate its units.",
    ),
    (
        "stack.json",
        "layers",
        "Three LSTMs on one another with forget biases of 1, 3 and 5, each on its own: the lowest forgets "
        "within steps, and only the highest brings a gradient back over all of them.",
    ),
    (
        "learning.jsonl",
        "training",
        "The LSTM of the adding problem before training, in the forty updates in which it gets it, and "
        "after: the horizon goes from 19 steps to all 100.",
    ),
    (
        "critical.jsonl",
        "phase",
        "An LSTM at rest over gain and forget bias: where the rate is zero, as measured and as theory has it "
        "of infinitely many units and steps, g = (1 - f) / (o i).",
    ),
]


def page() -> str:
    """The text of gallery.md."""
    parts = [
        f"<!-- {_MADE} -->",
        "# Gallery",
        "Every picture is drawn by the command above it, from the JSON of a result, or the rows of `track` "
        "and `sweep`. `gradscope report` puts all that there is of one on a page.",
    ]
    before = ""
    for result, name, said in PICTURES:
        file = f"{Path(result).stem}-{name}.svg"
        commands = [f"gradscope plot {result} {name} -o {file}"]
        if result != before:
            commands.insert(0, f"gradscope {RESULTS[result]} -o {result}")
            parts += [f"```python{MADE[word]}```" for word in RESULTS[result].split() if word in MADE]
        block = "\n".join(commands)
        parts += [f"```sh\n{block}\n```", f"![{name} of {Path(result).stem}](gallery/{file})", said]
        before = result
    return "\n\n".join(parts) + "\n"


def pictures() -> dict[str, str]:
    """{file name: SVG}, each by the command that the page has above it."""
    with tempfile.TemporaryDirectory() as folder:
        for code in MADE.values():
            subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
        for result, command in RESULTS.items():
            words = (f"{folder}/{word}" if word in MADE else word for word in _words(command))
            _gradscope(*words, "-o", f"{folder}/{result}")
        return {
            f"{Path(result).stem}-{name}.svg": _gradscope("plot", f"{folder}/{result}", name)
            for result, name, _ in PICTURES
        }


def _words(command: str) -> list[str]:
    """As a shell passes them on."""
    found = [(word, sorted(map(str, ROOT.glob(word)))) for word in shlex.split(command)]
    return [name for word, files in found for name in (files if "*" in word else [word])]


def _gradscope(*arguments: str) -> str:
    command = [sys.executable, "-m", "gradscope", *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, text=True, stdout=subprocess.PIPE).stdout


def main() -> None:
    """Write the page and every picture."""
    folder = ROOT / "docs" / "gallery"
    folder.mkdir(exist_ok=True)
    drawn = pictures()
    for old in folder.iterdir():
        if old.name not in drawn:
            old.unlink()
    for name, svg in drawn.items():
        (folder / name).write_text(svg, "utf-8")
    (ROOT / "docs" / "gallery.md").write_text(page(), "utf-8")


if __name__ == "__main__":
    main()
