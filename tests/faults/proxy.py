"""A proxy in front of an S3 server that injects faults by rules, in a process of its own.

    with Proxy("http://127.0.0.1:9000", Rule("lost", method="PUT", path="/commits/", share=0.25), seed=7) as proxy:
        ...  # requests to proxy.url
        assert proxy.injected()["lost"]

The rules are tried in order; the first that applies acts. What is drawn depends on the seed, the rule, and the request's
method, path and place among equal ones: not on what else happens at the time.
"""

import asyncio
import json
import math
import os
import random
import re
import struct
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass
from http import HTTPStatus
from socket import SO_LINGER, SOL_SOCKET
from urllib.parse import urlsplit

FAULTS = ("reset", "lost", "answer", "delay", "hang", "drip", "truncate", "cut", "ignore")
"""
reset     close with a reset, before the server sees the request
lost      let the server do it, then close without its answer
answer    answer `status` with S3's error `code`, without the server
delay     wait `seconds`, then pass on
hang      answer nothing for `seconds`
drip      answer a byte of the body every `seconds`
truncate  announce the whole body, and close after `size` bytes of it; after a random number without `size`
cut       give the server half of the request's body, then close both
ignore    let the server do it without its If-None-Match
"""

_NONCE = re.compile(r"[0-9a-f]{12,}|\d{8}T\d{6}\.\d{3}-[0-9a-f]{6}")
_LIMIT = 2**20


@dataclass(frozen=True)
class Rule:
    """Which requests are treated how.

    Attributes:
        fault: One of `FAULTS`.
        method: Pattern of the whole method.
        path: Pattern to be found in path and query.
        header: Pattern to be found in a header line, such as "if-none-match:"; lower case up to the colon.
        share: Share of the requests.
        after: Number of requests let through first.
        times: Largest number of requests treated; None without limit.
        begin: Seconds after the rules were set from which the rule holds.
        end: Seconds after the rules were set until which it holds.
        status: Status of an answer.
        code: S3's error code of an answer.
        seconds: Seconds of a delay, of a hang, or between the bytes of a drip.
        size: Bytes before a truncation.
    """

    fault: str
    method: str = ".*"
    path: str = ""
    header: str = ""
    share: float = 1.0
    after: int = 0
    times: int | None = None
    begin: float = 0.0
    end: float = math.inf
    status: int = 503
    code: str = "SlowDown"
    seconds: float = 0.0
    size: int | None = None

    def __post_init__(self):
        assert self.fault in FAULTS, f"{self.fault} is none of {FAULTS}"


class Proxy:
    """A proxy, from construction until `close`. Also a context manager.

    Args:
        upstream: URL of the S3 server.
        rules: Rules.
        seed: Seed of what is drawn.
        sign: Whether every request is signed again with the keys of the environment, so that the client may use others.

    Attributes:
        url: URL of the proxy.
    """

    def __init__(self, upstream: str, *rules: Rule, seed: int = 0, sign: bool = False) -> None:
        settings = json.dumps([upstream, seed, sign])
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self._process = subprocess.Popen([sys.executable, __file__, settings], text=True, **pipes)
        self.url = f"http://127.0.0.1:{json.loads(self._process.stdout.readline())}"
        self.set(*rules)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def set(self, *rules: Rule) -> None:
        """Replace the rules, and forget the requests so far."""
        self._ask({"rules": [asdict(rule) for rule in rules]})

    def seen(self) -> list[list]:
        """Return time, method, path and fault ("" for none) of each request since the rules were set."""
        return self._ask({"seen": True})

    def injected(self) -> Counter:
        """Return the number of faults by kind since the rules were set."""
        return Counter(fault for *_, fault in self.seen() if fault)

    def close(self) -> None:
        """End the process."""
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()

    def _ask(self, question):
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())


@dataclass
class _Message:
    """A request or an answer as it came.

    Attributes:
        line: First line.
        headers: Names as sent, and values.
        body: Body, still chunked if it came so.
    """

    line: str
    headers: list[tuple[str, str]]
    body: bytes = b""

    def get(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def head(self, *dropped: str) -> bytes:
        """Return first line and headers, without some of them; the connection is used once."""
        kept = [f"{key}: {value}" for key, value in self.headers if key.lower() not in ("connection", *dropped)]
        return "\r\n".join([self.line, *kept, "Connection: close", "", ""]).encode("latin-1")


async def _head(reader) -> _Message | None:
    try:
        data = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    line, *rest = data.decode("latin-1").split("\r\n")[:-2]
    return _Message(line, [tuple(part.strip() for part in item.split(":", 1)) for item in rest])


async def _body(reader, message: _Message, *, to_end: bool = False) -> bytes:
    if "chunked" in message.get("transfer-encoding").lower():
        parts = []
        while True:
            parts.append(size := await reader.readuntil(b"\r\n"))
            parts.append(await reader.readexactly(int(size.split(b";")[0], 16) + 2))
            if not int(size.split(b";")[0], 16):
                return b"".join(parts)
    if length := message.get("content-length"):
        return await reader.readexactly(int(length))
    return await reader.read() if to_end else b""


class _Server:
    def __init__(self, upstream: str, seed: int, sign: bool) -> None:
        self._upstream, self._seed, self._sign = urlsplit(upstream), seed, sign
        self.set([])

    def set(self, rules: list[Rule]) -> None:
        self._rules, self._began = rules, time.monotonic()
        self.seen: list[list] = []
        self._equal: Counter = Counter()
        self._met: Counter = Counter()
        self._injected: Counter = Counter()

    async def serve(self, reader, writer) -> None:
        try:
            while (request := await _head(reader)) is not None:
                if "100-continue" in request.get("expect").lower():
                    writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
                request.body = await _body(reader, request)
                if not await self._treat(request, reader, writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            pass
        finally:
            writer.close()

    async def _treat(self, request: _Message, reader, writer) -> bool:
        """Answer a request, or not. Returns whether the connection stays."""
        method, path, _ = request.line.split(" ")
        rule = self._rule(method, path, request)
        fault = rule.fault if rule else ""
        self.seen.append([round(time.monotonic() - self._began, 3), method, path, fault])
        if fault == "answer":
            return await _error(writer, rule, head=method == "HEAD")
        if fault == "reset":
            return _reset(writer)
        if fault == "hang":
            await asyncio.wait([asyncio.ensure_future(reader.read(1))], timeout=rule.seconds)
            return _reset(writer)
        if fault == "cut":
            await self._asked(request, cut=True)
            return _reset(writer)
        if fault == "delay":
            await asyncio.sleep(rule.seconds)
        answer = await self._asked(request, unconditional=fault == "ignore")
        if fault == "lost":
            return _reset(writer)
        writer.write(answer.head().replace(b"Connection: close\r\n", b""))
        if fault == "drip":
            for byte in answer.body:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(rule.seconds)
            return True
        if fault == "truncate" and answer.body:
            size = random.randrange(len(answer.body)) if rule.size is None else rule.size
            writer.write(answer.body[: min(size, len(answer.body) - 1)])
            await writer.drain()
            await asyncio.sleep(0.02)  # or the reset overtakes the bytes
            return _reset(writer)
        writer.write(answer.body)
        await writer.drain()
        return True

    def _rule(self, method: str, path: str, request: _Message) -> Rule | None:
        passed = time.monotonic() - self._began
        lines = [f"{key.lower()}: {value}" for key, value in request.headers]
        for number, rule in enumerate(self._rules):
            if not (rule.begin <= passed < rule.end and re.fullmatch(rule.method, method)):
                continue
            if not re.search(rule.path, path) or not any(re.search(rule.header, line) for line in lines):
                continue
            self._met[number] += 1
            if self._met[number] <= rule.after or (rule.times is not None and self._injected[number] >= rule.times):
                continue
            same = (number, method, _NONCE.sub("*", path))
            self._equal[same] += 1
            if random.Random(f"{self._seed} {same} {self._equal[same]}").random() < rule.share:
                self._injected[number] += 1
                return rule
        return None

    async def _asked(self, request: _Message, *, unconditional: bool = False, cut: bool = False) -> _Message:
        """Return the server's answer."""
        dropped = ["expect"]
        if unconditional:
            dropped.append("if-none-match")
        if self._sign or unconditional:
            request = _signed(request, dropped)
        reader, writer = await asyncio.open_connection(self._upstream.hostname, self._upstream.port, limit=_LIMIT)
        try:
            writer.write(request.head(*dropped))
            writer.write(request.body[: len(request.body) // 2] if cut else request.body)
            await writer.drain()
            if cut:
                await asyncio.sleep(0.02)
                return request
            answer = await _head(reader)
            while answer is not None and answer.line.split(" ")[1] == "100":
                answer = await _head(reader)
            if answer is None:
                raise ConnectionError("the server closed the connection")
            bodiless = request.line.startswith("HEAD ") or answer.line.split(" ")[1] in ("204", "304")
            answer.body = b"" if bodiless else await _body(reader, answer, to_end=True)
            if not bodiless and not answer.get("content-length") and not answer.get("transfer-encoding"):
                answer.headers.append(("Content-Length", str(len(answer.body))))
            return answer
        finally:
            writer.close()


def _signed(request: _Message, dropped: list[str]) -> _Message:
    """Return a request signed with the keys of the environment."""
    from botocore.auth import S3SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    method, path, version = request.line.split(" ")
    stale = {*dropped, "authorization", "x-amz-date", "x-amz-security-token", "connection"}
    headers = {key: value for key, value in request.headers if key.lower() not in stale}
    host = request.get("host")
    asked = AWSRequest(method=method, url=f"http://{host}{path}", headers=headers, data=request.body)
    keys = Credentials(os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"])
    S3SigV4Auth(keys, "s3", os.environ.get("AWS_DEFAULT_REGION", "us-east-1")).add_auth(asked)
    signed = {"Host": host, **dict(asked.headers.items())}
    return _Message(f"{method} {path} {version}", list(signed.items()), request.body)


async def _error(writer, rule: Rule, *, head: bool) -> bool:
    body = f"<?xml version='1.0'?><Error><Code>{rule.code}</Code><Message>injected</Message></Error>".encode()
    reason = HTTPStatus(rule.status).phrase
    writer.write(
        f"HTTP/1.1 {rule.status} {reason}\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    )
    writer.write(b"" if head else body)
    await writer.drain()
    return True


def _reset(writer) -> bool:
    """Close with a reset, so that the client sees neither an answer nor an orderly end."""
    writer.get_extra_info("socket").setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
    return False


async def _main() -> None:
    server = _Server(*json.loads(sys.argv[1]))
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, limit=_LIMIT, backlog=512)
    print(listening.sockets[0].getsockname()[1], flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        question = json.loads(line)
        if "rules" in question:
            server.set([Rule(**rule) for rule in question["rules"]])
        print(json.dumps(server.seen), flush=True)
    os._exit(0)


if __name__ == "__main__":
    asyncio.run(_main())
