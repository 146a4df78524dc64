"""The package reads along one line: a room imports only rooms to its left."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gradscope.cli.main import cli

PACKAGE = Path(__file__).parents[2] / "gradscope"

# Room -> the rooms that it may import; in the order of the straight line.
MAY = {
    "formats": set(),
    "cells": set(),
    "product_svd": set(),
    "compiled_svd": {"product_svd"},
    "checkpoints": {"formats", "cells"},
    "linearize": {"cells", "product_svd", "compiled_svd"},
    "problem": {"formats", "cells", "checkpoints", "linearize"},
    "measure": {"problem", "linearize", "cells", "product_svd", "compiled_svd"},
    "report": {"measure", "problem", "checkpoints", "cells", "product_svd"},
    "gate": {"report"},
    "rows": {"formats"},
    "track": {"rows", "gate", "report"},
    "grid": {"track", "rows", "gate", "report", "measure", "problem", "cells"},
    "advise": {"report", "measure", "problem", "linearize", "checkpoints", "formats", "cells", "product_svd"},
    "cli": {"api", "advise", "grid", "track", "rows", "gate", "report", "measure", "cells", "formats"},
}
# Folders of ``checkpoints``, and the others that each may import: Keras runs on three frameworks.
FRAMEWORKS = {
    "loops": set(),
    "torch": {"loops", "torch_loops"},
    "torch_loops": {"loops", "torch"},
    "jax": {"loops"},
    "tensorflow": set(),
    "keras": {"torch", "jax", "tensorflow"},
    "onnx": set(),
}
# Files of the root that every room may import, and what they may import themselves.
LEAVES = {"custom_types": set(), "errors": {"custom_types"}, "version": set()}
# Of cells and checkpoints the settings know types alone.
LEAVES |= {"config_file": {"errors"}, "schemas": {"errors"}, "files": {"custom_types"}}
# A view of the report for what a room far to its left returns.
LEAVES |= {"notebook": {"product_svd", "report"}}
LEAVES |= {"option": set(), "as_arguments": {"option"}}
LEAVES |= {"machine": {"errors", "settings"}, "settings": {"errors", "option", "cells", "checkpoints"}}
ROOT = LEAVES | {
    "api": {*MAY, *LEAVES} - {"cli"},
    "__main__": {"cli"},
    "testing": {"api", "gate", "report", "checkpoints", *LEAVES},
    "__init__": {*MAY, *LEAVES, "api"},
}
RICH = {
    *(
        "page",
        "table",
        "lag_view",
        "loss_table",
        "sensitivity_table",
        "remedies_table",
        "suggestion_table",
        "repair_table",
        "training_table",
        "sparkline",
    ),
    *("inspection_table", "track_table", "checks_table", "changes_table", "phase_table", "curve_view"),
}

FILES = sorted(PACKAGE.rglob("*.py"))
COMMANDS = cli.list_commands(None)


def test_the_page_has_every_room_and_what_it_imports():
    page = (PACKAGE.parent / "docs" / "architecture.md").read_text("utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([\w, ]*) ?\|$", page, re.MULTILINE)
    assert {room: {*filter(None, told.strip().split(", "))} for room, told in rows} == MAY


def name_of(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imports(path):
    """Modules imported anywhere in a file, also within functions and for types."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            # From the package itself come its rooms and files.
            whole = node.module == "gradscope"
            yield from (f"gradscope.{alias.name}" for alias in node.names) if whole else [node.module]


def rooms_imported(path):
    return {module.split(".")[1] for module in imports(path) if module.startswith("gradscope.")}


def test_every_file_is_in_a_room_or_known_in_the_root():
    folders = {path.relative_to(PACKAGE).parts[0] for path in FILES if path.parent != PACKAGE}
    assert folders == MAY.keys()
    assert {path.stem for path in PACKAGE.glob("*.py")} == ROOT.keys()
    # Folders within a room: a file for every picture of the report, and the frameworks of checkpoints.
    deeper = [path for path in FILES if PACKAGE not in (path.parent, path.parent.parent)]
    frameworks = {PACKAGE / "checkpoints" / name for name in FRAMEWORKS}
    assert {path.parent for path in deeper} == {PACKAGE / "report" / "pictures", *frameworks}


@pytest.mark.parametrize("folder", FRAMEWORKS)
def test_a_framework_knows_no_other_than_those_it_runs_on(folder):
    files = (PACKAGE / "checkpoints" / folder).glob("*.py")
    parts = [module.split(".") for path in files for module in imports(path)]
    known = {part[2] for part in parts if part[:2] == ["gradscope", "checkpoints"] and len(part) > 2}
    assert known & FRAMEWORKS.keys() <= {folder, *FRAMEWORKS[folder]}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_to_the_left(path):
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    allowed = ROOT[room] if room in ROOT else {room, *MAY[room], *LEAVES}
    assert rooms_imported(path) <= allowed


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_the_surface_knows_the_terminal(path):
    used = {module.split(".")[0] for module in imports(path)}
    assert "click" not in used or path.parent.name == "cli"
    assert "rich" not in used or path.parent.name == "cli" or path.stem in RICH


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_file_says_what_it_is_and_its_functions_are_short(path):
    tree = ast.parse(path.read_text("utf-8"))
    assert ast.get_docstring(tree), "a file opens with a docstring"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            inside = node.body[bool(ast.get_docstring(node)) :]
            length = node.end_lineno - inside[0].lineno if inside else 0
            assert length < 60, f"{node.name} has {length + 1} lines"


# One verb in the shell and in Python; what every library's names have; cells called after their activation.
SHARED = {"analyze", "suggest", "repair", "sweep", "inspect", "layers", "schema", "sigmoid"}


def test_no_two_public_things_have_one_name():
    found = {}
    for path in FILES:
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
                found.setdefault(node.name, []).append(name_of(path))
    assert {name: places for name, places in found.items() if len(places) > 1 and name not in SHARED} == {}


def modules_after(code):
    """Names of the modules loaded after ``code`` ran in a new interpreter."""
    code += "; import sys; print(*sorted(sys.modules), sep='\\n', file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


HEAVY = {"jax", "numpy", "scipy", "safetensors"}


@pytest.mark.parametrize(
    "arguments",
    [
        *(["--help"], ["-h"], ["--version"], ["chain", "-h"], ["analyze", "-h"]),
        *([command, "--help"] for command in COMMANDS),
        *(["config"], ["schema", "analysis"], ["completion", "bash"]),
    ],
)
def test_help_imports_no_jax(arguments):
    loaded = modules_after(f"from gradscope.cli.main import main; assert main({arguments!r}) == 0")
    assert not HEAVY & loaded
    assert "rich" not in loaded


def test_package_imports_nothing_heavy():
    assert not HEAVY & modules_after("import gradscope")


@pytest.mark.slow  # a process with JAX
def test_a_fresh_cell_is_analysed_without_what_others_ask_for():
    """A start takes what reads checkpoints, losses, sensitivities and top values for nobody."""
    asked = ["analyze", "--hidden", "2", "--input-size", "1", "--steps", "3", "--no-compile-cache", "-q"]
    loaded = modules_after(f"from gradscope.cli.main import main; main({asked!r})")
    others = "checkpoints", "measure.loss_gradient", "measure.sensitivity", "compiled_svd.engine"
    others += "measure.loss", "linearize.tangents"
    assert "gradscope.measure.batch" in loaded
    assert not {f"gradscope.{name}" for name in others} & loaded


LOAD = "for n in gradscope.__all__: assert callable(getattr(gradscope, n)), n"


@pytest.mark.parametrize(
    "first", ["", "".join(f"import gradscope.{room}; " for room in MAY)], ids=["", "rooms"]
)
def test_public_names_all_load(first):
    """A room that is imported is bound as an attribute: none may stand in the place of a public name."""
    assert "jax" in modules_after(f"{first}import gradscope\n{LOAD}\npass")


def test_spectrum_needs_neither_jax_nor_all_of_scipy_linalg():
    """LAPACK alone is taken, and the package can be imported after that as if it had not been."""
    measured = "import gradscope; gradscope.spectrum([[[2.0]]])"
    assert not {"jax", "scipy.linalg"} & modules_after(measured)
    whole = "import scipy.linalg.cython_lapack, scipy.linalg.lapack as lapack"
    shared = "from gradscope.product_svd.lapack import dgetrf; assert dgetrf is lapack.dgetrf"
    modules_after(f"{measured}; {whole}; scipy.linalg.cython_lapack.__pyx_capi__; {shared}")


@pytest.mark.parametrize("asked", [["--cell", "lstn"], ["absent.pt"]])
@pytest.mark.parametrize("command", ["analyze", "suggest"])
def test_a_name_of_nothing_is_refused_without_jax(command, asked):
    loaded = modules_after(f"from gradscope.cli.main import main; assert main({[command, *asked]!r}) == 2")
    assert "jax" not in loaded
