"""Masks among the images of an input, recognised by their names: `x_mask.png` beside `x.png`, or a folder `masks/`."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from maskfleet.jobs.images.formats import ENDINGS

_NAME = re.compile(r"([._-](?:masks?|seg|labels?|gt|labelids?))(\.[^.]+)$", re.IGNORECASE)
_FOLDERS = ("masks", "mask", "labels", "label", "gt", "annotations", "segmentation", "segmentations")


class Pairs(NamedTuple):
    """Images and masks for a training, by place.

    Attributes:
        images: Folder of the images; "" for the input.
        masks: Folder of the masks; "" for the input.
        mask_name: Name of the mask of an image, as in `finetune.mask_name`.
    """

    images: str
    masks: str
    mask_name: str


class MaskFiles(NamedTuple):
    """Masks found by name.

    Attributes:
        patterns: Patterns of `exclude` matching them.
        pairs: How they belong to the images; None if unknown.
    """

    patterns: tuple[str, ...] = ()
    pairs: Pairs | None = None

    @classmethod
    def among(cls, keys: Sequence[str]) -> "MaskFiles":
        """Find the masks among the keys of an input. An input of masks alone has none: somebody wants it so."""
        patterns = {key: pattern for key in keys if (pattern := _pattern(key))}
        if not patterns or len(patterns) == len(keys):
            return cls()
        images = [key for key in keys if key not in patterns]
        suffixes = {match[1] for key in patterns if (match := _NAME.search(key))}
        folders = {key.partition("/")[0] for key in patterns if key.partition("/")[0].lower() in _FOLDERS}
        pairs = None
        if len(suffixes) == 1 and not folders:
            pairs = Pairs("", "", f"{{stem}}{suffixes.pop()}")
        elif len(folders) == 1 and not suffixes:
            beside = {key.partition("/")[0] if "/" in key else "" for key in images}
            pairs = Pairs(beside.pop() if len(beside) == 1 else "", folders.pop(), "{stem}")
        return cls(tuple(sorted(set(patterns.values()))), pairs)


def folder_beside(place: str) -> str:
    """Return the name of the folder of masks beside a local folder of images, or "".

    Args:
        place: Absolute path.
    """
    with suppress(OSError):
        for name in sorted(os.listdir(os.path.dirname(place))):
            path = os.path.join(os.path.dirname(place), name)
            if name.lower() in _FOLDERS and os.path.isdir(path) and not os.path.samefile(path, place):
                return name
    return ""


def _pattern(key: str) -> str | None:
    """Return the pattern of `exclude` for a mask, or None for an image."""
    *folders, name = key.split("/")
    for folder in folders:
        if folder.lower() in _FOLDERS:
            return f"{folder}/"
    match = _NAME.search(name)
    return f"*{match[0]}" if match and match[2].lower() in ENDINGS else None
