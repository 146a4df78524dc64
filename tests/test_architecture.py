"""The package reads along one line: a module imports only what stands before it."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "gradscope"

# The straight line of the package, from input to surface.
LINE = [
    "gradscope",  # the version, and lazy names for users
    "errors",
    "threads",
    "cells.units",
    "cells.activations",
    "cells.base",
    "cells.rnn",
    "cells.lstm",
    "cells.gru",
    "cells.stack",
    "cells",
    "initializers",
    "files",
    "checkpoints.layer",
    "checkpoints.found",
    "checkpoints.live",
    "checkpoints.native",
    "checkpoints.torch_state",
    "checkpoints.torch_live",
    "checkpoints.equinox_live",
    "checkpoints.flax_tree",
    "checkpoints.flax_live",
    "checkpoints.safetensors_file",
    "checkpoints.pickles",
    "checkpoints.torch_file",
    "checkpoints.msgpack_tree",
    "checkpoints.hdf5",
    "checkpoints.wiring",
    "checkpoints.keras_config",
    "checkpoints.keras_names",
    "checkpoints.keras_file",
    "checkpoints.keras_live",
    "checkpoints.onnx_tensors",
    "checkpoints.onnx_wiring",
    "checkpoints.onnx_graph",
    "checkpoints",
    "checks",
    "memory",
    "inspection",
    "tables",
    "inputs",
    "states",
    "problem",
    "seeds",
    "problems",
    "trajectory",
    "path",
    "parts",
    "loaded",
    "paths",
    "blocks",
    "segmented",
    "jacobians",
    "moves",
    "tangents",
    "backprop",
    "structure",
    "factors",
    "graded",
    "exact",
    "finish",
    "lags",
    "parallel",
    "perturbed",
    "triangle",
    "passes",
    "krylov",
    "reach",
    "stack",
    "sweeps",
    "wide",
    "runs",
    "extended",
    "chain",
    "flow",
    "stretches",
    "measure",
    "linearized",
    "outputs",
    "layered",
    "adjoints",
    "loss",
    "tops",
    "workers",
    "whole",
    "verdict",
    "analysis",
    "finding",
    "pipeline",
    "cluster",
    "runtime",
    "api",
    "render.terminal",
    "render.json",
    "render.page",
    "render.lags",
    "render.loss",
    "render.table",
    "render.contents",
    "render",
    "cli.streams",
    "cli.progress",
    "cli.options",
    "cli.group",
    "cli.asked",
    "cli.analyze",
    "cli.chain",
    "cli.inspect",
    "cli",
    "cli.main",
    "__main__",
]
SURFACE = LINE.index("render.terminal")


def name_of(path):
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__") or "gradscope"


def imports(path):
    """Modules imported anywhere in a file, also within functions and for types."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute here"
            for alias in node.names:  # ``from package import module`` imports the module
                name = f"{node.module}.{alias.name}"
                yield name if name.removeprefix("gradscope.") in LINE else node.module


FILES = sorted(PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_imports_point_backwards(path):
    if name_of(path) == "gradscope":
        return  # its lazy names point everywhere by design
    here = LINE.index(name_of(path))
    for module in imports(path):
        if module.split(".")[0] == "gradscope":
            target = module.removeprefix("gradscope.")
            assert LINE.index(target) < here, f"{name_of(path)} imports {target}, which stands after it"


@pytest.mark.parametrize("path", [p for p in FILES if LINE.index(name_of(p)) < SURFACE], ids=name_of)
def test_library_knows_no_surface(path):
    assert not {"click", "rich"} & {module.split(".")[0] for module in imports(path)}


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_modules_are_small_and_say_what_they_are(path):
    text = path.read_text("utf-8")
    assert ast.get_docstring(ast.parse(text)), "a module opens with a docstring"
    assert len(text.splitlines()) <= 250


def modules_after(code):
    """Names of the modules loaded after ``code`` ran in a new interpreter."""
    code += "; import sys; print(*sorted(sys.modules), sep='\\n', file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stderr.split())


HEAVY = {"jax", "numpy", "scipy", "safetensors"}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["-h"], ["--version"], ["analyze", "--help"], ["chain", "-h"], ["inspect", "-h"]],
)
def test_help_imports_no_jax(arguments):
    loaded = modules_after(f"from gradscope.cli.main import main; assert main({arguments!r}) == 0")
    assert not HEAVY & loaded
    assert "rich" not in loaded


def test_package_imports_nothing_heavy():
    assert not HEAVY & modules_after("import gradscope")


def test_public_names_all_load():
    code = "import gradscope; [getattr(gradscope, n) for n in gradscope.__all__]"
    assert "jax" in modules_after(code)


def test_spectrum_needs_no_jax():
    assert "jax" not in modules_after("import gradscope; gradscope.spectrum([[[2.0]]])")
