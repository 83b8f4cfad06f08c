"""Sphinx configuration; built with warnings as errors (``make docs``)."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import farwire
from farwire.xspec import KEYS

project = "farwire"
author = "The farwire contributors"
copyright = "2026, The farwire contributors"
version = release = farwire.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "farwire"
nitpicky = False

myst_enable_extensions = ["colon_fence", "deflist", "substitution"]
myst_heading_anchors = 3
myst_substitutions = {}

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False


def _keys_table() -> str:
    """The table of xspec keys, from the table that the parser uses."""
    rows = ["| key | for | meaning |", "| --- | --- | --- |"]
    for key in KEYS.values():
        where = "a transport" if key.transport else ", ".join(key.transports) if key.transports else "all"
        rows.append(f"| `{key.name}` | {where} | {key.help} |")
    return "\n".join(rows)


myst_substitutions["xspec_keys"] = _keys_table()
