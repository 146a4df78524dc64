"""``gradscope completion``: what the shell is to be told so that it completes names and options."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

from gradscope.cli.group import Command
from gradscope.cli.streams import write_result


@click.command(cls=Command, short_help="Print a script that completes options in your shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print the script by which SHELL completes commands, options, cells, formats and files.

    \b
    Examples:
      gradscope completion bash >> ~/.bashrc
      gradscope completion zsh >> ~/.zshrc
      gradscope completion fish > ~/.config/fish/completions/gradscope.fish

    A shell that is started afterwards completes; for this one: eval "$(gradscope completion bash)".
    """
    found = get_completion_class(shell)
    assert found is not None
    root = click.get_current_context().find_root()
    # Not its own source(), which of bash asks bash for its version.
    script = ShellComplete.source(found(root.command, {}, "gradscope", "_GRADSCOPE_COMPLETE"))
    write_result(script.strip() + "\n", None)
