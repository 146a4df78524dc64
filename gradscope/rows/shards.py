"""Which part of the work is this process's: said, or taken from what a scheduler tells its processes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from gradscope.errors import InputError, quoted

T = TypeVar("T")

# A scheduler of one's own says it by these: the number of the process from 0, and how many there are.
INDEX, COUNT = "GRADSCOPE_SHARD_INDEX", "GRADSCOPE_SHARDS"
_WRITTEN = re.compile(r"(\d{1,9}|auto)(?:/(\d{1,9}))?")


@dataclass(frozen=True)
class Shard:
    """Part ``number`` (from 1) of ``count``; source : what says so."""

    number: int
    count: int
    source: str = "--shard"

    def __post_init__(self) -> None:
        if self.count < 1 or not 1 <= self.number <= self.count:
            raise InputError(
                f"{self.source}: {self}, expected 1/{max(self.count, 1)} to "
                f"{max(self.count, 1)}/{max(self.count, 1)}"
            )

    @classmethod
    def parse(cls, text: str, environment: Mapping[str, str]) -> Shard:
        """From ``2/8``; from ``auto``, or ``auto/8`` where the scheduler does not tell how many there are."""
        match = _WRITTEN.fullmatch(text)
        if not match or (match[1] != "auto" and match[2] is None):
            raise InputError(f"--shard is {quoted(text)}, expected I/N such as 2/8, or auto")
        if match[1] == "auto":
            return _found(environment, int(match[2]) if match[2] else None)
        return cls(int(match[1]), int(match[2]))

    def of(self, whole: Sequence[T]) -> list[tuple[int, T]]:
        """Its items with their places in the whole, dealt round: neighbours take about as long."""
        return list(enumerate(whole))[self.number - 1 :: self.count]

    def __str__(self) -> str:
        return f"shard {self.number} of {self.count}"

    @property
    def label(self) -> str:
        """``2-of-8``, for the name of a file."""
        return f"{self.number}-of-{self.count}"


def _found(environment: Mapping[str, str], count: int | None) -> Shard:
    """What the scheduler says; ``count`` where it does not tell how many there are."""
    if INDEX in environment:
        return _numbered(environment, INDEX, count)
    array, task = _slurm_array(environment), _slurm_task(environment)
    if array and task and task.count > 1:
        number = (array.number - 1) * task.count + task.number
        return _agreeing(Shard(number, array.count * task.count, f"{array.source}, {task.source}"), count)
    if found := array or task:
        return _agreeing(found, count)
    if "JOB_COMPLETION_INDEX" in environment:
        return _numbered(environment, "JOB_COMPLETION_INDEX", count)
    raise InputError(
        "--shard auto finds no Slurm array or step (SLURM_ARRAY_TASK_ID, SLURM_PROCID), no indexed job of "
        f"Kubernetes (JOB_COMPLETION_INDEX) and no {INDEX}: give --shard I/N"
    )


def _numbered(environment: Mapping[str, str], name: str, count: int | None) -> Shard:
    """A number from 0, of so many as are given or stand in the environment."""
    if count is None and COUNT not in environment:
        raise InputError(f"{name} is set, but not how many there are: give --shard auto/N, or set {COUNT}")
    of = _number(environment, COUNT) if count is None else count
    return Shard(_number(environment, name) + 1, of, name)


def _slurm_array(environment: Mapping[str, str]) -> Shard | None:
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return None
    number, first, step = (
        _number(environment, f"SLURM_ARRAY_TASK_{name}", default)
        for name, default in (("ID", None), ("MIN", 0), ("STEP", 1))
    )
    if "SLURM_ARRAY_TASK_COUNT" not in environment:
        raise InputError("SLURM_ARRAY_TASK_ID is set, but not SLURM_ARRAY_TASK_COUNT: give --shard I/N")
    count = _number(environment, "SLURM_ARRAY_TASK_COUNT")
    place, rest = divmod(number - first, max(step, 1))
    if rest or not 0 <= place < count:
        raise InputError(
            f"task {number} of a Slurm array that is no range (of {count} from {first}, by {step}): give "
            "--shard I/N, or an array such as 0-7"
        )
    return Shard(place + 1, count, "SLURM_ARRAY_TASK_ID")


def _slurm_task(environment: Mapping[str, str]) -> Shard | None:
    """The task of a step of srun: the batch script itself is task 0 of as many, but runs alone."""
    outside = "SLURM_JOB_ID" in environment and "SLURM_STEP_ID" not in environment
    if "SLURM_PROCID" not in environment or outside:
        return None
    name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS"
    if name not in environment:
        return None
    return Shard(_number(environment, "SLURM_PROCID") + 1, _number(environment, name), "SLURM_PROCID")


def _agreeing(found: Shard, count: int | None) -> Shard:
    if count is not None and count != found.count:
        raise InputError(f"--shard auto/{count}, but {found.source} says that there are {found.count}")
    return found


def _number(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    text = environment.get(name, "" if default is None else str(default))
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise InputError(f"{name} is {quoted(text)}, expected a whole number")
    return int(text)
