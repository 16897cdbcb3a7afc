"""A headless Chromium for pages. Tests are skipped where there is none."""

import shutil
from contextlib import contextmanager

import pytest

SIZES = [
    (390, "dark"),
    (1440, "light"),
    pytest.param(390, "light", marks=pytest.mark.slow),
    pytest.param(1440, "dark", marks=pytest.mark.slow),
]
"""Widths in px, of a telephone and of a desktop, with the colour schemes."""

FEW = [*SIZES[:1], pytest.param(*SIZES[1], marks=pytest.mark.slow)]
"""The same for pages that share the style of another one, which is tried in more."""


@contextmanager
def chromium():
    """Start Chromium."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("Chromium is not installed")
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser, file, *, width, scheme):
    """Open a file as a page. Afterwards, check that nothing was logged, asked of a network, or left unloaded."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    logged, asked = [], []
    page.on("console", lambda message: logged.append(message.text))
    page.on("pageerror", lambda error: logged.append(str(error)))
    page.on("request", lambda request: None if request.url.startswith("data:") else asked.append(request.url))
    page.goto(file.as_uri())
    yield page
    assert logged == []
    assert asked == [file.as_uri()]
    assert page.evaluate("[...document.images].filter(each => !each.complete || !each.naturalWidth).length") == 0
    assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    context.close()


def violations(page) -> list[str]:
    """Return what axe-core finds."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    found = axe.run(page).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['target']}" for each in found]
