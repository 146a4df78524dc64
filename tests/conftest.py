"""Settings of the whole suite, before NumPy and JAX are imported."""

import importlib.util
import mmap
import os
import re
import signal
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Most of the time goes into compiling programs that run for a moment; =0 tests them as users have them.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")


def _known_to_xla(flags: dict[str, str]) -> str:
    """The flags whose names are in jaxlib: XLA ends a process at one that it does not know."""
    found = importlib.util.find_spec("jaxlib")
    known = {}
    for library in Path(found.origin).parent.glob("*.so") if found and found.origin else ():
        with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            known |= {flag: value for flag, value in flags.items() if content.find(flag.encode()) >= 0}
    return " ".join(f"--{flag}={value}" for flag, value in known.items())


# Without loops fused by MLIR, and modules split for threads, it is less than half of what is left.
CHEAPER = {"xla_cpu_use_fusion_emitters": "false", "xla_cpu_parallel_codegen_split_count": "1"}
if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1" and "XLA_FLAGS" not in os.environ:
    os.environ["XLA_FLAGS"] = _known_to_xla(CHEAPER)

# A shell starts background jobs with SIGINT ignored, and every process of the suite would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is: timings belong in benchmarks/.
hypothesis.settings.register_profile("suite", deadline=None)
hypothesis.settings.load_profile("suite")

PARITY = Path(__file__).parent / "parity"


def pytest_ignore_collect(collection_path, config):
    """What compares with the frameworks imports them: it is left alone unless ``-m`` asks for it by name."""
    asked = re.search(r"(?<!not )\bparity\b", config.option.markexpr)
    return True if collection_path == PARITY and not asked else None


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Compiled programs of the suite stay out of the user's cache."""
    os.environ["GRADSCOPE_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(autouse=True, scope="session")
def _top_values_without_jacobians():
    """Of chains as small as those of tests all values are sooner: two methods would be compared as one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradscope.measure.batch.sooner_without_jacobians", lambda _: True)
        yield


@pytest.fixture(autouse=True, scope="session")
def _host_engine():
    """Tests share a process: whether a program pays must not depend on those before it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gradscope.measure.programs.PROGRAM", float("inf"))
        yield


@pytest.fixture
def paths_alone(monkeypatch):
    """The whole chain without each path is not measured: tests/measure/test_without.py looks at it."""
    for kind in ("all_values.JacobianChains", "top_values.TangentChains"):
        monkeypatch.setattr(f"gradscope.measure.{kind}.without", lambda *_: {})


@pytest.fixture
def run(capfd):
    """Call the command line in this process: (exit code, stdout, stderr)."""
    from gradscope.cli.main import main

    def call(*arguments):
        code = main([str(a) for a in arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call
