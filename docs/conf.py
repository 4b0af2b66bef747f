"""How the documentation is built: `make docs`."""

from importlib import metadata

import neurotome.cli

project = "neurotome"
version = release = metadata.version("neurotome")
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "cyclopts.ext.sphinx"]
html_theme = "furo"
html_title = "neurotome"
exclude_patterns = ["_build"]
myst_heading_anchors = 3  # pages point at each other's headings, as they do where the source is read
autodoc_member_order = "bysource"
default_role = "code"
toc_object_entries = False

# the page of commands names an object, and the command line is made only when it is asked for
neurotome.cli.app = neurotome.cli.make_app()
