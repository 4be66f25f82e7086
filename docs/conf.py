"""Sphinx's settings; docs/build_site.py (`make docs`) lays the pages out."""

project = html_title = "poa_ds"
extensions = ["myst_parser"]
html_theme = "furo"
html_copy_source = html_show_sphinx = False
myst_heading_anchors = 3
