"""``gradscope completion``: what the shell is to be told so that it completes names and options."""

from __future__ import annotations

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

from gradscope.cli.group import Command
from gradscope.cli.streams import write_result


class _Bash(BashComplete):
    """Of ``--cell=lst`` Bash makes three words, the second of which is no value; values go before files."""

    source_template = BashComplete.source_template.replace("            COMPREPLY=()\n", "")

    def get_completion_args(self) -> tuple[list[str], str]:
        args, incomplete = super().get_completion_args()
        before = ["", *args]
        return [
            word for word, last in zip(args, before, strict=False) if word != "=" or not last.startswith("--")
        ], incomplete


class _Zsh(ZshComplete):
    """A value after ``--cell=`` takes the place of the whole word, a file of what follows the sign."""

    source_template = ZshComplete.source_template.replace(
        "    for type key descr in", "    compset -P '--*='\n\n    for type key descr in"
    )

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        found = super().get_completions(args, incomplete)
        name, equals, _ = incomplete.partition("=")
        if equals and name.startswith("--"):
            for item in found:
                item.value = f"{name}={item.value}"
        return found


class _Fish(FishComplete):
    """Completions of ``--cell=lst`` begin with ``--cell=``; descriptions keep what follows a comma."""

    source_template = """\
function %(complete_func)s
    set -l word (commandline -t)
    set -l before (string match -r -- '^--[^=]*=' $word)
    set -l response (env %(complete_var)s=fish_complete COMP_WORDS=(commandline -cp) COMP_CWORD=$word \
%(prog_name)s)
    for completion in $response
        set -l parts (string split -m 1 -- "," $completion)
        switch $parts[1]
            case dir
                printf '%%s\\n' "$before"(__fish_complete_directories $parts[2])
            case file
                printf '%%s\\n' "$before"(__fish_complete_path $parts[2])
            case plain
                printf '%%s\\n' "$before$parts[2]"
        end
    end
end

complete --no-files --command %(prog_name)s --arguments "(%(complete_func)s)"
"""


SHELLS: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}


def complete(group: click.Group) -> None:
    """Answer the script of a shell, and exit."""
    for shell in SHELLS.values():
        add_completion_class(shell)
    group.main(prog_name="gradscope")


@click.command(cls=Command, short_help="Print a script that completes options in your shell.")
@click.argument("shell", metavar="SHELL", type=click.Choice(list(SHELLS)))
def completion(shell: str) -> None:
    """Print the script by which SHELL (bash, zsh, fish) completes commands, options, cells and files.

    \b
    Examples:
      gradscope completion bash >> ~/.bashrc
      gradscope completion zsh >> ~/.zshrc
      gradscope completion fish > ~/.config/fish/completions/gradscope.fish

    A shell that is started afterwards completes; for this one: eval "$(gradscope completion bash)".
    """
    root = click.get_current_context().find_root()
    # Not its own source(), which of bash asks bash for its version.
    script = ShellComplete.source(SHELLS[shell](root.command, {}, "gradscope", "_GRADSCOPE_COMPLETE"))
    write_result(script.strip() + "\n", None)
