"""A run as a job of a Ray cluster, through its Jobs API: the same `run` command, on the head.

The cluster keeps a job's record and log only while it lives; what lasts is in the output. So a
submission is nothing but a way to start the command there, and may be made again at any time.
"""

import asyncio
import json
import logging
import os
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime
from importlib.metadata import requires, version
from pathlib import Path
from typing import Any, Literal

import maskfleet
from maskfleet.jobs.errors import JobError, Locked, MaskfleetError
from maskfleet.jobs.job.schema import Job

STOP_SECONDS = 600
"""What a stopped driver gets to let the shards in work end; Ray itself would give it 3."""

STOPPED = 130
"""Exit code of a job that was stopped."""

Install = Literal["none", "pip", "uv"]
_ENDED = ("SUCCEEDED", "FAILED", "STOPPED")


class UnreachableError(MaskfleetError):
    """There is no Ray dashboard at that address."""


class RefusedError(MaskfleetError):
    """The cluster does not let this client in, or does not do what it asks."""


class Submissions:
    """The jobs of a Ray cluster.

    Args:
        address: Its dashboard, such as http://10.0.0.5:8265.

    Raises:
        UnreachableError: Nobody answers there.
        RefusedError: The token is missing or wrong.
    """

    def __init__(self, address: str) -> None:
        from maskfleet.cluster import auth

        auth.settle()
        from ray.job_submission import JobSubmissionClient

        logging.getLogger(JobSubmissionClient.__module__).addFilter(_no_farewell)
        self._address = address
        # Ray lets these override what it is given.
        overriding = {name: os.environ.pop(name, None) for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")}
        try:
            with self._told():
                self._client = JobSubmissionClient(address)
        finally:
            os.environ.update({name: value for name, value in overriding.items() if value is not None})

    def submit(self, job: Job, day: date, *, python: str = "python", install: Install = "none") -> str:
        """Start a run of a job on the head, with this code.

        The head's cores are not asked for: where it takes no work (`num-cpus: "0"`) it has none to give, and the
        driver must not stand on a machine that may be taken away.

        Args:
            job: What to do.
            day: Its night.
            python: The interpreter, as the head's PATH has it.
            install: Installs what the code needs, in the versions that are here, by pip or uv; "none" where the
                cluster's image has it.

        Returns:
            The submission's id, `<name>-<date>`; with `-2`, `-3` … where earlier ones of that night have ended.

        Raises:
            Locked: That night is running.
        """
        name = self._free(f"{job.name}-{day:%Y-%m-%d}")
        with tempfile.TemporaryDirectory(prefix="maskfleet-") as folder, self._told():
            pack(Path(folder), job)
            try:
                self._client.submit_job(
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
                    raise Locked(f"{name} has just been submitted by another; follow that one") from error
                raise
        return name

    def _free(self, night: str) -> str:
        taken = {info["id"]: info["state"] for info in self.list()}
        name, attempt = night, 1
        while name in taken:
            if taken[name] not in _ENDED:
                raise Locked(f"{name} is {taken[name].lower()} on {self._address}; wait for it, follow it, or stop it")
            attempt += 1
            name = f"{night}-{attempt}"
        return name

    def follow(self, name: str, write: Callable[[str], object]) -> int:
        """Pass a job's log on until it ends.

        Returns:
            The driver's own exit code; 130 where it was stopped, 128 + n where signal n ended it.
        """
        seen = 0
        while True:
            with suppress(RuntimeError, OSError):  # the connection broke; the job may go on
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
        """What the cluster knows of a job."""
        with self._told():
            return _told_of(self._client.get_job_info(name))

    def list(self) -> list[dict[str, Any]]:
        """The submitted jobs, the newest first."""
        with self._told():
            found = [_told_of(info) for info in self._client.list_jobs() if info.submission_id]
        return sorted(found, key=lambda info: info["started"] or "", reverse=True)

    def newest(self, job_name: str) -> str:
        """The id of a job's newest submission.

        Raises:
            JobError: There is none.
        """
        for info in self.list():
            if info["name"] == job_name:
                return str(info["id"])
        raise JobError(f"no submission of {job_name!r} on {self._address}; see 'maskfleet list --address …'")

    def log(self, name: str) -> str:
        """A job's output so far."""
        with self._told():
            return str(self._client.get_job_logs(name))

    def stop(self, name: str, *, wait: float = STOP_SECONDS) -> str:
        """Stop a job and wait until it has ended what it had in work.

        Returns:
            Its state then.
        """
        with self._told():
            self._client.stop_job(name)
        end = time.monotonic() + wait
        while (state := str(self.info(name)["state"])) not in _ENDED and time.monotonic() < end:
            time.sleep(0.5)
        return state

    @contextmanager
    def _told(self) -> Iterator[None]:
        import ray.exceptions
        import requests

        try:
            yield
        except ray.exceptions.AuthenticationError as error:
            raise RefusedError(
                f"Ray at {self._address} asks for a token that this client has not; set RAY_AUTH_TOKEN_PATH to a file "
                "(mode 0600) that holds the cluster's"
            ) from error
        except (ConnectionError, requests.RequestException, ValueError) as error:
            raise UnreachableError(
                f"no Ray dashboard at {self._address}; give --address http://HEAD:8265, or leave it out to read what "
                "the run left in its output"
            ) from error
        except RuntimeError as error:
            line = next((line for line in reversed(str(error).splitlines()) if line.strip()), "")
            raise RefusedError(f"Ray at {self._address} refused: {line.strip()[:300]}") from error


def exit_code(state: str, code: int | None) -> int:
    """What a job's end means to whoever started it: the driver's own code, wherever it came to have one."""
    if state == "STOPPED":
        return STOPPED
    if code is None:
        return 0 if state == "SUCCEEDED" else 1
    return code if code >= 0 else 128 - code


def pack(folder: Path, job: Job) -> None:
    """Put what the head needs in a folder: this code, whether checked out or installed, and the job.

    The job is written anew from what was understood of its file, so that nothing else in that can travel with it.
    """
    source = Path(maskfleet.__file__).parent
    shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    # So that the code knows its version where nobody has installed it, or another one.
    number = version("maskfleet")
    metadata = folder / f"maskfleet-{number}.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: maskfleet\nVersion: {number}\n")
    (folder / "job.json").write_text(json.dumps(job.model_dump(mode="json", exclude_none=True), indent=1))


def environment(folder: str, install: Install) -> dict[str, Any]:
    """The runtime environment of a submission. Holds no secret: Ray shows it to everyone who reaches the dashboard."""
    variables = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_SECONDS), "RAY_USAGE_STATS_ENABLED": "0"}
    made: dict[str, Any] = {"working_dir": folder, "env_vars": variables}
    if install != "none":
        made[install] = pinned()
    return made


def pinned() -> list[str]:
    """What this code needs, in the versions that are installed here. Not Ray, which the cluster has."""
    needs = [need for need in requires("maskfleet") or () if "extra ==" not in need]
    names = [need.split(">")[0].split("[")[0].strip() for need in needs]
    return [f"{name}=={version(name).partition('+')[0]}" for name in names if name != "ray"]


def _no_farewell(record: logging.LogRecord) -> bool:
    """Not Ray's own last line of a log that was followed to its end."""
    return not (record.levelno <= logging.INFO and record.getMessage().startswith("WebSocket closed"))


def _told_of(info: Any) -> dict[str, Any]:
    metadata = info.metadata or {}
    return {
        "id": info.submission_id,
        "state": str(getattr(info.status, "value", info.status)),
        "exit_code": info.driver_exit_code,
        "message": info.message,
        "name": metadata.get("name"),
        "date": metadata.get("date"),
        "output": metadata.get("output"),
        "started": _moment(info.start_time),
        "ended": _moment(info.end_time),
    }


def _moment(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="milliseconds")
