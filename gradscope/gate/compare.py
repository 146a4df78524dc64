"""What has changed between two results: by how much, beyond what may be error, in which path and layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gradscope.errors import ExitCode, InputError, listed, quoted, shown
from gradscope.gate.baseline import Entry
from gradscope.gate.budgets import finite
from gradscope.gate.findings import Finding
from gradscope.gate.metrics import Metric, check_name
from gradscope.version import __version__

SCHEMA = "gradscope/comparison/1"
# Of what has no estimate of its error, and of digits that a file does not keep.
_UNKNOWN, _KEPT = 1e-6, 1e-9


def distance(old: Metric, new: Metric) -> tuple[float, float]:
    """(new - old of their medians, what of it may be error); infinite where one of them is exactly zero."""
    delta = 0.0 if old.median == new.median else new.median - old.median
    errors = sum(_UNKNOWN if one.error is None else one.error for one in (old, new))
    sizes = [abs(one.median) for one in (old, new) if math.isfinite(one.median)]
    return delta, errors + _KEPT * max([1.0, *sizes])


def differences(old: Entry, new: Entry) -> list[tuple[str, Any, Any]]:
    """(what, in the old, in the new) of every way in which they are of other problems, or made otherwise."""
    names = sorted({*old.problem, *new.problem})
    pairs: list[tuple[str, Any, Any]] = [("gradscope", old.gradscope, new.gradscope)]
    pairs += [(name, old.problem.get(name), new.problem.get(name)) for name in names]
    return [(name, one, other) for name, one, other in pairs if one != other]


@dataclass(frozen=True)
class Change:
    """A metric that is another than it was, by more than the errors of both.

    analysis : which of several; delta : new - old, infinite where one of them is exactly zero; error : what
    of it may be error.
    """

    analysis: str
    old: Metric
    new: Metric
    delta: float
    error: float

    @property
    def known(self) -> bool:
        """Whether it is more than error."""
        return abs(self.delta) > self.error

    @property
    def metric(self) -> str:
        """What changed of the chain, or of the gate."""
        of_gate = self.new.quantity == "saturated" and self.new.part
        return f"{self.new.quantity}.{self.new.part}" if of_gate else self.new.quantity

    @property
    def chain(self) -> str:
        """The path, or the full chain."""
        return "full" if self.new.part is None or self.metric != self.new.quantity else self.new.part

    def to_dict(self) -> dict[str, Any]:
        """As JSON tells it: what is not finite is None."""
        return {
            "analysis": self.analysis,
            "layer": self.new.layer,
            "chain": self.chain,
            "metric": self.metric,
            "old": finite(self.old.median),
            "new": finite(self.new.median),
            "delta": finite(self.delta),
            "error": finite(self.error),
            "unit": self.new.unit,
        }


@dataclass(frozen=True)
class Allowed:
    """How far a metric may change: more of it, either way, fails."""

    metric: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Allowed:
        """From ``log10_norm:0.5``; raises InputError."""
        name, colon, number = text.rpartition(":")
        try:
            limit = float(number)
        except ValueError:
            limit = math.nan
        if not colon or not limit >= 0:
            raise InputError(
                f"--fail-on-change is {quoted(text)}, expected METRIC:NUMBER such as log10_norm:0.5"
            )
        check_name(name)
        return cls(name, limit)


@dataclass(frozen=True)
class Comparison:
    """What changed from one result to another.

    old, new : what they are called; compared : every metric that both have, by its name, of every analysis;
    differences : {analysis: in what the two problems differ, or how they were made}; missing : sentences on
    what only one of them has; allowed : how far metrics may change.
    """

    old: str
    new: str
    compared: Mapping[tuple[str, str], Change]
    differences: Mapping[str, Sequence[tuple[str, Any, Any]]]
    missing: tuple[str, ...] = ()
    allowed: tuple[Allowed, ...] = ()

    @property
    def changes(self) -> list[Change]:
        """What changed by more than the errors, the whole first, the largest first."""
        known = [one for one in self.compared.values() if one.known]
        return sorted(known, key=lambda one: (one.analysis, one.new.layer or "", -abs(one.delta)))

    def judged(self) -> list[tuple[Allowed, Change, bool]]:
        """Of every limit the change that it is about, and whether that goes beyond it for certain."""
        found = []
        for one in self.allowed:
            changes = [change for (_, name), change in self.compared.items() if name == one.metric]
            found += [(one, each, abs(each.delta) - one.limit > each.error) for each in changes]
        return found

    @property
    def exit_code(self) -> int:
        """1 where something changed by more than is allowed."""
        return ExitCode.judged(broken=any(beyond for _, _, beyond in self.judged()), lost=False)

    @property
    def headline(self) -> str:
        """All of it in one line."""
        beyond = sum(beyond for _, _, beyond in self.judged())
        count = len(self.changes)
        what = f"{count} of {len(self.compared)} metrics" if count else "nothing"
        word = "CHANGED" if count else "UNCHANGED"
        verdict = f", {beyond} by more than is allowed" if beyond else ""
        names = f"{shown(self.old)} -> {shown(self.new)}"
        return f"{'FAILED' if beyond else word}: {what} changed{verdict}: {names}"

    def notes(self) -> list[str]:
        """What a reader has to know beside the numbers: other problems, other makers, what is missing."""
        several = len(self.differences) > 1
        said = []
        for analysis, each in self.differences.items():
            if each:
                named = f"{shown(analysis)}: not" if several else "Not"
                said.append(f"{named} the same was measured, or not in the same way: {in_words(each)}.")
        return [*said, *self.missing]

    def to_dict(self) -> dict[str, Any]:
        """The JSON object ``gradscope/comparison/1``: plain Python, no NaN."""
        return {
            "schema": SCHEMA,
            "gradscope": __version__,
            "old": self.old,
            "new": self.new,
            "compared": len(self.compared),
            "changes": self.rows(),
            "differences": [
                {"analysis": analysis, "field": name, "old": old, "new": new}
                for analysis, each in self.differences.items()
                for name, old, new in each
            ],
            "missing": list(self.missing),
            "allowed": [
                {
                    "metric": one.metric,
                    "limit": one.limit,
                    "delta": finite(change.delta),
                    "passed": not beyond,
                }
                for one, change, beyond in self.judged()
            ],
        }

    def rows(self) -> list[dict[str, Any]]:
        """Every change, as a row."""
        return [one.to_dict() for one in self.changes]

    def findings(self) -> list[Finding]:
        """Of every limit; without any, of every change."""
        changed = [(None, one, False) for one in self.changes]
        judged: Sequence[tuple[Allowed | None, Change, bool]] = self.judged() or changed
        return [
            Finding(
                change.analysis or self.new,
                change.new.name,
                "error" if beyond else ("warning" if one is None else "kept"),
                change_line(change, one),
                numbers={"old": change.old.median, "new": change.new.median, "delta": change.delta},
            )
            for one, change, beyond in judged
        ]


def in_words(different: Sequence[tuple[str, Any, Any]]) -> str:
    """``steps 200 -> 100; dtype float64 -> float32``."""

    def short(value: Any) -> str:
        return "-" if value is None else shown(value)[:60]

    return "; ".join(f"{name} {short(old)} -> {short(new)}" for name, old, new in different)


def change_line(change: Change, allowed: Allowed | None = None) -> str:
    """A change as a sentence."""
    new = change.new
    text = f"{shown(new.name)} {change.old.median:.6g} -> {new.median:.6g}"
    text = f"{shown(change.analysis)}: {text}" if change.analysis else text
    unit = f" {new.unit}" if new.unit else ""
    if not change.known:
        text += f", no more than error ({change.error:.1g}{unit})"
    elif math.isfinite(change.delta):
        text += f", {change.delta:+.3g}{unit}"
    if allowed is None:
        return text
    beyond = abs(change.delta) - allowed.limit
    if abs(beyond) <= change.error:
        return f"{text}; the {allowed.limit:g} that is allowed is within the error"
    return f"{text}; {'beyond' if beyond > 0 else 'within'} the {allowed.limit:g} that is allowed"


def changes_between(
    old: Mapping[str, Entry],
    new: Mapping[str, Entry],
    names: tuple[str, str],
    allowed: Sequence[Allowed] = (),
) -> Comparison:
    """What changed between the entries of two results; raises InputError where they have none in common.

    names : what the two results are called. Where each has one entry, these are compared, whatever theirs.
    """
    if len(old) == len(new) == 1:
        ((_, one),), ((name, other),) = old.items(), new.items()
        pairs = {name: (one, other)}
    else:
        pairs = {name: (old[name], new[name]) for name in old if name in new}
    if not pairs:
        raise InputError(
            f"{shown(names[0])} has {_held(old)}, {shown(names[1])} has {_held(new)}: expected one analysis "
            "in each, or analyses of the same names"
        )
    compared = {}
    for analysis, (one, other) in pairs.items():
        for name in (name for name in one.metrics if name in other.metrics):
            was, is_now = one.metrics[name], other.metrics[name]
            if not (math.isnan(was.median) or math.isnan(is_now.median)):
                compared[analysis, name] = Change(analysis, was, is_now, *distance(was, is_now))
    missing = [*_missing(pairs, names), *_missing_analyses(old, new, names, pairs)]
    different = {analysis: differences(*both) for analysis, both in pairs.items()}
    for one_limit in allowed:
        _check_known(one_limit.metric, {name for _, name in compared})
    return Comparison(*names, compared, different, tuple(missing), tuple(allowed))


def _held(entries: Mapping[str, Entry]) -> str:
    """The names of what is in a file; a result of analyze has none."""
    return "one analysis" if list(entries) == [""] else listed(list(entries)) or "nothing"


def _check_known(name: str, known: set[str]) -> None:
    if name not in known:
        raise InputError(
            f"--fail-on-change {shown(name)}: not in both results, which have {listed(sorted(known))}"
        )


def _missing(pairs: Mapping[str, tuple[Entry, Entry]], names: tuple[str, str]) -> list[str]:
    said = []
    for analysis, (old, new) in pairs.items():
        where = f"{shown(analysis)}: " if len(pairs) > 1 else ""
        for called, one, other in ((names[0], old, new), (names[1], new, old)):
            if only := [name for name in one.metrics if name not in other.metrics]:
                said.append(f"{where}only {shown(called)} has {listed(only)}.")
    return said


def _missing_analyses(
    old: Mapping[str, Entry],
    new: Mapping[str, Entry],
    names: tuple[str, str],
    pairs: Mapping[str, tuple[Entry, Entry]],
) -> list[str]:
    if len(old) == len(new) == 1:
        return []
    lone = [
        (names[0], [one for one in old if one not in pairs]),
        (names[1], [one for one in new if one not in pairs]),
    ]
    return [f"only {shown(name)} has the analyses {listed(each)}." for name, each in lone if each]
