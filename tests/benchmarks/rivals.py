"""The same work done by other tools: `python tests/benchmarks/rivals.py raydata IN.txt OUT …`.

raydata   Ray Data as documented: read_images → map_batches with an actor → PNG masks → Parquet. Improved as an expert
          would: folded normalisation, channels_last, bf16 autocast, argmax by comparison, maskfleet's own mask encoder,
          and no reserved resources that would idle.
loop      One image after another in fp32, as prediction scripts for Pytorch-UNet do: Pillow, division by 255, forward
          pass, resized logits, argmax, PNG by Pillow.

Prints JSON: images per second from the first written batch to the last, and over the whole command. The first rate
excludes start and end, which favours the rival: maskfleet's own rate includes them.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from maskfleet.jobs.masks.png import Encoder, default_values
from maskfleet.unet import weights
from maskfleet.unet.model import DoubleConv


def network(path: str):
    return weights.load(Path(path).read_bytes()).model.eval()


def folded(model):
    for block in model.modules():
        if isinstance(block, DoubleConv):
            layers = block.double_conv
            for convolution, norm in ((0, 1), (3, 4)):
                layers[convolution] = fuse_conv_bn_eval(layers[convolution], layers[norm])
                layers[norm] = torch.nn.Identity()
    return model


class Segment:
    """Actor of map_batches."""

    def __init__(self, path: str, bf16: bool, threads: int) -> None:
        torch.set_num_threads(threads)
        self.model = folded(network(path)).to(memory_format=torch.channels_last) if path else None
        self.bf16 = bf16

    @torch.inference_mode()
    def __call__(self, batch):
        images = np.stack(batch.pop("image"))
        if self.model is None:
            batch["mask"] = (images[..., 1] > images[..., 0]).view(np.uint8)
            return batch
        x = torch.from_numpy(images).permute(0, 3, 1, 2)  # a channels_last tensor without a copy
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits = self.model(x.float().div_(255))
        batch["mask"] = (logits[:, 1] > logits[:, 0]).view(torch.uint8).numpy()
        return batch


class Write:
    """Writes masks as PNG and passes the table on."""

    def __init__(self, output: str) -> None:
        self.output, self.encoder = output, Encoder(default_values(2))

    def __call__(self, batch):
        masks = batch.pop("mask")
        for path, mask in zip(batch["path"], masks, strict=True):
            Path(self.output, f"{Path(path).stem}.png").write_bytes(self.encoder.encode(mask))
        batch["foreground"] = masks.mean(axis=(1, 2))
        batch["written"] = np.full(len(masks), time.time())
        return batch


class SegmentAndWrite(Segment):
    """Segments and writes in one actor: no mask crosses the object store, but the network waits for the writing."""

    def __init__(self, path: str, bf16: bool, threads: int, output: str) -> None:
        super().__init__(path, bf16, threads)
        self.write = Write(output)

    def __call__(self, batch):
        return self.write(super().__call__(batch))


def raydata(options) -> dict:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import pyarrow.parquet as pq
    import ray
    import ray.data

    ray.init("local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    ray.data.DataContext.get_current().enable_progress_bars = False
    paths = Path(options.input).read_text().split()
    masks = Path(options.output, "masks")
    masks.mkdir(parents=True)
    compute = ray.data.ActorPoolStrategy(size=options.actors)
    given = [options.weights, options.bf16, options.threads]
    batched = {"batch_size": options.batch_size, "num_cpus": options.actor_cpus}
    data = ray.data.read_images(paths, mode="RGB", include_paths=True)
    if options.fused:
        data = data.map_batches(SegmentAndWrite, fn_constructor_args=[*given, str(masks)], compute=compute, **batched)
    else:
        data = data.map_batches(Segment, fn_constructor_args=given, compute=compute, **batched)
        data = data.map_batches(Write(str(masks)).__call__, batch_size=options.batch_size)
    data.write_parquet(str(Path(options.output, "stats")))
    written = np.sort(pq.read_table(Path(options.output, "stats"), columns=["written"])["written"].to_numpy())
    return {"written": written.tolist()}


@torch.inference_mode()
def loop(options) -> dict:
    model = network(options.weights)
    torch.set_num_threads(options.threads)
    masks = Path(options.output, "masks")
    masks.mkdir(parents=True)
    written = []
    for path in Path(options.input).read_text().split():
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"), np.float32).transpose(2, 0, 1) / 255
        x = torch.from_numpy(pixels).unsqueeze(0)
        logits = F.interpolate(model(x), pixels.shape[1:], mode="bilinear")
        mask = logits.argmax(dim=1)[0].numpy()
        Image.fromarray(mask.astype(np.uint8) * 255).save(masks / f"{Path(path).stem}.png")
        written.append(time.time())
    return {"written": written}


def main() -> None:
    began = time.time()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rival", choices=["raydata", "loop"])
    parser.add_argument("input", help="text file with one path per line")
    parser.add_argument("output")
    parser.add_argument("--weights", default="", help="safetensors file; without it, the mask is green > red")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--actors", type=int, default=1)
    parser.add_argument("--actor-cpus", type=float, default=1.0)
    parser.add_argument("--fused", action="store_true", help="Ray Data: the actor writes the masks")
    options = parser.parse_args()
    written = np.array({"raydata": raydata, "loop": loop}[options.rival](options)["written"])
    first = int((written == written[0]).sum())
    whole = len(written) / (time.time() - began)
    steady = (len(written) - first) / (written[-1] - written[0])
    print(json.dumps({"images": len(written), "steady": steady, "whole": whole}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
