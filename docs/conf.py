"""The site: sphinx-build -W docs site (extra docs)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from gradscope.version import __version__

project = "gradscope"
author = "The gradscope developers"
release = __version__
extensions = ["myst_parser"]
exclude_patterns = ["man"]
myst_heading_anchors = 3  # links to headings are checked as those to pages are
myst_enable_extensions = ["dollarmath"]
html_theme = "furo"
html_title = f"gradscope {release}"
html_copy_source = False
nitpicky = True
