"""Pictures inside a page, as data URLs."""

import base64
import io

from PIL import Image

from maskfleet.jobs.pages.markup import Html, html

_QUALITY = 82


def picture(image: Image.Image, *, text: str, kind: str = "", lossless: bool = False) -> Html:
    """Return a picture as an element of a page.

    Args:
        image: The picture.
        text: What it shows, for those who do not see it; "" if the text beside it says so.
        kind: Class of the style sheet.
        lossless: Whether every pixel is kept.
    """
    sink = io.BytesIO()
    image.save(sink, "WEBP", lossless=lossless, quality=_QUALITY, method=3)
    return html(
        '<img class="{kind}" src="data:image/webp;base64,{data}" width="{width}" height="{height}" alt="{text}">',
        kind=kind, data=base64.b64encode(sink.getvalue()).decode(), width=image.width, height=image.height, text=text,
    )  # fmt: skip
