"""Sequences measured side by side, each in a process of its own.

Processes, not threads: the small steps of a graded chain hold the interpreter's lock, and two threads
took 0.96 (m = 128) to 1.2 times (m = 32) as long as one after the other, two processes 0.57. They are
started afresh, not forked (JAX has threads) and not by multiprocessing (which runs the caller's script
again); they import no JAX, and ask for their segments over a pipe.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from gradscope.linearize.jacobian_chain import JacobianChain
from gradscope.measure.all_values import Task, measure_sequence
from gradscope.measure.measured import Measured
from gradscope.measure.progress import Fraction

_SERVE = "import sys; sys.path[:] = sys.argv[1:]; from gradscope.measure.workers import serve; serve()"


class Source(Protocol):
    """A sequence whose Jacobians can be loaded."""

    def segment(self, i: int) -> JacobianChain:
        """The Jacobians of segment i."""


Job = tuple[Task, Source]
# Job -> what is told the fraction of it that is done, from any thread.
Reports = Callable[[int], Fraction]


class Workers:
    """Processes that measure beside this one, started when there is work for them and kept for more of it."""

    def __init__(self) -> None:
        self._started: list[subprocess.Popen[bytes]] = []
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def some(self, count: int) -> list[subprocess.Popen[bytes]]:
        """Up to so many that are alive."""
        alive = [worker for worker in self._started if worker.poll() is None]
        if len(alive) < count:
            alive += self._open.enter_context(_processes(count - len(alive)))
        self._started = alive
        return alive[:count]


def measure_all(
    jobs: Sequence[Job], count: int, report: Reports, workers: Workers | None = None
) -> list[Measured]:
    """Measure every job, ``count`` of them at a time, and return the results in their order.

    workers : those to have part in it, and to be left for others; without them some of its own.
    """
    work = _Work(jobs, report)
    with contextlib.nullcontext(workers) if workers else Workers() as kept:
        beside = kept.some(min(count, len(jobs)) - 1)
        threads = [threading.Thread(target=work.share, args=(worker,), daemon=True) for worker in beside]
        for thread in threads:
            thread.start()
        work.take_part()
        for thread in threads:
            thread.join()
    return work.finished()


class _Work:
    """Jobs that whoever is free takes the next of."""

    def __init__(self, jobs: Sequence[Job], report: Reports) -> None:
        self._jobs, self._report = jobs, report
        self._waiting = deque(range(len(jobs)))
        self._found: dict[int, Measured] = {}
        self._failed: list[BaseException] = []

    def _next(self) -> Iterator[int]:
        while self._waiting and not self._failed:
            with contextlib.suppress(IndexError):  # another was quicker
                yield self._waiting.popleft()

    def take_part(self) -> None:
        """Do jobs in this process, as long as there are any."""
        for number in self._next():
            task, source = self._jobs[number]
            try:
                self._found[number] = measure_sequence(task, source.segment, self._report(number))
            except Exception as error:  # told when no worker is at its jobs any more
                self._failed.append(error)

    def share(self, worker: subprocess.Popen[bytes]) -> None:
        """Have a worker do jobs, as long as there are any."""
        for number in self._next():
            try:
                self._found[number] = _ask(worker, *self._jobs[number], self._report(number))
            except (EOFError, OSError, pickle.UnpicklingError):  # it could not start, or was killed
                self._waiting.append(number)
                return
            except BaseException as error:
                self._failed.append(error)
                worker.kill()  # it may wait for the rest of what it was asked
                worker.wait()

    def finished(self) -> list[Measured]:
        """All results, once those that no worker is left for are done; raises the first failure."""
        self.take_part()
        if self._failed:
            raise self._failed[0]
        return [self._found[number] for number in range(len(self._jobs))]


@contextlib.contextmanager
def _processes(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Up to ``count`` workers, killed at the end: what they have not said by then nobody waits for."""
    command = [sys.executable, "-P", "-c", _SERVE, *sys.path]
    environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
    pipe = subprocess.PIPE
    workers: list[subprocess.Popen[bytes]] = []
    try:
        with (
            contextlib.suppress(OSError),
            _interrupts_later(),
        ):  # no such interpreter, or no room for one more
            for _ in range(count):
                workers.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment))
        yield workers
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """What is started within takes an interrupt when ``serve`` lets it: before, it prints a traceback."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ask(worker: subprocess.Popen[bytes], task: Task, source: Source, report: Fraction) -> Measured:
    """Have a worker do a job; raises what it raised, EOFError or OSError if it is no more."""
    assert worker.stdin is not None
    assert worker.stdout is not None
    message: Any = task
    while True:
        pickle.dump(message, worker.stdin, pickle.HIGHEST_PROTOCOL)
        worker.stdin.flush()
        kind, value = pickle.load(worker.stdout)
        while kind == "done so far":
            report(value)
            kind, value = pickle.load(worker.stdout)
        if kind == "measured":
            measured: Measured = value
            return measured
        if kind == "failed":
            raise value
        message = source.segment(value)


def serve() -> None:
    """A worker: takes a Task from stdin, answers on what was stdout, until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what libraries print is no answer
    messages: queue.SimpleQueue[Any] = queue.SimpleQueue()
    lock = threading.Lock()  # a chain may be run over by two threads
    threading.Thread(target=_listen, args=(messages,), daemon=True).start()

    def say(kind: str, value: Any) -> None:
        with lock:
            answers.write(pickle.dumps((kind, value), pickle.HIGHEST_PROTOCOL))
            answers.flush()

    def segment(i: int) -> JacobianChain:
        say("segment", i)
        asked: JacobianChain = messages.get()
        return asked

    while True:
        task = messages.get()
        try:
            say("measured", measure_sequence(task, segment, lambda done: say("done so far", done)))
        except Exception as error:
            error.add_note(traceback.format_exc())
            say("failed", error)


def _listen(messages: queue.SimpleQueue[Any]) -> None:
    """Pass on what the parent says; when it is gone, so is the worker, whatever it is at."""
    try:
        while True:
            messages.put(pickle.load(sys.stdin.buffer))
    finally:
        os._exit(0)
