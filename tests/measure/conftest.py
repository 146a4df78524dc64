"""Programs that are compiled in a test."""

import jax
import pytest

COMPILED = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compiled():
    """Names of the programs that are compiled, or taken from the cache."""
    found = []

    def listen(event, _, **options):
        if event == COMPILED:
            found.append(options.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield found
    jax.monitoring.unregister_event_duration_listener(listen)
