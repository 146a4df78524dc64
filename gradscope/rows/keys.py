"""The key by which a row is known again: a hash of what was asked, and of the files that are named there."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradscope.errors import InputError, shown
from gradscope.formats.numpy_files import split_key
from gradscope.option import option_of
from gradscope.settings import Settings
from gradscope.version import __version__

_CHUNK = 2**20
# What is no question: the same is found however it is asked.
_NO_QUESTION = ("platform", "devices", "progress", "plan", "trying")


def key_of(asked: Mapping[str, Any]) -> str:
    """Of what is asked, which JSON can tell, or else its text, and of the version that answers."""
    told = {"version": __version__, **asked}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode("utf-8")).hexdigest()[:32]


def told_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an analysis as a key has them: with a hash of what is in each file that they name."""
    return {name: _told(name, one) for name, one in settings.items() if name not in _NO_QUESTION}


def _told(name: str, value: Any) -> Any:
    if name == "cell" and isinstance(value, str) and ":" in value:
        return [value, _source(value.partition(":")[0])]
    field = Settings.__dataclass_fields__.get(name)
    if field is None or not option_of(field).reads or value is None:
        return value
    each = value if isinstance(value, tuple | list) else [value]
    return [[str(one), _content(str(one))] for one in each]


def _source(module: str) -> str | None:
    """A hash of the file of a cell of the user's own: what it imports itself is not seen."""
    try:
        found = importlib.util.find_spec(module)
        return hash_of(Path(found.origin)) if found and found.origin else None
    except (ImportError, ValueError, InputError):  # what is wrong with it is said when it is measured
        return None


def _content(name: str) -> str | None:
    path = Path(split_key(name)[0])
    try:
        return hash_of(path) if path.is_file() else None
    except (OSError, ValueError, InputError):  # a rule that is too long for a name
        return None


def hash_of(path: Path) -> str:
    """Of the bytes of a file; raises InputError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        if path.is_dir():
            raise InputError(f"{shown(path)}: is a directory, expected a file")
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"{shown(path)}: {error.strerror}") from error
    return digest.hexdigest()
