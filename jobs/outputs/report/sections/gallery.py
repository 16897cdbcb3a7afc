"""The gallery: images with their masks, by lot and at the edges of the statistics."""

from collections import Counter

from maskfleet.jobs.outputs.report.gathered.material import Material
from maskfleet.jobs.outputs.report.gathered.picks import Group, Pick
from maskfleet.jobs.outputs.report.gathered.pictures import Picture
from maskfleet.jobs.pages.gallery import CONTROLS, enlargeable, grid
from maskfleet.jobs.pages.markup import Html, html, joined
from maskfleet.jobs.pages.pictures import picture
from maskfleet.jobs.words import counted, percent


def gallery(material: Material) -> Html:
    """Return the gallery; nothing without pictures."""
    if not material.pictures and not material.unpictured:
        return Html()
    without = html('<p class="note">Without pictures: {reason}.</p>', reason=material.unpictured)
    return html(
        '<section id="gallery"><h2>Images and masks</h2>{controls}{without}{missing}{groups}</section>',
        controls=CONTROLS if material.pictures else Html(),
        without=without if material.unpictured else Html(), missing=_missing(material),
        groups=joined(_group(material, each) for each in material.groups),
    )  # fmt: skip


def _missing(material: Material) -> Html:
    """Say how many images are shown as masks alone, with the most frequent reasons."""
    reasons = Counter(_kind(shown.missing) for shown in material.pictures.values() if shown.missing)
    if not reasons:
        return Html()
    count, all_ = sum(reasons.values()), len(material.pictures)
    which = "All pictures" if count == all_ else f"{counted(count, 'picture')} of {all_}"
    verb = "shows" if count == 1 and all_ > 1 else "show"
    return html(
        '<p class="note">{which} {verb} the mask alone: {reasons}.</p>',
        which=which, verb=verb, reasons="; ".join(reason for reason, _ in reasons.most_common(3)),
    )  # fmt: skip


def _kind(reason: str) -> str:
    """Return a reason without the name of the image."""
    for kind in ("no longer exists", "has changed since its mask was made"):
        if reason.endswith(kind):
            return f"the image {kind}"
    return reason.rstrip(".")


def _group(material: Material, group: Group) -> Html:
    shown = [
        _shown(pick, material.pictures[pick.row["key"]]) for pick in group.picks if pick.row["key"] in material.pictures
    ]
    if not shown:
        return Html()
    about = html('<p class="small soft">{about}</p>', about=group.about) if group.about else Html()
    return html("<h3>{title}</h3>{about}{grid}", title=group.title, about=about, grid=grid(shown))


def _shown(pick: Pick, shown: Picture) -> Html:
    row = pick.row
    key = str(row["key"])
    what = "mask alone" if shown.missing else "image with mask" if shown.plain is not None else "image"
    plain = None
    if shown.plain is not None:
        plain = picture(shown.plain, text=f"{key}, image", kind="plain")
    caption = html(
        '<bdi class="key" title="{key}">{key}</bdi>{reason}{areas}',
        key=key, reason=_line(pick.reason), areas=_line(_areas(row)),
    )  # fmt: skip
    masked = picture(shown.masked, text=f"{key}, {what}", kind="masked")
    return enlargeable(masked, plain, name=key, caption=caption)


def _line(text: str) -> Html:
    return html('<span class="line">{text}</span>', text=text) if text else Html()


def _areas(row: dict[str, object]) -> str:
    """Return the size of an image and the share of each class that it has, the largest three."""
    fractions = row["class_fraction"]
    size = f"{row['width']}×{row['height']} px"
    if not isinstance(fractions, list) or len(fractions) < 2:
        return size
    found = [(share, place) for place, share in enumerate(fractions) if place and share > 0]
    if not found:
        return f"{size}, empty"
    if len(fractions) == 2:
        return f"{size}, {percent(fractions[1])} foreground"
    largest = sorted(found, reverse=True)[:3]
    return f"{size}; " + ", ".join(f"class {place} {percent(share)}" for share, place in largest)
