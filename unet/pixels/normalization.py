"""What a network sees of stored numbers v: (v - offset) / divisor, band by band, as its weights or a job declare.

Loads no library, since the job file's schema takes it from here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple, Self, get_args

PerImage = Literal["zscore", "minmax"]
"""Forms of normalisation by the numbers of each image."""

DTYPES = ("uint8", "uint16", "int16", "float16", "float32")
"""Types in which numbers travel to the device."""


class Levels(NamedTuple):
    """The offset and the divisor of each band of an image.

    Attributes:
        offset: The number seen as 0, one per band.
        divisor: The difference of numbers seen as 1, one per band.
    """

    offset: tuple[float, ...]
    divisor: tuple[float, ...]

    @classmethod
    def of_white(cls, white: float, channels: int) -> Self:
        """Return the levels of numbers from 0 to `white`."""
        return cls((0.0,) * channels, (white,) * channels)


@dataclass(frozen=True)
class Normalization:
    """A declared normalisation. One of its four forms is set.

    Attributes:
        scale: Number by which pixels are divided first; `mean` and `std` are in its units.
        mean: Mean subtracted then, one number or one per band; empty for 0.
        std: Number divided by at last, likewise; empty for 1.
        per_image: "zscore" subtracts the mean of each band of the image and divides by its standard deviation; "minmax"
            maps its smallest number to 0 and its largest to 1.
        percentile: Percentiles of each band of the image, mapped to 0 and 1.
        range: Numbers mapped to 0 and 1.
    """

    scale: float | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    per_image: PerImage | None = None
    percentile: tuple[float, float] | None = None
    range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        fixed = self.scale is not None or bool(self.mean) or bool(self.std)
        forms = [fixed, self.per_image is not None, self.percentile is not None, self.range is not None]
        if sum(forms) != 1:
            raise ValueError(
                "has several forms or none; set only scale (with mean and std), per_image, percentile or range"
            )
        if not all(map(math.isfinite, (*self.fixed(1), *(self.percentile or ()), *(self.range or ())))):
            raise ValueError("has numbers beyond those of floats; set smaller ones")
        if (self.scale is not None and self.scale <= 0) or not all(value > 0 for value in self.std):
            raise ValueError("has a scale or std of 0 or less; set numbers above 0")
        if self.per_image is not None and self.per_image not in get_args(PerImage):
            raise ValueError(f"per_image must be one of {', '.join(get_args(PerImage))}")
        if self.percentile is not None and not 0 <= self.percentile[0] < self.percentile[1] <= 100:
            raise ValueError("needs a percentile of two numbers from 0 to 100, such as [1, 99]")
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("needs a range of two numbers, the lower first, such as [0, 4095]")

    @classmethod
    def of_table(cls, table: Mapping[str, Any]) -> Self:
        """Return the normalisation in a table of a job file or of a weights file.

        Raises:
            ValueError: A key is unknown, a value is wrong, or the table declares several forms or none.
        """
        if unknown := set(table) - set(cls.__dataclass_fields__):
            raise ValueError(f"unknown key {min(unknown)}; known are {', '.join(cls.__dataclass_fields__)}")
        values: dict[str, Any] = {}
        for name, value in table.items():
            if value is None or value in ((), []):
                continue
            if name == "per_image":
                values[name] = value
            elif name == "scale":
                values[name] = float(value)
            else:
                several = value if isinstance(value, Sequence) else (value,)
                values[name] = tuple(float(each) for each in several)
                if name in ("percentile", "range") and len(values[name]) != 2:
                    raise ValueError(f"needs two numbers as {name}, such as [1, 99]")
        return cls(**values)

    @property
    def table(self) -> dict[str, Any]:
        """The keys that are set, as JSON values."""
        stated = {name: value for name, value in asdict(self).items() if value is not None and value != ()}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in stated.items()}

    @property
    def by_image(self) -> bool:
        """Whether the levels of an image depend on its numbers."""
        return self.per_image is not None or self.percentile is not None

    def misfit(self, channels: int) -> str | None:
        """Return why this normalisation does not fit a number of bands, as a clause; None if it does."""
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, 1, channels):
                return f"{name} has {len(values)} numbers, and the network takes {channels} bands"
        return None

    def fixed(self, channels: int) -> list[float]:
        """Return the offset of each band, then the divisor of each, of the form with `scale`, `mean` and `std`."""
        scale = 1.0 if self.scale is None else self.scale
        mean, std = self.mean or (0.0,), self.std or (1.0,)
        every = [list(values) * (channels if len(values) == 1 else 1) for values in (mean, std)]
        return [scale * value for values in every for value in values]
