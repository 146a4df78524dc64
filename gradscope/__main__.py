"""``python -m gradscope``."""

from gradscope.cli.start import entry

entry()
