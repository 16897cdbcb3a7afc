"""A million loose keys in a bucket, night after night: `python tests/benchmarks/nights.py --keys 1000000`.

The bucket is a stub in a process of its own that answers S3's list and get requests over HTTP, so that requests, XML and
client are real and only the disks behind them are not. It counts what it is asked. Every object is one 64² JPEG.
"""

import argparse
import http.server
import io
import json
import multiprocessing
import os
import resource
import tempfile
import time
import urllib.parse
import urllib.request

FOLDERS = 100
NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
ETAG = "d41d8cd98f00b204e9800998ecf8427e"


def keys_of(count, night):
    """Keys in order with their etags. The second kind of night has 1,000 new, 500 changed and 200 deleted."""
    each = count // FOLDERS
    for folder in range(FOLDERS):
        for number in range(each + (10 if night == "changed" else 0)):
            if night == "changed" and number in (1, 2):  # two deleted in each of a hundred folders
                continue
            changed = night == "changed" and 10 <= number < 15
            yield f"in/{folder:03}/image-{number:07}.jpg", ("c" if changed else "") + ETAG


class Bucket(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    count, night, asked, listing, jpeg = 0, "same", {}, [], b""

    def do_POST(self):  # the benchmark's own: another night, or what was asked
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


def serve(port, jpeg):
    Bucket.jpeg = jpeg
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


class Told(dict):
    """Prints each row as it comes."""

    def __setitem__(self, name, value):
        print(f"| {name} | {value} |", flush=True)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--keys", type=int, default=1_000_000)
    parser.add_argument("--pairs", type=int, default=3, help="0: the first shard alone")
    options = parser.parse_args()
    keys = options.keys
    context = multiprocessing.get_context("spawn")
    mine, theirs = context.Pipe()
    server = context.Process(target=serve, args=(theirs, jpeg()), daemon=True)
    server.start()
    url = f"http://127.0.0.1:{mine.recv()}"
    os.environ |= {
        "AWS_ENDPOINT_URL_S3": url, "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
        "AWS_DEFAULT_REGION": "us-east-1",
    }  # fmt: skip
    order(url, count=keys, night="same")
    with tempfile.TemporaryDirectory() as folder:
        measured(url, folder, keys, options.pairs)
    server.terminate()


def measured(url, folder, keys, count):  # noqa: PLR0915  (one night after the other)
    import jobs.run
    from jobs import catalog
    from jobs.bench import with_identity
    from jobs.commit import Commit, Commits
    from jobs.job import Job
    from jobs.planning import LivePlan
    from jobs.recipe import fingerprint_of, load_weights
    from jobs.run import Run
    from jobs.storage import open_storage

    job = Job.of({"input": "s3://b/in", "output": f"{folder}/out", "weights": "nuclei", "masks": {"format": "tar"}})
    fingerprint = fingerprint_of(job, load_weights(job))
    storage = open_storage(job.output)
    out = Told()
    out["memory before, torch and all, MiB"] = peak()

    def listed():
        began = time.perf_counter()
        count = sum(1 for _ in open_storage("s3://b/in").walk())
        assert count == keys, count
        return time.perf_counter() - began

    def planned(number):
        began = time.perf_counter()
        plan = jobs.run.plan(job, fingerprint)
        live = LivePlan(storage, f"plan-{number}", plan.planning, plan.first, plan.parts)
        shards = live.shards()
        next(shards)
        first = time.perf_counter() - began
        while next(shards, live) is not live:
            time.sleep(0.02)
        live.close()
        return first, time.perf_counter() - began

    def first(number):
        began = time.perf_counter()
        plan = jobs.run.plan(job, fingerprint)
        live = LivePlan(storage, f"first-{number}", plan.planning, plan.first, iter(()))
        next(live.shards())
        seconds = time.perf_counter() - began
        live.close()
        plan.parts.close()
        return seconds

    out["first shard alone, s (five)"] = ", ".join(f"{first(number):.2f}" for number in range(5))
    if not count:
        return
    pairs = [(listed(), *planned(number)) for number in range(count)]
    ratios = sorted(plan / alone for alone, _, plan in pairs)
    out["listing alone, s"] = ", ".join(f"{alone:.1f}" for alone, _, _ in pairs)
    out["listing, planning and storing the plan, s"] = ", ".join(f"{plan:.1f}" for _, _, plan in pairs)
    out["ratio, median (least to most)"] = f"{ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f}–{ratios[-1]:.2f})"
    out["first shard out after, s"] = ", ".join(f"{first:.2f}" for _, first, _ in pairs)
    out["driver's memory after planning, MiB"] = peak()

    # The first night's outcome, without its images: what its statistics would bring into the catalog.
    def outcomes():
        import pyarrow as pa

        rows = list(keys_of(keys, "same"))
        for start in range(0, keys, 8192):
            chunk = rows[start : start + 8192]
            count = len(chunk)
            columns = {
                "key": [key[3:] for key, _ in chunk], "etag": [etag for _, etag in chunk],
                "fingerprint": [fingerprint] * count, "status": ["ok"] * count, "stage": [None] * count,
                "error_class": [None] * count, "run_id": ["20260101T000000.000-aaaaaa"] * count,
                "shard": ["00000"] * count, "input": [job.input] * count,
            }  # fmt: skip
            yield pa.table(columns, catalog.SCHEMA)

    catalog.add(storage, "20260101T000000.000-aaaaaa", outcomes())
    order(url)
    began = time.perf_counter()
    report = jobs.run.run(job, open_pipeline=with_identity)
    asked = order(url)
    out["a night with nothing new, s"] = f"{time.perf_counter() - began:.1f}"
    out["its images; its requests"] = f"{report.images}; {asked}"

    order(url, count=keys, night="changed")
    size = lambda: sum(entry.size for entry in storage.walk("catalog"))  # noqa: E731
    before = size()
    began = time.perf_counter()
    report = jobs.run.run(job, open_pipeline=with_identity)
    out["1,000 new, 500 changed, 200 deleted: s"] = f"{time.perf_counter() - began:.1f}"
    out["planned; gone; requests"] = f"{report.record['planned']}; {report.record['gone']}; {order(url)}"
    out["bytes that its catalog wrote, of those there"] = f"{size() - before} of {before}"

    # A run of all, killed at 90 %: as many commits, and then the command again up to its first shard.
    order(url, count=keys, night="same")
    stale = Job.of({**job.model_dump(), "select": {"only": ["stale"]}, "inference": {"tta": "flips"}})
    with jobs.run.begin(stale) as this:
        while any(True for shard in this.live.shards() if shard is None) and this.live._frozen is None:
            time.sleep(0.05)
        run_id = this.run_id
        out["planned with other settings, --only stale"] = this.images
    commits = Commits(storage, run_id, "worker")
    shards = list(Run.attach(job.output, run_id).desk.manifest.shards())
    for shard in shards[: len(shards) * 9 // 10]:
        commits.commit(Commit(shard.id, "x", {}, len(shard), 0))
    began = time.perf_counter()
    with jobs.run.begin(stale) as this:
        _, backlog = jobs.run.resume(this)
        task = backlog.take(idle=True)
        out["after a kill at 90 %, first shard out after, s"] = f"{time.perf_counter() - began:.1f}"
        out["which, of how many"] = f"{task.shard.id} of {len(shards)}"
    out["driver's memory at the end, MiB"] = peak()


if __name__ == "__main__":
    main()
