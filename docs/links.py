"""Links of the project's pages to other sites: each is asked for once, and one that is gone is an error.

    python docs/links.py

Where a site cannot be reached, or answers no program, nothing is known of its page, which is said. Exit
code 1 where a page is gone (404, 410).
"""

from __future__ import annotations

import re
import sys
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Of GitHub and some others programs without a name are refused.
HEADERS = {"User-Agent": "Mozilla/5.0 (gradscope docs/links.py)"}
GONE, SECONDS = {404, 410}, 10


def links() -> dict[str, list[str]]:
    """{address: the pages with it}, outside of code."""
    found: dict[str, list[str]] = {}
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*/README.md")]
    for page in sorted(pages):
        prose = re.sub(r"```.*?```|`[^`\n]*`(?!\])", "", page.read_text("utf-8"), flags=re.DOTALL)
        for address in re.findall(r"\]\((https?:[^)]*)\)|<(https?:[^>]*)>", prose):
            found.setdefault("".join(address), []).append(str(page.relative_to(ROOT)))
    return found


def answer(address: str) -> int | str:
    """The status that a site answers with, or why there is none."""
    try:
        with urllib.request.urlopen(
            urllib.request.Request(address, headers=HEADERS), timeout=SECONDS
        ) as site:
            return int(site.status)
    except urllib.error.HTTPError as error:
        return error.code
    except (OSError, ValueError) as error:
        return str(error)


def main() -> int:
    """A line for each."""
    pages = links()
    with ThreadPoolExecutor(len(pages)) as pool:
        answers = dict(zip(pages, pool.map(answer, pages), strict=True))
    for address, found in answers.items():
        known = isinstance(found, int) and found < 400
        word = "gone" if found in GONE else "there" if known else "not known"
        print(f"{word:9}  {address}" + ("" if known else f"  ({found}; {', '.join(pages[address])})"))
    return int(any(found in GONE for found in answers.values()))


if __name__ == "__main__":
    sys.exit(main())
