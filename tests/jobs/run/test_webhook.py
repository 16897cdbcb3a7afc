import json
import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from conftest import draw_images

from maskfleet.jobs.errors import JobError, Unfinished
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.run.execute import run


@pytest.fixture
def received():
    bodies = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_): ...

    server = HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/hook", bodies
    server.shutdown()
    server.server_close()


def test_each_outcome_is_posted_once(received, tmp_path, weights_file, monkeypatch):
    url, bodies = received
    draw_images(tmp_path / "in", 4)
    monkeypatch.setenv("HOOK", url)
    table = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "weights": weights_file, "name": "n"}
    job = Job.of(table, ["run.webhook=$HOOK", "run.shard_size=2"])
    report = run(job)
    assert bodies == [{"name": "n", "output": job.output, **json.loads(json.dumps(report.to_json()))}]
    assert url not in (tmp_path / f"out/runs/{report.run_id}/job.json").read_text()
    (tmp_path / "in/part-0/image-000.jpg").write_bytes(b"")
    with pytest.raises(Unfinished, match="deadline \\(0s\\) passed before the last shard"):
        run(Job.of(table, ["run.webhook=$HOOK", "run.deadline=0s"]))
    assert (bodies[1]["status"], len(bodies)) == ("unfinished", 2)
    assert run(job).exit_code == 1  # the next run goes on
    assert (bodies[2]["status"], bodies[2]["resumed"]) == ("incomplete", True)
    with pytest.raises(JobError):
        run(Job.of({**table, "input": str(tmp_path / "none AKIAABCDEFGHIJKLMNOP")}, ["run.webhook=$HOOK"]))
    assert bodies[3]["status"] == "error"
    assert "does not exist" in bodies[3]["error"]
    assert "AKIA" not in json.dumps(bodies[3])


def test_a_webhook_that_does_not_answer_is_no_failure(tmp_path, weights_file):
    draw_images(tmp_path / "in", 2)
    table = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "weights": weights_file}
    seen = []
    job = Job.of(table, ["run.webhook=http://127.0.0.1:9/hook"])
    assert run(job, on_progress=lambda _, progress: seen.append(list(progress.notices))).exit_code == 0
    assert seen[0] == ["nothing listens at run.webhook; the run goes on, but its outcome will not arrive there"]


@pytest.mark.parametrize(
    ("webhook", "words"),
    [("$NO_SUCH_HOOK", "NO_SUCH_HOOK, which holds no http"), ("http://a b/", "is not a valid URL")],
)
def test_an_unusable_webhook_is_found_before_the_run(webhook, words, tmp_path, weights_file, monkeypatch):
    monkeypatch.delenv("NO_SUCH_HOOK", raising=False)
    draw_images(tmp_path / "in", 2)
    table = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "weights": weights_file}
    with pytest.raises(JobError, match=words):
        run(Job.of({**table, "run": {"webhook": webhook}}))
    assert not (tmp_path / "out").exists()


def test_a_webhook_with_an_answer_that_is_no_http_is_no_failure(tmp_path, weights_file):
    draw_images(tmp_path / "in", 2)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            connection.recv(65536)
            connection.sendall(b"SSH-2.0-hello\r\n")
            connection.close()

        threading.Thread(target=answer, daemon=True).start()
        url = f"http://127.0.0.1:{server.getsockname()[1]}/"
        table = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "weights": weights_file}
        assert run(Job.of(table, [f"run.webhook={url}"])).exit_code == 0


def test_a_literal_webhook_is_in_no_file_of_the_output(received, tmp_path, weights_file):
    url, bodies = received
    draw_images(tmp_path / "in", 2)
    table = {"input": str(tmp_path / "in"), "output": str(tmp_path / "out"), "weights": weights_file}
    run(Job.of(table, [f"run.webhook={url}"]))
    assert len(bodies) == 1
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert [path for path in files if url.encode() in path.read_bytes()] == []
