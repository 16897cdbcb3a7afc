"""The first worker of a run measures precision and batches; all others follow."""

import json
from pathlib import Path

import pytest
import torch
from conftest import draw_images, needs_bf16, once_committed, seeded

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.network import batches
from maskfleet.jobs.network import tuning as module
from maskfleet.jobs.network.inference_config import load_weights
from maskfleet.jobs.network.tuning import Tuning, read, settled, tune
from maskfleet.jobs.run.begin import start_plan
from maskfleet.jobs.run.execute import run
from maskfleet.jobs.storage.local import LocalStorage
from maskfleet.unet import precision, weights
from maskfleet.unet.ensemble import Ensemble
from maskfleet.unet.folded import ConvReLU
from maskfleet.unet.inference.agreement import Agreement
from maskfleet.unet.inference.segmenter import Segmenter


@pytest.fixture
def job_of(tmp_path):
    draw_images(tmp_path / "in", 6)
    (tmp_path / "w.safetensors").write_bytes(weights.save(seeded(width=8)))

    def make(*sets):
        table = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out")}
        return Job.of({**table, "weights": str(tmp_path / "w.safetensors")}, ["cluster.threads=1", *sets])

    return make


def tuned(job):
    return tune(job, load_weights(job), start_plan(job, "f").manifest, LocalStorage(job.output), threads=1)


@pytest.fixture
def fast_bf16(monkeypatch):
    """A device with bf16, four times as fast as fp32, and a run long enough for measurements."""
    if needs_bf16.args[0]:
        pytest.skip(needs_bf16.kwargs["reason"])
    monkeypatch.setattr(module, "LEAST_BYTES", 0)
    for where in (module, precision):
        monkeypatch.setattr(where, "native", lambda device: ("bf16", "fp32"))
    times = {"bf16": 0.25, "fp32": 1.0}
    monkeypatch.setattr(module, "seconds_of", lambda segmenter, shape: times[segmenter.precision])
    return times


def test_a_device_of_one_precision_measures_nothing(job_of, monkeypatch):
    monkeypatch.setattr(module, "native", lambda device: ("fp32",))
    monkeypatch.setattr(module, "sample", None)
    found = tuned(job_of())
    assert (found.precision, found.batch_pixels, found.compared, found.sentence) == ("fp32", None, [], None)


def test_a_short_run_of_small_images_measures_nothing(job_of, fast_bf16, monkeypatch):
    monkeypatch.setattr(module, "LEAST_BYTES", 2**15)
    assert tuned(job_of()).seconds_per_image == {}
    assert tuned(job_of()).precision == "fp32"
    assert tuned(job_of("inference.precision=bf16", "inference.min_agreement=0.5")).precision == "bf16"
    monkeypatch.setattr(module, "LEAST_IMAGES", 6)
    assert tuned(job_of("inference.min_agreement=0.5")).precision == "bf16"


def test_the_fastest_agreeing_precision_is_used(job_of, fast_bf16):
    found = tuned(job_of("inference.min_agreement=0.5"))
    assert (found.precision, found.seconds_per_image) == ("bf16", fast_bf16)
    (judged,) = found.compared
    assert judged["precision"] == "bf16"
    assert judged["images"] == 6
    assert 0.9 < judged["worst_agreement"] <= judged["agreement"] < 1
    assert judged["worst_image"].startswith("part-")
    assert "bf16 agrees with fp32 in 99." in found.sentence
    assert found.sentence.endswith("% of the pixels of 6 images; computing in bf16")


def test_below_min_agreement_a_more_exact_precision_is_used(job_of, fast_bf16):
    report = run(job_of("inference.min_agreement=1"))
    record = report.tuning
    assert record["precision"] == "fp32"
    assert record["compared"][0]["agreement"] < 1
    assert Tuning(**record).sentence.endswith("; computing in fp32")
    stored = json.loads((LocalStorage(job_of().output)).read(f"runs/{report.run_id}/run.json"))
    assert stored["tuning"] == record


def test_a_stated_precision_is_compared_too(job_of, fast_bf16):
    assert tuned(job_of("inference.precision=bf16", "inference.min_agreement=0.5")).precision == "bf16"
    found = tuned(job_of("inference.precision=bf16", "inference.min_agreement=1"))
    assert (found.precision, len(found.compared), found.seconds_per_image) == ("fp32", 1, {})


def test_a_small_speed_up_is_not_worth_less_exactness(job_of, fast_bf16):
    fast_bf16["bf16"] = 0.95
    found = tuned(job_of())
    assert (found.precision, found.compared) == ("fp32", [])


def test_without_readable_images_fp32_is_used(job_of, fast_bf16, tmp_path):
    for path in (tmp_path / "in").rglob("image*"):
        path.write_bytes(b"gone bad")
    assert tuned(job_of()).precision == "fp32"


def test_precisions_are_tried_from_the_fastest_to_the_most_exact(job_of, monkeypatch):
    class Fake:
        def __init__(self, precision):
            self.precision = precision

    monkeypatch.setattr(module, "LEAST_BYTES", 0)
    order = ("bf16", "fp16", "fp32")
    for where in (module, precision):
        monkeypatch.setattr(where, "native", lambda device: order)
    monkeypatch.setattr(module, "segmenter_of", lambda *_, precision, **__: Fake(precision))
    monkeypatch.setattr(module, "seconds_of", lambda segmenter, shape: 1.0 + order.index(segmenter.precision))
    shares = {"bf16": 0.99, "fp16": 0.9999}
    monkeypatch.setattr(
        module, "compared", lambda judged, exact, images: Agreement(6, shares[judged.precision], 0, 0, 0, 0)
    )
    found = tuned(job_of())
    assert (found.precision, [each["precision"] for each in found.compared]) == ("fp16", ["bf16", "fp16"])
    assert found.sentence == (
        "bf16 agrees with fp32 in 99.0000% of the pixels of 6 images; "
        "fp16 agrees with fp32 in 99.9900% of the pixels of 6 images; "
        "computing in fp16"
    )
    shares["fp16"] = 0.9
    assert tuned(job_of()).precision == "fp32"


class Timed:
    """A stand-in for a segmenter on a GPU."""

    def __init__(self, precision, fused):
        self.precision, self.fused = precision, fused


@pytest.fixture
def fusing(monkeypatch):
    """A GPU on which fused layers are faster by a factor, and a record of the compared segmenters."""
    told = {"faster": 1.2, "agreement": 1.0, "judged": [], "error": None}

    def segmenter_of(*_, precision, fused=None, **__):
        if fused and told["error"]:
            raise told["error"]
        return Timed(precision, fused)

    def compared(judged, exact, images):
        told["judged"].append((judged.precision, judged.fused))
        return Agreement(6, told["agreement"], 0, 0, 0, 0)

    monkeypatch.setattr(module, "LEAST_BYTES", 0)
    monkeypatch.setattr(module, "_fuses_by_measurement", lambda device: True)
    for where in (module, precision):
        monkeypatch.setattr(where, "native", lambda device: ("bf16", "fp32"))
    monkeypatch.setattr(module, "segmenter_of", segmenter_of)
    monkeypatch.setattr(module, "compared", compared)
    monkeypatch.setattr(
        module,
        "seconds_of",
        lambda one, shape: (1 if one.precision == "bf16" else 2) / (told["faster"] if one.fused else 1),
    )
    return told


@pytest.mark.parametrize(("faster", "fused"), [(1.2, True), (1.03, True), (1.01, False), (0.7, False)])
def test_a_gpu_fuses_layers_if_that_is_clearly_faster(job_of, fusing, faster, fused):
    fusing["faster"] = faster
    found = tuned(job_of())
    assert (found.precision, found.fused) == ("bf16", fused)
    assert fusing["judged"] == [("bf16", True if fused else None)]


@pytest.mark.parametrize(
    "error", [RuntimeError("unable to find an engine"), torch.OutOfMemoryError("CUDA"), MemoryError()]
)
def test_a_gpu_without_fused_layers_uses_separate_ones(job_of, fusing, error):
    fusing["error"] = error
    assert tuned(job_of()).fused is False


def test_an_untimed_precision_has_separate_layers(job_of, fusing):
    fusing["agreement"] = 0.9
    found = tuned(job_of())
    assert (found.precision, found.fused) == ("fp32", False)
    assert fusing["judged"] == [("bf16", True)]


def test_a_cpu_does_not_measure_fusing(job_of):
    assert run(job_of()).tuning["fused"] is None


@pytest.mark.parametrize("fused", [True, False])
def test_workers_follow_the_stored_tuning(job_of, monkeypatch, fused):
    made = []
    monkeypatch.setattr(module, "tune", lambda *_, **__: Tuning("a", "fp32", fused=fused))
    init = Segmenter.__init__

    def noted(self, *args, **more):
        init(self, *args, **more)
        made.append(any(isinstance(layer, ConvReLU) for layer in self._resident.fast.modules()))

    monkeypatch.setattr(Segmenter, "__init__", noted)
    assert run(job_of()).exit_code == 0
    assert made == [fused]


def test_a_precision_missing_on_the_device_is_an_error_of_the_job(job_of, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_fp16_supported", lambda: False)
    with pytest.raises(JobError, match="cannot compute in fp16"):
        tuned(job_of("inference.precision=fp16"))


def test_the_first_stored_tuning_counts(tmp_path):
    storage = LocalStorage(str(tmp_path))
    assert read(storage, "r") is None
    first, second = Tuning("a", "bf16", 77), Tuning("b", "fp32")
    assert settled(storage, "r", "worker", first) == first
    assert settled(storage, "r", "worker", second) == first
    assert read(storage, "r") == first
    assert settled(storage, "s", "driver", second) == second == read(storage, "s")


def test_every_worker_follows_the_first(job_of, fast_bf16, monkeypatch):
    """A resumed run stays in bf16, though its machine has become slower in bf16."""
    from maskfleet.jobs.errors import Stopped

    sets = ("run.shard_size=2", "inference.min_agreement=0.5")
    with pytest.raises(Stopped):
        run(job_of(*sets), stopped=once_committed(Path(job_of(*sets).output), 1))
    monkeypatch.setattr(module, "tune", None)
    report = run(job_of(*sets))
    assert (report.resumed, report.tuning["precision"]) == (True, "bf16")


@pytest.fixture
def measured(monkeypatch):
    """A device with measured batches. Gives the measured shapes."""
    shapes = []

    def best(segmenter, height, width):
        shapes.append((height, width))
        return 8

    monkeypatch.setattr(module, "LEAST_BYTES", 0)
    monkeypatch.setattr(module, "_measures_batches", lambda device: True)
    monkeypatch.setattr(module, "best_batch", best)
    monkeypatch.setattr(module, "native", lambda device: ("fp32",))
    return shapes


def test_batches_are_measured_once_for_all_runs(job_of, measured, tmp_path):
    first = run(job_of()).tuning
    assert first["batches"] == [[*shape, 8] for shape in measured]
    assert len(measured) == 3
    height, width, _ = first["batches"][0]
    assert first["batch_pixels"] == 8 * height * width
    draw_images(tmp_path / "in", 12)
    second = run(job_of()).tuning
    assert {tuple(batch) for batch in first["batches"]} <= {tuple(batch) for batch in second["batches"]}
    assert len(measured) == len(set(measured))  # nothing twice


def test_workers_use_measured_batches(job_of, measured, monkeypatch):
    batches = []
    segment = Segmenter.segment

    def noted(self, images, size=None, **more):
        batches.append((images.shape[1:3], self.batch_size(*images.shape[1:3])))
        return segment(self, images, size, **more)

    monkeypatch.setattr(Segmenter, "segment", noted)
    run(job_of())
    assert {(shape, 8) for shape in measured} <= set(batches)


@pytest.mark.parametrize(
    "spoilt", [b"", b"[]", b'{"batch": 4', b'{"of": {"device": "other"}, "batch": 4}', b"\xff\xfe"]
)
def test_a_torn_or_foreign_batch_is_measured_again(job_of, measured, tmp_path, spoilt):
    first = run(job_of()).tuning
    measured.clear()
    kept = sorted((tmp_path / "out/batches").iterdir())
    assert len(kept) == len(first["batches"])
    whole = [path.read_bytes() for path in kept]
    for path in kept:
        path.write_bytes(spoilt)
    draw_images(tmp_path / "in", 7)
    run(job_of())
    assert [[*shape, 8] for shape in measured] == first["batches"]
    assert [path.read_bytes() for path in kept] == whole


@pytest.mark.parametrize("batch", [0, -1, 65, 2.0, True, "8", None])
def test_a_stored_batch_out_of_range_is_ignored(tmp_path, batch):
    storage, of = LocalStorage(str(tmp_path)), {"device": "a"}
    batches.keep(storage, of, batch)
    assert batches.known(storage, of) is None
    batches.keep(storage, of, 64)
    assert batches.known(storage, of) == 64


def test_a_measured_batch_belongs_to_a_device_a_precision_a_network_and_a_shape(job_of):
    """The values of the weights do not matter."""

    def of(device="a", precision="fp32", model=None, shape=(32, 48)):
        return batches.subject_of(device, precision, weights.Weights(model or seeded(), "id"), shape)

    same = [of(), of(model=seeded(seed=1))]
    others = [of("b"), of(precision="bf16"), of(model=seeded(width=8)), of(model=seeded(3)), of(shape=(48, 32))]
    others += [of(model=seeded(bilinear=True)), of(model=Ensemble([seeded()], "d4")), of(model=Ensemble([seeded()]))]
    assert same[0] == same[1]
    assert len({json.dumps(each) for each in [*same, *others]}) == 9


def test_shapes_worth_a_measurement_are_the_usual_ones():
    images = [torch.zeros(*shape, 3).numpy() for shape in [(10, 20), (30, 40), (30, 40)]]
    assert module._shapes(images) == [(30, 40)]
    assert module._shapes([*images, images[0]]) == [(10, 20), (30, 40)]


def test_tiles_are_measured_for_images_that_are_cut():
    segmenter = Segmenter(seeded(width=2), precision="fp32", tile=256)
    assert segmenter.forward_shape(200, 2000) == (200, 432)
    batched = Segmenter(seeded(width=2), precision="fp32", tile=256, batches={(432, 432): 3})
    assert batched.forward_shape(2000, 2000) == (432, 432)
    batched.segment(torch.zeros(1, 800, 800, 3, dtype=torch.uint8).numpy())
    assert batched.fits[800, 800][0].batch == batched.batch_size(*batched.forward_shape(800, 800))
    assert batched.batch_size(432, 432) == 3
