"""Canaries: unique fake secrets in every place that may hold one, and a search of everything that is written."""

import json
import os
import secrets
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from command_line import environment, maskfleet
from conftest import draw_images, tree, uploaded

from maskfleet.cluster.package import environment as runtime_environment
from maskfleet.cluster.package import pack
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.storage.schemes import open_storage


class World:
    """Secrets by place, and an environment that holds them.

    Attributes:
        secrets: Unique texts by place. None may ever be written.
        environment: Environment variables of a command.
        job: Job file whose webhook is in the environment.
        session: Folder of Ray's sessions.
    """

    def __init__(self, folder: Path, *, input_: str, output: str, weights: str, hook: int) -> None:
        places = ("key", "secret", "session", "profile-key", "profile-secret", "other", "webhook", "ray", "signature")
        self.secrets = {place: f"canary{secrets.token_hex(12)}" for place in places}
        self.output, self.folder = output, folder
        self.session = Path("/tmp") / f"mf-{secrets.token_hex(4)}"  # sockets need a short path
        (folder / "credentials").write_text(
            f"[night]\naws_access_key_id={os.environ.get('AWS_ACCESS_KEY_ID', 'x')}\n"
            f"aws_secret_access_key={os.environ.get('AWS_SECRET_ACCESS_KEY', 'x')}\n"
            f"[default]\naws_access_key_id={self.secrets['profile-key']}\n"
            f"aws_secret_access_key={self.secrets['profile-secret']}\n"
        )
        if "AWS_SECRET_ACCESS_KEY" in os.environ:
            self.secrets["used"] = os.environ["AWS_SECRET_ACCESS_KEY"]
        self.environment = environment() | {
            "AWS_SHARED_CREDENTIALS_FILE": str(folder / "credentials"),
            "AWS_ACCESS_KEY_ID": self.secrets["key"],
            "AWS_SECRET_ACCESS_KEY": self.secrets["secret"],
            "AWS_SESSION_TOKEN": self.secrets["session"],
            "SOME_PASSWORD": self.secrets["other"],
            "HOOK": f"http://127.0.0.1:{hook}/hook?token={self.secrets['webhook']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.secrets["ray"],
            "RAY_TMPDIR": str(self.session),
        }
        self.table = {"name": "night", "input": input_, "output": output, "weights": weights, "profile": "night"}
        self.job = folder / "job.json"
        self.job.write_text(
            json.dumps(self.table | {"run": {"webhook": "$HOOK", "shard_size": 2, "max_error_rate": 1}})
        )

    def call(self, *arguments):
        """Run a command, and search what it says."""
        done = maskfleet(*arguments, env=self.environment)
        self.search({"stdout": done.stdout.encode(), "stderr": done.stderr.encode()})
        return done

    def search(self, texts: dict[str, bytes]) -> None:
        """Fail if one of the texts holds a secret."""
        found = {
            (where, place)
            for where, data in texts.items()
            for place, secret in self.secrets.items()
            if secret.encode() in data
        }
        assert not found

    def search_everything(self) -> int:
        """Search the output and Ray's sessions. Return the number of files."""
        storage = open_storage(self.output)
        texts = {entry.path: storage.read(entry.path) for entry in storage.walk()}
        for path in self.session.rglob("*") if self.session.exists() else ():
            if path.is_file() and not path.is_symlink():
                texts[str(path)] = path.read_bytes()
        self.search(texts)
        return len(texts)


@pytest.fixture
def hook():
    """Port of a server that takes every POST."""

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_): ...

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address[1]
    server.shutdown()
    server.server_close()


@pytest.fixture
def local(tmp_path, weights_file, hook):
    """A world of local folders, with a damaged image."""
    draw_images(tmp_path / "in", 6)
    (tmp_path / "in/damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (tmp_path / "w").mkdir()
    made = World(
        tmp_path / "w", input_=str(tmp_path / "in"), output=str(tmp_path / "out"), weights=weights_file, hook=hook
    )
    yield made
    shutil.rmtree(made.session, ignore_errors=True)


@pytest.fixture
def in_s3(tmp_path, weights_file, hook, bucket):
    """A world in a bucket."""
    uploaded(draw_images(tmp_path / "in", 6), bucket)
    (tmp_path / "w").mkdir()
    made = World(tmp_path / "w", input_=f"{bucket}/in", output=f"{bucket}/out", weights=weights_file, hook=hook)
    yield made
    shutil.rmtree(made.session, ignore_errors=True)


def test_no_secret_is_written_by_a_run_and_by_doctor(local):
    assert local.call("--log", "run", local.job, "--no-ray").returncode == 0
    assert local.call("doctor", local.job).returncode == 0
    assert local.search_everything() > 8


@pytest.mark.slow
@pytest.mark.s3
def test_no_secret_is_written_by_a_run_in_a_bucket(in_s3):
    assert in_s3.call("--log", "run", in_s3.job, "--no-ray").returncode == 0
    assert in_s3.call("doctor", in_s3.job).returncode == 0
    assert in_s3.search_everything() > 8


@pytest.mark.slow
@pytest.mark.ray
def test_no_secret_is_written_by_a_run_on_ray(local):
    assert local.call("--log", "run", local.job).returncode == 0
    assert list(local.session.rglob("raylet.out")), "Ray's logs are searched"
    assert local.search_everything() > 20


@pytest.mark.slow
def test_no_secret_is_written_by_commands_that_fail(local):
    """With --debug, where tracebacks of foreign libraries are shown."""
    signature = local.secrets["signature"]
    for place in (
        f"https://host/images.tar?X-Amz-Signature={signature}",
        f"s3://bucket/in?X-Amz-Signature={signature}&X-Amz-Credential={signature}",
        f"s3://user:{signature}@bucket/in",
    ):
        done = local.call("--debug", "run", local.job, "--no-ray", "--set", f"input={json.dumps(place)}")
        assert done.returncode == 2, done.stderr
    literal = f"http://user:{local.secrets['webhook']}@127.0.0.1:9/hook"
    done = local.call("--debug", "run", local.job, "--no-ray", "--set", f"run.webhook={json.dumps(literal)}")
    assert (done.returncode, "put the URL into an environment variable" in done.stderr) == (2, True)
    assert local.call("--debug", "submit", local.job, "--address", "http://127.0.0.1:9").returncode == 1
    local.search_everything()


@pytest.mark.slow
def test_no_signature_of_a_list_is_written(local):
    """Signed URLs are rows without their signature."""
    signature = local.secrets["signature"]
    lines = [f"https://host/a.png?sig={signature}", f"https://user:{signature}@host/b.png?X-Goog-Signature={signature}"]
    (local.folder / "list.txt").write_text("\n".join([*lines, local.table["input"] + "/part-1/image-001.png"]))
    done = local.call("--debug", "run", local.job, "--no-ray", "--set", f"input={local.folder / 'list.txt'}")
    assert (done.returncode, "1 ok" in done.stdout, "2 failed" in done.stdout) == (0, True, True), done.stdout
    done = local.call("explain", local.output, "b.png?X-Goog-Signature=***")
    assert "failed" in done.stdout, done.stderr
    local.search_everything()


def test_no_secret_is_shipped_by_a_submission(local, tmp_path, monkeypatch):
    for name, value in local.environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "package").mkdir()
    pack(tmp_path / "package", Job.load(local.job))
    local.search(tree(tmp_path / "package"))
    local.search({"environment": json.dumps(runtime_environment(str(tmp_path / "package"), "pip")).encode()})
