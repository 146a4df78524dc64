"""Time left that is steady and right, whatever the work reports; and where it is said."""

import io
import itertools
import logging
import os
import sys
import threading

import pytest

from gradscope.cli import progress
from gradscope.cli.progress import Pace, progress_bar
from gradscope.errors import duration

WORK = 100.0


def walked(reports, expected=None):
    """(elapsed, left) at every second of a work of 100 s, of which ``reports(t)`` says how much is done."""
    now = 0.0
    pace = Pace(lambda: now)
    if expected:
        pace.expect(expected)
    seen = []
    while now < WORK - 1:
        now += 0.5
        if (done := reports(now)) is not None:
            pace.report(done, 1)
        seen.append((now, pace.left))
    return seen


REPORTS = {
    "even": lambda t: t / WORK,
    "in jumps": lambda t: (t // 12) * 12 / WORK,
    "slow first": lambda t: (t / WORK) ** 1.5,
    "fast first": lambda t: (t / WORK) ** 0.7,
    "chain by chain": lambda t: {24.0: 0.24, 48.0: 0.5, 80.0: 0.78}.get(t),
}


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("expected", [50.0, 100.0, 200.0])
def test_time_left_is_steady(name, expected):
    seen = walked(REPORTS[name], expected)
    for (_, before), (_, after) in itertools.pairwise(seen):
        assert after - before <= 0.05 * WORK, "it does not jump up"
        assert before - after <= 0.1 * WORK, "nor down"
    for elapsed, left in seen:
        truth = WORK - elapsed
        assert left <= 2.5 * truth + 0.15 * WORK
        assert left >= truth / 4 - 0.1 * WORK


@pytest.mark.parametrize(
    "reports",
    [
        lambda t: 0.5 + (t - 0.5) / (2 * WORK - 1),  # half of the rows were kept
        lambda t: 0.01 + 0.99 * (t - 30) / (WORK - 30) if t >= 30 else None,  # first a program is compiled
    ],
)
def test_a_pace_is_that_of_late(reports):
    seen = dict(walked(reports))
    for elapsed in (60.0, 75.0, 90.0):
        assert seen[elapsed] == pytest.approx(WORK - elapsed, rel=0.25)
    assert seen[45.0] == pytest.approx(WORK - 45, rel=0.9)


def test_nothing_is_said_of_what_is_not_known():
    assert str(Pace(lambda: 0.0)) == "0 % done"


def test_what_is_done_has_no_time_left():
    pace = Pace(lambda: 3.0)
    pace.expect(120)
    pace.report(1, 1)
    assert str(pace) == "100 % done"
    later = Pace(lambda: 3.0)
    for done, said in ((0.29, "29 %"), (0.999, "99 %")):
        later.report(done, 1)
        assert str(later).startswith(f"{said} done")


def test_what_takes_longer_than_it_should_is_not_said_to_be_done():
    seen = walked(lambda t: 0.5 if t >= 20 else None, 40.0)
    assert min(left for _, left in seen) > 1.5


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.1, "1 s"), (3.4, "3 s"), (12, "10 s"), (88, "90 s"), (100, "2 min"), (1700, "30 min"), (9000, "2 h")],
)
def test_durations(seconds, said):
    assert duration(seconds) == said


def test_lines_where_stderr_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.01)
    said = threading.Event()

    class Stream(io.StringIO):
        def write(self, text):
            if "% done" in text:
                said.set()
            return super().write(text)

    stream = Stream()
    monkeypatch.setattr("sys.stderr", stream)
    with progress_bar(quiet=False) as pace:
        pace.report(1, 8)  # whose pace is that of the start
        pace.report(1, 4)
        assert said.wait(10)
    assert stream.getvalue().splitlines()[-1].startswith("gradscope: 25 % done, about 1 s left")
    with progress_bar(quiet=True) as pace:
        assert pace is None


def test_what_is_logged_of_long_work_is_said(capsys):
    log = logging.getLogger("gradscope.product_svd")
    for quiet in (False, True):
        with progress_bar(quiet):
            log.info("all steps are run in hundreds of digits")
    log.info("nobody hears it")
    assert capsys.readouterr() == ("", "gradscope: all steps are run in hundreds of digits\n")


def test_a_line_stands_beside_the_bar_and_not_in_it(monkeypatch):
    ours, theirs = os.openpty()
    monkeypatch.setattr(progress, "_SILENT_SECONDS", 0)
    monkeypatch.setenv("TERM", "xterm")
    drawn = b""
    with os.fdopen(theirs, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with progress_bar(quiet=False) as pace:
            while b"measuring" not in drawn:
                drawn += os.read(ours, 10_000)
            pace.say("[2] layers")
            while b"[2] layers" not in drawn:
                drawn += os.read(ours, 10_000)
        monkeypatch.undo()
    os.close(ours)
    before = drawn.partition(b"gradscope: [2]")[0]
    assert before.endswith((b"\x1b[2K", b"\n", b"\x1b[0m")), "the bar is taken away first"
