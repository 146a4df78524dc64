"""The site: sphinx-build -W docs site (extra docs)."""

import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

sys.path.insert(0, str(Path(__file__).parents[1]))

from gradscope.version import __version__

project = "gradscope"
author = "The gradscope developers"
release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["man"]
templates_path = ["_templates"]
myst_heading_anchors = 3  # links to headings are checked as those to pages are
html_theme = "furo"
html_title = f"gradscope {release}"
html_copy_source = False
nitpicky = True


class Translator(HTML5Translator):
    """Captions of tables of contents are headings without a level, which screen readers cannot place."""

    def starttag(self, *args: Any, **attributes: Any) -> str:
        """An opening tag."""
        level = {"aria-level": "2"} if attributes.get("ROLE") == "heading" else {}
        tag: str = super().starttag(*args, **attributes, **level)
        return tag


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.set_translator("html", Translator)
