# The commands a developer needs; `just` lists them.

default:
    @just --list

# Environment with everything, in .venv
setup:
    python3 -m venv .venv && .venv/bin/pip install -e '.[dev]'

# Format and fix what can be fixed
format:
    .venv/bin/ruff format . && .venv/bin/ruff check --fix .

# Lint and types
check:
    .venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

# The default tests; `just test -m slow` for the others
test *arguments:
    .venv/bin/pytest -q {{arguments}}

# Accuracy against high precision, speed against the usual ways, and where the time goes
bench:
    .venv/bin/python benchmarks/accuracy.py && .venv/bin/python benchmarks/speed.py && .venv/bin/python benchmarks/where.py
