"""What a team wants held: analyses and budgets of gradscope.toml, or [tool.gradscope] of pyproject.toml."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from gradscope.config_file import ConfigFile
from gradscope.errors import InputError, about, nearest_or_all, quoted, shown
from gradscope.gate.budgets import MetricBudget
from gradscope.gate.places import BudgetPlace
from gradscope.option import Option, option_of
from gradscope.settings import Settings

# Not of one process that runs several analyses, or no value that a file can hold.
_NOT_HERE = ("distributed", "progress", "plan", "trying", "suggest")
SETTINGS = {one.name: one for one in fields(Settings) if one.name not in _NOT_HERE}
_OF_ANALYSIS = ("budgets", "aggregation")


@dataclass(frozen=True)
class PlannedRun:
    """An analysis that is to be held to budgets.

    name : of the analysis; settings : arguments of ``analyze``; seeds : of as many runs, as one batch, none
    if they are not said; places : {metric of a budget: where it stands}; in_shell : whether all of it was
    given there instead.
    """

    name: str
    settings: Mapping[str, Any]
    seeds: tuple[int, ...]
    budgets: tuple[MetricBudget, ...]
    places: Mapping[str, BudgetPlace]
    in_shell: bool = False

    def between(self, shared: Mapping[str, Any], said: Mapping[str, Any]) -> PlannedRun:
        """The same with what is shared by all where it says nothing, and with what is said instead."""
        settings = {**shared, **self.settings, **said}
        seed = settings.pop("seed", 0)
        return replace(
            self, settings=settings, seeds=self.seeds if self.seeds and "seed" not in said else (seed,)
        )


def planned(file: ConfigFile) -> tuple[PlannedRun, ...]:
    """The analyses of a file; raises InputError for what it does not know, with what it may have meant."""
    with about(file.path):
        analyses = file.table.get("analyses", {})
        if not isinstance(analyses, dict):
            raise InputError(f"analyses is {quoted(analyses)}, expected a table of tables")
        tool = tomllib.loads(file.text).get("tool")
        root = ("tool", "gradscope") if isinstance(tool, dict) and "gradscope" in tool else ()
        return tuple(_planned(name, one, file, root) for name, one in analyses.items())


def _planned(name: str, told: Any, file: ConfigFile, root: tuple[str, ...]) -> PlannedRun:
    where = f"analyses.{shown(name)}"
    if not isinstance(told, dict):
        raise InputError(f"{where} is {quoted(told)}, expected a table")
    try:
        _check_keys(told, (*SETTINGS, *_OF_ANALYSIS))
        settings = {key: _setting(key, told[key], file) for key in told if key in SETTINGS}
        seeds = _seeds(settings.pop("seed")) if "seed" in settings else ()
        budgets = told.get("budgets", {})
        if not isinstance(budgets, dict):
            raise InputError(
                f"budgets is {quoted(budgets)}, expected a table such as {{rate = {{max = 0.1}}}}"
            )
        aggregation = told.get("aggregation", "median")
        held = {keys: MetricBudget.of(".".join(keys), one, aggregation) for keys, one in _budgets(budgets)}
    except InputError as error:
        raise InputError(f"{where}: {error.marked}") from error
    names = [one.metric for one in held.values()]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InputError(f"{where}: budget {shown(twice[0])} stands there twice")
    root = (*root, "analyses", name, "budgets")
    places = {budget.metric: BudgetPlace(file.path, (*root, *keys)) for keys, budget in held.items()}
    return PlannedRun(name, settings, seeds, tuple(held.values()), places)


def _budgets(told: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(keys, what it tells) of every budget: ``horizon.R_o`` may be one key, or as TOML has it two."""
    for key, value in told.items():
        inner = (
            {name: one for name, one in value.items() if isinstance(one, dict)}
            if isinstance(value, dict)
            else {}
        )
        own = {name: one for name, one in value.items() if name not in inner} if inner else value
        if own or not inner:
            yield (key,), own
        yield from (((key, *keys), one) for keys, one in _budgets(inner))


def _check_keys(told: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in told:
        if key not in known:
            raise InputError(f"unknown key {quoted(key)}{_meant(key, known)}")


def _meant(key: str, known: Sequence[str]) -> str:
    """What a key that there is not may have been meant for."""
    biases = {name: own for name, (own, _) in option_of(SETTINGS["biases"]).keys.items()}
    if "biases" in known and key in biases:
        return f": write biases = {{{biases[key]} = ...}}"
    as_python = key.replace("-", "_")
    return f": did you mean {as_python}?" if as_python in known else nearest_or_all(key, known)


# -- values of the options of analyze ----------------------------------------------------------------


def _setting(name: str, value: Any, file: ConfigFile) -> Any:
    """The value of an option, as ``analyze`` takes it; names of files are meant from where the file is."""
    said = option_of(SETTINGS[name])
    if name == "seed":
        return value
    if said.keys:
        return _biases(value, [key for key, _ in said.keys.values()])
    given = value if said.repeatable and isinstance(value, list) else [value]
    checked = [_checked(name, one, said) for one in given]
    found = [_placed(one, file) if said.reads else one for one in checked]
    return found if given is value else found[0]


def _checked(name: str, value: Any, said: Option) -> Any:
    """One value, of the type that it is in the shell."""
    kinds = _kinds(str(SETTINGS[name].type), said)
    words = f"one of {', '.join(said.choices)}" if said.choices else _WORDS[kinds]
    right = isinstance(value, kinds) and isinstance(value, bool) == (kinds == (bool,))
    if not right or (said.choices and value not in said.choices):
        raise InputError(f"{name} is {quoted(value)}, expected {words}")
    if isinstance(said.parse, type) or not isinstance(value, str):
        return value
    try:
        return said.parse(value)
    except ValueError as error:
        raise InputError(f"{name}: {error}") from error


def _kinds(annotation: str, said: Option) -> tuple[type, ...]:
    """What a value may be, as ``Settings`` annotates it; what the shell parses may be its text as well."""
    if annotation == "bool":
        return (bool,)
    numbers: tuple[type, ...] = (
        (int, float) if "float" in annotation else (int,) if "int" in annotation else ()
    )
    text = not numbers or "str" in annotation or not isinstance(said.parse, type)
    return (*numbers, str) if text else numbers


_WORDS: Mapping[tuple[type, ...], str] = {
    (bool,): "true or false",
    (int,): "a whole number",
    (int, float): "a number",
    (str,): "a text",
    (int, str): "a whole number or a text",
    (int, float, str): "a number or a text",
}


def _placed(value: str, file: ConfigFile) -> str:
    """A file as it is found from here; words that stand for no file, and rules of a map, as they are."""
    return value if value in ("normal", "zeros") or "=" in value else str(file.beside(value))


def _biases(value: Any, known: Sequence[str]) -> dict[str, float]:
    if not isinstance(value, dict):
        raise InputError(f"biases is {quoted(value)}, expected a table such as {{b_f = 1.0}}")
    _check_keys(value, known)
    for key, one in value.items():
        if isinstance(one, bool) or not isinstance(one, int | float):
            raise InputError(f"biases.{key} is {quoted(one)}, expected a number")
    return dict(value)


def _seeds(value: Any) -> tuple[int, ...]:
    given = value if isinstance(value, list) else [value]
    if not given or any(isinstance(one, bool) or not isinstance(one, int) for one in given):
        raise InputError(f"seed is {quoted(value)}, expected a whole number or a list of them")
    return tuple(dict.fromkeys(given))
