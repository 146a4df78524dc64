"""The project's settings: ``[tool.gradscope]`` of its pyproject.toml, or its gradscope.toml."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gradscope.errors import InputError, about, reason

OWN, SHARED = "gradscope.toml", "pyproject.toml"
_MAX_BYTES = 2**20


@dataclass(frozen=True)
class ConfigFile:
    """What a project sets.

    path : of the file; table : what stands under ``[tool.gradscope]``, or in a gradscope.toml at the top;
    text : of the whole file; folder : where it is, as seen from the current one or as it was given: results
    name the files that stand there, and not where all of it lies.
    """

    path: Path
    table: Mapping[str, Any]
    text: str
    folder: Path

    def beside(self, value: Any) -> Any:
        """A relative name of a file as it is meant: beside this one, not where the command is called."""
        if not isinstance(value, str):
            return value
        return str(self.folder / value) + "/" * value.endswith("/")  # it says that it is a folder


def find_config(folder: Path | None = None) -> ConfigFile | None:
    """The settings of the project that ``folder`` (by default the current one) is part of, None without any.

    The nearest file counts, and none outside of the repository.
    """
    try:
        here = (folder or Path.cwd()).resolve()
    except OSError:  # it has been deleted
        return None
    for place in (here, *here.parents):
        for name in (OWN, SHARED):
            if _is_there(place / name) and (found := _read(place / name)):
                return replace(found, folder=_from_here(place))
        if _is_there(place / ".git", folder_too=True):
            break
    return None


def _from_here(folder: Path) -> Path:
    """The folder as a relative path."""
    with contextlib.suppress(OSError, ValueError):  # the current one is deleted, or on another drive
        return Path(os.path.relpath(folder))
    return folder


def _is_there(path: Path, *, folder_too: bool = False) -> bool:
    try:
        return path.exists() if folder_too else path.is_file()
    except OSError:  # its folder is closed to us
        return False


def read_config(path: Path) -> ConfigFile:
    """The settings in one file; raises InputError where there are none."""
    if found := _read(path):
        return found
    raise InputError(f"{path}: has no [tool.gradscope], expected that table, or a file called {OWN}")


def _read(path: Path) -> ConfigFile | None:
    import tomllib  # here: most folders have no such file

    with about(path):
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_BYTES + 1)
            if len(data) > _MAX_BYTES:
                raise InputError("is over 1 MiB, expected a few lines of settings")
            if path.name == SHARED and b"gradscope" not in data:  # nor need the rest of it concern us
                return None
            text = data.decode("utf-8")
            whole = tomllib.loads(text)
        except OSError as error:
            raise InputError(f"{error.strerror}, expected settings in TOML") from error
        except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
            raise InputError(f"is no TOML ({reason(error)})") from error
        tool = whole.get("tool")
        table = tool.get("gradscope") if isinstance(tool, dict) else None
        if table is None and path.name == SHARED:
            return None
        table = whole if table is None else table
        if not isinstance(table, dict):
            raise InputError("tool.gradscope is no table, expected [tool.gradscope] and settings below it")
        return ConfigFile(path, table, text, path.parent)
