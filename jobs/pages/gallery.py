"""Pictures in a grid. A press enlarges one in a dialog; mask on and off, also by keyboard."""

from collections.abc import Iterable

from maskfleet.jobs.pages.markup import Html, html, joined

_EMPTY = "data:image/gif;base64,R0lGODlhAQABAAAAACH5BAEKAAEALAAAAAABAAEAAAICTAEAOw=="

CONTROLS = Html(
    '<div class="controls"><button class="press" type="button" data-do="mask" aria-pressed="true">Masks</button>'
    '<span class="small soft">Press a picture to enlarge it.'
    '<span class="keys"> <kbd>M</kbd> turns masks on and off.</span></span></div>'
)
"""The switch of all masks, above the first grid."""

DIALOG = html(
    '<dialog aria-label="Enlarged image"><div class="stage"><img src="{empty}" alt=""></div><div class="beside">'
    '<div class="controls">'
    '<button class="press" type="button" data-do="before" aria-label="Previous image">←</button>'
    '<button class="press" type="button" data-do="next" aria-label="Next image">→</button>'
    '<button class="press" type="button" data-do="mask" aria-pressed="true">Mask</button>'
    '<button class="press" type="button" data-do="close">Close</button>'
    '<span class="small soft place" aria-live="polite"></span>'
    '<span class="small soft keys"><kbd>←</kbd> <kbd>→</kbd> other images, <kbd>M</kbd> mask, '
    "<kbd>Esc</kbd> close</span>"
    '</div><div class="words"></div></div></dialog>',
    empty=_EMPTY,
)  # fmt: skip
"""The dialog, once per page."""


def enlargeable(masked: Html, plain: Html | None, *, name: str, caption: Html) -> Html:
    """Return a picture of a grid.

    Args:
        masked: The image with its mask, of class "masked".
        plain: The image without its mask, of class "plain", or None.
        name: Name of the image, for those who do not see it.
        caption: Words below it.
    """
    return html(
        '<li><figure><button class="look" type="button" aria-label="Enlarge {name}">{plain}{masked}</button>'
        "<figcaption>{caption}</figcaption></figure></li>",
        name=name, plain=plain or Html(), masked=masked, caption=caption,
    )  # fmt: skip


def grid(pictures: Iterable[Html]) -> Html:
    """Return pictures as a grid."""
    return html('<ul class="gallery">{pictures}</ul>', pictures=joined(pictures))
