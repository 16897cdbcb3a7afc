"""14: what bytes that have taken over a decoder can reach. Each attempt is made inside a real decoder."""

import json
import os
import socket
import sys

import pytest
from PIL import Image

from maskfleet.jobs.images.contract import Limits
from maskfleet.jobs.images.decoders import Decoders
from maskfleet.jobs.images.streams import Stream
from maskfleet.jobs.isolation.confinement import MEANS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Linux has the means")

LANDLOCK, SECCOMP = {"landlock"}, {"seccomp"}
EITHER = {"landlock", "seccomp"}

ATTEMPTS = [
    # attempt, target, the means of which any one refuses it
    ("read", "/proc/{parent}/environ", LANDLOCK),
    ("read", "/proc/{parent}/mem", LANDLOCK),
    ("read", "/proc/{parent}/cmdline", LANDLOCK),
    ("read", "/proc/self/environ", LANDLOCK),
    ("read", "{folder}/.aws/credentials", LANDLOCK),
    ("read", "{folder}/output/mask.png", LANDLOCK),
    ("read", "/etc/passwd", LANDLOCK),
    ("list", "{folder}", LANDLOCK),
    ("list", "/", LANDLOCK),
    ("write", "/tmp/maskfleet-{parent}", EITHER),
    ("write", "{folder}/output/new.png", EITHER),
    ("write", "{folder}/output/mask.png", EITHER),
    ("append", "{folder}/output/mask.png", EITHER),
    ("truncate", "{folder}/output/mask.png", EITHER),
    ("make a folder", "{folder}/output/new", EITHER),
    ("make a link", "{folder}/output/new", EITHER),
    ("rename", "{folder}/output/mask.png", EITHER),
    ("remove", "{folder}/output/mask.png", EITHER),
    ("change rights", "{folder}/output/mask.png", SECCOMP),
    ("change times", "{folder}/output/mask.png", SECCOMP),
    ("open by handle", "{folder}/output/mask.png", SECCOMP),
    ("open a socket", "", SECCOMP),
    ("open a local socket", "", SECCOMP),
    ("connect", "{address}", EITHER),
    ("queue", "", SECCOMP),
    ("exec", "/bin/true", EITHER),
    ("run", "/bin/true", EITHER),
    ("spawn", "/bin/true", EITHER),
    ("fork", "", SECCOMP),
    ("clone3", "", SECCOMP),
    ("signal", "{parent}", SECCOMP),
    ("signal all", "", SECCOMP),
    ("signal a thread", "{parent}", SECCOMP),
    ("signal through a file", "{parent}", SECCOMP),
    ("peek", "{parent}", EITHER),
    ("trace", "{parent}", EITHER),
    ("open a process", "{parent}", SECCOMP),
    ("limit", "{parent}", SECCOMP),
]


@pytest.fixture(scope="module")
def decoders():
    with Decoders(Limits(3), processes=1, codec="faults.curious:decode") as decoders:
        yield decoders


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("home")
    (folder / ".aws").mkdir()
    (folder / ".aws" / "credentials").write_text("secret")
    (folder / "output").mkdir()
    (folder / "output" / "mask.png").write_bytes(b"mask")
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield {"folder": folder, "parent": os.getpid(), "address": list(server.getsockname())}


def ended(decoders, attempt, target):
    ((decoded,),) = [list(decoders.decode([(0, json.dumps([attempt, target]).encode())]))]
    return decoded.failure.error_class, decoded.failure.message


@pytest.mark.parametrize(("attempt", "target", "means"), ATTEMPTS)
def test_14_a_decoder_is_refused(decoders, places, attempt, target, means):
    if not means & set(decoders.means):
        pytest.skip(f"this kernel grants neither of: {', '.join(sorted(means))}")
    value = places["address"] if target == "{address}" else target.format_map(places)
    result, message = ended(decoders, attempt, int(value) if target == "{parent}" else value)
    assert result == "refused", message
    assert (places["folder"] / "output" / "mask.png").read_bytes() == b"mask"


def test_14_a_link_out_of_the_input_hands_nothing_over(decoders, places):
    """A link into /proc names a file without a size: the parent reads such a file, or refuses it, itself."""
    from maskfleet.jobs.images.contract import Failure, LocalFile

    for target in ("/proc/self/mem", "/proc/self/environ", "/dev/zero"):
        file = LocalFile(target, None, 9, lambda: Failure("fetch", "refused", "by its reader"))
        (decoded,) = decoders.decode([(0, file)])
        assert decoded.failure.message == "by its reader"


def test_modules_are_still_imported(decoders):
    for name in ("wave", "PIL.GifImagePlugin", "numpy.polynomial.hermite", "tifffile", "pyarrow.csv"):
        assert ended(decoders, "import", name)[0] == "did_it", name


def test_decoders_still_decode_afterwards(decoders):
    (decoded,) = decoders.decode([(0, b"fine")])
    assert decoded.pixels.shape == (8, 8, 3)


def test_readers_of_rows_are_held_by_the_same_means(decoders, tmp_path):
    pytest.importorskip("pyvips", reason="needs the extra 'large'")
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    with (tmp_path / "a.png").open("rb") as file, Stream(file.fileno(), Limits(3)) as stream:
        assert stream._process.means == decoders.means


def test_this_kernel_grants(decoders):
    missing = [means for means in MEANS if means not in decoders.means]
    if missing:
        pytest.skip(f"this kernel does not grant {' and '.join(missing)}")
