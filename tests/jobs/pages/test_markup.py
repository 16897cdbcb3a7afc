from maskfleet.jobs.pages.markup import Html, html, joined


def test_everything_from_outside_is_escaped():
    hostile = "<script>alert(1)</script>\"'&{x}"
    found = html('<p title="{a}">{a}</p>', a=hostile)
    assert "<script" not in found
    assert found.count("&quot;") == found.count("&#x27;") == 2
    assert "{x}" in found  # a key is never a template


def test_markup_is_inserted_as_it_is_and_numbers_keep_their_format():
    assert html("{a}{n:.1f}", a=html("<b>{x}</b>", x="<"), n=1.25) == "<b>&lt;</b>1.2"
    assert joined([Html("<i>"), Html("</i>")]) == "<i></i>"
