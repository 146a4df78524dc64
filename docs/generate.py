"""Write docs/reference/ and docs/man/ from the commands themselves: python docs/generate.py.

A test holds them current (UPDATE_GOLDEN=1 pytest tests/cli/test_settings.py writes them too).
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from gradscope.cli.main import cli
from gradscope.version import __version__

DOCS = Path(__file__).parent
_MADE = "Made by docs/generate.py from the command itself."


def pages() -> dict[Path, str]:
    """{file: text} of every page, of the reference and of the manual."""
    context = click.Context(cli, info_name="gradscope", **cli.context_settings)
    commands = {}
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        commands[name] = _told(command, click.Context(command, context, name, **command.context_settings))
    of_group = _told(cli, context)
    reference, manual = DOCS / "reference", DOCS / "man"
    found = {
        reference / "README.md": _index(of_group, commands),
        manual / "gradscope.1": _man("", of_group, commands),
    }
    for name, command in commands.items():
        found[reference / f"{name}.md"] = _page(name, command)
        found[manual / f"gradscope-{name}.1"] = _man(name, command)
    return found


def _told(command: click.Command, context: click.Context) -> dict[str, Any]:
    """What click tells of a command, with what it leaves out of its parameters."""
    params = [
        param.to_info_dict()
        | {"metavar": param.metavar, "section": getattr(param, "section", "Options")}
        | {"default": param.default if getattr(param, "show_default", None) else None}
        for param in command.get_params(context)
    ]
    told: dict[str, Any] = click.Command.to_info_dict(command, context)
    return told | {"params": params}


# -- what both show ----------------------------------------------------------------------------------


def _blocks(help_text: str) -> Iterator[tuple[bool, str]]:
    """Paragraphs of a help text, each with whether its lines stay as they are."""
    for block in inspect.cleandoc(help_text or "").split("\n\n"):
        kept = block.startswith("\b\n")
        yield kept, block.removeprefix("\b\n") if kept else " ".join(block.split())


def _options(params: list[dict[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    """{section: [(flags, help)]}, as the help has them."""
    sections: dict[str, list[tuple[str, str]]] = {}
    for param in params:
        if param["param_type_name"] == "option" and not param["hidden"]:
            sections.setdefault(param["section"], []).append((_flags(param), _said(param)))
    return sections


def _flags(param: dict[str, Any]) -> str:
    flags = ", ".join(sorted(param["opts"], key=len))
    flags += "".join(f" / {one}" for one in param["secondary_opts"])
    return flags if param["is_flag"] else f"{flags} {_kind(param)}"


def _kind(param: dict[str, Any]) -> str:
    choices = param["type"].get("choices")
    return param["metavar"] or ("|".join(choices) if choices else param["type"]["name"].upper())


def _said(param: dict[str, Any]) -> str:
    default = param["default"]
    return str(param["help"]) if default is None else f"{param['help']} Default: {default}."


def _arguments(params: list[dict[str, Any]]) -> str:
    given = [param for param in params if param["param_type_name"] == "argument"]
    named = [(one["name"].upper() + ("..." if one["nargs"] == -1 else ""), one["required"]) for one in given]
    return "".join(f" {name}" if required else f" [{name}]" for name, required in named)


# -- the pages of docs/reference ---------------------------------------------------------------------


def _index(group: dict[str, Any], commands: dict[str, Any]) -> str:
    """All commands with what they do."""
    rows = [f"| [{name}]({name}.md) | {_first_line(one)} |" for name, one in commands.items()]
    return "\n".join(
        [
            f"<!-- {_MADE} -->",
            "",
            "# gradscope",
            "",
            *_prose(group),
            "| command | what it does |",
            "|---|---|",
            *rows,
            "",
        ]
    )


def _page(name: str, command: dict[str, Any]) -> str:
    lines = [f"<!-- {_MADE} -->", "", f"# gradscope {name}", ""]
    lines += ["```text", f"gradscope {name} [OPTIONS]{_arguments(command['params'])}", "```", ""]
    lines += _prose(command)
    for section, options in _options(command["params"]).items():
        lines += [f"## {section}", ""]
        lines += [f"- `{flags}`: {_escaped(said)}" for flags, said in options] + [""]
    variable = f"GRADSCOPE_{name.upper()}_"
    if len(command["params"]) > 1:
        lines += [f"Every option can also be set by a variable, `{variable}...`, or in the settings file: "]
        lines[-1] += "[gradscope config](config.md)."
        lines += [""]
    return "\n".join(lines)


def _prose(command: dict[str, Any]) -> list[str]:
    lines: list[str] = []
    for text in (command["help"], command["epilog"]):
        for kept, block in _blocks(text) if text else ():
            first, _, rest = block.partition("\n")
            if kept and first.endswith(":") and rest:
                lines += [first, ""]
                block = inspect.cleandoc(rest)
            lines += ["```text", inspect.cleandoc(block), "```", ""] if kept else [_escaped(block), ""]
    return lines


def _first_line(command: dict[str, Any]) -> str:
    return _escaped(command["short_help"] or next(_blocks(command["help"]))[1])


def _escaped(text: str) -> str:
    """As Markdown shows it literally."""
    return re.sub(r"([\\`*_<>|\[\]])", r"\\\1", text)


# -- the pages of the manual -------------------------------------------------------------------------


def _man(name: str, command: dict[str, Any], commands: dict[str, Any] | None = None) -> str:
    """A page of section 1 (see man-pages(7))."""
    called = f"gradscope-{name}" if name else "gradscope"
    usage = f"gradscope {name} [OPTIONS]{_arguments(command['params'])}" if name else "gradscope COMMAND ..."
    lines = [f'.\\" {_MADE}', f'.TH "{called.upper()}" "1" "" "gradscope {__version__}" "gradscope"']
    lines += [".SH NAME", f"{_roff(called)} \\- {_roff(_summary(command))}"]
    lines += [".SH SYNOPSIS", f".B {_roff(usage)}", ".SH DESCRIPTION"]
    for text in (command["help"], command["epilog"]):
        for kept, block in _blocks(text) if text else ():
            lines += [".PP", *([".nf", _roff(block), ".fi"] if kept else [_roff(block)])]
    for section, options in _options(command["params"]).items():
        lines += [f'.SH "{section.upper()}"']
        for flags, said in options:
            lines += [".TP", f".B {_roff(flags)}", _roff(said)]
    if commands:
        lines += [".SH COMMANDS"]
        for other, one in commands.items():
            lines += [".TP", f".BR gradscope\\-{_roff(other)} (1)", _roff(_summary(one))]
    lines += [".SH EXIT STATUS", _roff(_EXIT)]
    return "\n".join(lines) + "\n"


_EXIT = (
    "0 analysed; 1 a finding (what --fail-on or a budget asks for); 2 usage, configuration or unreadable "
    "input; 3 a bug in gradscope; 130 interrupted; 141 the reader of stdout went away."
)


def _summary(command: dict[str, Any]) -> str:
    return (command["short_help"] or next(_blocks(command["help"]))[1]).rstrip(".")


def _roff(text: str) -> str:
    """As roff shows it literally: backslashes, hyphens that can be copied, lines that begin with a dot."""
    plain = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^([.'])", r"\\&\1", plain, flags=re.MULTILINE)


def main() -> None:
    """Write every page, and remove those of commands that are gone."""
    made = pages()
    for folder in {path.parent for path in made}:
        folder.mkdir(exist_ok=True)
        for old in folder.iterdir():
            if old not in made:
                old.unlink()
    for path, text in made.items():
        path.write_text(text, "utf-8")


if __name__ == "__main__":
    main()
