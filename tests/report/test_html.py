"""The one-file page: what it says, that it loads and runs nothing, and how large it is."""

import base64
import dataclasses
import hashlib
import json
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from oracles.made_up import LSTM, STEPS, analysis

from gradscope.errors import InputError
from gradscope.report.analysis import Analysis
from gradscope.report.html_page import html_page
from gradscope.report.html_text import unbroken
from gradscope.report.html_words import reading
from gradscope.report.pictures.figures import FIGURES
from gradscope.report.pictures.theme import dark_rules

HOSTILE = "</script></title><img src=x onerror=alert(1)><style>*{}</style>\"'&\x00\u202e"
VOID = {"meta"}


class Page(HTMLParser):
    """Elements with their attributes, texts by element, and whether all that is opened is closed."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def said(self, *tags):
        return [data for tag, data in self.texts if tag in tags]

    def tags(self, name):
        return [attributes for tag, attributes in self.elements if tag == name]


def stack(**fields):
    """Two layers, and what is about them together."""
    whole = analysis({"full": -0.1, "layer0": -0.2, "layer1": -0.3, "0->1": -0.2}, source="model.pt")
    layers = tuple(analysis(LSTM, layer=name, direction="forward", **fields) for name in ("below", "above"))
    return dataclasses.replace(whole, gates={}, matrices={}, layers=layers)


RESULTS = {
    "one": analysis(LSTM),
    "batch": analysis(LSTM, batch=3),
    "exploding": analysis({"full": 0.5, "carousel": -0.5}),
    "chain": analysis({"full": 0.0}, cell=None, source="jacobians.npy"),
    "dead": analysis({"full": None}, cell=None, source="dead.npy"),
    "stack": stack(),
}


def told(name):
    return json.loads(RESULTS[name].to_json())


@pytest.mark.parametrize("name", RESULTS)
@pytest.mark.parametrize("embed", [False, True])
def test_nothing_is_run_and_nothing_loaded(name, embed):
    text = html_page(told(name), embed=embed)
    page = Page(text)
    assert page.tags("html") == [{"lang": "en"}]
    assert page.tags("script") == ([{"type": "application/json", "id": "gradscope-result"}] if embed else [])
    assert not {"img", "link", "iframe", "object", "embed", "base", "form"} & {t for t, _ in page.elements}
    places = {f"#{attributes['id']}" for _, attributes in page.elements if "id" in attributes}
    for tag, attributes in page.elements:
        assert not [key for key in attributes if key.startswith("on") or key in ("style", "src")]
        if tag != "image":
            assert attributes.get("href", "#word-rate") in places, "a link stays on the page"
    assert not re.search(r"https?://|url\(|@import|javascript:", text)


@pytest.mark.parametrize("name", RESULTS)
def test_the_policy_allows_this_style_alone(name):
    page = Page(html_page(told(name)))
    (policy,) = (m["content"] for m in page.tags("meta") if m.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    (style,) = page.said("style")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}';" in policy
    assert "@media print" in style
    assert "prefers-color-scheme:dark" in style


@pytest.mark.parametrize("name", RESULTS)
def test_everything_has_a_name_for_those_who_hear_the_page(name):
    page = Page(html_page(told(name)))
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert len(page.tags("svg")) == len(page.tags("figure"))
    for svg in page.tags("svg"):
        assert svg["role"] == "img"
        assert set(svg["aria-labelledby"].split()) <= set(identifiers)
    assert all(th.get("scope") in ("col", "row") for th in page.tags("th"))
    assert all(page.said("th"))
    assert len(page.tags("caption")) == len(page.tags("table"))
    assert page.tags("h1") == [{}]
    (said,) = [one["content"] for one in page.tags("meta") if one.get("name") == "description"]
    assert said.startswith(f"{RESULTS[name].verdict.level.capitalize()}. ")


def test_the_order_is_verdict_remedy_gain_carrier_spectrum_matrices_layers_provenance():
    page = Page(html_page(told("stack")))
    headings = page.said("h1", "span", "h2")
    expected = [
        "stable",
        ": model.pt, 2 layers, 40 steps, gain ",
        "Gain by lag",
        "Who carries the gradient",
        "Singular values",
        "Layers side by side",
        "Provenance",
    ]
    expected[0] = RESULTS["stack"].verdict.level
    assert [one for one in headings if one in expected] == expected
    folded = ("Exact numbers", "How to read it")
    layers = [words for words in page.said("summary") if words not in folded]
    assert [words.split(":")[:2] for words in layers] == [
        ["▼ layer0", " layer below"],
        ["▼ layer1", " layer above"],
        ["How to read this page"],
    ]


def test_a_page_says_what_to_do_next():
    vanishing = json.loads(analysis({"full": -0.5, "carousel": -0.5}).to_json())
    said = " ".join(Page(html_page(vanishing)).said("li"))
    (bias,) = re.findall(r"from b_f = ([\d.]+) on", said)
    steps, tau = vanishing["problem"]["steps"], vanishing["thresholds"]["vanishing_below"]
    assert (1 / (1 + math.exp(-float(bias)))) ** steps == pytest.approx(tau, rel=0.05)
    assert "gradscope suggest" in said
    for name, result in RESULTS.items():
        page = Page(html_page(json.loads(result.to_json())))
        assert page.said("h2").count("Next") == 1, name
    vanishing["problem"]["cell"] = None  # bare Jacobians: there is no bias to set
    said = " ".join(Page(html_page(vanishing)).said("li"))
    (factor,) = re.findall(r"Every Jacobian times ([\d.]+) would make", said)
    gain = vanishing["chains"][0]["log10_norm"]["median"]
    assert steps * math.log10(float(factor)) + gain == pytest.approx(0, abs=1e-3)
    assert "b_f" not in said


def test_the_level_is_told_by_a_word_and_a_shape():
    signs = set()
    for name in ("one", "exploding", "chain"):
        page = Page(html_page(told(name)))
        sign, word = page.tags("span")[:2]
        assert sign == word | {"aria-hidden": "true"}
        signs.add(page.said("span")[0])
        assert word["class"] == f"level {page.said('span')[1]}"
    assert len(signs) == 3


def test_every_picture_says_how_to_read_it():
    for name in FIGURES:
        assert len(Page(reading(name)).said("p")[0]) > 60
    page = Page(html_page(told("stack")))
    assert page.said("summary").count("How to read it") == 4, "of the whole, not of each layer again"


@pytest.mark.parametrize("name", RESULTS)
def test_the_contents_lead_to_every_section(name):
    page = Page(html_page(told(name)))
    headings = [words for words in page.said("h2") if words.strip()]
    places = [attributes["id"] for attributes in page.tags("h2")]
    assert len({*places}) == len(places) == len(headings)
    links = [one["href"][1:] for one in page.tags("a") if one["href"].startswith("#section-")]
    assert links == (places if len(places) > 3 else [])
    assert [words for words in page.said("a") if words in headings] == (headings if links else [])
    tags = [tag for tag, _ in page.elements]
    assert not links or tags.index("h1") < tags.index("nav") < tags.index("h2")


def test_the_few_numbers_that_are_looked_for_first():
    page = Page(html_page(told("one")))
    shares = RESULTS["one"].mean_shares
    first = max(shares, key=lambda name: abs(shares[name]))
    assert page.said("a")[:3] == ["horizon", "rate", "carried by"]
    assert page.said("dd")[:3] == [
        "12 of 40 steps",
        "-0.5756 nats/step",
        f"{first}, {100 * shares[first]:.0f} %",
    ]
    assert "carried by" not in Page(html_page(told("dead"))).said("a")


def test_numbers_and_options_are_not_broken_after_their_hyphens():
    said = unbroken("Gain 2.00e-06 <at> --fail-on exploding, h-detach, 1e+05, e-4, 0->12")
    assert re.findall('<span class="one">(.*?)</span>', said) == [
        "2.00e-06",
        "--fail-on",
        "1e+05",
        "0-&gt;12",
    ]
    assert "&lt;at&gt;" in said


def test_exact_numbers_are_those_of_the_result():
    page = Page(html_page(told("one")))
    cells = page.said("td", "th")
    assert [*cells[cells.index("full") :]][:7] == [
        *("full", "1.00e-10", "5.03e-11", "12", "vanishing", "-0.5756", "3e-13")
    ]
    lag = cells.index("lag")
    row = cells[cells.index("40", lag) :]
    assert row[:4] == ["40", "1.00e-10", "1.00e-20", "1.00e-240"]


def test_a_heat_map_has_its_numbers():
    """Of every step drawn the last comes first; None is what is lost or zero."""
    result = told("one")
    maps = {"step": [1, 4, 7], "unit": [1, 3], "log10": [[None, -3, 0], [None, -2, None]]}
    result["returning"] = {"": maps}
    cells = Page(html_page(result)).said("td", "th")
    rows = cells[cells.index("units at 0 or lost") + 1 :][:18]
    assert [rows[k : k + 6] for k in (0, 6, 12)] == [
        ["7", "1.00", "1", "0 or lost", "1.00", "1"],
        ["4", "1.00e-02", "3", "3.16e-03", "1.00e-03", "0"],
        ["1", "0 or lost", "–", "0 or lost", "–", "2"],
    ]


def test_a_long_profile_has_some_rows_with_the_first_and_last():
    result = told("one")
    lags = list(range(1, 1001))
    norms = (-0.001 * np.array(lags)).tolist()
    result["profile"] = {"lag": lags, "log10_norm": [norms], "share": {"R_z": [0.5] * 1000}}
    for chain in result["chains"]:
        chain["by_lag"] = {"lag": lags, "log10_norm": norms}
    page = Page(html_page(result))
    cells = page.said("th")
    shown = [int(cell) for cell in cells[cells.index("lag") + 5 :] if cell.isdigit()]
    first = shown[: shown.index(1000) + 1]
    assert (first[0], first[-1]) == (1, 1000)
    assert len(first) <= 24


def test_names_of_strangers_are_text():
    result = told("stack")
    result["problem"]["source"] = HOSTILE
    result["problem"]["assumed"] = [HOSTILE]
    result["verdict"] = {"level": HOSTILE, "reasons": [HOSTILE], "notes": [HOSTILE]}
    result["chains"][1]["name"] = HOSTILE
    result["shares"] = {HOSTILE: 1.0}
    result["profile"]["share"] = {HOSTILE: result["profile"]["share"]["layer0"]}
    for layer in result["layers"]:
        layer["problem"]["layer"] = HOSTILE
        layer["gates"] = {HOSTILE: layer["gates"]["f"] | {"histogram": [0.05] * 20}}
        layer["matrices"][0]["name"] = HOSTILE
    text = html_page(result, {"command": HOSTILE, HOSTILE: "x"}, embed=True)
    page = Page(text)
    assert not page.tags("img")
    assert len(page.tags("style")) == len(page.tags("script")) == 1
    assert "\x00" not in text.split("<script")[0]
    assert "\u202e" not in text
    assert sum("onerror" in data for data in page.said("h1", "li", "td", "th", "summary")) >= 6


def test_the_data_are_in_it_if_they_are_asked_for():
    page = Page(html_page(told("stack"), embed=True))
    (data,) = page.said("script")
    assert json.loads(data) == told("stack")


def large(steps=200, hidden=256, layers=3):
    """A stack as large as the page is promised for, every list as long as it can be."""
    rng = np.random.default_rng(0)
    lags = list(range(1, steps + 1))

    def part(name, chains):
        made = json.loads(analysis(LSTM, layer=name, direction="forward").to_json())
        one = made["chains"][0]
        values = np.sort(rng.normal(-50, 20, hidden))[::-1]
        made["chains"] = [
            one
            | {"name": chain, "log10_singular_values": [values.tolist()]}
            | {"by_lag": {"lag": lags, "log10_norm": rng.normal(-5, 3, steps).tolist()}}
            for chain in chains
        ]
        share = {chain: rng.normal(0.2, 0.3, steps).tolist() for chain in chains[1:]}
        made["profile"] = {"lag": lags, "log10_norm": [rng.normal(-5, 3, steps).tolist()], "share": share}
        made["shares"] = dict.fromkeys(chains[1:], 0.2)
        made["gates"] = {g: {"mean": 0.5, "saturated": 0.1, "histogram": [0.05] * 20} for g in "ifo"}
        made["matrices"] = [
            made["matrices"][0] | {"name": f"R_{g}", "eigenvalues": rng.normal(size=(hidden, 2)).tolist()}
            for g in "zifo"
        ]
        return made

    blocks = [f"{i}->{j}" for j in range(layers) for i in range(j)]
    result = part("all", ["full", *(f"layer{k}" for k in range(layers)), *blocks])
    paths = ["full", "carousel", "R_z", "R_i", "R_f", "R_o"]
    result["layers"] = [part(f"l{k}", paths) for k in range(layers)]
    return result | {"gates": {}, "matrices": []}


@pytest.mark.parametrize(("layers", "steps"), [(3, 200), (3, 1000), (12, 1000)])
def test_a_page_has_no_more_than_300_kilobytes(layers, steps):
    page = html_page(large(steps=steps, layers=layers))
    assert len(page.encode()) < 300_000
    assert ("there is no room for pictures" in page) == (layers == 12)
    Page(page)


def test_a_damaged_result_is_refused():
    for key in ("chains", "profile", "problem", "verdict"):
        result = told("one")
        result[key] = None
        with pytest.raises(InputError, match="damaged"):
            html_page(result)


def test_pictures_are_shown_on_black_too():
    rules = dark_rules()
    for name in re.findall(r'class="([lf]-\w+)', html_page(told("batch"))):
        assert f".{name}{{" in rules


def contrast(one, other):
    """Of two colours, as WCAG 2 has it."""

    def luminance(colour):
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return np.dot([0.2126, 0.7152, 0.0722], linear)

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_words_stand_out_on_white_and_on_black():
    (style,) = Page(html_page(told("one"))).said("style")
    light, _, rest = style.partition("@media screen")
    dark = rest.partition("@media print")[0]
    for rules, paper in ((light, "#ffffff"), (dark, "#15181d")):
        colours = re.findall(r"[{;]color:(#\w{6})", rules)
        assert len(colours) >= 6
        assert min(contrast(colour, paper) for colour in colours) >= 4.5


# -- the commands --------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "result.json"
    stack().save(path)
    return path


def test_report_of_a_result(run, file, tmp_path):
    out = tmp_path / "report.html"
    code, text, err = run("report", file, "-o", out)
    assert (code, text) == (0, "")
    assert (
        err == f"gradscope: wrote {out}, {out.stat().st_size / 1000:.0f} kB: a browser opens {out.as_uri()}\n"
    )
    assert run("report", file, "-o", tmp_path / "quiet.html", "--quiet") == (0, "", "")
    page = Page(out.read_text("utf-8"))
    cells = page.said("td")
    assert f"gradscope report {file} -o {out}" in cells
    assert hashlib.sha256(file.read_bytes()).hexdigest() in cells
    assert run("report", file, "--fail-on", "vanishing")[0] == 1
    assert Analysis.load(file).verdict.level in page.said("span")


def test_report_analyses_what_is_no_result(run, tmp_path):
    out = tmp_path / "report.html"
    small = ("--cell", "lstm", "--hidden", "4", "--input-size", "3", "--steps", "6")
    code, text, _ = run("report", *small, "-o", out)
    assert (code, text) == (0, "")
    page = Page(out.read_text("utf-8"))
    assert [": lstm, hidden 4, 6 steps" in words for words in page.said("h1")] == [True]
    headings = page.said("h2")
    last = ["Gates", "Eigenvalues of the recurrent matrices", "Without each path", "Provenance"]
    assert headings[-4:] == last
    code, same, _ = run("analyze", *small, "--format", "html", "--embed-data")
    assert code == 0
    (data,) = Page(same).said("script")
    assert json.loads(data)["problem"]["hidden"] == 4


def test_options_of_an_analysis_are_refused_with_a_result(run, file):
    code, out, err = run("report", file, "--steps", "7", "--forget-bias", "1")
    assert (code, out) == (2, "")
    assert "--steps is about an analysis" in err


def test_report_of_a_file_that_is_neither(run, tmp_path):
    (tmp_path / "x.json").write_text('{"schema": "other"}')
    code, _, err = run("report", tmp_path / "x.json", "-o", tmp_path / "x.html")
    assert (code, "expected the JSON of gradscope analyze" in err) == (2, True)
    assert not (tmp_path / "x.html").exists()
    code, _, err = run("report", tmp_path / "none.json", "-o", tmp_path / "x.html")
    assert (code, "No such file" in err) == (2, True)


ASKED_FOR = {
    "without": {
        "R_z": {"log10_norm": {"median": -2.0}, "horizon": {"median": 7.0}, "verdict": "stable"},
        "R_f": {
            "log10_norm": {"median": None},
            "horizon": {"median": 0.0},
            "verdict": "exploding",  # on the way
            "unmeasured": "the gain is lost",
        },
    },
    "masks": {
        "law": "zoneout",
        "probability": [0.25],
        "count": 5,
        "log10_norm": {"median": -3.0},
        "log10_spread": [-3.5, -2.5],
        "horizon": {"median": 4.0},
        "mean": {"log10_norm": {"median": -1.0}, "horizon": {"median": 6.0}},
    },
    "sensitivity": {
        "total": {"<b>": {"elasticity": 1.25, "shift": None, "norm": 0.5, "elasticity_error": 2e-5}},
        "window": 7,
        "windowed": {"<b>": {"elasticity": -2.5, "shift": None, "norm": 4.5}},
    },
}
OF_LOSS = {
    "gradients": [{"name": "R_z", "log10_norm": -2.0, "share": 0.375, "reach": {"half": 3, "most": 11}}],
    "clip": {
        "law": "norm",
        "threshold": 5.0,
        "clipped_proportion": 0.75,
        "suggested": 8.0,
        "factor": {"median": 0.5, "min": 0.25, "max": 1.0},
        "cosine": {"median": 1.0, "min": 1.0, "max": 1.0},
    },
    "tbptt": {
        "length": 9,
        "parameters": {
            "R": {"bias": 0.125, "cosine": 0.75, "length_for_1_percent": None, "chunked": {"bias": 0.5}}
        },
    },
}


def test_what_was_asked_for_beside_the_chains_is_on_the_page():
    told = json.loads(analysis(LSTM).to_json())
    assert "Without each path" not in html_page(told)
    told |= ASKED_FOR
    told["loss"] = {"profile": {"lag": [0], "log10_norm": [[None]]}, **OF_LOSS}
    rows = [
        re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", row)
        for row in re.findall(r"<tr>.*?</tr>", html_page(told))
    ]
    for expected in (
        ["R_z", "1.00e-02", "7", "stable"],
        ["R_f", "lost in rounding", "0", "exploding"],
        ["5 drawn", "1.00e-03", "3.16e-04 to 3.16e-03", "4"],
        ["mean", "1.00e-01", "", "6"],
        ["&lt;b&gt;", "+1.25", "–", "0.5", "2e-05"],
        ["&lt;b&gt;", "-2.5", "–", "4.5", "–"],
        ["R_z", "1.00e-02", "37.5 %", "3", "11"],
        ["factor", "0.5", "0.25", "1"],
        ["R", "12.5 %", "0.75", "–", "50 %"],
    ):
        assert expected in rows, expected


def test_inspect_has_no_page(run, tmp_path):
    np.savez(tmp_path / "x.npz", W=np.ones((2, 3)), R=np.eye(2), b=np.zeros(2))
    code, _, err = run("inspect", tmp_path / "x.npz", "--format", "html")
    assert (code, "format html does not show an inspection" in err) == (2, True)


def test_notebooks_show_table_and_picture():
    shown = analysis(LSTM)._repr_html_()
    assert shown.index("VANISHING") < shown.index("<svg")
    assert f"of {STEPS}" in shown
