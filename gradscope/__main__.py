"""``python -m gradscope``."""

from gradscope.cli.main import entry

entry()
