"""``gradscope schema``: the JSON Schema of every JSON output."""

from __future__ import annotations

import json

import click
from click.shell_completion import CompletionItem

from gradscope.cli.group import Command
from gradscope.cli.streams import write_result
from gradscope.schemas import SCHEMAS
from gradscope.schemas import schema as find_schema


def _names(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    return [CompletionItem(name) for name in SCHEMAS if name.startswith(begun)]


@click.command(cls=Command, short_help="Print the JSON Schema of what a command writes.")
@click.argument("name", required=False, shell_complete=_names)
def schema(name: str | None) -> None:
    """Print the JSON Schema (draft 2020-12) of what a command writes as JSON.

    \b
    Examples:
      gradscope schema
      gradscope schema analysis > analysis.schema.json

    Without NAME the names are listed, with the commands whose output each describes. Fields are added to
    these outputs, none is renamed or removed while the number at the end of their "schema" stays.
    """
    if name is None:
        formatter = click.get_current_context().make_formatter()
        formatter.write_dl([(one, what) for one, (_, _, what) in sorted(SCHEMAS.items())])
        write_result(formatter.getvalue(), None)
        return
    write_result(json.dumps(find_schema(name), indent=2, ensure_ascii=False) + "\n", None)
