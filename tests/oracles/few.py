"""Which of many cases run by default; the others take minutes together, and are for ``-m slow``."""

from collections.abc import Iterable
from typing import Any

import pytest


def few(cases: Iterable[Any], *kept: Any) -> list[Any]:
    """The cases of a parametrised test, all but those that are kept marked as slow."""
    return [case if case in kept else pytest.param(case, marks=pytest.mark.slow) for case in cases]
