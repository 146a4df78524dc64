"""The one style sheet of the page: light, dark and printed."""

from __future__ import annotations

from gradscope.report.pictures.theme import dark_rules

# Level -> its colour on white and on black, of a contrast of at least 4.5.
_LEVELS = {
    "vanishing": ("#4338ca", "#b3b5ff"),
    "stable": ("#1b6e2e", "#7fdc9a"),
    "exploding": ("#b4154b", "#ff9dbb"),
    "undecided": ("#8a4b00", "#f3bd70"),
}
# A table that is wider than the page has a shadow where it goes on: the first two layers, which move with it,
# cover the shadows at its ends.
_PAGE = """
:root{color-scheme:light dark}
body{margin:0 auto;padding:1rem;max-width:76rem;font:1rem/1.5 system-ui,sans-serif}
body{color:#1a1a1a;background:#fff}
h1{font-size:1.5rem;line-height:1.3;overflow-wrap:anywhere}
h2{font-size:1.15rem;margin:2rem 0 .5rem;overflow-wrap:anywhere}
h3{font-size:1rem;margin:1.2rem 0 .4rem;overflow-wrap:anywhere}
ul{padding-left:1.2rem}
p,li{max-width:48rem;overflow-wrap:anywhere}
figcaption{max-width:38rem}
.level{font-weight:700;text-transform:uppercase;letter-spacing:.03em}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,29rem),1fr));gap:0 2rem}
figure{margin:0 0 1rem;min-width:0}
figure svg{display:block;width:100%;max-width:34rem;height:auto}
figure.large svg{max-width:40rem}
figcaption,.quiet{color:#55595f;font-size:.9rem;overflow-wrap:anywhere}
.wide{overflow-x:auto;--paper:#fff;--edge:#0004;background:
linear-gradient(90deg,var(--paper) 1rem,#0000) 0 0/3rem 100% no-repeat local,
linear-gradient(270deg,var(--paper) 1rem,#0000) 100% 0/3rem 100% no-repeat local,
linear-gradient(90deg,var(--edge),#0000) 0 0/.8rem 100% no-repeat,
linear-gradient(270deg,var(--edge),#0000) 100% 0/.8rem 100% no-repeat}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;font-size:.9rem}
caption{text-align:left;color:#55595f;padding:.3rem 0}
th,td{padding:.15rem .8rem .15rem 0;text-align:right;vertical-align:top;border-bottom:1px solid #dcdfe4}
td,tbody th{white-space:nowrap}
th:first-child{text-align:left}
.one{white-space:nowrap}
.long{white-space:normal;overflow-wrap:anywhere;min-width:14rem;max-width:30rem}
.key{display:flex;flex-wrap:wrap;gap:.4rem 2.5rem;margin:0 0 1rem}
.contents ul{display:flex;flex-wrap:wrap;gap:.1rem 1.2rem;list-style:none;padding:0;margin:1rem 0 0}
.contents{font-size:.9rem}
.terms dt{font-weight:600}
.terms dd{margin:0 0 .5rem;max-width:48rem}
a,summary{color:#0b57a4}
.key dt{color:#55595f;font-size:.9rem}
.key dd{margin:0;font-size:1.3rem;font-weight:600;font-variant-numeric:tabular-nums}
.facts td,.facts th{text-align:left}
.facts td,.facts tbody th{white-space:normal;overflow-wrap:anywhere;min-width:5rem}
.facts tbody th{min-width:9.5rem}
summary{cursor:pointer;padding:.3rem 0;overflow-wrap:anywhere}
@media(max-width:30rem){.key{display:block}
.key div{display:flex;justify-content:space-between;align-items:baseline;gap:1rem}
.key div{padding:.2rem 0;border-bottom:1px solid #dcdfe4}
.key dd{font-size:1.1rem;text-align:right}}
"""
_DARK = """
body{color:#f2f2f2;background:#15181d}
figcaption,.quiet,caption,.key dt{color:#b6bcc6}
th,td,.key div{border-color:#353b45}
.wide{--paper:#15181d;--edge:#fff6}
a,summary{color:#8ec1f7}
"""
_PRINT = """
@page{margin:15mm}
:root{font-size:9.5pt}
body{padding:0;max-width:none}
h2{margin-top:1.2rem}
h2,h3{break-after:avoid}
figure,tr,.wide,.grid section{break-inside:avoid}
.wide+.quiet{break-before:avoid}
.grid{display:block;columns:2;column-gap:2rem}
.wide{overflow:visible;background:none}
.facts .wide{break-inside:auto}
.facts caption,.facts thead,.facts tbody tr:nth-child(-n+2){break-after:avoid}
.facts tbody tr:nth-last-child(-n+3){break-before:avoid}
.contents,details:not([open]){display:none}
"""


def style_sheet() -> str:
    """All rules, on one line."""
    light = "".join(f".{level}{{color:{on_white}}}" for level, (on_white, _) in _LEVELS.items())
    dark = "".join(f".{level}{{color:{on_black}}}" for level, (_, on_black) in _LEVELS.items())
    rules = (
        f"{_PAGE}{light}@media screen and (prefers-color-scheme:dark){{{_DARK}{dark}{dark_rules()}}}"
        f"@media print{{{_PRINT}}}"
    )
    return rules.replace("\n", "")
