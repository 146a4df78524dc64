"""Many processes, on one host or more: the batch is dealt out to them, and what they find gathered."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gradscope.custom_types import Array
from gradscope.errors import GradscopeError, InputError, reason
from gradscope.measure.agreement import check_alike, fingerprint
from gradscope.measure.batch import Means, measure_batch
from gradscope.measure.measured import Measured
from gradscope.measure.progress import Progress
from gradscope.problem.problems import Problems

# Seconds without a sign of life after which a process is taken for dead, at least and at most.
_SOONEST, _HEARTBEAT = 10, 100
# Errors that are answered differently from a bug; by their names they go from process to process.
_KNOWN: dict[str, type[Exception]] = {kind.__name__: kind for kind in (InputError, BrokenPipeError)}


class LostError(InputError):
    """The processes of a cluster cannot speak to one another any more."""


def join(coordinator: str | None, num_processes: int | None, process_id: int | None, timeout: int) -> None:
    """Become one of the processes of ``jax.distributed``, which finds the cluster where nothing is given.

    coordinator : HOST:PORT where process 0 listens; process_id : 0 to num_processes - 1; timeout : seconds
        that the processes wait for one another. Raises InputError where there is no such cluster; where the
        processes do not meet, the library may end this one by a signal.
    """
    limits: dict[str, Any] = {
        "initialization_timeout": timeout,
        "shutdown_timeout_seconds": timeout,
        "heartbeat_timeout_seconds": max(_SOONEST, min(timeout, _HEARTBEAT)),
    }
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id, **limits)
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
    sizes = _gathered(np.array([len(text)], np.uint32)).ravel()
    padded = np.zeros(int(sizes.max()), np.uint8)
    padded[: len(text)] = np.frombuffer(text, np.uint8)
    rows = _gathered(padded).reshape(len(sizes), -1)
    return [row[:size].tobytes() for row, size in zip(rows, sizes, strict=True)]


def _gathered(array: Array) -> Array:
    """The arrays of every process, one after the other; raises LostError where one does not answer."""
    try:
        return np.asarray(multihost_utils.process_allgather(array))
    except (jax.errors.JaxRuntimeError, ValueError) as error:
        raise LostError(reason(error)) from error


def measure_shared(
    prepare: Callable[[], tuple[Problems, Means]], floor: float, progress: Progress | None
) -> tuple[Problems, Means, list[list[Measured]]]:
    """The problems, and what is measured of the whole batch, in every process; else as ``measure_batch``.

    prepare : returns the problems, the same in all, and the means of this process.
    """
    prepared = []

    def ready() -> dict[str, list[Any]]:
        prepared.append(prepare())
        return fingerprint(prepared[0][0], floor)

    def work() -> list[list[dict[str, Any]]]:
        problems, means = prepared[0]
        mine = range(jax.process_index(), problems.batch, jax.process_count())
        found = measure_batch(problems, mine, floor, means, progress)
        return [[one.encode() for one in each] for each in found]

    check_alike(exchange(ready))
    problem_by_problem = zip(*exchange(work), strict=True)
    return (*prepared[0], [_dealt(hands) for hands in problem_by_problem])


def _dealt(hands: Sequence[Sequence[dict[str, Any]]]) -> list[Measured]:
    """What the processes found of the sequences that were dealt out to them, in the order of the batch."""
    turns = itertools.zip_longest(*hands)
    return [Measured.decode(plain) for turn in turns for plain in turn if plain is not None]
