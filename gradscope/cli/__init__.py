"""The command line: parse, call, render, exit. Public: ``main.main``."""
