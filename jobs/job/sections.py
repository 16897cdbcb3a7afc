"""The sections of a job file, as frozen and validated values.

The docstring below each key is its entry in the reference (`jobs.job.reference`). Knows nothing about files, nor about
the code acting on these values.
"""

from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from maskfleet.jobs.errors import unsigned
from maskfleet.jobs.job.places import absolute
from maskfleet.jobs.job.section import Section
from maskfleet.jobs.job.values import Form
from maskfleet.jobs.masks.formats import FORMATS
from maskfleet.unet.pixels.normalization import Normalization

Reason = Literal["new", "changed", "stale", "failed", "redo"]
"""Why an image is pending: never seen, of another version, made with another fingerprint, failed temporarily, or named
by `maskfleet redo`."""

FailureKind = Literal["decode", "oom", "io", "crash"]
"""Kind of failure of an image."""


class InputOptions(Section):
    """How the buckets of the input are read, where this differs from the output. Never part of the fingerprint."""

    profile: str | None = Field(default=None, examples=["archive"])
    """AWS profile for the input. Without it: `profile` of the job."""
    endpoint: Annotated[str | None, Form("the URL of a server, without a path")] = Field(
        default=None, pattern=r"^https?://[^/\s@]+/?$", examples=["https://s3.example.org"]
    )
    """URL of the S3 server with the input, such as "https://s3.example.org". Without it: the environment's."""
    anonymous: bool = False
    """Read public buckets without credentials."""
    requester_pays: bool = False
    """Agree to pay for the requests, for buckets with "requester pays"."""


class Normalize(Section):
    """What the network sees of stored numbers, in one of four forms: `scale` with `mean` and `std`, or one other key.

    It goes before the declaration in the weights. Without either: 8 bits as v / 255, 16 bits as v / 65535, floats in
    [0, 1] as they are.
    """

    scale: float | None = Field(default=None, gt=0, examples=[10000])
    """Number by which every number is divided first. `mean` and `std` are in its units."""
    mean: float | tuple[float, ...] | None = Field(default=None, examples=[[0.1, 0.12, 0.2]])
    """Mean subtracted after `scale`: one number, or one per band. Without it: 0."""
    std: float | tuple[float, ...] | None = Field(default=None, examples=[[0.05, 0.05, 0.1]])
    """Number by which the difference is divided: one, or one per band. Without it: 1."""
    per_image: Literal["zscore", "minmax"] | None = Field(default=None, examples=["zscore"])
    """"zscore" subtracts the mean of each band of the image and divides by its standard deviation. "minmax" maps the
    smallest number of each band of the image to 0 and the largest to 1."""
    percentile: tuple[float, float] | None = Field(default=None, examples=[[1, 99]])
    """Percentiles of each band of the image, mapped to 0 and 1. Nothing is clipped."""
    range: tuple[float, float] | None = Field(default=None, examples=[[0, 4095]])
    """Numbers mapped to 0 and 1."""

    @property
    def declared(self) -> Normalization | None:
        """The normalisation; None if no key is set."""
        stated = self.model_dump(exclude_none=True)
        return Normalization.of_table(stated) if stated else None

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        _ = self.declared
        return self


class Inference(Section):
    """How the network is applied. Everything here that can change a mask is part of the fingerprint."""

    scale: float = Field(default=1.0, gt=0, le=4)
    """Resize factor (Pillow's bicubic) before the network. The mask keeps the size of the image."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the convolutions. "auto" picks the fastest on the device that reaches `min_agreement`."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(default="auto", examples=[32])
    """Images of one shape per forward pass. Batches are halved when memory runs out."""
    min_agreement: float = Field(default=0.999, ge=0, le=1)
    """Share of pixels with the same class as in fp32, measured on a sample of the input. Below it, the next more exact
    precision is used."""
    threshold: float | tuple[float, ...] | None = Field(default=None, examples=[0.5])
    """Probability above which a pixel may belong to a class: one for all classes after the first, or one for each.
    Without it: 0.5 for a network with one class, otherwise the most likely class."""
    tile: Annotated[int, Field(ge=0)] | Literal["auto"] = Field(default="auto", examples=[1024])
    """Side of the core of each tile in px, a multiple of the network's grid (16 for a U-Net); 0 never tiles. "auto"
    tiles images larger than 2²² px, and images larger than memory."""
    tile_mode: Literal["exact", "approximate"] = "exact"
    """"exact" tiles only if the stitched logits equal those of the whole image. "approximate" also tiles bilinear
    networks, with small differences."""
    tta: Literal["off", "flips", "d4"] = "off"
    """Test-time augmentation: average the probabilities of 4 views ("flips") or of 8, with quarter turns ("d4")."""
    orientation: Literal["stored", "upright"] = "stored"
    """"stored" keeps the pixel grid of the file. "upright" applies its EXIF orientation to image and mask."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" uses the GPU if there is one."""
    bands: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(), examples=[[4, 3, 2]])
    """Bands of each image that the network takes, in this order, counted from 1. Without it: all, which must be as many
    as the network takes; of colour images without alpha, and of grey ones three times, for a network of three."""
    normalize: Normalize = Normalize()

    @field_validator("threshold")
    @classmethod
    def _probabilities(cls, value: float | tuple[float, ...] | None) -> float | tuple[float, ...] | None:
        values = value if isinstance(value, tuple) else () if value is None else (value,)
        if not all(0 < item < 1 for item in values):
            raise ValueError("must lie between 0 and 1")
        return value


class Masks(Section):
    """How masks are stored."""

    format: str = Field(default="png", json_schema_extra={"enum": list(FORMATS)})
    """"png": one PNG per image below masks/, and one tar of PNGs per shard. "tar": the tars only. "parquet": one table
    of statistics and PNGs per shard. "rle": COCO run lengths in the statistics. "none": no masks, statistics only."""
    values: tuple[int | tuple[int, int, int], ...] | None = Field(default=None, examples=[[0, 255]])
    """Pixel value of each class in a mask: 0 to 255, or [red, green, blue]. Without it: the values stored with the
    weights, otherwise 0 and 255 for two classes and 0, 1, 2 … for more."""

    @field_validator("format")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in FORMATS:
            raise ValueError(f"must be one of {', '.join(FORMATS)}")
        return name

    @field_validator("values")
    @classmethod
    def _bytes(cls, values: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if values is None:
            return None
        samples = [sample for value in values for sample in (value if isinstance(value, tuple) else (value,))]
        if not all(0 <= sample <= 255 for sample in samples):
            raise ValueError("values must lie in 0 … 255")
        if len({type(value) for value in values}) > 1:
            raise ValueError("values must be all numbers or all RGB")
        if len(set(values)) != len(values):
            raise ValueError("each class needs a different value")
        return values


class Run(Section):
    """How the work is divided, and its limits."""

    shard_size: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(default="auto", examples=[64])
    """Images per shard, the unit of work and of commit. "auto" is a 32nd of the images, from 16 to 512."""
    max_error_rate: float = Field(default=0.01, ge=0, le=1)
    """Share of failed images above which the run is incomplete (exit code 1)."""
    max_image_pixels: int = Field(default=89_478_485, ge=1)
    """Larger images fail on their header, before decoding. The default is the warning limit of Pillow."""
    decode_seconds: float = Field(default=20, gt=0)
    """Time limit for decoding one image, in seconds."""
    decode_memory: int = Field(default=2 * 2**30, ge=2**27)
    """Memory limit of one decoding process, in bytes, without the shared pixel buffers."""
    attempts: int = Field(default=3, ge=1, le=20)
    """Worker crashes tolerated per shard before it is split, and per image before it fails."""

    on_overlap: Literal["skip", "fail", "wait"] = "fail"
    """If another run holds the output: "fail" exits with code 4, "skip" with code 0, "wait" waits for it to end."""
    deadline: Annotated[str | None, Form("a number followed by s, m or h")] = Field(
        default=None, pattern=r"^[0-9]+(\.[0-9]+)?[smh]$", examples=["90m", "6h"]
    )
    """Time after which no further shards start, such as "90m" or "6h". The next run resumes. Without it: no limit."""
    webhook: Annotated[str | None, Form("an http(s):// URL, or $NAME of an environment variable")] = Field(
        default=None, pattern=r"^(https?://|\$[A-Z_][A-Z0-9_]*$)", examples=["https://example.org/hook", "$HOOK"]
    )
    """URL that receives the outcome as JSON (POST), or `$NAME` of an environment variable holding the URL. A URL with a
    password or token is refused: a job is stored."""

    @field_validator("webhook")
    @classmethod
    def _without_secrets(cls, value: str | None) -> str | None:
        if value is not None and unsigned(value) != value:
            raise ValueError("must not contain a password or token; put the URL into an environment variable: $NAME")
        return value

    @property
    def deadline_seconds(self) -> float | None:
        """`deadline` in seconds."""
        if self.deadline is None:
            return None
        return float(self.deadline[:-1]) * {"s": 1, "m": 60, "h": 3600}[self.deadline[-1]]


class Selection(Section):
    """Which of the pending images a run processes."""

    only: tuple[Reason, ...] = Field(default=(), examples=[["new"]])
    """Process only images pending for these reasons. Empty: for any reason."""
    classes: tuple[FailureKind, ...] = Field(default=(), examples=[["crash", "oom"]])
    """Process only images with failures of these kinds, including permanent ones, such as corrupt files."""
    since: datetime | None = Field(default=None, examples=["2026-11-24", "2026-11-24T18:00:00Z"])
    """Process only images modified at or after this time. A time without a zone is UTC."""
    limit: int | None = Field(default=None, ge=1, examples=[1000])
    """Process at most this many images, the first in order of key. Listing of the input stops there."""
    sample: int | None = Field(default=None, ge=1, examples=[1000])
    """Process a sample of this many images from the whole input. The sample is the same every time."""

    @field_validator("only", "classes", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("since", mode="before")
    @classmethod
    def _written_out(cls, value: Any) -> Any:
        if isinstance(value, str):
            with suppress(ValueError):
                return datetime.fromisoformat(value)
        # pydantic also takes a number as the seconds since 1970.
        if value is not None and not isinstance(value, date):
            raise ValueError("must be a date or time")
        return value

    @field_validator("since")
    @classmethod
    def _in_utc(cls, value: datetime | None) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class Prices(Section):
    """Prices for the estimate of `maskfleet plan`. maskfleet knows no prices itself."""

    currency: str = "USD"
    """Currency shown with every cost."""
    gpu_hour: float = Field(default=0, ge=0)
    """One hour of one GPU, including its machine."""
    worker_hour: float = Field(default=0, ge=0)
    """One hour of one worker without a GPU."""
    get_1000: float = Field(default=0.0004, ge=0)
    """A thousand read requests."""
    put_1000: float = Field(default=0.005, ge=0)
    """A thousand write or list requests."""
    gb_month: float = Field(default=0.023, ge=0)
    """10⁹ bytes of output, stored for a month."""


class Finetune(Section):
    """Fine-tuning on corrected masks. Off unless `images` and `masks` are given."""

    images: str = Field(default="", examples=["corrected/images/"])
    """Training images: a folder or glob, local or s3://."""
    masks: str = Field(default="", examples=["corrected/masks/"])
    """Masks of the training images: a folder or glob, local or s3://."""
    mask_name: str = "{stem}"
    """Name of the mask of an image, without ending. `{stem}` is the image's key without ending, `{folder}` and `{name}`
    are its parts."""
    unpaired: Literal["refuse", "skip"] = "refuse"
    """Images without a mask, and masks without an image: "refuse" is an error, "skip" leaves them out."""
    values: tuple[int | tuple[int, int, int], ...] | None = Field(default=None, examples=[[0, 1]])
    """Pixel value of each class in these masks. Without it: the values stored with the weights, otherwise 0, 1, 2 …,
    otherwise the values found."""
    ignore: int | tuple[int, int, int] | None = Field(default=None, examples=[255])
    """Pixel value of no class, such as 255 in VOC and Cityscapes. These pixels take no part in loss and scores."""
    instances: bool = False
    """Whether these masks hold instance numbers: every value but 0 is class 1."""
    mask_orientation: Literal["stored", "upright"] | None = Field(default=None, examples=["upright"])
    """Pixels on which masks were drawn whose image has another EXIF orientation: as stored in the image file, or as
    viewers show it. Without it: such pairs are refused, unless `inference.orientation` is "upright"."""
    validation_share: float = Field(default=0.2, gt=0, lt=1)
    """Share of the pairs held back for validation, chosen by file content and never trained on."""
    start: Literal["weights", "random"] = "weights"
    """Initial network: the job's weights, or a new network with random weights."""
    width: int = Field(default=16, ge=1, le=256)
    """Channels of the first level of a new network."""
    recipe: Literal["default", "pytorch-unet"] = "default"
    """"default": AdamW, cross-entropy plus Dice loss, running mean of the weights. "pytorch-unet": RMSprop and loss of
    that project."""
    epochs: int = Field(default=30, ge=1)
    """Passes over the training pairs, at one crop per pair. Ignored if `steps` is a number."""
    steps: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(default="auto", examples=[2000])
    """Optimizer steps. "auto" follows from `epochs`."""
    crop: int = Field(default=256, ge=16, multiple_of=16)
    """Side of the training crops in px, a multiple of 16."""
    batch_size: int = Field(default=8, ge=1)
    """Crops per step, over all workers."""
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = Field(default="auto", examples=[3e-4])
    """Peak learning rate. "auto" is 3e-4, 1e-3 for a new network, and 1e-5 with the recipe "pytorch-unet"."""
    checkpointing: Literal["auto", "on", "off"] = "auto"
    """Activation checkpointing: less memory for more time. "auto" turns it on when memory runs out, then splits
    batches."""
    workers: int = Field(default=1, ge=1)
    """Training processes sharing each batch, with one GPU each if there are GPUs. More than 1 needs Ray Train:
    pip install 'maskfleet[train]'."""
    sync_batchnorm: bool = False
    """Whether batch normalisation spans all workers, instead of each worker's share of the batch."""
    validate_every: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(default="auto", examples=[100])
    """Steps between validations. "auto" is a tenth of all steps."""
    save_every: int = Field(default=100, ge=1)
    """Steps between checkpoints, and so the most a crash can cost."""
    pick: Literal["last", "best"] = "last"
    """Resulting weights: those of the last step, or those with the best validation score."""
    gate: Literal["better", "not-worse", "off"] = "better"
    """Condition for accepting the new weights, against the job's weights on the validation pairs, with 95 % confidence.
    "off" accepts any."""
    on_refused: Literal["stop", "base"] = "stop"
    """If the gate refuses the new weights, `run` exits with code 3 ("stop") or uses the job's weights ("base")."""
    store: Literal["fp32", "fp16"] = "fp32"
    """Number type in the new weights file."""
    seed: int = Field(default=0, ge=0)
    """Seed of all random choices."""

    @field_validator("images", "masks")
    @classmethod
    def _place(cls, value: str) -> str:
        return absolute(value) if value else ""

    @field_validator("mask_name")
    @classmethod
    def _pattern(cls, value: str) -> str:
        try:
            named = value.format(stem="*", folder="", name="*")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError("may contain only {stem}, {folder} and {name}") from error
        if "*" not in named:
            raise ValueError("must contain {stem} or {name}, or all images would share one mask")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.ignore is not None and self.ignore in (self.values or ()):
            raise ValueError("ignore must not be one of values")
        if bool(self.images) != bool(self.masks):
            raise ValueError("images and masks belong together; set both")
        if self.batch_size % self.workers:
            raise ValueError("batch_size must be a multiple of workers, since workers share each batch")
        return self
