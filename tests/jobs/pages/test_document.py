import base64
import hashlib
import re

from maskfleet.jobs.pages.document import document
from maskfleet.jobs.pages.markup import html


def test_the_policy_allows_this_style_and_script_only():
    text = document("<title>", html("<p>{x}</p>", x="half a surrogate: \ud800")).decode()
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert "default-src &#x27;none&#x27;" in policy
    assert "unsafe" not in policy
    for tag in ("style", "script"):
        (inner,) = re.findall(f"<{tag}>(.*)</{tag}>", text, re.DOTALL)
        assert base64.b64encode(hashlib.sha256(inner.encode()).digest()).decode() in policy
    assert "<title>&lt;title&gt;</title>" in text
    assert "http" not in re.sub("http-equiv", "", text)
    assert 'name="viewport"' in text
