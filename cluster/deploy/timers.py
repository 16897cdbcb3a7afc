"""Scheduled runs on one machine: files for cron, systemd and Airflow. Nothing is installed here.

Each run starts in the folder its files were generated in, so relative paths in the job keep their meaning.
"""

import shlex
import sys
from pathlib import Path

from maskfleet.jobs.job.crontab import Crontab
from maskfleet.jobs.job.schema import Job

_STOP_SECONDS = 600


def command(job_file: Path, address: str | None) -> list[str]:
    """Return the command line of a scheduled run.

    Args:
        job_file: Absolute path of the job file.
        address: Dashboard of the cluster to submit to and follow; None to run on this machine.
    """
    program = str(Path(sys.executable).parent / "maskfleet")
    if address is None:
        return [program, "run", str(job_file)]
    return [program, "submit", str(job_file), "--address", address, "--follow"]


def cron(job: Job, cron_fields: str, argv: list[str], job_file: Path, folder: Path) -> dict[str, str]:
    """Return a crontab.

    Its lock file skips a run while the previous one is in progress on this machine; the lock in the output keeps runs
    on all machines apart.
    """
    lock, log = (shlex.quote(f"{job_file}.{ending}") for ending in ("lock", "log"))
    skipped = f'echo "$(date -Is) skipped: the previous run is still in progress"'  # noqa: F541
    line = (
        f"cd {shlex.quote(str(folder))} && RAY_USAGE_STATS_ENABLED=0 "
        f"flock --nonblock --conflict-exit-code 75 {lock} {shlex.join(argv)} >> {log} 2>&1 "
        f"|| {{ [ $? -eq 75 ] && {skipped} >> {log}; }}"
    )
    return {
        f"{job.name}.crontab": (
            f"# {job.name}: add these lines to your crontab, or replace your crontab with them (crontab FILE).\n"
            "# cronie reads CRON_TZ. Debian's cron ignores it and uses the time zone of the machine.\n"
            f"CRON_TZ={job.schedule.timezone}\n"
            f"{cron_fields} {line.replace('%', chr(92) + '%')}\n"
        )
    }


def systemd(job: Job, when: Crontab, argv: list[str], folder: Path) -> dict[str, str]:
    """Return a systemd service and its timer. After downtime, the machine makes up for one missed run."""
    name = f"maskfleet-{job.name}"
    program = " ".join(_quoted(part) for part in argv)
    calendar = "\n".join(f"OnCalendar={line}" for line in when.on_calendar(job.schedule.timezone))
    service = f"""[Unit]
Description=maskfleet {job.name}
After=network-online.target
Wants=network-online.target

[Service]
Type=oneshot
Environment=RAY_USAGE_STATS_ENABLED=0
WorkingDirectory={str(folder).replace("%", "%%")}
ExecStart={program}
KillMode=mixed
TimeoutStopSec={_STOP_SECONDS}
"""
    timer = f"""[Unit]
Description=maskfleet {job.name}, nightly

[Timer]
{calendar}
Persistent=true
AccuracySec=1s

[Install]
WantedBy=timers.target
"""
    return {f"{name}.service": service, f"{name}.timer": timer}


def airflow(job: Job, cron_fields: str, argv: list[str], folder: Path) -> dict[str, str]:
    """Return a DAG of one task for Airflow 3. The command is escaped from Airflow's template language."""
    identifier = "".join(sign if sign.isalnum() or sign in "-_." else "_" for sign in job.name)
    text = f'''"""maskfleet {identifier}: one run at a time; missed runs are skipped."""

import pendulum
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    dag_id={identifier!r},
    schedule={cron_fields!r},
    start_date=pendulum.datetime(2026, 1, 1, tz={job.schedule.timezone!r}),
    catchup=False,
    max_active_runs=1,
):
    BashOperator(
        task_id="run",
        bash_command={"{% raw %}" + shlex.join(argv) + "{% endraw %}"!r},
        env={{"RAY_USAGE_STATS_ENABLED": "0"}},
        append_env=True,
        cwd={str(folder)!r},
        skip_on_exit_code=4,
    )
'''
    return {f"{identifier}_dag.py": text}


def _quoted(text: str) -> str:
    r"""Quote an argument for systemd, where ", \, $ and % are special."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$").replace("%", "%%")
    return f'"{escaped}"'
