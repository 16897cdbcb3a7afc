import errno
import io
import os
import shutil
import signal
import threading
import time
from contextlib import suppress

import numpy as np
import psutil
import pytest
from faults import codecs
from PIL import Image

from maskfleet.jobs.errors import MaskfleetError
from maskfleet.jobs.images import decoders as module
from maskfleet.jobs.images import process as process_module
from maskfleet.jobs.images.contract import Failure, Limits, LocalFile
from maskfleet.jobs.images.decoders import Decoders
from maskfleet.jobs.isolation.channel import Channel
from maskfleet.jobs.storage import local_file
from maskfleet.jobs.timing.stage_timers import StageTimers


def png(pixels):
    sink = io.BytesIO()
    Image.fromarray(pixels).save(sink, "PNG", compress_level=1)
    return sink.getvalue()


def some(count, seed=0):
    random = np.random.default_rng(seed)
    return [random.integers(0, 256, (20 + index % 3, 25, 3), np.uint8) for index in range(count)]


def collected(decoders, encoded):
    return [
        (d.number, None if d.pixels is None else d.pixels.copy(), d.size, d.failure) for d in decoders.decode(encoded)
    ]


@pytest.fixture(scope="module")
def faulty():
    with Decoders(Limits(3, seconds=1, memory=2**29), processes=2, users=2, codec="faults.codecs:decode") as decoders:
        yield decoders


def test_images_come_back_in_order_across_groups():
    images = some(50)
    with Decoders(Limits(3), processes=2) as decoders:
        found = collected(decoders, ((index * 10, png(image)) for index, image in enumerate(images)))
    assert [index for index, *_ in found] == [index * 10 for index in range(50)]
    for (_, pixels, size, failure), image in zip(found, images, strict=True):
        assert failure is None
        assert size == image.shape[:2]
        np.testing.assert_array_equal(pixels, image)


def test_processes_start_concurrently():
    try:
        with Decoders(Limits(3), processes=3, codec="faults.together:decode") as decoders:
            assert len(set(decoders.process_ids)) == 3
    finally:
        shutil.rmtree(f"/tmp/together-{os.getpid()}")


def test_failures_are_passed_on_in_order():
    missing = Failure("fetch", "missing", "gone")
    with Decoders(Limits(3), processes=1) as decoders:
        found = collected(decoders, [(0, png(some(1)[0])), (1, missing), (2, b"")])
    assert found[1][3] == missing
    assert found[2][3].error_class == "empty"
    assert found[2][3].stage == "decode"


def left(path, *, etag=None, size=9):
    """A file that the decoding process reads and this process must not."""
    return LocalFile(str(path), etag, size, lambda: pytest.fail("read here"))


def test_files_are_read_by_the_decoding_process(tmp_path):
    images = some(40)
    encoded = []
    for index, image in enumerate(images):
        (tmp_path / f"{index}.png").write_bytes(png(image))
        etag = local_file.state(os.stat(tmp_path / f"{index}.png")) if index % 2 else None
        encoded.append((index, png(image) if index % 3 == 0 else left(tmp_path / f"{index}.png", etag=etag)))
    timers = StageTimers()
    with Decoders(Limits(3), processes=2) as decoders:
        found = [(d.number, d.pixels.copy(), d.reading) for d in decoders.decode(encoded, timers)]
    assert [number for number, *_ in found] == list(range(40))
    for number, pixels, reading in found:
        np.testing.assert_array_equal(pixels, images[number])
        assert (reading > 0) == (number % 3 != 0)
    assert timers.busy["fetch"] == pytest.approx(sum(reading for *_, reading in found))
    assert 0 < timers.busy["fetch"] < timers.busy["decode"]
    assert timers.starved["decode"] >= timers.busy["fetch"]


def test_a_group_ends_once_its_images_exceed_the_limit_in_bytes():
    size = module.GROUP_BYTES // 2
    items = [(number, left("a", size=size) if number % 2 else bytes(size)) for number in range(6)]
    images = iter(items)
    assert [[item.number for item in module._next_group(images)] for _ in range(3)] == [[0, 1, 2], [3, 4, 5], []]


def test_files_that_a_process_cannot_read_are_read_here(tmp_path):
    images = some(6)
    for index, image in enumerate(images):
        (tmp_path / f"{index}.png").write_bytes(png(image))
    gone = Failure("fetch", "missing", "gone")
    encoded = [(index, left(tmp_path / f"{index}.png")) for index in range(6)]
    encoded[1] = (1, LocalFile(str(tmp_path / "absent.png"), None, 9, lambda: gone))
    encoded[2] = (2, LocalFile(str(tmp_path / "2.png"), "another", 9, lambda: png(images[5])))
    encoded[4] = (4, LocalFile(str(tmp_path), None, 9, lambda: b""))
    with Decoders(Limits(3), processes=2) as decoders:
        found = collected(decoders, encoded)
    assert [number for number, *_ in found] == list(range(6))
    assert found[1][3] == gone
    assert found[4][3].error_class == "empty"
    for number, shown in ((0, 0), (2, 5), (3, 3), (5, 5)):
        np.testing.assert_array_equal(found[number][1], images[shown])


def test_a_file_that_kills_its_process_fails_alone(faulty, tmp_path):
    images = some(20)
    images[7] = codecs.marked(codecs.CRASH)
    for index, image in enumerate(images):
        (tmp_path / f"{index}.png").write_bytes(png(image))
    found = collected(faulty, [(index, left(tmp_path / f"{index}.png")) for index in range(20)])
    assert [(number, failure.error_class) for number, _, _, failure in found if failure] == [(7, "crash")]


@pytest.fixture
def slow(monkeypatch):
    """Decoders of which reading a file that holds `slow` takes longer than an image may."""
    with Decoders(Limits(3, seconds=0.2), processes=1, codec="faults.slow_storage:decode") as decoders:
        yield decoders


def test_waiting_for_storage_is_not_blamed_on_an_image(slow, tmp_path):
    (tmp_path / "slow").write_bytes(b"slow 1.0")
    (tmp_path / "1.png").write_bytes(png(some(1)[0]))
    before = slow.process_ids
    found = collected(slow, [(0, left(tmp_path / "slow")), (1, left(tmp_path / "1.png"))])
    assert slow.process_ids == before
    assert [failure and failure.error_class for *_, failure in found] == ["unidentified", None]


def test_storage_that_hangs_gives_its_own_error(slow, tmp_path, monkeypatch):
    monkeypatch.setattr(process_module, "READ_SECONDS", 0.5)
    (tmp_path / "slow").write_bytes(b"slow 60")
    hung = Failure("fetch", "storage", "it hangs")
    images = some(3)
    items = [(0, png(images[0])), (1, LocalFile(str(tmp_path / "slow"), None, 9, lambda: hung)), (2, png(images[2]))]
    found = collected(slow, items)
    assert [failure for *_, failure in found] == [None, hung, None]


@pytest.mark.parametrize(
    ("kind", "error_class"),
    [
        (codecs.CRASH, "crash"),
        (codecs.EXIT, "crash"),
        (codecs.HANG, "timeout"),
        (codecs.EAT, "memory"),
        (codecs.RAISE, "corrupt"),
    ],
)
def test_an_image_that_kills_its_process_fails_alone(faulty, kind, error_class):
    images = some(20)
    images[7] = codecs.marked(kind)
    found = collected(faulty, enumerate(map(png, images)))
    for index, pixels, _, failure in found:
        if index == 7:
            assert (failure.stage, failure.error_class) == ("decode", error_class)
            assert failure.message
        else:
            assert failure is None
            np.testing.assert_array_equal(pixels, images[index])


def test_several_deadly_images_in_one_group(faulty):
    images = some(16)
    images[0], images[8], images[15] = (codecs.marked(codecs.CRASH) for _ in range(3))
    failed = [index for index, _, _, failure in collected(faulty, enumerate(map(png, images))) if failure]
    assert failed == [0, 8, 15]


def test_processes_killed_from_outside_cost_nothing():
    images = some(300)
    with Decoders(Limits(3), processes=2) as decoders:
        done = threading.Event()

        def kill():
            for number in range(10**6):
                if done.wait(0.15):
                    return
                with suppress(ProcessLookupError):
                    os.kill(decoders.process_ids[number % 2], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        found = []
        for d in decoders.decode(enumerate(map(png, images))):
            found.append(
                (d.number, d.failure, None if d.pixels is None else np.array_equal(d.pixels, images[d.number]))
            )
            time.sleep(0.002)
        done.set()
        killer.join()
    assert found == [(index, None, True) for index in range(300)]


def test_a_stopped_process_is_replaced():
    with Decoders(Limits(3, seconds=0.5), processes=1) as decoders:
        os.kill(decoders.process_ids[0], signal.SIGSTOP)
        found = collected(decoders, enumerate(map(png, some(3))))
    assert [failure for *_, failure in found] == [None] * 3


@pytest.mark.parametrize("megabytes", [2.4, 24])
def test_13_a_stopped_process_that_is_sent_large_images_is_replaced(megabytes):
    image = np.random.default_rng(0).integers(0, 256, (600, 1333, 3), np.uint8)
    encoded = png(image) + bytes(int(megabytes * 1e6) - 2_400_000)
    with Decoders(Limits(3, seconds=0.5), processes=1) as decoders:
        os.kill(decoders.process_ids[0], signal.SIGSTOP)
        began = time.monotonic()
        found = collected(decoders, [(0, encoded)])
        assert time.monotonic() - began < 10
    assert found[0][3] is None
    np.testing.assert_array_equal(found[0][1], image)


def test_a_process_stopped_again_and_again_fails_its_image():
    with Decoders(Limits(3, seconds=0.3), processes=1) as decoders:
        done = threading.Event()

        def freeze():
            while not done.wait(0.001):
                with suppress(ProcessLookupError):
                    os.kill(decoders.process_ids[0], signal.SIGSTOP)

        freezer = threading.Thread(target=freeze)
        freezer.start()
        found = collected(decoders, [(0, b"x" * 3_000_000)])
        done.set()
        freezer.join()
    assert found[0][3].error_class == "timeout"


def test_a_limit_of_descriptors_on_their_way_costs_nothing(tmp_path, monkeypatch):
    real = Channel.send

    def send(channel, data, *, descriptors=(), seconds=None):
        if descriptors:
            raise OSError(errno.ETOOMANYREFS, "too many references")
        real(channel, data, seconds=seconds)

    monkeypatch.setattr(Channel, "send", send)
    image = some(1)[0]
    (tmp_path / "a.png").write_bytes(png(image))
    file = LocalFile(str(tmp_path / "a.png"), None, 9, lambda: png(image))
    with Decoders(Limits(3), processes=1) as decoders:
        found = collected(decoders, [(0, file)])
    np.testing.assert_array_equal(found[0][1], image)


def test_images_beyond_a_slot_take_the_next_one():
    limits = Limits(3, max_pixels=64 * 64)
    images = [np.full((60, 60, 3), index, np.uint8) for index in range(40)]
    with Decoders(limits, processes=2) as decoders:
        found = collected(decoders, enumerate(map(png, images)))
    assert [index for index, *_ in found] == list(range(40))
    assert all((pixels == index).all() for index, pixels, *_ in found)


def test_two_users_share_the_processes(faulty):
    results = {}

    def use(seed):
        images = some(60, seed)
        found = collected(faulty, enumerate(map(png, images)))
        results[seed] = all(np.array_equal(pixels, images[index]) for index, pixels, *_ in found)

    threads = [threading.Thread(target=use, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == {1: True, 2: True}


def test_a_user_that_stops_early_gives_its_slots_back(faulty):
    for _ in range(20):
        for decoded in faulty.decode(enumerate(map(png, some(60)))):
            if decoded.number == 3:
                break
    assert len(collected(faulty, enumerate(map(png, some(5))))) == 5


def test_the_processes_have_no_credentials(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary")
    monkeypatch.setenv("SOME_TOKEN", "canary")
    with Decoders(Limits(3), processes=1) as decoders:
        process = psutil.Process(decoders.process_ids[0])
        assert "canary" not in str(process.environ())
        assert "canary" not in str(process.cmdline())


def test_nothing_is_left_behind():
    with Decoders(Limits(3), processes=2) as decoders:
        processes = decoders.process_ids
        collected(decoders, enumerate(map(png, some(3))))
    assert not any(psutil.pid_exists(pid) for pid in processes)


def test_a_missing_codec_is_named():
    with pytest.raises(MaskfleetError, match="failed to start .*no_such_module"):
        Decoders(Limits(3), processes=1, codec="no_such_module:decode")
