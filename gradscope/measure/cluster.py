"""Many processes, on one host or more: the batch is dealt out to them, and what they find gathered."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gradscope.errors import GradscopeError, InputError
from gradscope.measure.batch import Means, measure_batch
from gradscope.measure.measured import Measured
from gradscope.measure.progress import Progress
from gradscope.problem.layers import Problems

# Errors that are answered differently from a bug; by their names they go from process to process.
_KNOWN: dict[str, type[Exception]] = {kind.__name__: kind for kind in (InputError, BrokenPipeError)}


def join(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Become one of the processes of ``jax.distributed``, which finds the cluster where nothing is given.

    coordinator : HOST:PORT where process 0 listens; process_id : 0 to num_processes - 1.
    Raises InputError where only some of the three are given, or there is no such cluster.
    """
    given = {"coordinator": coordinator, "num-processes": num_processes, "process-id": process_id}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if 0 < len(missing) < len(given):
        raise InputError(f"--distributed: {' and '.join(missing)} not given, expected all three or none")
    if coordinator is not None and num_processes is not None and process_id is not None:
        if not coordinator.rpartition(":")[0] or not coordinator.rpartition(":")[2].isdecimal():
            raise InputError(f"--coordinator is {coordinator!r}, expected HOST:PORT of process 0")
        if num_processes < 1:
            raise InputError(f"--num-processes is {num_processes}, expected at least 1")
        if not 0 <= process_id < num_processes:
            raise InputError(
                f"--process-id is {process_id}, expected 0 to {num_processes - 1} (--num-processes - 1)"
            )
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (ValueError, RuntimeError) as error:
        raise InputError(
            f"--distributed: {error}; outside Slurm, Kubernetes, MPI and TPU pods give --coordinator, "
            "--num-processes and --process-id"
        ) from error


def leave() -> None:
    """Wait for the others and go: whoever leaves first would be taken for dead."""
    jax.distributed.shutdown()  # type: ignore[no-untyped-call]


def leads() -> bool:
    """Whether this is process 0, the one that writes."""
    return jax.process_index() == 0


def exchange(attempt: Callable[[], Any]) -> list[Any]:
    """What ``attempt`` returned in each process, as JSON knows it; every process must come here.

    Where it failed in one, every process raises that error: none waits for what will not come.
    """
    try:
        note = {"result": attempt()}
    except (Exception, SystemExit) as error:
        note = {
            "error": type(error).__name__,
            "text": error.marked if isinstance(error, GradscopeError) else str(error),
        }
    notes = [
        json.loads(text) for text in _gather(json.dumps(note, default=lambda array: array.tolist()).encode())
    ]
    for process, note in enumerate(notes):
        if "error" in note:
            text = f"process {process}: {note['text']}"
            kind = _KNOWN.get(note["error"])
            raise kind(text) if kind else RuntimeError(f"{note['error']}: {text}")
    return [note["result"] for note in notes]


def first(attempt: Callable[[], Any]) -> Any:
    """What ``attempt`` returns in process 0, in every process; it is called there alone."""
    return exchange(attempt if leads() else lambda: None)[0]


def _gather(text: bytes) -> list[bytes]:
    """The bytes of every process, in their order."""
    sizes = multihost_utils.process_allgather(np.array([len(text)], np.uint32)).ravel()
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    rows = multihost_utils.process_allgather(padded).reshape(len(sizes), -1)
    return [row[:size].tobytes() for row, size in zip(np.asarray(rows), sizes, strict=True)]


def measure_shared(
    prepare: Callable[[], tuple[Problems, Means]], floor: float, progress: Progress | None
) -> tuple[Problems, Means, list[list[Measured]]]:
    """The problems, and what is measured of the whole batch, in every process; else as ``measure_batch``.

    prepare : returns the problems, the same in all, and the means of this process.
    """
    prepared = []

    def work() -> list[list[dict[str, Any]]]:
        problems, means = prepare()
        prepared.append((problems, means))
        mine = range(jax.process_index(), problems.batch, jax.process_count())
        found = measure_batch(problems, mine, floor, means, progress)
        return [[one.encode() for one in each] for each in found]

    problem_by_problem = zip(*exchange(work), strict=True)
    return (*prepared[0], [_dealt(hands) for hands in problem_by_problem])


def _dealt(hands: Sequence[Sequence[dict[str, Any]]]) -> list[Measured]:
    """What the processes found of the sequences that were dealt out to them, in the order of the batch."""
    turns = itertools.zip_longest(*hands)
    return [Measured.decode(plain) for turn in turns for plain in turn if plain is not None]
