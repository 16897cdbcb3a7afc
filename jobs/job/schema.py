"""The job: what to do, as one TOML file or a few options. Frozen and validated; knows nothing of how it is done.

Secrets are never in a job: it names an AWS profile, or leaves credentials to the environment.
"""

import difflib
import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from zoneinfo import available_timezones

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.crontab import Crontab

_DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
_SECRET_KEY = re.compile(r"secret|password|passwd|token|credential|access_?key|api_?key", re.IGNORECASE)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Inference(_Section):
    """How the network is applied. Part of the fingerprint."""

    scale: float = Field(default=1.0, gt=0, le=4)
    """Factor by which images are resized (bicubic) before the network; the mask keeps the image's size."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """What convolutions compute in; "auto" is the fastest that the device has and that reaches `min_agreement`."""
    batch_size: int | Literal["auto"] = "auto"
    """Images of one shape per forward pass."""
    min_agreement: float = Field(default=0.999, ge=0, le=1)
    """Share of pixels that must equal fp32's on a sample of the job's images; below it the next more exact is taken."""
    threshold: float | tuple[float, ...] | None = None
    """Probability above which a pixel may be of a class: one for all classes after the first, or one each. None is
    0.5 for a network of one class, and the likeliest class for others."""
    tile: int | Literal["auto"] = "auto"
    """Core of tiles in px, a multiple of 16; 0 to never cut; "auto" cuts images of more than 2²² px."""
    tile_mode: Literal["exact", "approximate"] = "exact"
    """"approximate" cuts with a bilinear network too, whose tiles do not give the whole image's logits."""
    tta: Literal["off", "flips", "d4"] = "off"
    """Test-time augmentation: mean of the probabilities over the four flips, or over all eight flips and turns."""
    orientation: Literal["stored", "upright"] = "stored"
    """Whether the mask's grid is the stored one, or the one that EXIF orientation turns the image to."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """"auto" is the GPU where there is one."""

    @field_validator("batch_size")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1")
        return value

    @field_validator("threshold")
    @classmethod
    def _probabilities(cls, value: float | tuple[float, ...] | None) -> float | tuple[float, ...] | None:
        values = value if isinstance(value, tuple) else () if value is None else (value,)
        if not all(0 < item < 1 for item in values):
            raise ValueError("must lie between 0 and 1")
        return value

    @field_validator("tile")
    @classmethod
    def _on_the_grid(cls, value: int | str) -> int | str:
        if isinstance(value, int) and (value < 0 or value % 16):
            raise ValueError("must be 0 or a multiple of 16 px, so that tiles give the whole image's logits")
        return value


class Masks(_Section):
    """What a mask is and where it goes."""

    format: Literal["png", "tar", "parquet", "rle", "none"] = "png"
    """"png": a loose PNG per image under masks/, beside the shards' tars. "tar": the tars alone. "parquet": in place of
    them, statistics with the PNGs in them. "rle": COCO's run lengths in the statistics. "none": no masks."""
    values: tuple[int | tuple[int, int, int], ...] | None = None
    """What a pixel of each class shows, 0 … 255 or RGB; None for the weights' own mask values, else 0, 1, 2 …"""

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
            raise ValueError("each class needs a value of its own")
        return values


class Run(_Section):
    """How the work is cut and what it may cost."""

    shard_size: int | Literal["auto"] = "auto"
    """Images per shard, the unit of work and of commit; "auto" is a 32nd of the images, 16 to 512."""
    max_error_rate: float = Field(default=0.01, ge=0, le=1)
    """Share of failed images above which the run counts as incomplete (exit 1)."""
    max_image_pixels: int = Field(default=89_478_485, ge=1)
    """Larger images fail, from their header, before they are decoded. The default is Pillow's own warning limit."""
    decode_seconds: float = Field(default=20, gt=0)
    """An image that takes longer to decode fails."""
    decode_memory: int = Field(default=2 * 2**30, ge=2**27)
    """Bytes that one decoding process may use beside the shared pixels."""
    attempts: int = Field(default=3, ge=1, le=20)
    """Workers that one shard may cost before it is cut in two, and one image before it fails."""

    @field_validator("shard_size")
    @classmethod
    def _positive(cls, value: int | str) -> int | str:
        if isinstance(value, int) and value < 1:
            raise ValueError("must be at least 1")
        return value

    on_overlap: Literal["skip", "fail", "wait"] = "fail"
    """When another run holds the output: "skip" ends with exit code 0, "fail" with 4, "wait" waits for it to end."""
    deadline: str | None = Field(default=None, pattern=r"^[0-9]+(\.[0-9]+)?[smh]$")
    """Time after which no more shards are handed out, such as "90m" or "6h"; the next run goes on."""
    webhook: str | None = Field(default=None, pattern=r"^(https?://|\$[A-Z_][A-Z0-9_]*$)")
    """URL that the run's outcome is posted to as JSON, or `$NAME` of an environment variable that holds it."""

    @property
    def deadline_seconds(self) -> float | None:
        """`deadline` in seconds."""
        if self.deadline is None:
            return None
        return float(self.deadline[:-1]) * {"s": 1, "m": 60, "h": 3600}[self.deadline[-1]]


class Selection(_Section):
    """Which of the images that need work are planned."""

    only: tuple[Literal["new", "changed", "stale", "failed"], ...] = ()
    """For these reasons alone; () for all of them."""
    classes: tuple[Literal["decode", "oom", "io", "crash"], ...] = ()
    """Failures of these kinds alone, those included that the same bytes will likely give again."""
    since: datetime | None = None
    """Modified at or after this time; a time without a zone is UTC."""
    limit: int | None = Field(default=None, ge=1)
    """At most so many, the first in order of key; the input is listed no further than that."""
    sample: int | None = Field(default=None, ge=1)
    """So many from all over the input, the same ones every time."""

    @field_validator("only", "classes", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("since")
    @classmethod
    def _in_utc(cls, value: datetime | None) -> datetime | None:
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


class Prices(_Section):
    """What `maskfleet plan` reckons with; no price is known by itself."""

    currency: str = "USD"
    """Named beside every sum."""
    gpu_hour: float = Field(default=0, ge=0)
    """Of one GPU, with the machine around it."""
    worker_hour: float = Field(default=0, ge=0)
    """Of one worker without a GPU."""
    get_1000: float = Field(default=0.0004, ge=0)
    """Of a thousand reading requests."""
    put_1000: float = Field(default=0.005, ge=0)
    """Of a thousand writing or listing requests."""
    gb_month: float = Field(default=0.023, ge=0)
    """Of 10⁹ bytes of output, kept for a month."""


class WorkerRange(_Section):
    """Between how many workers a cluster may scale."""

    min: int = Field(default=1, ge=1)
    """Asked for and kept until the end."""
    max: int = Field(ge=1)
    """Asked for while there is work for them."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError("min must not exceed max")
        return self


class Cluster(_Section):
    """How much of the machines is used. Never part of what the result depends on."""

    workers: Annotated[int, Field(ge=1)] | Literal["auto"] | WorkerRange = "auto"
    """Worker processes. "auto" is one per GPU, or without GPUs one for every `threads` cores and 2 GiB of a machine, as
    machines come and go; a number or {min, max} is asked for, and what does not fit waits for the cluster to grow."""
    gpus_per_worker: Annotated[float, Field(ge=0, le=1)] | Literal["auto"] = "auto"
    """GPUs of a worker: 1, a share such as 0.5, or 0; "auto" is one where there are any."""
    stall_seconds: float = Field(default=900, gt=0)
    """A worker none of whose images moves on for so long is ended, and its shards go to another."""
    cpus_per_worker: float | Literal["auto"] = "auto"
    """CPU cores of a worker, for its decoding processes and threads; "auto" shares the machine out."""
    threads: int | Literal["auto"] = "auto"
    """Threads of a network on a CPU, in every worker alike, since the last bits of fp32 depend on them; "auto" is the
    cores that the process which begins the run may use, at most 8 (a training uses all)."""
    decoders: int | Literal["auto"] = "auto"
    """Decoding processes of a worker; "auto" is one per core, less one on a machine that computes on its CPU."""
    image: str = Field(default="maskfleet:0.1.0", pattern=r"^[a-zA-Z0-9][\w./:@-]*$")
    """Container image of generated clusters; `maskfleet cluster-config` writes its Dockerfile."""
    namespace: str = Field(default="default", pattern=_DNS_LABEL)
    """Kubernetes namespace."""
    service_account: str = Field(default="maskfleet", pattern=_DNS_LABEL)
    """Who workers are, in place of keys: a Kubernetes service account, or an AWS instance profile."""
    spot: bool = True
    """Whether workers may be on machines that can be taken away."""
    node_cpus: int = Field(default=8, ge=1)
    """CPU cores of a generated cluster's node."""
    node_memory_gib: int = Field(default=30, ge=1)
    """Its memory."""
    node_gpus: int = Field(default=1, ge=0)
    """Its GPUs."""
    instance: str = Field(default="g6.2xlarge", pattern=r"^[a-z0-9.-]+$")
    """AWS instance type of workers."""
    region: str = Field(default="us-east-1", pattern=r"^[a-z0-9-]+$")
    """AWS region."""
    ami: str | None = Field(default=None, pattern=r"^ami-[0-9a-f]+$")
    """AWS machine image with the NVIDIA driver and Docker; None for the one that Ray knows for the region."""


class Schedule(_Section):
    """When `maskfleet schedule` has the job run."""

    cron: str | None = None
    """Cron's five fields; None for a job that nobody schedules."""
    timezone: str = "UTC"
    """IANA name of the zone that they are read in."""
    start_within: int = Field(default=3600, ge=60)
    """Seconds after which a night that could not start is skipped (Kubernetes)."""
    hours: int = Field(default=24, ge=1)
    """A night that takes longer is ended (Kubernetes); the next one goes on."""

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
            raise ValueError("is no time zone; give an IANA name such as Europe/Berlin or UTC")
        return value


class Finetune(_Section):
    """How better weights are made of corrected masks. Off without `images`."""

    images: str = ""
    """Folder or glob of the images to train on."""
    masks: str = ""
    """Folder or glob of their masks."""
    mask_name: str = "{stem}"
    """Of an image's mask, without its ending: `{stem}` is the image's key without its own, `{folder}` and `{name}` are
    that key's parts."""
    unpaired: Literal["refuse", "skip"] = "refuse"
    """What becomes of an image without a mask, and of a mask without an image."""
    values: tuple[int | tuple[int, int, int], ...] | None = None
    """What these masks show for each class; None for what the weights' own masks show, else 0, 1, 2 …, else what is
    found."""
    validation_share: float = Field(default=0.2, gt=0, lt=1)
    """Of the pairs, by their content: held back, never trained on."""
    start: Literal["weights", "random"] = "weights"
    """What training begins with: the job's weights, or a new network."""
    width: int = Field(default=16, ge=1, le=256)
    """Of a new network."""
    recipe: Literal["default", "pytorch-unet"] = "default"
    """See `unet.training.trainer.Training`."""
    epochs: int = Field(default=30, ge=1)
    """Times that as many crops are drawn as there are pairs, where `steps` leaves it to them."""
    steps: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Optimizer steps."""
    crop: int = Field(default=256, ge=16, multiple_of=16)
    """Side of the crops in px."""
    batch_size: int = Field(default=8, ge=1)
    """Crops of a step."""
    learning_rate: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """At its peak; "auto" is 3e-4, for a new network 1e-3, and with "pytorch-unet" 1e-5."""
    checkpointing: Literal["auto", "on", "off"] = "auto"
    """Less memory for more time; "auto" once memory runs out, and then batches in parts."""
    workers: int = Field(default=1, ge=1)
    """Processes that share every batch, a GPU each where there are any; more than one go through Ray Train."""
    sync_batchnorm: bool = False
    """Whether several workers normalise batches together, not each its own share."""
    validate_every: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Steps; "auto" is a tenth of them."""
    save_every: int = Field(default=100, ge=1)
    """Steps that a kill may cost at most."""
    pick: Literal["last", "best"] = "last"
    """Which weights are the result: those of the last step, or of the best validation."""
    gate: Literal["better", "not-worse", "off"] = "better"
    """What the new weights must be on the held-back pairs; see `jobs.training.gate`."""
    on_refused: Literal["stop", "base"] = "stop"
    """What `run` does where they are not: ends with exit code 3, or goes on with the job's weights."""
    store: Literal["fp32", "fp16"] = "fp32"
    """Type of the new weights' file."""
    seed: int = Field(default=0, ge=0)
    """Decides everything that is drawn."""

    @field_validator("images", "masks")
    @classmethod
    def _place(cls, value: str) -> str:
        return _stated(value, word=False) if value else ""

    @field_validator("mask_name")
    @classmethod
    def _pattern(cls, value: str) -> str:
        try:
            named = value.format(stem="*", folder="", name="*")
        except (KeyError, IndexError, ValueError) as error:
            raise ValueError("may hold {stem}, {folder} and {name} only") from error
        if "*" not in named:
            raise ValueError("must hold {stem} or {name}, or all images would share one mask")
        return value

    @model_validator(mode="after")
    def _both(self) -> Self:
        if bool(self.images) != bool(self.masks):
            raise ValueError("images and masks belong together; give both")
        if self.batch_size % self.workers:
            raise ValueError("batch_size must be a multiple of workers, which share it")
        return self


class Job(_Section):
    """What to do. `Job.load` reads it from TOML, `Job.of` from options."""

    input: str
    """Folder or glob of images, tars and Parquet files; one of these; a list (.txt, .csv, .parquet) of paths and URLs;
    or the manifest.json of an S3 Inventory. Local, or s3://."""
    column: str | None = None
    """Of Parquet files and lists: the images, or the URLs; None where it can be told."""
    output: str
    """Folder or s3:// prefix that receives everything."""
    weights: tuple[str, ...]
    """Safetensors file, local or s3://, or the name of a built-in model; of several, the mean of the probabilities."""
    name: str = Field(default="maskfleet", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")
    """For run records and reports."""
    profile: str | None = None
    """AWS profile to take credentials from; None for the environment's chain."""
    inference: Inference = Inference()
    masks: Masks = Masks()
    run: Run = Run()
    select: Selection = Selection()
    prices: Prices = Prices()
    cluster: Cluster = Cluster()
    finetune: Finetune = Finetune()
    schedule: Schedule = Schedule()

    @field_validator("weights", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value

    @field_validator("input", "output")
    @classmethod
    def _place(cls, value: str) -> str:
        return _stated(value, word=False)

    @field_validator("weights")
    @classmethod
    def _files(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("must not be empty")
        return tuple(_stated(item, word=True) for item in value)

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = (), *, day: date | None = None) -> Self:
        """The job in a TOML file.

        Args:
            path: A local file; JSON if its name ends so. Relative local paths in it are relative to the current folder.
            overrides: `section.key=value` each, with TOML's values; a bare word is text.
            day: What `{date}` in `input` and `output` stands for; None for today in UTC.

        Raises:
            JobError: The file is missing, is no TOML, names an unknown key, or holds a wrong value.
        """
        try:
            text = Path(path).read_text("utf-8")
            table = json.loads(text) if Path(path).suffix == ".json" else tomllib.loads(text)
        except FileNotFoundError as error:
            raise JobError(
                f"there is no job file {path}; write one, or give --input, --output and --weights"
            ) from error
        except (OSError, ValueError) as error:  # of the text, the TOML or the JSON
            raise JobError(f"job file {path} cannot be read: {error}") from error
        return cls.of(table, overrides, day=day)

    @classmethod
    def of(cls, table: Mapping[str, Any], overrides: Sequence[str] = (), *, day: date | None = None) -> Self:
        """The job of a table such as a TOML file holds. See `load`."""
        merged = _with_overrides(table, overrides)
        _refuse_unknown(cls, merged, "")
        for key in ("input", "output"):
            if isinstance(merged.get(key), str):
                merged[key] = _filled(merged[key], day, merged.get("name", cls.model_fields["name"].default))
        try:
            return cls.model_validate(merged)
        except ValidationError as error:
            raise JobError("; ".join(_sentences(error))) from error


def _filled(place: str, day: date | None, name: object) -> str:
    """A place with `{date}` (2026-11-24) and `{name}` filled in; other braces are left as they are."""
    return place.replace("{date}", (day or datetime.now(UTC).date()).isoformat()).replace("{name}", str(name))


def _stated(value: str, *, word: bool) -> str:
    """A place as every worker can name it.

    Args:
        value: As given.
        word: Whether a word alone is a name, such as a built-in model's.
    """
    if not value.strip():
        raise ValueError("must not be empty")
    if re.search(r"://[^/]*:[^/]*@", value):
        raise ValueError("must not hold a user name and password; name a profile or use the environment")
    # Workers may stand in another folder.
    local = "://" not in value and not (word and not re.search(r"[/.]", value))
    return os.path.abspath(value) if local else value


def _with_overrides(table: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    merged = {key: dict(value) if isinstance(value, Mapping) else value for key, value in table.items()}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name.strip():
            raise JobError(f"--set {override!r} is not of the form section.key=value")
        *sections, key = name.strip().split(".")
        target = merged
        for section in sections:
            target = target.setdefault(section, {})
            if not isinstance(target, dict):
                raise JobError(f"--set {override!r}: {section} is no section of the job")
        target[key] = _toml_value(text.strip())
    return merged


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _refuse_unknown(model: type[BaseModel], table: Mapping[str, Any], prefix: str) -> None:
    for key, value in table.items():
        if key not in model.model_fields:
            if _SECRET_KEY.search(key):
                raise JobError(
                    f"{prefix}{key} looks like a secret, which a job must not hold; "
                    "set 'profile' to an AWS profile, or use environment variables"
                )
            raise JobError(f"unknown key {prefix}{key}{_nearest(key, prefix)}")
        inner = model.model_fields[key].annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            if not isinstance(value, Mapping):
                raise JobError(f"{prefix}{key} is a section; write [{prefix}{key}]")
            _refuse_unknown(inner, value, f"{prefix}{key}.")


def _nearest(key: str, prefix: str) -> str:
    known = list(_keys(Job, ""))
    near = difflib.get_close_matches(prefix + key, known, n=1, cutoff=0.6)
    # A right key in the wrong section is as likely as a misspelt one.
    near = near or [name for name in known if name.rsplit(".", 1)[-1] == key]
    near = near or [
        name for name in known if difflib.get_close_matches(key, [name.rsplit(".", 1)[-1]], n=1, cutoff=0.7)
    ]
    return f"; did you mean {near[0]}?" if near else f"; known are {', '.join(known)}"


def _keys(model: type[BaseModel], prefix: str) -> Iterator[str]:
    for key, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from _keys(field.annotation, f"{prefix}{key}.")
        else:
            yield prefix + key


def _sentences(error: ValidationError) -> Iterator[str]:
    for item in error.errors():
        # Of a union such as int | "auto" pydantic reports each arm; the key is the leading part.
        key = ".".join(str(part) for part in item["loc"] if part in _PARTS)
        if item["type"] == "missing":
            yield f"{key} is missing; state it in the job file or with --{key}"
        else:
            yield f"{key}: {item['msg'].removeprefix('Value error, ')} (got {item['input']!r})"


_PARTS = {part for key in _keys(Job, "") for part in key.split(".")}
