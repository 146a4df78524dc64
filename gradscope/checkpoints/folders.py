"""Folders and archives that are given as checkpoints: what wrote them, and what to give in their place."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection
from itertools import islice
from pathlib import Path

from gradscope.errors import InputError, listed, shown

# What a folder has that was written by these, and what leads on.
_WRITTEN = {
    ("_CHECKPOINT_METADATA", "_METADATA", "manifest.ocdbt"): (
        "Orbax wrote, which is not read: restore it and give the model, or its arrays as a .npz"
    ),
    ("saved_model.pb",): (
        "TensorFlow wrote, which is not read: model.save('model.keras') of the same model is"
    ),
    ("checkpoint",): "TensorFlow wrote, which is not read: model.save_weights('model.weights.h5') is",
}
# So many names of a folder are looked at.
_MOST = 10_000


def check_no_folder(path: str | os.PathLike[str], suffixes: Collection[str]) -> None:
    """Raise InputError for a folder; suffixes : of the files that are read."""
    try:
        folder = Path(path).is_dir()
    except OSError:  # is said where the file is opened
        return
    if folder:
        raise InputError(f"checkpoint {shown(path)}: {_said(path, suffixes)}")


def inside_zip(path: str | os.PathLike[str], suffixes: Collection[str]) -> str:
    """What to give of an archive with checkpoints in it, as Stable-Baselines3 makes; "" of anything else."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [member.filename for member in islice(archive.infolist(), _MOST)]
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return ""
    inside = [name for name in names if Path(name).suffix.lower() in suffixes]
    models = [name for name in inside if "optim" not in name.lower()]
    # Stable-Baselines3 keeps the weights as policy.pth, beside variables of its own.
    models.sort(key=lambda name: Path(name).stem != "policy")
    return f"unzip it and give {listed(models[:4])} of what is in it" if models else ""


def _said(path: str | os.PathLike[str], suffixes: Collection[str]) -> str:
    try:
        with os.scandir(path) as entries:
            names = sorted(entry.name for entry in islice(entries, _MOST))
    except OSError:  # one that may not be looked into
        names = []
    for marks, said in _WRITTEN.items():
        if not {*marks}.isdisjoint(names):
            return f"is a folder that {said}"
    if inside := [name for name in names if Path(name).suffix.lower() in suffixes]:
        first = shown(str(Path(path) / inside[0]))
        more = f", or one of the {len(inside) - 1} others; all of a run: gradscope track" * (len(inside) > 1)
        return f"is a folder, expected a file, as {first} in it{more}"
    return f"is a folder, expected a file {', '.join(suffixes)}"
