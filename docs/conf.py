"""Sphinx's settings: Markdown pages, furo, nothing loaded from elsewhere. `make docs` builds the site."""

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS)]

import pages_from_code

project = "Darkroom"
html_title = "Darkroom"
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["generated"]
highlight_language = "none"
default_role = "code"  # a name between single backticks in a docstring

html_theme = "furo"
html_copy_source = False
html_show_sourcelink = False
html_show_copyright = False

myst_heading_anchors = 4
myst_linkify_fuzzy_links = False

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
nitpick_ignore_regex = [(r"py:.*", r"(np|numpy|Image|PIL|collections|curate|NoneType)\b.*")]

pages_from_code.write(DOCS / "generated")
