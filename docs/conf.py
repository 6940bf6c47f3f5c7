"""The site, built by `make docs` from the files in this folder, those in the root, and the docstrings.

Neither the build nor the site needs a network (hence no :math:, which loads MathJax). A broken link fails the build.
"""

import re
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
REPOSITORY = "https://github.com/lightning-hydra-multitask/lightning-hydra-multitask"
# Files in the root, and the pages that include them.
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}

project = "lightning-hydra-multitask"
author = "The lightning-hydra-multitask contributors"
copyright = "2026, the lightning-hydra-multitask contributors"
version = release = installed(project)

extensions = ["myst_parser", "sphinx.ext.apidoc", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["benchmark/*", "narrow/*"]  # tables that a page includes or links to
myst_heading_anchors = 3
suppress_warnings = ["misc.highlighting_failure"]  # <placeholders> in commands are not bash
# One page per package, in reference/, which git ignores.
apidoc_modules: list[dict[str, Any]] = [
    {
        "path": "../src/multitask",
        "destination": "reference",
        "automodule_options": {"members"},
    }
]
autodoc_default_options = {"ignore-module-all": True}  # describe names only where they are defined
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
html_theme = "furo"
html_title = f"{project} {version}"


def relinked(text: str) -> str:
    """Return the text of a root file with links to pages of the site or to the repository."""

    def link(match: re.Match[str]) -> str:
        target = match[1]
        path = target.partition("#")[0]
        if not path or "://" in path or not (ROOT / path).exists():
            return match[0]  # a link within the page, an external link, or an error of the build
        if path in PAGES:
            return f"]({target.replace(path, PAGES[path])})"
        if path.startswith("docs/") and (ROOT / path).is_file():
            return f"]({target.removeprefix('docs/')})"
        return f"]({REPOSITORY}/tree/main/{target})"

    return re.sub(r"\]\(([^)\s]+)\)", link, text)


def _included(app: Sphinx, path: Path, parent: str, content: list[str]) -> None:
    content[0] = relinked(content[0])


def _bars(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    # |x| is an absolute value here, but a substitution in reStructuredText.
    literals = re.compile(r"(``.*?``)")
    for number, line in enumerate(lines):
        parts = literals.split(line)
        parts[::2] = [part.replace("|", r"\|") for part in parts[::2]]
        lines[number] = "".join(parts)


def setup(app: Sphinx) -> None:
    """Connect the handlers that edit texts before they are rendered."""
    app.connect("include-read", _included)
    app.connect("autodoc-process-docstring", _bars)
