"""Every format against a golden file, and read back by what reads it: also with hostile names.

UPDATE_GOLDEN=1 pytest tests/gate/test_formats.py writes them anew; read the difference before committing.
"""

import csv
import io
import json
import os
import re
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
from oracles.gated import HOSTILE, checks, comparison, track
from oracles.junit import check_junit
from oracles.made_up import LSTM, analysis

from gradscope.gate.github import cut_summary
from gradscope.report.terminal import Terminal
from gradscope.report.views import FORMATS, Look, render
from gradscope.schemas import schema

GOLDEN = Path(__file__).parents[1] / "golden" / "formats"
MADE = {
    "analysis": lambda name: analysis(LSTM, batch=2, source=name, layer=name),
    "checks": checks,
    "comparison": comparison,
    "track": track,
}
KIND = {"analysis": "Analysis", "checks": "Checks", "comparison": "Comparison", "track": "Track"}
ROWS = [(name, made) for name, kinds in FORMATS.items() for made in MADE if KIND[made] in kinds]
TOML = """[analyses.small.budgets]
log10_norm = {max = 1}
"log10_norm.R_z" = {min = 1}
"horizon.R_q" = {min = 1}
"""


def shown(name, made, of="small", width=80, **look):
    if name == "junit":
        pytest.importorskip("junitparser")
    return render(MADE[made](of), name, Look(Terminal(width), **look))


def golden(name, text):
    path = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    assert text == path.read_text("utf-8")


@pytest.fixture(autouse=True)
def _a_file_of_budgets(tmp_path, monkeypatch):
    (tmp_path / "gradscope.toml").write_text(TOML)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)


@pytest.mark.parametrize(
    ("name", "made"), [row for row in ROWS if row not in {("table", "analysis"), ("json", "analysis")}]
)
def test_golden(name, made):
    golden(f"{made}.{name}.txt", shown(name, made))


@pytest.mark.parametrize("width", [40, 120])
@pytest.mark.parametrize("made", ["checks", "comparison", "track"])
def test_tables_fit_the_terminal(made, width):
    text = shown("table", made, width=width)
    golden(f"{made}_{width}.table.txt", text)
    assert max(map(len, text.splitlines())) <= width


@pytest.mark.parametrize("made", ["checks", "comparison", "track"])
def test_tables_in_colour_and_without_unicode(made):
    coloured = render(MADE[made]("small"), "table", Look(Terminal(80, color=True)))
    assert re.sub(r"\x1b\[[0-9;]*m", "", coloured) == shown("table", made)
    assert f"\x1b[1;38;5;161m{'error' if made == 'track' else 'FAILED'}" in coloured
    assert render(MADE[made]("small"), "table", Look(Terminal(80, unicode=False))).isascii()


@pytest.mark.parametrize(
    ("name", "made"), [row for row in ROWS if row[0] in ("table", "markdown") and row[1] != "track"]
)
def test_quiet_is_one_line(name, made):
    assert shown(name, made, width=200, verdict_only=True).count("\n") == 1


# -- read back ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("of", ["small", HOSTILE])
def test_csv_and_jsonl_tell_the_same(of):
    for made in ("analysis", "checks", "comparison"):
        rows = list(csv.DictReader(io.StringIO(shown("csv", made, of))))
        lines = [json.loads(line) for line in shown("jsonl", made, of).splitlines()]
        for line in lines:
            jsonschema.validate(line, schema(f"{made}-line"))
        assert [list(row) for row in rows] == [list(line) for line in lines]
        assert len(rows) > 4
        for row, line in zip(rows, lines, strict=True):
            for column, value in line.items():
                if isinstance(value, str):
                    assert row[column] == value
                elif isinstance(value, float):
                    assert float(row[column]) == value


@pytest.mark.parametrize("of", ["small", HOSTILE])
@pytest.mark.parametrize("made", MADE)
def test_junit_is_what_readers_of_it_accept(made, of):
    text = shown("junit", made, of)
    check_junit(text)
    root = ElementTree.fromstring(text)
    cases = list(root.iter("testcase"))
    if made == "checks":
        assert len(cases) == 8
        assert len(root.findall("testsuite")) == 2
        found = {case.get("name"): [child.tag for child in case] for case in cases}
        assert found["log10_norm.R_z"] == ["failure"]
        assert found["horizon.R_q"] == ["error"]
        assert found["share.R_z"] == ["skipped"]
        assert found["horizon.carousel"] == ["system-out"]
    assert [root.get(name) for name in ("failures", "errors")] == [
        str(len(list(root.iter(tag)))) for tag in ("failure", "error")
    ]


@pytest.mark.parametrize("of", ["small", HOSTILE])
@pytest.mark.parametrize("made", MADE)
def test_annotations(made, of):
    """No line but ours begins with what GitHub takes for a command; properties end where they are to end."""
    first, *lines = shown("github", made, of).split("\n")[:-1]
    assert "::" not in first[:2]
    for line in lines:
        match = re.fullmatch(r"::(error|warning) ((?:file=[^:,]*,line=\d+,)?title=[^:,]*)::([^\r\n]*)", line)
        assert match, line
        assert match[3].isprintable()
    assert len(lines) == {"analysis": 0, "checks": 6, "comparison": 1, "track": 8}[made]


def test_annotations_stand_at_the_line_of_their_budget():
    lines = shown("github", "checks").splitlines()
    assert (
        sum("file=gradscope.toml,line=3,title=gradscope%3A small%3A log10_norm.R_z::" in one for one in lines)
        == 1
    )
    assert sum("file=gradscope.toml,line=4," in one for one in lines) == 1
    assert not any("line=" in one for one in lines if "carousel" in one)  # the file has it no longer


def test_no_more_annotations_than_github_shows():
    from gradscope.gate.checks import Checked, Checks

    found = checks()
    (broken, *_) = (one for one in found.checks if one.budget.metric == "log10_norm.R_z")
    many = render(Checks((Checked("x", (broken,) * 25),)), "github", Look(Terminal()))
    errors = [line for line in many.splitlines() if line.startswith("::error")]
    assert len(errors) == 10
    assert errors[-1].endswith("and 16 more: GitHub shows 10 of a kind, the summary has all")
    ten = render(Checks((Checked("x", (broken,) * 10),)), "github", Look(Terminal()))
    assert ten.count("::error ") == 10
    assert "more" not in ten


def test_a_summary_is_cut_below_a_megabyte():
    text = "".join(f"| é{number} | x |\n" for number in range(200_000))
    for already in (0, 999_000):
        cut = cut_summary(text, already)
        assert len(cut.encode()) + already <= 1_000_000
        assert cut.endswith("a megabyte)\n")
        assert text.startswith(cut.split("\n\n(cut")[0])
    assert cut_summary(text, 1_000_000) == ""
    assert cut_summary("short", 0) == "short"


@pytest.mark.parametrize("of", ["small", HOSTILE])
@pytest.mark.parametrize("made", MADE)
def test_markdown_keeps_its_tables(made, of):
    """Every row has as many cells as its head, and no name makes a link, a tag or a line of its own."""
    text = shown("markdown", made, of)
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert tables
    for table in tables:
        counts = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in table.splitlines()}
        assert len(counts) == 1
    assert not re.search(r"(?<!\\)[<\[`]", text.replace("**", ""))
    assert "\x1b" not in text


@pytest.mark.parametrize("of", ["small", HOSTILE])
@pytest.mark.parametrize("made", ["analysis", "checks", "track"])
def test_trends(made, of):
    """As the two tools document their formats; the three numbers of a metric are in order."""
    told = json.loads(shown("bmf", made, of))
    jsonschema.validate(told, schema("bmf"))
    count = 0
    for suite in told.values():
        for one in suite.values():
            count += 1
            assert set(one) == {"value", "lower_value", "upper_value"}
            assert one["lower_value"] <= one["value"] <= one["upper_value"]
    listed = json.loads(shown("benchmark", made, of))
    jsonschema.validate(listed, schema("benchmark"))
    assert len(listed) == count > 4
    for one in listed:
        assert set(one) == {"name", "unit", "value", "range", "extra"}
        assert isinstance(one["value"], float)
        assert one["name"].isprintable()


def test_json_is_strict_and_tells_what_is_fixed():
    for made in ("checks", "comparison"):
        told = json.loads(shown("json", made, HOSTILE), parse_constant=lambda word: pytest.fail(word))
        assert (
            told["schema"] == {"checks": "gradscope/checks/1", "comparison": "gradscope/comparison/1"}[made]
        )
    fixed = {"analysis", "metric", "value", "min", "max", "severity", "passed", "error", "spread"}
    assert fixed <= set(json.loads(shown("json", "checks"))["checks"][0])
    changes = json.loads(shown("json", "comparison"))["changes"]
    assert {"chain", "metric", "old", "new", "delta"} <= set(changes[0])
    assert {"full", "R_z", "R_f"} <= {one["chain"] for one in changes}


@pytest.mark.parametrize("of", ["small", HOSTILE])
def test_rows_of_a_track_are_what_the_schemas_say(of):
    jsonschema.validate(json.loads(shown("json", "track", of)), schema("tracked"))
    for line in shown("jsonl", "track", of).splitlines():
        jsonschema.validate(json.loads(line), schema("track"))
