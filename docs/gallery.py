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

# Result -> what is analysed; then, of each, the pictures and what is to be seen in them.
ANALYSES = {
    "lstm": "--cell lstm --hidden 32 --steps 200",
    "trained": f"{_ADDING}/lstm_6000.safetensors --inputs {_ADDING}/sequences.npy --batch 4",
    "tanh": "--cell rnn --hidden 64 --steps 200 --gain 2.6",
}
PICTURES = [
    (
        "lstm",
        "lag",
        "An LSTM as PyTorch initialises it: a straight line down, below the threshold of 1e-3 after "
        "fifteen steps. Of the paths alone the carousel reaches furthest.",
    ),
    ("lstm", "share", "Who carries it: the carousel, with the block input's matrix as the second."),
    ("lstm", "spectrum", "All singular values of the product of 200 Jacobians, hundreds of decades of them."),
    (
        "lstm",
        "heatmap",
        "The gradient that survives best, on its way back to each unit: lost in all of them alike.",
    ),
    ("lstm", "gates", "Gates of a fresh cell are half open."),
    ("lstm", "eigenvalues", "The recurrent matrices have radius .6, well inside the unit circle."),
    (
        "trained",
        "lag",
        "An LSTM that has learned to remember for 100 steps (`examples/adding_problem`): a level line.",
    ),
    ("trained", "gates", "Training has shut some of its gates and opened others for good."),
    (
        "tanh",
        "lag",
        "A tanh RNN whose matrix is 2.6 times as large as PyTorch's: over 200 steps it neither vanishes nor "
        "explodes.",
    ),
    (
        "tanh",
        "eigenvalues",
        "And that though many of its eigenvalues lie beyond the unit circle: the inputs saturate its units.",
    ),
]


def page() -> str:
    """The text of gallery.md."""
    parts = [
        f"<!-- {_MADE} -->",
        "# Gallery",
        "Every picture is drawn by the command above it, from the JSON of the analysis. "
        "`gradscope report` puts all that a result has on one page.",
    ]
    before = ""
    for result, name, said in PICTURES:
        commands = [f"gradscope plot {result}.json {name} -o {result}-{name}.svg"]
        if result != before:
            commands.insert(0, f"gradscope analyze {ANALYSES[result]} --json -o {result}.json")
        block = "\n".join(commands)
        parts += [f"```sh\n{block}\n```", f"![{name} of {result}](gallery/{result}-{name}.svg)", said]
        before = result
    return "\n\n".join(parts) + "\n"


def pictures() -> dict[str, str]:
    """{file name: SVG}, each by the command that the page has above it."""
    with tempfile.TemporaryDirectory() as folder:
        for result, options in ANALYSES.items():
            _gradscope("analyze", *shlex.split(options), "--json", "-o", f"{folder}/{result}.json")
        return {
            f"{result}-{name}.svg": _gradscope("plot", f"{folder}/{result}.json", name)
            for result, name, _ in PICTURES
        }


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
