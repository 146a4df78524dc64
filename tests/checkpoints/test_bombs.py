"""Small files that would take much: time is linear in their size and memory within the budget, or refused."""

from __future__ import annotations

import sys
from contextlib import suppress

import pytest
from oracles.bombs import BOMBS
from oracles.hostile import all_read

from gradscope import checkpoints
from gradscope.errors import InputError
from gradscope.formats import budget, tensors
from gradscope.formats.budget import ALLOWANCE, Budget

HERE = {name: bomb for name, bomb in BOMBS.items() if bomb[0] != ".onnx"}  # whose library is no dependency
SIZE = 15_000


@pytest.fixture(autouse=True)
def _little_is_allowed(request, monkeypatch):
    """A sixty-fourth of the allowance: what would take more than it is refused as soon."""
    if "slow" not in request.keywords:
        monkeypatch.setattr(budget, "ALLOWANCE", ALLOWANCE // 64)


def calls_to_read(path):
    """How many functions are called while a file is read: a count of its work that no machine changes."""
    count = 0

    def called(_, event, __):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(called)
    try:
        with suppress(InputError):
            checkpoints.read_all(path)
    finally:
        sys.setprofile(before)
    return count


@pytest.mark.parametrize("name", HERE)
def test_work_grows_no_faster_than_the_file(name, tmp_path):
    suffix, make = HERE[name]
    counts = []
    for size in (SIZE, 2 * SIZE):
        path = tmp_path / f"{size}{suffix}"
        path.write_bytes(make(size))
        counts.append(calls_to_read(path) / path.stat().st_size)
    assert counts[1] < 1.3 * counts[0] + 2


@pytest.mark.parametrize("name", HERE)
def test_readers_draw_on_the_budget(name, tmp_path, monkeypatch):
    made = []

    class Kept(Budget):
        def __init__(self, *given):
            super().__init__(*given)
            made.append(self)

    monkeypatch.setattr(tensors, "Budget", Kept)
    suffix, make = HERE[name]
    path = tmp_path / f"model{suffix}"
    path.write_bytes(make(SIZE))
    said = ""
    try:
        checkpoints.read_all(path)
    except InputError as error:
        said = str(error)
    (drawn,) = made
    assert "unpacks to" in said or drawn.spent > path.stat().st_size


@pytest.mark.slow
def test_bombs_take_little_memory_and_time(tmp_path):
    cases = {name: (suffix, make(100_000), "") for name, (suffix, make) in HERE.items()}
    assert not all_read(tmp_path, cases)
