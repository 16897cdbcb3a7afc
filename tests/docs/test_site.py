"""The site builds without a warning, links included, and asks no other server for anything."""

import importlib.util
import re
import subprocess
import sys

import pytest
from docs.pages import ROOT

import maskfleet

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="needs the extra `docs`"),
]

ELSEWHERE = re.compile(r"(https?:)?//")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def test_every_page_loads_its_parts_from_the_site(site):
    """Scripts, styles and pictures. Only readers follow links to other sites."""
    pages = {path.name: path.read_text("utf-8") for path in site.glob("*.html")}
    assert {"index.html", "quick-start.html", "api.html", "measurements.html"} <= set(pages)
    for name, text in pages.items():
        loaded = re.findall(r"""<(?:script|img|source|iframe)[^>]*? src(?:set)?=["']?([^"' >]+)""", text)
        loaded += re.findall(
            r"""<link rel=["']?(?:stylesheet|icon|preload|preconnect)[^>]*? href=["']?([^"' >]+)""", text
        )
        assert loaded, name
        for place in loaded:
            assert not ELSEWHERE.match(place), f"{name}: {place}"
            assert name == "404.html" or (site / place.partition("?")[0]).exists(), f"{name}: {place}"
    for path in site.glob("**/*.css"):
        assert not re.search(r"""url\(["']?(https?:)?//""", path.read_text("utf-8")), path


def test_every_name_of_the_package_has_its_entry(site):
    text = (site / "api.html").read_text("utf-8")
    for name in maskfleet.__all__:
        value = getattr(maskfleet, name)
        assert f'id="{value.__module__}.{value.__qualname__}"' in text, name


def test_links_to_files_that_are_no_pages_are_text(site):
    text = (site / "guarantees.html").read_text("utf-8")
    assert "test_accounting.py" in text
    assert not re.search(r'href="[^"]*test_accounting', text)
