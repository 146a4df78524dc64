"""What README and the site say is what happens: blocks run, output is the program's, links lead somewhere."""

import re
import shlex
import sys
import tomllib

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
