"""Where a result came from, as far as the command line knows: the command, the files' hashes, versions."""

from __future__ import annotations

import hashlib
import platform
import shlex
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import click

from gradscope.cli.group import ARGUMENTS


def origin_of(files: Sequence[Path]) -> dict[str, str]:
    """{"command", "sha256 of FILE", "versions"}; a file that is no longer there, or a pipe, has no hash."""
    context = click.get_current_context(silent=True)
    arguments = context.meta.get(ARGUMENTS) if context else None
    said = {"command": shlex.join(["gradscope", *arguments])} if arguments else {}
    for file in files:
        if file.is_file():
            with file.open("rb") as stream:
                said[f"sha256 of {file}"] = hashlib.file_digest(stream, "sha256").hexdigest()
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "jax"))
    return said | {"versions": f"Python {platform.python_version()}, {packages}"}
