"""What README and the site say is what happens: blocks run, output is the program's, links lead somewhere."""

import ast
import http.server
import importlib.util
import itertools
import re
import shlex
import sys
import threading
import tomllib
import urllib.parse
from pathlib import Path
from typing import get_args

import click
import numpy as np
import pytest
from oracles import layouts
from oracles.program import PAGES, README, ROOT, TOLD, blocks, run

import gradscope

# Estimated errors depend on the machine's last digit.
ERRORS = re.compile(r"(?<=of log10 gain )\S+(?=\.)|(?<= )\de[-+]\d\d(?= )")


def test_the_output_shown_is_the_output(tmp_path):
    (command, shown), *others = re.findall(r"<!-- output: (.*?) -->\n```text\n(.*?)```", README, re.DOTALL)
    assert not others
    assert f"{command}\n```" in README, "the set-up command ends with it"
    assert ERRORS.sub("#", run(command.split(), tmp_path)) == ERRORS.sub("#", shown)


@pytest.mark.parametrize("code", blocks("run: python", "python"))
def test_python_blocks(code, tmp_path):
    assert "stable" in run([sys.executable, "-c", code], tmp_path)


def test_the_assertion_for_a_test_of_ones_own():
    (code,) = blocks("run: assert", "python")
    namespace = {}
    exec(code, namespace)
    (test,) = (made for name, made in namespace.items() if name.startswith("test_"))
    test()


@pytest.mark.parametrize("script", blocks("run: sh", "sh"))
def test_shell_blocks(script, tmp_path):
    assert run(["sh", "-euc", script], tmp_path).startswith("STABLE")


RECIPES = re.findall(r"<!-- model: (\w+) -->\n```python\n(.*?)```\n\n```sh\n(.*?)\n```", TOLD, re.DOTALL)


def test_a_recipe_for_weights_of_ones_own(tmp_path):
    """The other recipes need their frameworks: tests/parity/test_readme.py."""
    ((save, analyse),) = [rest for name, *rest in RECIPES if name == "npz"]
    setup = "import numpy\nW, R, b = numpy.ones((8, 3)), numpy.eye(8), numpy.zeros(8)\n"
    data = "numpy.save('x.npy', numpy.random.default_rng(0).normal(size=(30, 3)))\n"
    run([sys.executable, "-c", setup + data + save], tmp_path)
    assert "rnn, hidden 8, 30 steps" in run(analyse.split(), tmp_path)


def test_a_recipe_for_a_map(tmp_path):
    ((save, analyse),) = [rest for name, *rest in RECIPES if name == "map"]
    setup = (
        "import numpy\nw_ih, w_hh = numpy.ones((24, 3)), numpy.ones((24, 8)) / 9\n"
        "b_ih, b_hh = numpy.ones((2, 24))\n"
        "numpy.save('x.npy', numpy.random.default_rng(0).normal(size=(30, 3)))\n"
    )
    run([sys.executable, "-c", setup + save], tmp_path)
    assert "gru, hidden 8, 30 steps" in run(shlex.split(analyse), tmp_path)


@pytest.mark.slow
def test_a_loss_is_followed_back(tmp_path):
    (script,) = blocks("loss: sh", "sh")
    layouts.saved(
        layouts.recurrent("lstm", 3, 4, prefix="lstm.") | layouts.dense("head", 4, 2), tmp_path / "model.pt"
    )
    np.save(tmp_path / "x.npy", np.ones((9, 3)))
    np.save(tmp_path / "adjoint.npy", np.ones((9, 4)))
    assert run(["sh", "-euc", script], tmp_path).count("Weight gradients") == 2


@pytest.mark.slow
def test_a_setting_is_suggested_and_written(tmp_path):
    (script,) = blocks("repair: sh", "sh")
    layouts.saved(layouts.recurrent("lstm", 3, 4, prefix="lstm."), tmp_path / "model.pt")
    np.save(tmp_path / "x.npy", np.ones((9, 3)))
    assert run(["sh", "-euc", script], tmp_path).count("Before and after") == 2


def literals(node):
    """The words of a piece of code, what is put into them left out."""
    found = [
        one.value for one in ast.walk(node) if isinstance(one, ast.Constant) and isinstance(one.value, str)
    ]
    return " ".join(" ".join(found).split())


def test_every_verdict_and_note_is_explained():
    """What the page quotes is what the code says, and all that it says is quoted."""
    from gradscope.settings import Level

    page = PAGES[ROOT / "docs" / "how-to-read-it.md"]
    rows = re.findall(r"^\| (.*?) \|", page.partition("## What it says")[2], re.MULTILINE)
    assert set(get_args(Level)) <= {row.strip("`") for row in rows}
    quoted = [phrase for row in rows for phrase in re.findall(r"\*(.+?)\*", row)]
    notes, verdict = (
        ast.parse((ROOT / "gradscope" / "report" / f"{name}.py").read_text("utf-8"))
        for name in ("notes", "verdict")
    )
    told = literals(notes) + literals(verdict)
    assert not [phrase for phrase in quoted if phrase not in told]
    for function in notes.body:
        if not isinstance(function, ast.FunctionDef) or function.name == "_cause":  # which is part of others
            continue
        said = literals(ast.Module(function.body[1:], []))  # without its docstring
        if said.count(" ") > 8:
            assert any(phrase in said for phrase in quoted), function.name


def test_every_cell_and_initialiser_is_named():
    from gradscope.cells import CELLS
    from gradscope.cells.initializers import INITIALIZERS

    for name in [*CELLS, *INITIALIZERS]:
        short = name.removeprefix("lstm")
        assert f"`{name}`" in TOLD or f"`{short}`" in TOLD, name


def test_every_option_of_the_first_lines_exists():
    from gradscope.cli.main import cli

    known = {
        name
        for command in cli.list_commands(None)
        for parameter in cli.get_command(None, command).params
        for name in parameter.opts + parameter.secondary_opts
    } | {"--help"}
    # The recipes of schedulers have options of theirs, and tests in tests/cli/test_track.py.
    told = "\n".join([README, *(text for page, text in PAGES.items() if page.stem != "many-checkpoints")])
    used = set(re.findall(r"(?<=[ `(])--[a-z-]+", re.sub(r"`?--from.*|#SBATCH.*", "", told)))
    assert used <= known, used - known


# Words that end a command of a shell.
ENDS = re.compile(r"[|&;()<>]+")


def commands_shown():
    """(page, arguments) of every ``gradscope`` in the blocks of README, the site and the examples."""
    for page in [ROOT / "README.md", *PAGES, *(ROOT / "examples").glob("*/README.md")]:
        told = "\n".join(re.findall(r"```(?:sh|yaml)\n(.*?)```", page.read_text("utf-8"), re.DOTALL))
        for line in told.replace("\\\n", " ").splitlines():
            if "gradscope " not in line:
                continue
            words = shlex.shlex(re.sub(r"\$\w+", "1", line), posix=True, punctuation_chars=True)
            words.whitespace_split, words.commenters = True, "#"
            for ends, command in itertools.groupby(words, lambda word: bool(ENDS.fullmatch(word))):
                called = (
                    []
                    if ends
                    else [*itertools.dropwhile(lambda word: Path(word).name != "gradscope", command)]
                )
                if called[1:] and called[1].isalpha():
                    yield page.name, called[1:]


def test_every_command_shown_is_one():
    """Its options are known, its values of their kind; those that need no framework run elsewhere, too."""
    from gradscope.cli.main import cli

    # A command keeps the help options of the context that it is first used in.
    above = click.Context(cli, info_name="gradscope", **cli.context_settings)
    shown = [*commands_shown()]
    for page, (name, *arguments) in shown:
        command = cli.get_command(above, name)
        assert command, (page, name)
        try:
            command.make_context(name, arguments, parent=above)
        except click.ClickException as error:
            raise AssertionError(f"{page}: gradscope {name} {shlex.join(arguments)}") from error
    assert len({page for page, _ in shown}) > 12


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "SECURITY.md", "docs/architecture.md", "docs/method.md"])
def test_files_that_are_named_are_there(name):
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text("utf-8"), flags=re.DOTALL)
    named = {said.partition(":")[0] for said in re.findall(r"`([\w./-]+/[\w./:-]+[^`/\n]*)`", text)}
    # NAME and X are a newcomer's own; site is made.
    named = {
        one
        for one in named
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)+", one) and not re.search(r"NAME|X\b|X_", one)
    }
    assert named
    for one in named:
        assert any((ROOT / at / one).exists() for at in ("", "gradscope", "gradscope/report", "tests")), one


def headings(text):
    """The anchors of its headings, as GitHub and the site make them."""
    plain = (line.strip("# ").lower() for line in re.findall(r"^#+ .*", text, re.MULTILINE))
    return {re.sub(r"[^\w\- ]", "", line).replace(" ", "-") for line in plain}


@pytest.mark.parametrize("page", [ROOT / "README.md", *PAGES], ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    """Those to other sites are theirs; sphinx-build -W checks the same, where it is installed."""
    text = page.read_text("utf-8")
    prose = re.sub(r"```.*?```|`[^`\n]*`(?!\])", "", text, flags=re.DOTALL)
    for target in re.findall(r"\]\((?!https?:)(.*?)\)", prose):
        file, _, heading = target.partition("#")
        led = page.parent / file if file else page
        assert led.is_file(), target
        assert not heading or heading in headings(led.read_text("utf-8")), target


def links_module():
    spec = importlib.util.spec_from_file_location("links", ROOT / "docs" / "links.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_links_to_other_sites_have_the_form_of_one():
    found = links_module().links()
    assert len(found) > 5
    for address in found:
        parts = urllib.parse.urlsplit(address)
        assert parts.scheme == "https", address
        assert re.fullmatch(r"([\w-]+\.)+[a-z]{2,}", parts.netloc), address
        assert re.fullmatch(r"[\w\-./~]*[\w/]|", parts.path), address
        assert not parts.query, address


def test_a_link_that_is_gone_is_told_from_a_site_that_is_not_reached(monkeypatch, capsys):
    class Site(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(404 if self.path == "/gone" else 403)

        def log_message(self, *_):
            pass

    links = links_module()
    with http.server.HTTPServer(("127.0.0.1", 0), Site) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(links, "links", lambda: {f"{at}/refused": ["a"], "http://127.0.0.1:1/": ["b"]})
        assert links.main() == 0
        monkeypatch.setattr(links, "links", lambda: {f"{at}/gone": ["a.md"]})
        assert links.main() == 1
        server.shutdown()
    assert capsys.readouterr().out.splitlines()[-1] == f"gone       {at}/gone  (404; a.md)"


def test_every_page_is_in_the_contents():
    listed = "\n".join(re.findall(r"```{toctree}\n(.*?)```", PAGES[ROOT / "docs" / "index.md"], re.DOTALL))
    named = {line for line in listed.splitlines() if line and not line.startswith(":")}
    assert {page.stem for page in PAGES} <= named | {"index"}
    assert all("*" in name or (ROOT / "docs" / f"{name}.md").is_file() for name in named)


def test_readme_is_what_a_newcomer_reads():
    assert README.count("\n") <= 150


def test_version_is_in_the_changelog():
    import gradscope

    assert f"## {gradscope.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")


def test_the_readme_of_the_package_has_no_dead_links():
    """As hatch-fancy-pypi-readme makes it: links to files that are not there with it are their words."""
    told = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    (change,) = told["tool"]["hatch"]["metadata"]["hooks"]["fancy-pypi-readme"]["substitutions"]
    made = re.sub(change["pattern"], change["replacement"], README)
    outside_code = re.sub(r"```.*?```|`[^`\n]*`", "", made, flags=re.DOTALL)
    links = re.findall(r"\[[^\]]*\]\(([^)]*)\)", outside_code)
    assert "](docs/start.md)" in README
    assert all(link.startswith("https://") for link in links)


def test_versions_agree():
    changelog, citation = ((ROOT / name).read_text("utf-8") for name in ("CHANGELOG.md", "CITATION.cff"))
    assert re.search(r"^## (\S+) - ", changelog, re.MULTILINE)[1] == gradscope.__version__
    assert f"\nversion: {gradscope.__version__}\n" in citation
