"""The figures of ``docs/examples.md``: its commands on the two published packages that it is about.

    python benchmarks/examples.py FOLDER

downloads both as ``packages.py`` does, makes the inputs that the page describes, runs the page's own
commands, and prints what it says of them.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
from packages import unpacked
from processes import GRADSCOPE, ROOT

TEXT, WORD = "The quick brown fox jumps over the lazy ", "onomatopoeia"


def commands() -> dict[str, list[str]]:
    """{model file: the arguments of the page's command for it}."""
    page = (ROOT / "docs" / "examples.md").read_text("utf-8")
    found = [shlex.split(line) for line in re.findall(r"^gradscope (analyze .*)", page, re.MULTILINE)]
    return {arguments[1]: arguments for arguments in found}


def prepared(folder: Path, package: str) -> Path:
    """The folder with the model file of a package, and its inputs."""
    place = unpacked(folder, package)
    if place is None:
        raise SystemExit(f"{package} could not be downloaded")
    for name in commands():
        for file in place.glob(f"**/{name}"):
            shutil.copy(file, folder / name)
    if package == "textgenrnn":
        (vocabulary,) = place.glob("**/textgenrnn_vocab.json")
        known = json.loads(vocabulary.read_text("utf-8"))
        np.save(folder / "ids.npy", [known[letter] for letter in TEXT])
    else:
        letters = ["<pad>", "<unk>", "</s>", *map(chr, range(ord("a"), ord("z") + 1))]
        np.save(folder / "word.npy", [letters.index(one) for one in (*WORD, "</s>")])
    return folder


def told(analysis: dict) -> str:
    """Gains, the largest share, and what its path would keep alone, with the horizons of the others."""
    full, *paths = analysis["chains"]
    gains = 10.0 ** np.array(full["by_lag"]["log10_norm"])
    most = max(analysis["shares"], key=analysis["shares"].get)
    alone = {one["name"]: 10.0 ** log10(one["log10_norm"]["median"]) for one in paths}
    reach = {one["name"]: one["horizon"]["median"] for one in paths}
    others = ", ".join(f"{name} {steps:g}" for name, steps in reach.items() if name != most)
    return (
        f"gain {gains[-1]:.2g} over {len(gains)} steps, {gains[0]:.2g} at lag 1, the most {gains.max():.2g}; "
        f"{most} carries {analysis['shares'][most]:.0%}, alone keeps {alone[most]:.2g}; horizons {others}"
    )


def log10(told: float | None) -> float:
    """As JSON tells it: null is that of zero."""
    return -np.inf if told is None else told


def main(folder: Path) -> None:
    """A line for each command."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in ("textgenrnn", "g2p-en"):
        prepared(folder, package)
    for name, arguments in commands().items():
        command = [*GRADSCOPE, *arguments, "--json"]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
        print(f"{name}: {told(json.loads(done.stdout))}")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]))
