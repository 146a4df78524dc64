"""Types that every room uses, each defined once."""

from __future__ import annotations

import os
from typing import Any

import numpy.typing as npt

# Whole numbers (exponents, ranks, lags) and numbers of another precision are arrays too.
Array = npt.NDArray[Any]
PathLike = str | os.PathLike[str]
