"""Nightly runs by what one machine has: cron, systemd, Airflow. Text for others to run; nothing is applied here.

Each begins in the folder that it was written in, to which relative paths of the job refer.
"""

import shlex
import sys
from pathlib import Path

from maskfleet.jobs.job.crontab import Crontab
from maskfleet.jobs.job.schema import Job

_STOP_SECONDS = 600


def command(job_file: Path, address: str | None) -> list[str]:
    """What runs each night: here, or on a cluster and waiting for its end."""
    program = str(Path(sys.executable).parent / "maskfleet")
    if address is None:
        return [program, "run", str(job_file)]
    return [program, "submit", str(job_file), "--address", address, "--follow"]


def cron(job: Job, cron_fields: str, argv: list[str], job_file: Path, folder: Path) -> dict[str, str]:
    """A crontab. Its lock keeps nights of one machine apart at no cost; the output's own does so everywhere."""
    lock, log = (shlex.quote(f"{job_file}.{ending}") for ending in ("lock", "log"))
    skipped = f'echo "$(date -Is) skipped: the last night is still running"'  # noqa: F541
    line = (
        f"cd {shlex.quote(str(folder))} && RAY_USAGE_STATS_ENABLED=0 "
        f"flock --nonblock --conflict-exit-code 75 {lock} {shlex.join(argv)} >> {log} 2>&1 "
        f"|| {{ [ $? -eq 75 ] && {skipped} >> {log}; }}"
    )
    return {
        f"{job.name}.crontab": (
            f"# {job.name}: install with 'crontab FILE' (which replaces your crontab) or add these lines to it.\n"
            "# CRON_TZ is known to cronie; Debian's cron goes by the machine's zone.\n"
            f"CRON_TZ={job.schedule.timezone}\n"
            f"{cron_fields} {line.replace('%', chr(92) + '%')}\n"
        )
    }


def systemd(job: Job, when: Crontab, argv: list[str], folder: Path) -> dict[str, str]:
    """A service and its timer, which makes up for one night that the machine was off."""
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
Description=maskfleet {job.name}, every night

[Timer]
{calendar}
Persistent=true
AccuracySec=1s

[Install]
WantedBy=timers.target
"""
    return {f"{name}.service": service, f"{name}.timer": timer}


def airflow(job: Job, cron_fields: str, argv: list[str], folder: Path) -> dict[str, str]:
    """A DAG of one task. Airflow's own template language is kept away from the command."""
    identifier = "".join(sign if sign.isalnum() or sign in "-_." else "_" for sign in job.name)
    text = f'''"""maskfleet {identifier}: one run at a time, none made up for."""

import pendulum
from airflow import DAG
from airflow.operators.bash import BashOperator

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
    r"""As systemd reads it: ", \, $ and % each have a meaning there."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("$", "$$").replace("%", "%%")
    return f'"{escaped}"'
