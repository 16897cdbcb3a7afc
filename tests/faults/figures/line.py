"""Faults of the line to a bucket, and of the server behind it: F3, F4, F8 to F13."""

import json
import os
import random
import shutil
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from faults.children import forked
from faults.figures.figure import Figure, figure
from faults.nights import Kind, Nights, series
from faults.proxy import Proxy, Rule
from faults.servers import S3Server, free_port, new_bucket

from maskfleet.jobs.errors import StorageError
from maskfleet.jobs.ledger.commit import Commit, Commits, nonce
from maskfleet.jobs.storage.s3 import S3Storage


@contextmanager
def on_bucket(images: int = 14):
    """Nights in a new bucket with the first night's images, and what a run without faults leaves."""
    with series(Kind(images=images), new_bucket()) as nights:
        nights.images_of(0)
        ended, expected = nights.again("reference", fresh=True)
        ended.value()
        yield nights, expected


def settled(result: Figure, nights: Nights, expected, output: str = "out") -> None:
    """Run the same command once more without faults, and take in what it left."""
    ended, verdict = nights.again(output)
    if verdict is None:
        result.problems.append(f"the next command ended with {ended.error}")
    else:
        result.judge(verdict.faults(expected))


def racing_commits(server: S3Server, shards: int = 300, racers: int = 3) -> Figure:
    """F3, F4: several attempts commit every shard at once, through a line that loses answers."""
    rules = [
        Rule("reset", method="PUT", path="/commits/", share=0.1),
        Rule("answer", method="PUT", path="/commits/", status=503, code="SlowDown", share=0.1),
        Rule("lost", method="PUT", path="/commits/", share=0.25),
    ]
    bucket = new_bucket()

    def race():
        os.environ["AWS_ENDPOINT_URL_S3"] = proxy.url
        racing = [Commits(S3Storage(f"{bucket}/out"), "race", "worker") for _ in range(racers)]

        def attempt(racer, shard):
            mine = Commit(f"{shard:05}", nonce(), {}, 1, 0)
            return racing[racer].commit(mine).attempt == mine.attempt

        with ThreadPoolExecutor(8 * racers) as pool:
            calls = [[pool.submit(attempt, racer, shard) for racer in range(racers)] for shard in range(shards)]
            return [sum(call.result() for call in each) for each in calls]

    with figure("F3, F4", f"{shards} shards × {racers} racing commits, answers lost") as result:
        with Proxy(server.url, *rules, seed=3) as proxy:
            winners = forked(race, 600).value()
            injected = proxy.injected()
        result.times = sum(injected.values())
        result.lost, result.doubled = winners.count(0), sum(count > 1 for count in winners)
        result.notes.append(f"{winners.count(1)} of {shards} shards with one known winner; {dict(injected)}")
        if winners.count(1) != shards:
            result.problems.append(f"{result.lost} shards without a winner, {result.doubled} with two")
    return result


def throttling(server: S3Server, share: float = 0.3, seconds: float = 60.0, images: int = 110) -> Figure:
    """F8: 503 SlowDown on a share of the requests for a while, from the first second of the run on.

    A request that fails by chance with probability p is sent 1 / (1 - p) times on average: 1.43 times for 30 %.
    """
    rule = Rule("answer", share=share, begin=1.5, end=1.5 + seconds)
    return _bad_line("F8", f"503 SlowDown on {share:.0%} for {seconds:.0f} s", server, [rule], images, pause=0.8)


def outage(server: S3Server, seconds: float = 30.0, images: int = 40) -> Figure:
    """F8: every request fails for a while, from the first second of the run on."""
    half = {"begin": 1.5, "end": 1.5 + seconds}
    rules = [Rule("answer", share=0.5, **half), Rule("answer", status=500, code="InternalError", **half)]
    return _bad_line("F8", f"an outage of {seconds:.0f} s", server, rules, images, pause=0.2, outage=seconds)


def _bad_line(number, fault, server, rules, images, *, pause=0.0, outage=0.0) -> Figure:
    with figure(number, fault) as result, on_bucket(images) as (nights, expected):
        with Proxy(server.url, seed=8) as proxy:
            nights.run("clean", endpoint=proxy.url, pause=pause).value()
            clean = _work(proxy.seen())
            began = time.monotonic()
            proxy.set(*rules)
            ended = nights.run("out", endpoint=proxy.url, pause=pause)
            requests = proxy.seen()
        result.times = sum(1 for *_, fault in requests if fault)
        if not ended.ok:
            result.problems.append(f"the run ended with {ended.error}")
        if outage:
            passed = [moment for moment, *_, fault in requests if not fault and moment > 1.5]
            result.recover = min(passed, default=time.monotonic() - began) - 1.5 - outage
        work = _work(requests)
        result.notes.append(f"{work} requests, {work / clean:.2f} × those of a clean run, without the lock's")
        settled(result, nights, expected)
    return result


def _work(requests: list[list]) -> int:
    """Number of requests beside those of the lock, which these nights renew a hundred times as often as others."""
    return sum("lock" not in path for _, _, path, _ in requests)


def hanging(server: S3Server, deadline: float = 6.0) -> Figure:
    """F9: a server that answers nothing, or a byte now and then, with either client."""
    with figure("F9", f"a hang and a drip, deadline {deadline:.0f} s") as result:
        bucket = new_bucket()
        forked(lambda: [S3Storage(bucket).write(name, os.urandom(4000)) for name in ("object", "another")]).value()
        with Proxy(server.url) as proxy:
            for fault in (Rule("hang", path="/object", seconds=600), Rule("drip", path="/object", seconds=0.5)):
                for client in ("s3fs", "obstore"):
                    proxy.set(fault)
                    passed, error = forked(lambda client=client: _timed(proxy.url, bucket, client, deadline)).value()
                    result.times += 1
                    result.notes.append(f"{fault.fault} with {client}: {error} after {passed:.1f} s")
                    if error != "StorageError" or not 0.9 * deadline <= passed <= 1.1 * deadline:
                        result.problems.append(result.notes[-1])
    return result


def _timed(url, bucket, client, deadline):
    os.environ["AWS_ENDPOINT_URL_S3"] = url
    S3Storage.GET_SECONDS = deadline
    if client == "s3fs":
        S3Storage._made_obstore = lambda self: None
    storage = S3Storage(bucket)
    storage.read("another")  # opens the client, which takes a second on a busy machine
    began = time.monotonic()
    try:
        storage.read("object")
        return time.monotonic() - began, "success"
    except StorageError as error:
        return time.monotonic() - began, type(error).__name__


def torn_answers(server: S3Server, share: float = 0.1, images: int = 60) -> Figure:
    """F10: answers are reset or cut at a random byte."""
    rules = [Rule("truncate", method="GET", share=share), Rule("reset", method="GET", share=share / 2)]
    return _bad_line("F10", f"{share:.0%} of the GETs cut at a random byte", server, rules, images)


def gateway_kills(server: S3Server, kills: int = 10) -> Figure:
    """F11: the real server's gateway is killed and started again while a run goes on."""
    with (
        figure("F11", "the S3 gateway killed and restarted") as result,
        on_bucket(24) as (nights, expected),
    ):
        done = threading.Event()

        def kill():
            time.sleep(0.5)
            while not done.wait(0.6) and result.times < kills:
                server.gateway("gateway-kill")
                time.sleep(0.2)
                server.gateway("gateway-start")
                result.times += 1

        child = nights.start("out", pause=0.6)
        killer = threading.Thread(target=kill)
        killer.start()
        ended = child.ended()
        done.set()
        killer.join()
        if not ended.ok:
            result.problems.append(f"the run ended with {ended.error}")
        settled(result, nights, expected)
    return result


def expiring_keys(server: S3Server, rotations: int = 5) -> Figure:
    """F12: credentials expire while a run goes on, and 503 come before; a program hands out the next ones."""
    with figure("F12", "credentials expire in mid-run, also after a 503") as result:
        with on_bucket(24) as (nights, expected), Proxy(server.url, seed=12, sign=True) as proxy:
            keys = nights.root / "keys.json"
            (nights.root / "config").write_text(f"[default]\ncredential_process = /bin/cat {keys}\n")

            def rotate(number):
                expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
                key = {"AccessKeyId": f"KEY{number:04}", "SecretAccessKey": "s" * 20, "SessionToken": "t" * 20}
                keys.with_suffix(".new").write_text(json.dumps({"Version": 1, "Expiration": expires, **key}))
                keys.with_suffix(".new").rename(keys)
                old = Rule(
                    "answer", header=f"authorization: .*Credential=KEY(?!{number:04})", status=400, code="ExpiredToken"
                )
                proxy.set(Rule("answer", share=0.1), old)

            def use_keys():
                for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                    os.environ.pop(name)
                os.environ["AWS_CONFIG_FILE"] = str(nights.root / "config")

            rotate(0)
            child = nights.start("out", pause=1.0, endpoint=proxy.url, before=use_keys)
            refused = 0
            for number in range(1, rotations + 1):
                time.sleep(4)  # longer than a new client takes on a busy machine
                refused += proxy.injected()["answer"]
                rotate(number)
            ended = child.ended()
            refused += proxy.injected()["answer"]
            result.times = rotations
            result.notes.append(f"{refused} requests refused: expired, or 503")
            if not ended.ok:
                result.problems.append(f"the run ended with {ended.error}")
            settled(result, nights, expected)
    return result


def unconditional(server: S3Server) -> list[Figure]:
    """F13: storage that ignores If-None-Match, and storage that refuses it."""
    found = [by_the_driver(server, answer) for answer in UNCONDITIONAL]
    return [*found, *([on_rclone()] if shutil.which("rclone") else [])]


UNCONDITIONAL = {
    "ignored": Rule("ignore", header="if-none-match:"),
    "refused: 501": Rule("answer", header="if-none-match:", status=501, code="NotImplemented"),
}
"""What servers without conditions do with them."""


def by_the_driver(server: S3Server, answer: str) -> Figure:
    """F13: a run on one such server, whose driver is killed twice."""
    with figure("F13", f"If-None-Match {answer}") as result, on_bucket() as (nights, expected):
        with Proxy(server.url, UNCONDITIONAL[answer]) as proxy:
            for number in range(3):  # killed twice, then to its end
                child = nights.start("out", pause=0.05, endpoint=proxy.url)
                if number < 2:
                    time.sleep(random.uniform(0.8, 1.2))
                    child.send(signal.SIGKILL)
                ended = child.ended()
            result.times = sum(proxy.injected().values())
        _says_driver(result, ended)
        settled(result, nights, expected)
    return result


def on_rclone() -> Figure:
    """F13: rclone's S3 server, which ignores If-None-Match."""
    before = os.environ["AWS_ENDPOINT_URL_S3"]
    with figure("F13", "rclone serve s3 (ignores If-None-Match)") as result, series(Kind()) as folder:
        port, data = free_port(), folder.root / "data"
        (data / "bucket").mkdir(parents=True)
        keys = f"{os.environ['AWS_ACCESS_KEY_ID']},{os.environ['AWS_SECRET_ACCESS_KEY']}"
        command = ["rclone", "serve", "s3", str(data), "--addr", f"127.0.0.1:{port}", "--auth-key", keys]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            time.sleep(2)
            os.environ["AWS_ENDPOINT_URL_S3"] = f"http://127.0.0.1:{port}"
            with series(Kind(), "s3://bucket") as nights:
                nights.images_of(0)
                ended = nights.run("out")
                result.times = 1
                _says_driver(result, ended)
                result.problems += nights.verdict("out").problems if ended.ok else []
        finally:
            os.environ["AWS_ENDPOINT_URL_S3"] = before
            process.terminate()
            process.wait(10)
    return result


def _says_driver(result: Figure, ended) -> None:
    if not ended.ok:
        result.problems.append(f"the run ended with {ended.error}")
    elif ended.result["mode"] != "driver":
        result.problems.append(f"the commit mode is {ended.result['mode']}")
    else:
        result.notes.append("commit mode: driver")
