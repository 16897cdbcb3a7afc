"""All measurements on a GPU, in one command: `python tests/benchmarks/gpu.py`. Prints JSON, a section per line.

Forward at 256², 512² and half of Carvana's 1918×1280, in fp32, bf16 and fp16; the segmenter alone, on one stream and on
both, with graphs and without; end to end with JPEG input and tar output against the forward; labels against fp32 on
drawn images. What each step of the forward gains is `forward_steps.py`'s.
"""

import argparse
import json
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from maskfleet.cluster.driver import Fleet
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.tools import bench
from maskfleet.jobs.tools.bench_images import bench_job, draw
from maskfleet.unet import weights
from maskfleet.unet.inference import roofline
from maskfleet.unet.inference.agreement import compared
from maskfleet.unet.inference.segmenter import Segmenter
from maskfleet.unet.model import UNet

SHAPES = ((256, 256), (512, 512), (640, 959))
CARVANA = (1918, 1280)


def job_of(path: Path, input_: str = "", *sets: str) -> Job:
    job = Job.of(
        {"input": input_ or "-", "output": "bench", "weights": str(path)},
        ["masks.format=tar", "inference.device=cuda", *sets],
    )
    return job.model_copy(update={"input": input_})


def bare(segmenter: Segmenter, side: int) -> float:
    return roofline.images_per_second(segmenter, segmenter.batch_size(side, side), side, side, least_seconds=2.0)


def say(name: str, found) -> None:
    print(json.dumps({name: found}), flush=True)


def segmenting(segmenter: Segmenter, side: int, *, streams: int, graphs: bool, seconds: float = 3.0) -> float:
    """Images per second of the segmenter alone: copies, forward, decision and statistics."""
    if not graphs:
        segmenter._streams.forget()
    batch = segmenter.batch_size(side, side)
    images = segmenter.pinned_buffer(batch, side, side)
    images[:] = np.random.default_rng(0).integers(0, 256, images.shape, np.uint8)

    def work(until: float) -> int:
        done = 0
        while time.perf_counter() < until:
            segmenter.segment(images)
            done += batch
        return done

    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(work, [time.perf_counter() + seconds] * streams))  # graphs are recorded
        return sum(pool.map(work, [time.perf_counter() + seconds] * streams)) / seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--images", type=int, default=4000, help="of each end-to-end run")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no GPU: PyTorch sees none; check nvidia-smi and the CUDA build")
    say("device", torch.cuda.get_device_name())
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "full.safetensors")
        path.write_bytes(weights.save(UNet(3, 2)))
        for row in bench.forward(job_of(path), SHAPES, ["bf16", "fp16", "fp32"], pairs=options.pairs):
            say("forward", row)
        for width, side in ((64, 512), (64, 256), (8, 256)):
            for graphs, streams in ((True, 1), (True, 2), (False, 1), (False, 2)):
                segmenter = Segmenter(UNet(3, 2, width=width), device="cuda", precision="bf16")
                rate = segmenting(segmenter, side, streams=streams, graphs=graphs)
                found = {"streams": streams, "graphs": graphs, "images_per_second": rate}
                say(f"segmenter, width {width}, {side}²", found | {"bare": bare(segmenter, side)})
        for side in (512, 256):
            with bench_job(job_of(path), options.images, side) as job:
                say(f"end to end {side}²", bench.end_to_end(job, Fleet, pairs=options.pairs))
        photos = Path(scratch, "carvana")
        for file in draw(photos, options.images // 8, 320).iterdir():
            Image.open(file).resize(CARVANA, Image.Resampling.BICUBIC).save(file, quality=90)
        with bench_job(job_of(path, str(photos), "inference.scale=0.5"), options.images, 0) as job:
            say("end to end 1918×1280 at 0.5", bench.end_to_end(job, Fleet, pairs=options.pairs))
        images = [np.asarray(Image.open(file)) for file in sorted(photos.iterdir())[:16]]
        model = weights.load(path.read_bytes()).model
        exact = Segmenter(model, device="cuda", precision="fp32")
        for precision in ("bf16", "fp16"):
            found = compared(Segmenter(model, device="cuda", precision=precision), exact, images)
            say(f"labels, {precision} against fp32", found._asdict())


if __name__ == "__main__":
    main()
