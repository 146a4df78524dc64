"""A cell whose one-step Jacobians something else has computed: they are what it reads."""

from __future__ import annotations

from functools import cache
from typing import Any

from gradscope.cells.cell import Cell


@cache
def given_steps(name: str, paths: tuple[str, ...], parts: tuple[tuple[str, int], ...]) -> Cell:
    """The cell s_t = sum over the paths of J_(path,t) s_(t-1), whose input at step t is all of these J.

    It goes down the line as any other: its derivatives are those that it was given. The states that they
    were computed at are ``System.states``; these steps alone do not lead through them.

    paths : none where the Jacobians (m, m) are whole; parts : (component, size), of the state (m,).
    Its input is (max(1, paths) * m * m,). Cached, so that what is compiled serves the next one like it.
    """
    m, count = sum(size for _, size in parts), max(1, len(paths))

    def step(_: Any, x: Any, copies: Any) -> Any:
        jacobians = x.reshape(count, m, m)
        each = [copies[path] for path in paths] if paths else [copies]
        return sum(jacobian @ copy for jacobian, copy in zip(jacobians, each, strict=True))

    return Cell(
        name=name,
        parameters=lambda *_: {},
        step=step,
        paths=paths,
        components=tuple(part for part, _ in parts),
        sizes=lambda _: tuple(size for _, size in parts),
    )
