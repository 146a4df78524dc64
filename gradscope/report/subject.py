"""What was analysed, in the words of every heading: from what JSON tells of the problem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gradscope.errors import shown
from gradscope.report.verdict import range_of, steps_of
from gradscope.settings import INIT


def subject(problem: Mapping[str, Any], layers: int, size: int) -> str:
    """The cell or file, its size and the steps; layers : how many it has, 0 for one; size : of the state."""
    if problem.get("cell") is None:
        return f"{shown(problem['source'])}, {size} x {size}, {steps_of([problem['steps']])}"
    if layers:
        words = [f"{shown(problem['source'])}, {layers} layers"]
    else:
        called = f"layer {shown(problem['layer'])}: " if problem.get("layer") else ""
        words = [f"{called}{problem['cell']}, hidden {problem['hidden']}"]
    masked = problem.get("masked") or [0]
    beside = f" ({range_of(masked)} masked)" if any(masked) else ""
    words.append(f"{steps_of(problem.get('lengths') or [problem['steps']])}{beside}")
    if problem["batch"] > 1:
        words.append(f"batch {problem['batch']}")
    if problem.get("cut"):
        words.append("without " + ", ".join(problem["cut"]))
    words += _scaled(problem.get("scale", {}))
    if problem.get("view") == "cell":
        words.append("cell view")
    return ", ".join(words)


def _scaled(scale: Mapping[str, float]) -> Iterable[str]:
    """Which paths carry a factor, those of one together."""
    paths: dict[float, list[str]] = {}
    for path, factor in scale.items():
        paths.setdefault(factor, []).append(path)
    return (f"paths {', '.join(names)} x {factor:g}" for factor, names in paths.items())


def chosen(problem: Mapping[str, Any]) -> Iterable[str]:
    """What the user chose or changed of the weights, and what a checkpoint was run on."""
    if problem.get("cell") is None:
        return
    if (problem.get("init") or INIT) != INIT:
        yield f"init {problem['init']}"
    if problem.get("gain", 1.0) != 1.0:
        yield f"recurrent matrices x {problem['gain']:g}"
    for name, value in problem.get("biases", {}).items():
        yield f"{name} = {value:g}"
    if (scale := problem.get("input_scale", 1.0)) != 1.0:
        yield f"inputs x {scale:g}"
    inputs = shown(problem.get("inputs", "normal"))
    if inputs in ("normal", "zeros"):
        if inputs == "zeros" or problem["source"] != "initialised":
            yield "inputs all zero" if inputs == "zeros" else "random inputs, N(0, 1)"
    elif not inputs.startswith("outputs of "):
        yield f"inputs {inputs}"
