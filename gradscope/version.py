"""The version, which the build reads and the result carries."""

__version__ = "0.1.0"
