"""Settings of the whole suite, before NumPy and JAX are imported."""

import os
import signal

os.environ["KERAS_BACKEND"] = "jax"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import pytest

# A shell starts background jobs with SIGINT ignored, and every process of the suite would inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    """Compiled programs of the suite stay out of the user's cache."""
    os.environ["GRADSCOPE_CACHE_DIR"] = str(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def run(capfd):
    """Call the command line in this process: (exit code, stdout, stderr)."""
    from gradscope.cli.main import main

    def call(*arguments):
        code = main([str(a) for a in arguments])
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return call
