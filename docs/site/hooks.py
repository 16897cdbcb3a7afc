"""Hook of MkDocs: pages that lie elsewhere in the repository, and links to its files.

The same Markdown is read in the repository and on the site. On the site, a link to another file of the repository leads
to its page if it is one of `ELSEWHERE`, and is plain text otherwise.
"""

import os
import posixpath
import re
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "reporting.md",
    "tests/benchmarks/README.md": "measurements.md",
    "unet/models/nuclei.md": "nuclei-model.md",
}
"""Pages outside docs/, by their path in the repository, and their names on the site."""

_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<path>[^)\s#]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages that lie elsewhere."""
    for path, name in ELSEWHERE.items():
        files.append(File.generated(config, name, abs_src_path=os.path.join(_root(config), path)))
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Point links to other files of the repository at their pages."""
    root = _root(config)
    assert page.file.abs_src_path
    folder = posixpath.dirname(os.path.relpath(page.file.abs_src_path, root))

    def linked(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match["path"]))
        if "://" in match["path"] or not os.path.exists(os.path.join(root, path)):
            return match[0]
        name = ELSEWHERE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        return match["text"] if name is None else f"[{match['text']}]({name}{match['anchor'] or ''})"

    return _LINK.sub(linked, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Mark the empty corners of tables as what they are: no headings."""
    return html.replace("<th></th>", "<td></td>")


def _root(config: MkDocsConfig) -> str:
    return os.path.dirname(config.docs_dir)
