"""Runs as jobs of a Ray cluster, through its Jobs API: `maskfleet run`, started on the head node.

The record and the log of a submission live as long as the cluster; everything else is in the output. So submitting is
only a way to start the command elsewhere, and submitting again is always safe.
"""

import asyncio
import logging
import os
import shlex
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from maskfleet.cluster.package import STOP_SECONDS, Install, environment, pack
from maskfleet.jobs.errors import JobError, Locked, MaskfleetError
from maskfleet.jobs.job.schema import Job

STOPPED = 130
"""Exit code of a stopped job."""

_CONNECT_SECONDS = 5

_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class UnreachableError(MaskfleetError):
    """No Ray dashboard answers at the address."""


class RefusedError(MaskfleetError):
    """The cluster rejects this client or its request."""


class Submissions:
    """The jobs submitted to a Ray cluster.

    Args:
        address: Dashboard of the cluster, such as http://10.0.0.5:8265.

    Raises:
        JobError: The address is not the URL of a dashboard.
        UnreachableError: No dashboard answers there.
        RefusedError: The token is missing or wrong.
    """

    def __init__(self, address: str) -> None:
        from maskfleet.cluster import auth

        check_dashboard(address)
        auth.settle()
        from ray.job_submission import JobSubmissionClient

        logging.getLogger(JobSubmissionClient.__module__).addFilter(_is_not_farewell)
        self._address = address
        # In Ray these variables take precedence over the argument.
        hidden = {name: os.environ.pop(name, None) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")}
        try:
            with self._explained():
                self._client = JobSubmissionClient(address)
        finally:
            os.environ.update({name: value for name, value in hidden.items() if value is not None})

    def submit(self, job: Job, day: date, *, python: str = "python", install: Install = "none") -> str:
        """Start a run of a job on the head node, with this version of maskfleet.

        Reserves no CPU cores: a head node closed to workers (`num-cpus: "0"`) has none, and the driver must not run
        on a node that may be preempted.

        Args:
            job: The job.
            day: Date of the run, part of its id.
            python: Python interpreter on the head node: a path, or a name on its PATH.
            install: Tool for installing this machine's package versions on the cluster; "none" if they are installed.

        Returns:
            The submission id: `<name>-<date>`, then `<name>-<date>-2` and so on for later ones of that date.

        Raises:
            Locked: A submission of the same job and date is running.
        """
        name = self._free_id(f"{job.name}-{day:%Y-%m-%d}")
        with tempfile.TemporaryDirectory(prefix="maskfleet-") as folder, self._explained():
            pack(Path(folder), job)
            try:
                self._client.submit_job(
                    # -P keeps the working directory off the module search path; Ray puts the shipped folder on it.
                    entrypoint=f"exec {shlex.quote(python)} -P -m maskfleet --log run job.json",
                    submission_id=name,
                    runtime_env=environment(folder, install),
                    metadata={
                        "maskfleet": version("maskfleet"),
                        "name": job.name,
                        "output": job.output,
                        "date": day.isoformat(),
                    },
                )
            except RuntimeError as error:
                if "already exists" in str(error):
                    raise Locked(
                        f"another client has just submitted {name}; follow it with: "
                        f"maskfleet logs {name} --address {self._address} --follow"
                    ) from error
                raise
        return name

    def _free_id(self, first: str) -> str:
        taken = {info["id"]: info["state"] for info in self.list()}
        name, attempt = first, 1
        while name in taken:
            if taken[name] not in _ENDED:
                raise Locked(f"{name} is {taken[name].lower()} on {self._address}; wait for it, follow it, or stop it")
            attempt += 1
            name = f"{first}-{attempt}"
        return name

    def follow(self, name: str, write: Callable[[str], object]) -> int:
        """Pass on the log of a job until the job ends.

        Args:
            name: Submission id.
            write: Called with each new piece of the log.

        Returns:
            The exit code of the driver; 130 for a stopped job, 128 + n for a driver ended by signal n.
        """
        seen = 0
        while True:
            with suppress(RuntimeError, OSError):  # a broken connection says nothing about the job
                seen = asyncio.run(self._tail(name, seen, write))
            info = self.info(name)
            if info["state"] in _ENDED:
                rest = self.log(name)[seen:]
                if rest:
                    write(rest)
                return exit_code(info["state"], info["exit_code"])
            time.sleep(1)

    async def _tail(self, name: str, seen: int, write: Callable[[str], object]) -> int:
        passed = 0
        async for text in self._client.tail_job_logs(name):
            if passed + len(text) > seen:
                write(text[max(0, seen - passed) :])
            passed += len(text)
            seen = max(seen, passed)
        return seen

    def info(self, name: str) -> dict[str, Any]:
        """Return the state of a job: id, state, exit code, message, name, date, output, start and end."""
        with self._explained():
            return _described(self._client.get_job_info(name))

    def list(self) -> list[dict[str, Any]]:
        """Return the states of all submitted jobs, newest first. See `info`."""
        with self._explained():
            found = [_described(info) for info in self._client.list_jobs() if info.submission_id]
        return sorted(found, key=lambda info: info["started"] or "", reverse=True)

    def newest(self, job_name: str) -> str:
        """Return the id of the newest submission of a job.

        Raises:
            JobError: The job was never submitted to this cluster.
        """
        for info in self.list():
            if info["name"] == job_name:
                return str(info["id"])
        raise JobError(
            f"{self._address} has no submission of {job_name!r}; see all: maskfleet list --address {self._address}"
        )

    def log(self, name: str) -> str:
        """Return the log of a job so far."""
        with self._explained():
            return str(self._client.get_job_logs(name))

    def stop(self, name: str, *, wait: float = STOP_SECONDS) -> str:
        """Stop a job and wait for its shards in progress.

        Args:
            name: Submission id.
            wait: Longest wait in seconds.

        Returns:
            The state of the job after that, such as "STOPPED" or "RUNNING".
        """
        with self._explained():
            self._client.stop_job(name)
        end = time.monotonic() + wait
        while (state := str(self.info(name)["state"])) not in _ENDED and time.monotonic() < end:
            time.sleep(0.5)
        return state

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn errors of Ray's client into ours, with a remedy."""
        import ray.exceptions
        import requests

        try:
            yield
        except ray.exceptions.AuthenticationError as error:
            raise RefusedError(
                f"Ray at {self._address} requires a token, and this client's is missing or wrong; set "
                "RAY_AUTH_TOKEN_PATH to a file (mode 0600) with the token of the cluster"
            ) from error
        except (ConnectionError, requests.RequestException, ValueError) as error:
            raise _unreachable(self._address) from error
        except RuntimeError as error:
            line = next((line for line in reversed(str(error).splitlines()) if line.strip()), "")
            raise RefusedError(f"Ray at {self._address} refused: {line.strip()[:300]}") from error


def check_dashboard(address: str) -> None:
    """Check the URL of a dashboard before Ray sees it. Ray takes HOST:PORT for a cluster, and retries with warnings.

    Raises:
        JobError: It is not a URL of http or https.
        UnreachableError: Nothing listens there.
    """
    url = urlsplit(address)
    if url.scheme not in ("http", "https") or not url.hostname:
        host, _, port = address.rpartition("://")[2].partition("/")[0].partition(":")
        like = f"http://{host or 'HOST'}:{port if port.isdigit() else 8265}"
        raise JobError(f"--address {address}: give the URL of the cluster's dashboard, such as {like}")
    try:
        number = url.port or (443 if url.scheme == "https" else 80)
        socket.create_connection((url.hostname, number), timeout=_CONNECT_SECONDS).close()
    except (OSError, ValueError) as error:
        raise _unreachable(address) from error


def _unreachable(address: str) -> UnreachableError:
    return UnreachableError(
        f"no Ray dashboard at {address}; correct --address (http://HOST:8265), or omit it to read the records in the "
        "output"
    )


def exit_code(state: str, code: int | None) -> int:
    """Return the exit code for the client of a job: that of its driver.

    Args:
        state: Final state of the job in Ray.
        code: Exit code of the driver in Ray; -n if ended by signal n, None if unknown.
    """
    if state == "STOPPED":
        return STOPPED
    if code is None:
        return 0 if state == "SUCCEEDED" else 1
    return code if code >= 0 else 128 - code


def _is_not_farewell(record: logging.LogRecord) -> bool:
    """Return False for the line logged by Ray's client at the end of every followed log."""
    return not (record.levelno <= logging.INFO and record.getMessage().startswith("WebSocket closed"))


def _described(info: Any) -> dict[str, Any]:
    metadata = info.metadata or {}
    return {
        "id": info.submission_id,
        "state": str(getattr(info.status, "value", info.status)),
        "exit_code": info.driver_exit_code,
        "message": info.message,
        "name": metadata.get("name"),
        "date": metadata.get("date"),
        "output": metadata.get("output"),
        "started": _iso(info.start_time),
        "ended": _iso(info.end_time),
    }


def _iso(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
