"""The frame of every page: head, style, script, and a policy under which nothing outside the file is loaded or run."""

import base64
import hashlib
from functools import cache
from importlib.resources import files

from maskfleet.jobs.pages.markup import Html, html

_POLICY = (
    "default-src 'none'; img-src data:; style-src 'sha256-{style}'; script-src 'sha256-{script}'; "
    "base-uri 'none'; form-action 'none'"
)


def document(title: str, body: Html) -> bytes:
    """Return a complete page as UTF-8. It holds everything it needs and asks nothing of any network.

    Args:
        title: Title of the window.
        body: Content of the page.
    """
    style, script = _part("style.css"), _part("script.js")
    policy = _POLICY.format(style=_digest(style), script=_digest(script))
    page = html(
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        '<link rel="icon" href="data:,">\n<title>{title}</title>\n<style>{style}</style>\n</head>\n'
        "<body>\n{body}\n<script>{script}</script>\n</body>\n</html>\n",
        policy=policy, title=title, style=Html(style), body=body, script=Html(script),
    )  # fmt: skip
    return page.encode("utf-8", "replace")  # half a surrogate in a message is no reason for having no page


@cache
def _part(name: str) -> str:
    return files("maskfleet.jobs.pages").joinpath(name).read_text("utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
