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
