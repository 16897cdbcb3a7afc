"""S3 servers for tests: a real one if it is installed, else moto's, in processes of their own."""

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

TOOL = Path(__file__).resolve().parents[3] / "shared" / "tools" / "s3-server"
"""Program that starts and stops the real server, if this machine has it."""

_PROGRAMS = ("radosgw", "ceph-mon", "ceph-osd", "ceph", "radosgw-admin")
_KEYS = {
    "AWS_ACCESS_KEY_ID": "TESTACCESSKEY",
    "AWS_SECRET_ACCESS_KEY": "TESTSECRETKEY",
    "AWS_DEFAULT_REGION": "us-east-1",
}


@dataclass(frozen=True)
class S3Server:
    """A running S3 server.

    Attributes:
        kind: `radosgw` or `moto`.
        url: Its URL.
        folder: Folder of the real server; "" for moto's.
    """

    kind: str
    url: str
    folder: str = ""

    def gateway(self, verb: str) -> None:
        """Kill (`gateway-kill`) or start (`gateway-start`) the real server's gateway; its data stay."""
        subprocess.run([TOOL, verb, self.folder], check=True, stdout=subprocess.DEVNULL, timeout=60)

    def user(self, policy: dict) -> dict[str, str]:
        """Make a user of the real server with this policy alone. Return its keys, as environment variables."""
        import boto3

        name = f"user-{os.urandom(4).hex()}"
        keys = {"AWS_ACCESS_KEY_ID": name.upper(), "AWS_SECRET_ACCESS_KEY": os.urandom(16).hex()}
        access = [f"--access-key={keys['AWS_ACCESS_KEY_ID']}", f"--secret-key={keys['AWS_SECRET_ACCESS_KEY']}"]
        admin = ["radosgw-admin", "-c", f"{self.folder}/ceph.conf", "-n", "client.rgw"]
        for command in (
            ["user", "create", f"--uid={name}", f"--display-name={name}", *access],
            ["caps", "add", "--uid=test", "--caps=user-policy=*"],
        ):
            subprocess.run([*admin, *command], check=True, capture_output=True, timeout=60)
        iam = boto3.client(
            "iam",
            endpoint_url=self.url,
            aws_access_key_id=_KEYS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=_KEYS["AWS_SECRET_ACCESS_KEY"],
        )
        iam.put_user_policy(UserName=name, PolicyName="only", PolicyDocument=json.dumps(policy))
        return keys


@contextmanager
def s3_server():
    """Run an S3 server. The environment names it and its keys meanwhile."""
    with ExitStack() as stack:
        real = TOOL.exists() and all(shutil.which(program) for program in _PROGRAMS)
        server = stack.enter_context(_radosgw() if real else _moto())
        environment = {**_KEYS, "AWS_ENDPOINT_URL_S3": server.url}
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        try:
            yield server
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


@contextmanager
def _radosgw():
    folder = tempfile.mkdtemp(prefix="rgw-")
    port = free_port()
    subprocess.run([TOOL, "start", folder, str(port)], check=True, stdout=subprocess.DEVNULL, timeout=120)
    try:
        yield S3Server("radosgw", f"http://127.0.0.1:{port}", folder)
    finally:
        subprocess.run([TOOL, "stop", folder], check=True, timeout=60)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _moto():
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise RuntimeError("moto's server does not start") from None
                time.sleep(0.05)
        yield S3Server("moto", f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(10)


def free_port() -> int:
    """Return a free port. The next one is free too, for the server's monitor."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            try:
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


def new_bucket() -> str:
    """Create a bucket, with no client left in this process, and return its URL."""
    import boto3

    name = f"test-{os.urandom(6).hex()}"
    boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL_S3"]).create_bucket(Bucket=name)
    return f"s3://{name}"
