"""A million loose objects in a bucket, night after night: `python tests/benchmarks/nights.py --keys 1000000`.

Durations cover the whole process for steps a person waits for (first shard, nights, resuming), and the step alone for
the others. The bucket is a stub in a process of its own. It answers S3 list and get requests over HTTP, so requests, XML
and client are real, and only the disks are not. It counts its requests. Every object is the same 64×64 JPEG.
"""

import argparse
import http.server
import io
import itertools
import json
import multiprocessing
import os
import resource
import subprocess
import sys
import tempfile
import time
import urllib.parse
import urllib.request

FOLDERS = 100
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
KEYS, STARTED = 0, 0.0
ETAG = "d41d8cd98f00b204e9800998ecf8427e"


def keys_of(count, night):
    """Yield sorted keys with their etags. A "changed" night has 1,000 new, 500 changed and 200 deleted keys."""
    each = count // FOLDERS
    for folder in range(FOLDERS):
        for number in range(each + (10 if night == "changed" else 0)):
            if night == "changed" and number in (1, 2):  # two deleted keys in each of 100 folders
                continue
            changed = night == "changed" and 10 <= number < 15
            yield f"in/{folder:03}/image-{number:07}.jpg", ("c" if changed else "") + ETAG


class Bucket(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked, listing, jpeg, latency = {}, [], b"", 0.0

    def do_POST(self):  # control of the stub: switch the night, return and reset the request counts
        length = int(self.headers["Content-Length"])
        order = json.loads(self.rfile.read(length))
        answer = json.dumps(Bucket.asked).encode()
        Bucket.asked = {}
        if order:
            Bucket.listing = list(keys_of(order["count"], order["night"]))
        self.reply(answer)

    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        kind = "list" if "list-type" in query else "get"
        Bucket.asked[kind] = Bucket.asked.get(kind, 0) + 1
        if kind == "get":
            self.reply(Bucket.jpeg, ETag=f'"{self.headers.get("If-Match", ETAG).strip(chr(34))}"')
            return
        time.sleep(Bucket.latency)
        self.reply(self.page(query))

    def page(self, query):
        prefix, listing = query.get("prefix", ""), Bucket.listing
        if "delimiter" in query:
            folders = sorted({key.split("/")[1] for key, _ in listing[:: max(1, len(listing) // (FOLDERS * 20))]})
            if prefix == "in/":
                body = "".join(f"<CommonPrefixes><Prefix>in/{name}/</Prefix></CommonPrefixes>" for name in folders)
                return self.xml(body, False, "")
        after = query.get("continuation-token") or query.get("start-after") or prefix
        low, high = 0, len(listing)
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if listing[middle][0] <= after else (low, middle)
        found = listing[low : low + 1000]
        body = "".join(
            f"<Contents><Key>{key}</Key><LastModified>2026-11-24T00:00:00.000Z</LastModified><ETag>&quot;{etag}&quot;"
            f"</ETag><Size>{len(Bucket.jpeg)}</Size><StorageClass>STANDARD</StorageClass></Contents>"
            for key, etag in found
        )
        return self.xml(body, low + 1000 < len(listing), found[-1][0] if found else "")

    def xml(self, body, truncated, token):
        more = f"<NextContinuationToken>{token}</NextContinuationToken>" if truncated else ""
        return (
            f'<?xml version="1.0"?><ListBucketResult xmlns="{NAMESPACE}"><Name>b</Name><MaxKeys>1000</MaxKeys>'
            f"<IsTruncated>{str(truncated).lower()}</IsTruncated>{more}{body}</ListBucketResult>"
        ).encode()

    def reply(self, body, **headers):
        self.send_response(200)
        for name, value in {"Content-Length": len(body), "Content-Type": "application/xml", **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_): ...


def serve(port, jpeg, latency=0.0):
    Bucket.jpeg, Bucket.latency = jpeg, latency
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    port.send(server.server_address[1])
    server.serve_forever()


def jpeg():
    import numpy as np
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(sink, "JPEG")
    return sink.getvalue()


def order(url, **what):
    request = urllib.request.Request(url, json.dumps(what).encode(), method="POST")
    with urllib.request.urlopen(request) as answer:
        return json.loads(answer.read())


def memory():
    """Return the peak memory of this process in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


# Steps. Each runs in a fresh process, as a nightly run does.


def job_of(output, **more):
    from maskfleet.jobs.job.schema import Job

    return Job.of({"input": "s3://b/in", "output": output, "weights": "nuclei", "masks": {"format": "tar"}, **more})


def stale_of(output):
    """Return the job with new weights, so that all images are stale."""
    from maskfleet.unet import weights
    from maskfleet.unet.model import UNet

    path = f"{output}.safetensors"
    if not os.path.exists(path):
        with open(path, "wb") as file:
            file.write(weights.save(UNet(3, 2, width=4)))
    return job_of(output, select={"only": ["stale"]}, weights=path)


def listing(_):
    from maskfleet.jobs.storage.schemes import open_storage

    began = time.perf_counter()
    count = sum(table.num_rows for table in open_storage("s3://b/in").listed())
    return {"seconds": time.perf_counter() - began, "images": count}


def planning(output):
    """Make and store the plan."""
    import maskfleet.jobs.run.begin
    import maskfleet.jobs.run.execute
    from maskfleet.jobs.network.inference_config import fingerprint_of, load_weights
    from maskfleet.jobs.planning.live_plan import LivePlan
    from maskfleet.jobs.storage.schemes import open_storage

    job = job_of(output)
    fingerprint = fingerprint_of(job, load_weights(job))
    began = time.perf_counter()
    plan = maskfleet.jobs.run.begin.start_plan(job, fingerprint)
    live = LivePlan(open_storage(output), f"plan-{began}", planning=plan.planning, first=plan.first, parts=plan.parts)
    for shard in live.shards():
        if shard is None:
            time.sleep(0.02)
    live.close()
    return {"seconds": time.perf_counter() - began, "images": live.frozen.images}


def first(output):
    """Start a run over all images and drop it at its first shard."""
    import maskfleet.jobs.run.begin
    import maskfleet.jobs.run.execute
    from maskfleet.jobs.run.progress import Progress

    with maskfleet.jobs.run.begin.begin(job_of(output)) as run:
        backlog = maskfleet.jobs.run.execute.backlog_of(run, Progress())
        backlog.take(idle=True)
        since_start = time.time() - STARTED
    return {"seconds": since_start}


def night(output):
    import maskfleet.jobs.run.execute
    from maskfleet.jobs.run.executor import InProcess
    from maskfleet.jobs.tools.bench import identity_pipeline

    summary = maskfleet.jobs.run.execute.run(job_of(output), InProcess(identity_pipeline))
    found = {"planned": summary.planned, "gone": summary.gone}
    return {"seconds": time.time() - STARTED, "images": summary.images, **found}


def known(output):
    """Create the catalog a first night would leave, without processing images."""
    import pyarrow as pa

    from maskfleet.jobs.ledger import catalog
    from maskfleet.jobs.network.inference_config import fingerprint_of, load_weights
    from maskfleet.jobs.storage.schemes import open_storage

    job = job_of(output)
    same = {
        "fingerprint": fingerprint_of(job, load_weights(job)), "status": "ok", "run_id": "20260101T000000.000-aaaaaa",
        "shard": "00000", "input": job.input,
    }  # fmt: skip

    def outcomes():
        rows = keys_of(KEYS, "same")
        while chunk := list(itertools.islice(rows, 8192)):
            yield pa.Table.from_pylist([{"key": key[3:], "etag": etag, **same} for key, etag in chunk], catalog.SCHEMA)

    catalog.add(open_storage(output), same["run_id"], outcomes())
    return {}


def killed(output):
    """Create a run over all images, cut off with 90 % of its shards committed."""
    import maskfleet.jobs.run.begin
    import maskfleet.jobs.run.execute
    from maskfleet.jobs.ledger.commit import Commit, Commits
    from maskfleet.jobs.storage.schemes import open_storage

    with maskfleet.jobs.run.begin.begin(stale_of(output)) as run:
        for shard in run.live.shards():
            if shard is None:
                time.sleep(0.02)
        run_id, why = run.run_id, dict(run.live.planning.reasons)
    commits = Commits(open_storage(output), run_id, "worker")
    shards = list(run.output.manifest.shards())
    for shard in shards[: len(shards) * 9 // 10]:
        commits.commit(Commit(shard.id, "x", {}, len(shard), 0))
    return {"planned": why, "shards": len(shards)}


def resumed(output):
    import maskfleet.jobs.run.begin
    import maskfleet.jobs.run.execute
    from maskfleet.jobs.run.progress import Progress

    with maskfleet.jobs.run.begin.begin(stale_of(output)) as run:
        backlog = maskfleet.jobs.run.execute.backlog_of(run, Progress())
        task = backlog.take(idle=True)
        since_start = time.time() - STARTED
    return {"seconds": since_start, "shard": task.shard.id}


STEPS = {step.__name__: step for step in (listing, planning, first, known, night, killed, resumed)}


def in_a_process(step, output):
    command = [sys.executable, __file__, "--keys", str(KEYS), "--step", step, "--output", output]
    answer = subprocess.run([*command, "--started", str(time.time())], check=True, stdout=subprocess.PIPE)
    told = json.loads(answer.stdout)
    print(
        step, {name: round(value, 2) if isinstance(value, float) else value for name, value in told.items()}, flush=True
    )
    return told


def main():
    global KEYS, STARTED
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--latency", type=float, default=0.0, help="seconds per page of a listing")
    parser.add_argument("--only", nargs="*", default=["plans", "nights"])
    parser.add_argument("--step")
    parser.add_argument("--output")
    parser.add_argument("--started", type=float)
    options = parser.parse_args()
    KEYS, STARTED = options.keys, options.started
    if options.step:
        print(json.dumps({**STEPS[options.step](options.output), "peak_mib": memory()}))
        return
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, jpeg(), options.latency), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{mine.recv()}"
    os.environ |= {
        "AWS_ENDPOINT_URL_S3": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    order(url, count=KEYS, night="same")
    with tempfile.TemporaryDirectory() as folder:
        if "plans" in options.only:
            plans(folder, options.pairs)
        if "nights" in options.only:
            nights(url, f"{folder}/nights")
    server.terminate()


def plans(folder, pairs):
    ratios = []
    for number in range(pairs):
        in_a_process("first", f"{folder}/first-{number}")
        alone = in_a_process("listing", folder)
        ratios.append(in_a_process("planning", f"{folder}/plans")["seconds"] / alone["seconds"])
    ratios.sort()
    print(
        f"listing, planning and storing / listing alone: {ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
    )


def nights(url, output):
    in_a_process("known", output)
    order(url)
    in_a_process("night", output)
    print("  requests:", order(url, count=KEYS, night="changed"), flush=True)
    in_a_process("night", output)
    print("  requests:", order(url, count=KEYS, night="same"), flush=True)
    in_a_process("killed", output)
    in_a_process("resumed", output)


if __name__ == "__main__":
    main()
