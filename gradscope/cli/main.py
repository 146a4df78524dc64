"""Entry point: the commands, and the exit code of everything that can end one.

0  analysed, and nothing was found that fails
1  a verdict matched --fail-on, a budget is broken, more has changed than --fail-on-change allows
2  usage, configuration or unreadable input
3  a bug in gradscope (GRADSCOPE_TRACEBACK=1 shows where)
130 interrupted, 141 the reader of stdout went away
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

import click

from gradscope.cli.defaults import unknown_variables
from gradscope.cli.group import ARGUMENTS, LazyGroup
from gradscope.cli.streams import open_closed_streams, silence_stdout, write_line
from gradscope.errors import ExitCode, GradscopeError, shown

# How click begins what it says of an option, or of anything.
_CLICKS = re.compile(r"^(?:Invalid value for '(-[^']*)'|[A-Z])")


@click.group(
    cls=LazyGroup,
    commands_in={
        "analyze": "gradscope.cli.analyze:analyze",
        "chain": "gradscope.cli.chain:chain",
        "report": "gradscope.cli.report:report",
        "plot": "gradscope.cli.plot:plot",
        "inspect": "gradscope.cli.inspect:inspect",
        "check": "gradscope.cli.check:check",
        "compare": "gradscope.cli.compare:compare_results",
        "track": "gradscope.cli.track:track",
        "sweep": "gradscope.cli.sweep:sweep",
        "merge": "gradscope.cli.merge:merge",
        "suggest": "gradscope.cli.suggest:suggest",
        "repair": "gradscope.cli.repair:repair",
        "config": "gradscope.cli.config:config",
        "schema": "gradscope.cli.schema:schema",
        "completion": "gradscope.cli.completion:completion",
    },
    context_settings={
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "auto_envvar_prefix": "GRADSCOPE",
    },
)
@click.version_option(package_name="gradscope", message="%(prog)s %(version)s", allow_from_autoenv=False)
def cli() -> None:
    """Tell, exactly, whether and how gradients vanish or explode in a recurrent network.

    \b
    Examples:
      gradscope analyze --cell lstm --steps 200      a cell at initialisation
      gradscope analyze model.pt --inputs x.npy      a trained layer on your data
      gradscope analyze --json | jq .verdict.level   for scripts
      gradscope analyze --fail-on exploding          exit code 1 if it explodes
      gradscope inspect model.pt                     recurrent layers in a file
      gradscope track runs/step_*.pt                 every checkpoint of a run
      gradscope sweep --grid gain=0.5:2:16           a grid of options
      gradscope suggest model.pt --horizon 200       settings that reach it
      gradscope chain jacobians.npy                  any Jacobians (T, m, m)
      gradscope check                                hold budgets, in CI
      gradscope compare old.json new.pt              what has changed
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    if "_GRADSCOPE_COMPLETE" in os.environ:
        from gradscope.cli.completion import complete

        complete(cli)
    try:
        return _run(list(sys.argv[1:] if arguments is None else arguments))
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.ClickException as error:
        return _fail(_usage(error))
    except GradscopeError as error:
        return _fail(f"gradscope: error: {error.in_shell}")
    except (KeyboardInterrupt, click.Abort):
        _say("gradscope: interrupted")
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        silence_stdout()
        return ExitCode.BROKEN_PIPE
    except MemoryError:
        return _fail("gradscope: error: too little memory: raise its limit, or analyse fewer units or steps")
    except (Exception, SystemExit) as error:
        return _bug(error)


def main_and_exit() -> NoReturn:
    """Exit with the code of ``main``, and at once.

    Tearing down JAX takes a tenth of a second and changes nothing; after an interrupt it would
    also wait for worker threads that sit in LAPACK.
    """
    open_closed_streams()
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def _run(arguments: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):  # a name the terminal cannot show is no reason to fail
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    with cli.make_context("gradscope", arguments) as context:
        context.meta[ARGUMENTS] = arguments
        for line in unknown_variables(cli, context):
            _say(f"gradscope: {line}")
        code = cli.invoke(context)
    return int(code or ExitCode.OK)


def _usage(error: click.ClickException) -> str:
    """One line in place of click's three, which begins as our own do: with the option, in small letters."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "gradscope"
    message = " ".join(error.format_message().split()).rstrip(".")
    message = _CLICKS.sub(lambda match: match[1] or match[0].lower(), message)
    return f"{command}: error: {message} (see {command} --help)"


def _fail(line: str) -> int:
    _say(" ".join(line.split()))
    return ExitCode.USAGE


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # stderr is full or gone: the exit code still tells
        write_line(shown(line))


def _bug(error: BaseException) -> int:
    if os.environ.get("GRADSCOPE_TRACEBACK"):
        import traceback

        traceback.print_exception(error)
    else:
        text = " ".join(str(error).split())
        _say(
            f"gradscope: internal error: {type(error).__name__}: {text}; this is a bug in gradscope, "
            "GRADSCOPE_TRACEBACK=1 shows where"
        )
    return ExitCode.INTERNAL
