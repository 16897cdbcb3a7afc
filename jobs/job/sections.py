"""The sections of a job file, as frozen and validated values.

The docstring below each key is its entry in the reference (`jobs.job.reference`). Knows nothing about files, nor about
the code acting on these values.
"""

from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Self
from zoneinfo import available_timezones

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from maskfleet.jobs.errors import unsigned
from maskfleet.jobs.job.crontab import Crontab
from maskfleet.jobs.job.places import absolute
from maskfleet.jobs.masks.formats import FORMATS

Reason = Literal["new", "changed", "stale", "failed", "redo"]
"""Why an image is pending: never seen, of another version, made with another fingerprint, failed temporarily, or named
by `maskfleet redo`."""

FailureKind = Literal["decode", "oom", "io", "crash"]
"""Kind of failure of an image."""

_DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"


class Section(BaseModel):
    """A table of the job file. Frozen; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class InputOptions(Section):
    """How the buckets of the input are read, where this differs from the output. Never part of the fingerprint."""

    profile: str | None = None
    """AWS profile for the input. Without it: `profile` of the job."""
    endpoint: str | None = Field(default=None, pattern=r"^https?://[^/\s@]+/?$")
    """URL of the S3 server with the input, such as "https://s3.example.org". Without it: the environment's."""
    anonymous: bool = False
    """Read public buckets without credentials."""
    requester_pays: bool = False
    """Agree to pay for the requests, for buckets with "requester pays"."""


class Inference(Section):
    """How the network is applied. Everything here that can change a mask is part of the fingerprint."""

    scale: float = Field(default=1.0, gt=0, le=4)
    """Resize factor (Pillow's bicubic) before the network. The mask keeps the size of the image."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of the convolutions. "auto" picks the fastest on the device that reaches `min_agreement`."""
    batch_size: int | Literal["auto"] = "auto"
    """Images of one shape per forward pass. Batches are halved when memory runs out."""
    min_agreement: float = Field(default=0.999, ge=0, le=1)
    """Share of pixels with the same class as in fp32, measured on a sample of the input. Below it, the next more exact
    precision is used."""
    threshold: float | tuple[float, ...] | None = None
    """Probability above which a pixel may belong to a class: one for all classes after the first, or one for each.
    Without it: 0.5 for a network with one class, otherwise the most likely class."""
    tile: int | Literal["auto"] = "auto"
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

    @field_validator("batch_size")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        return _at_least_one(value)

    @field_validator("threshold")
    @classmethod
    def _probabilities(cls, value: float | tuple[float, ...] | None) -> float | tuple[float, ...] | None:
        values = value if isinstance(value, tuple) else () if value is None else (value,)
        if not all(0 < item < 1 for item in values):
            raise ValueError("must lie between 0 and 1")
        return value

    @field_validator("tile")
    @classmethod
    def _not_negative(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 0:
            raise ValueError("must be 0 or a multiple of the network's grid in px")
        return value


class Masks(Section):
    """How masks are stored."""

    format: str = Field(default="png", json_schema_extra={"enum": list(FORMATS)})
    """"png": one PNG per image below masks/, and one tar of PNGs per shard. "tar": the tars only. "parquet": one table
    of statistics and PNGs per shard. "rle": COCO run lengths in the statistics. "none": no masks, statistics only."""
    values: tuple[int | tuple[int, int, int], ...] | None = None
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

    shard_size: int | Literal["auto"] = "auto"
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

    @field_validator("shard_size")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        return _at_least_one(value)

    on_overlap: Literal["skip", "fail", "wait"] = "fail"
    """If another run holds the output: "fail" exits with code 4, "skip" with code 0, "wait" waits for it to end."""
    deadline: str | None = Field(default=None, pattern=r"^[0-9]+(\.[0-9]+)?[smh]$")
    """Time after which no further shards start, such as "90m" or "6h". The next run resumes. Without it: no limit."""
    webhook: str | None = Field(default=None, pattern=r"^(https?://|\$[A-Z_][A-Z0-9_]*$)")
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

    only: tuple[Reason, ...] = ()
    """Process only images pending for these reasons. Empty: for any reason."""
    classes: tuple[FailureKind, ...] = ()
    """Process only images with failures of these kinds, including permanent ones, such as corrupt files."""
    since: datetime | None = None
    """Process only images modified at or after this time. A time without a zone is UTC."""
    limit: int | None = Field(default=None, ge=1)
    """Process at most this many images, the first in order of key. Listing of the input stops there."""
    sample: int | None = Field(default=None, ge=1)
    """Process a sample of this many images from the whole input. The sample is the same every time."""

    @field_validator("only", "classes", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

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


class WorkerRange(Section):
    """Smallest and largest number of workers."""

    min: int = Field(default=1, ge=1)
    """Workers requested at the start and kept until the end."""
    max: int = Field(ge=1)
    """Workers requested while there is work for them."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError("min must not exceed max")
        return self


class Cluster(Section):
    """Workers, and the machines of generated clusters. Never part of the fingerprint."""

    workers: Annotated[int, Field(ge=1)] | Literal["auto"] | WorkerRange = "auto"
    """Worker processes: a number, or {min = 1, max = 64}. Missing workers are requested from the autoscaler. "auto" is
    one per GPU; without GPUs, one per `threads` cores and 2 GiB of memory."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """GPUs of a worker: 1, a share such as 0.5, or 0. "auto" is 1 if there are GPUs, otherwise 0."""
    stall_seconds: float = Field(default=900, gt=0)
    """A worker without progress on any image for this many seconds is replaced."""
    cpus_per_worker: float | Literal["auto"] = "auto"
    """CPU cores of a worker, for its decoding processes and threads. "auto" divides the machine among its workers."""
    threads: int | Literal["auto"] = "auto"
    """Threads of a network on a CPU. Equal in all workers, since the last bits of fp32 depend on it. "auto" is the
    cores of the machine that starts the run, at most 8; training uses all of them."""
    decoders: int | Literal["auto"] = "auto"
    """Decoding processes of a worker. "auto" is one per core, minus one if the network runs on the CPU."""
    image: str = Field(default="maskfleet:0.1.0", pattern=r"^[a-zA-Z0-9][\w./:@-]*$")
    """Container image of generated clusters. `maskfleet cluster-config` writes its Dockerfile."""
    namespace: str = Field(default="default", pattern=_DNS_LABEL)
    """Kubernetes namespace."""
    service_account: str = Field(default="maskfleet", pattern=_DNS_LABEL)
    """Identity of the workers, instead of keys: a Kubernetes service account or an AWS instance profile."""
    spot: bool = True
    """Whether workers may run on spot machines, which can be withdrawn at any time."""
    node_cpus: int = Field(default=8, ge=1)
    """CPU cores of one worker node in a generated cluster."""
    node_memory_gib: int = Field(default=30, ge=1)
    """Memory of one worker node in a generated cluster, in GiB."""
    node_gpus: int = Field(default=1, ge=0)
    """GPUs of one worker node in a generated cluster."""
    instance: str = Field(default="g6.2xlarge", pattern=r"^[a-z0-9.-]+$")
    """AWS instance type of the workers."""
    region: str = Field(default="us-east-1", pattern=r"^[a-z0-9-]+$")
    """AWS region."""
    ami: str | None = Field(default=None, pattern=r"^ami-[0-9a-f]+$")
    """AWS machine image with the NVIDIA driver and Docker. Without it: Ray's default for the region."""


class Schedule(Section):
    """When the job runs, for `maskfleet schedule`."""

    cron: str | None = None
    """The five fields of cron: minute hour day month weekday, such as "30 2 * * *"."""
    timezone: str = "UTC"
    """Time zone of `cron`, as an IANA name such as "Europe/Berlin"."""
    start_within: int = Field(default=3600, ge=60)
    """Seconds after which a run that could not start is skipped (Kubernetes)."""
    hours: int = Field(default=24, ge=1)
    """Hours after which a run is stopped (Kubernetes). The next run resumes it."""

    @field_validator("cron")
    @classmethod
    def _understood(cls, value: str | None) -> str | None:
        if value is not None:
            Crontab.parse(value)
        return value

    @field_validator("timezone")
    @classmethod
    def _known(cls, value: str) -> str:
        if value not in available_timezones():
            raise ValueError("is not a time zone; give an IANA name such as Europe/Berlin or UTC")
        return value


class Finetune(Section):
    """Fine-tuning on corrected masks. Off unless `images` and `masks` are given."""

    images: str = ""
    """Training images: a folder or glob, local or s3://."""
    masks: str = ""
    """Masks of the training images: a folder or glob, local or s3://."""
    mask_name: str = "{stem}"
    """Name of the mask of an image, without ending. `{stem}` is the image's key without ending, `{folder}` and `{name}`
    are its parts."""
    unpaired: Literal["refuse", "skip"] = "refuse"
    """Images without a mask, and masks without an image: "refuse" is an error, "skip" leaves them out."""
    values: tuple[int | tuple[int, int, int], ...] | None = None
    """Pixel value of each class in these masks. Without it: the values stored with the weights, otherwise 0, 1, 2 …,
    otherwise the values found."""
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
    steps: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Optimizer steps. "auto" follows from `epochs`."""
    crop: int = Field(default=256, ge=16, multiple_of=16)
    """Side of the training crops in px, a multiple of 16."""
    batch_size: int = Field(default=8, ge=1)
    """Crops per step, over all workers."""
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """Peak learning rate. "auto" is 3e-4, 1e-3 for a new network, and 1e-5 with the recipe "pytorch-unet"."""
    checkpointing: Literal["auto", "on", "off"] = "auto"
    """Activation checkpointing: less memory for more time. "auto" turns it on when memory runs out, then splits
    batches."""
    workers: int = Field(default=1, ge=1)
    """Training processes sharing each batch, with one GPU each if there are GPUs. More than 1 needs Ray Train:
    pip install 'maskfleet[train]'."""
    sync_batchnorm: bool = False
    """Whether batch normalisation spans all workers, instead of each worker's share of the batch."""
    validate_every: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
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
        if bool(self.images) != bool(self.masks):
            raise ValueError("images and masks belong together; set both")
        if self.batch_size % self.workers:
            raise ValueError("batch_size must be a multiple of workers, since workers share each batch")
        return self


def _at_least_one(value: int | str) -> int | str:
    if isinstance(value, int) and value < 1:
        raise ValueError("must be at least 1")
    return value
