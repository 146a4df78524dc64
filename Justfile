# The commands a developer needs; `just` lists them.

default:
    @just --list

# Environment to develop in, .venv; `just setup dev,parity` has every framework too
setup extras='dev':
    python3 -m venv .venv && .venv/bin/pip install -e '.[{{extras}}]'

# Format and fix what can be fixed
format:
    .venv/bin/ruff format . && .venv/bin/ruff check --fix .

# Lint and types
check:
    .venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

# The default tests; `just test -m slow` and `just test -m parity` for the others
test *arguments:
    .venv/bin/pytest -q {{arguments}}

# Accuracy against high precision, speed against the usual ways, and where the time goes
bench:
    .venv/bin/python benchmarks/accuracy.py && .venv/bin/python benchmarks/speed.py && .venv/bin/python benchmarks/where.py

# The site, in site/ (extra docs); its gallery is drawn by docs/gallery.py
site:
    .venv/bin/sphinx-build -W -q docs site

# Which links to other sites are gone
links:
    .venv/bin/python docs/links.py
