"""Shared by all tests: a tiny network, drawn images, an S3 server, and a home directory of their own."""

import atexit
import io
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

# Set before Ray is imported: no telemetry, no token in the user's home, no cluster except the tests' own.
_HOME = tempfile.mkdtemp(prefix="maskfleet-test-home-")
os.environ.update(HOME=_HOME, RAY_USAGE_STATS_ENABLED="0", RAY_AUTH_MODE="disabled")
# Networks are tiny and cores are few: threads would only wait for each other.
torch.set_num_threads(1)
for name in ("RAY_ADDRESS", "AWS_PROFILE", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
    os.environ.pop(name, None)

BESIDE = Path(__file__).resolve().parents[2] / "shared"
"""Folder with real images and a real S3 server, if this machine has one. Otherwise their tests are skipped."""

_STATUS = pytest.StashKey[int]()

needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this processor has no bf16 and oneDNN does not emulate it"
)


def pytest_sessionfinish(session, exitstatus):
    shutil.rmtree(_HOME, ignore_errors=True)
    session.config.stash[_STATUS] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """End without the interpreter's shutdown, as `cluster.cli.main.main` does: C++ threads were seen to crash it."""
    if (status := config.stash.get(_STATUS, None)) is not None:
        atexit._run_exitfuncs()
        config.get_terminal_writer().flush()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@pytest.fixture(autouse=True)
def one_thread():
    """Undo what an earlier test has set: two processes of two threads each would wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def nuclei() -> Path:
    """Folder of real microscopy images and masks."""
    folder = BESIDE / "data" / "nuclei"
    if not folder.is_dir():
        pytest.skip("the real nuclei images are not on this machine")
    return folder


def seeded(n_classes: int = 2, *, n_channels: int = 3, bilinear: bool = False, width: int = 4, seed: int = 0):
    """Return a U-Net with batch normalisations that are not the identity, so that folding them has an effect."""
    from maskfleet.unet.model import UNet

    torch.manual_seed(seed)
    model = UNet(n_channels, n_classes, bilinear, width).eval().requires_grad_(False)
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
            layer.weight.uniform_(0.5, 2)
            layer.bias.normal_(0, 0.2)
    # Logits of a random network lie on one side of zero. Centred, they give both classes.
    model.outc.conv.bias -= model(torch.rand(1, n_channels, 64, 64)).mean(dim=(0, 2, 3))
    return model


class StandIn(torch.nn.Module):
    """Base of networks drawn by hand, with the geometry of a U-Net."""

    n_channels, n_classes = 3, 2
    grid, halo, untileable, min_side = 16, 96, None, 16


@pytest.fixture(scope="session")
def weights_file(tmp_path_factory) -> str:
    from maskfleet.unet import weights

    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    path.write_bytes(weights.save(seeded()))
    return str(path)


def draw_images(folder: Path, count: int = 24, *, seed: int = 0) -> Path:
    """Draw images of three sizes and four formats, in two sub-folders. Return the folder."""
    random = np.random.default_rng(seed)
    sizes = ((48, 64), (64, 48), (33, 70))
    for number in range(count):
        height, width = sizes[number % 3]
        pixels = random.integers(0, 256, (height, width, 3), np.uint8)
        path = folder / f"part-{number % 2}" / f"image-{number:03}"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels)
        if number % 4 == 0:
            image.save(f"{path}.jpg")
        elif number % 4 == 1:
            image.save(f"{path}.png")
        elif number % 4 == 2:
            image.convert("L").save(f"{path}.tif")
        else:
            image.convert("RGBA").save(f"{path}.PNG")
    return folder


def draw_pairs(folder: Path, count: int = 12, *, classes: int = 2) -> tuple[Path, Path]:
    """Draw images and their masks, in two folders. Class k is 255 k / (classes - 1) in a mask."""
    images, masks = folder / "pairs", folder / "truth"
    for place in (images, masks):
        place.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        random = np.random.default_rng(number)
        height, width = ((40, 48), (48, 40))[number % 2]
        blocks = random.integers(0, classes, (height // 8, width // 8)).astype(np.uint8)
        truth = blocks.repeat(8, axis=0).repeat(8, axis=1)
        pixels = np.repeat(truth[..., None] * (160 // (classes - 1)) + 20, 3, axis=2) + random.integers(0, 20)
        Image.fromarray(pixels.astype(np.uint8)).save(images / f"{number:03}.png")
        Image.fromarray((truth * (255 // (classes - 1))).astype(np.uint8)).save(masks / f"{number:03}.png")
    return images, masks


def decoded_pairs(channels: int = 3) -> list:
    """Return four pairs of two sizes, with images as bright as their truth."""
    from maskfleet.jobs.training.pairs import Pair

    random = np.random.default_rng(0)
    truths = [(random.random((height, 60)) > 0.5).astype(np.uint8) for height in (50, 70, 70, 70)]
    truths = [truth.repeat(4, axis=0).repeat(4, axis=1) for truth in truths]
    return [
        Pair(str(number), np.repeat(truth[..., None] * np.uint8(150) + np.uint8(20), channels, axis=2), truth)
        for number, truth in enumerate(truths)
    ]


def uploaded(folder: Path, bucket: str):
    """Upload a folder's files to `in/` of a bucket. Return the bucket's storage."""
    from maskfleet.jobs.storage.schemes import open_storage

    storage = open_storage(bucket)
    for path, data in tree(folder).items():
        storage.write(f"in/{path}", data)
    return storage


def once_committed(output: Path, shards: int) -> Callable[[], bool]:
    """Return a `stopped` callback for a run: true once the run has committed `shards` shards."""
    before = {path.name for path in (output / "runs").glob("*")}

    def stopped() -> bool:
        runs = [path for path in (output / "runs").glob("*") if path.name not in before]
        return sum(len(list(path.glob("commits/*.json"))) for path in runs) >= shards

    return stopped


def jpeg(seed: int, side: int = 32) -> bytes:
    """Return a JPEG of noise."""
    sink = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)
    Image.fromarray(pixels).save(sink, "JPEG")
    return sink.getvalue()


def tar(path: Path, members) -> Path:
    """Write a tar file of (name, data) members. Return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            archive.addfile(header, io.BytesIO(data))
    return path


@pytest.fixture
def images(tmp_path) -> Path:
    return draw_images(tmp_path / "images")


@pytest.fixture(scope="session")
def running_s3():
    """Start an S3 server, a real one if installed, else moto's. Sets the environment for the session."""
    from faults.servers import s3_server

    with s3_server() as server:
        print(f"\nS3 server: {server.kind} at {server.url}")
        yield server


@pytest.fixture(scope="session")
def s3_server(running_s3) -> str:
    """Kind of the running S3 server: `radosgw` or `moto`."""
    return running_s3.kind


@pytest.fixture
def s3_user(running_s3) -> Callable[[dict], dict[str, str]]:
    """Make a user with one policy and return its keys, as environment variables. Needs the real server."""
    if running_s3.kind != "radosgw":
        pytest.skip("moto checks no policy, and the real S3 server (radosgw) is not installed")
    return running_s3.user


@pytest.fixture
def bucket(s3_server) -> str:
    """URL of a new bucket."""
    from faults.servers import new_bucket

    return new_bucket()


def tree(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, by relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


TIMES_AND_NAMES = ["run_id", "attempt", "worker", "mask_object"]


def statistics(output) -> list[dict]:
    """Return an output's rows without times and names of runs, attempts and workers, which differ between equal runs."""
    import pyarrow.dataset

    from maskfleet.jobs.ledger.statistics import STAGES

    table = pyarrow.dataset.dataset(f"{output}/stats", format="parquet").to_table()
    dropped = TIMES_AND_NAMES + [f"{stage}_seconds" for stage in STAGES]
    return table.drop_columns(dropped).sort_by("key").to_pylist()
