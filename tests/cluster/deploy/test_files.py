"""Generated files are accepted by the programs they are for."""

import ast
import json
import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path
from zoneinfo import available_timezones

import pytest
import yaml
from command_line import scheduled_job
from conftest import BESIDE
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskfleet.cluster.deploy import aws, docker, kubernetes, timers
from maskfleet.cluster.deploy.files import SCHEDULERS, Scheduled, as_yaml
from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.crontab import Crontab
from maskfleet.jobs.job.schema import Job

NAMES = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,62}\Z")
DNS = re.compile(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?")


@st.composite
def jobs_(draw):
    """Jobs with any allowed name, zone, size and path."""
    least = draw(st.integers(1, 9))
    table = {
        "name": draw(NAMES),
        "input": draw(st.sampled_from(["s3://b/in put/é", "/data/my images/{date}", "s3://b/{name}/'\"$x%n"])),
        "output": "s3://b/out put/{date}",
        "weights": "nuclei",
        "schedule": {
            "cron": draw(st.sampled_from(["30 2 * * *", "*/5 1-3 1 jan sun", "0 0 1,15 * 1-5"])),
            "timezone": draw(st.sampled_from(sorted(available_timezones()))),
            "start_within": draw(st.integers(60, 9999)),
            "hours": draw(st.integers(1, 99)),
        },
        "cluster": {
            "workers": draw(st.sampled_from(["auto", 1, 7, {"max": 64}, {"min": least, "max": least + 3}])),
            "gpus_per_worker": draw(st.sampled_from(["auto", 0, 0.25, 1])),
            "spot": draw(st.booleans()),
            "node_gpus": draw(st.integers(0, 8)),
            "node_cpus": draw(st.integers(1, 192)),
            **draw(st.sampled_from([{}, {"queue": "gpu-team"}])),
            "namespace": draw(st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\Z")),
        },
        "prices": {"gpu_hour": draw(st.floats(0, 99))},
    }
    return Job.of(table), table


@pytest.fixture(scope="session")
def accepted():
    jsonschema = pytest.importorskip("jsonschema")
    folder = BESIDE / "kuberay"
    if not folder.is_dir():
        pytest.skip("this machine does not have KubeRay's schemas")
    validators = {
        kind: jsonschema.Draft7Validator(json.loads((folder / f"{kind.lower()}.v1.schema.json").read_text()))
        for kind in ("RayJob", "RayCronJob", "RayCluster")
    }

    def check(document):
        assert not [error.message for error in validators[document["kind"]].iter_errors(document)]

    return check


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(jobs_())
def test_kuberay_accepts_its_objects(accepted, drawn):
    job, table = drawn
    documents = list(yaml.safe_load_all(as_yaml(kubernetes.ray_cron_job(job, table, job.schedule.cron))))
    documents += yaml.safe_load_all(as_yaml(kubernetes.ray_cluster(job)))
    documents += (plain := list(yaml.safe_load_all(as_yaml(kubernetes.cron_job(job, table, job.schedule.cron)))))
    (files,) = (document["data"] for document in plain if document["kind"] == "ConfigMap")
    documents.append(json.loads(files["rayjob.json"]))
    kinds = [document["kind"] for document in documents if document["kind"].startswith("Ray")]
    assert kinds == ["RayCronJob", "RayCluster", "RayJob"]
    for document in documents:
        if document["kind"].startswith("Ray"):
            accepted(document)
    assert Job.of(json.loads(files["job.json"])) == job


def test_kueue_admits_a_job_of_fixed_size(accepted):
    """Kueue reserves a fixed size, starts what it admits, and refuses an autoscaler."""
    table = {"input": "s3://b/i", "output": "s3://b/o", "weights": "nuclei", "cluster": {"workers": {"max": 8}}}
    plain = Job.of(table)
    queued = Job.of(table, ["cluster.queue=gpu-team"])
    for job, label in ((plain, None), (queued, "gpu-team")):
        (files,) = (
            each["data"] for each in kubernetes.cron_job(job, table, "0 2 * * *") if each["kind"] == "ConfigMap"
        )
        ray_job = json.loads(files["rayjob.json"])
        cluster = kubernetes.ray_cluster(job)[-1]
        for made, spec in ((ray_job, ray_job["spec"]["rayClusterSpec"]), (cluster, cluster["spec"])):
            accepted(made)
            assert made["metadata"]["labels"].get("kueue.x-k8s.io/queue-name") == label
            assert made["spec"].get("suspend") == (True if label else None)
            assert bool(spec.get("enableInTreeAutoscaling")) == (label is None)
            (group,) = spec["workerGroupSpecs"]
            assert (group["replicas"], group["minReplicas"], group["maxReplicas"]) == (
                8 if label else 1,
                8 if label else 1,
                8,
            )
    assert ray_job["spec"]["shutdownAfterJobFinishes"]


def test_a_queue_cannot_reach_the_jobs_of_a_ray_cron_job(tmp_path):
    file = scheduled_job(tmp_path)
    file.write_text(file.read_text() + '[cluster]\nqueue="gpu-team"\n')
    with pytest.raises(JobError, match=r"cluster\.queue.*use --for kubernetes"):
        SCHEDULERS["kuberay-cron"](Scheduled.load(file, folder=tmp_path, address=None))


def test_the_schemas_are_strict(accepted):
    job = Job.of({"input": "s3://b/i", "output": "s3://b/o", "weights": "nuclei"})
    (*_, made) = kubernetes.ray_cron_job(job, {}, "0 2 * * *")
    with pytest.raises(AssertionError, match="concurrencyPolicy"):
        accepted(made | {"spec": made["spec"] | {"concurrencyPolicy": "Forbid"}})


@settings(max_examples=50, deadline=None)
@given(jobs_())
def test_plain_kubernetes_objects_refer_to_each_other(drawn):
    job, table = drawn
    documents = list(yaml.safe_load_all(as_yaml(kubernetes.cron_job(job, table, job.schedule.cron))))
    by_kind = {document["kind"]: document for document in documents}
    for document in documents:
        assert set(document) <= {"apiVersion", "kind", "metadata", "spec", "rules", "roleRef", "subjects", "data"}
        name = document["metadata"]["name"]
        assert DNS.fullmatch(name)
        assert len(name) <= 52
        assert document["metadata"]["namespace"] == job.cluster.namespace
    cron = by_kind["CronJob"]["spec"]
    assert set(cron) == {
        "schedule", "timeZone", "concurrencyPolicy", "startingDeadlineSeconds", "successfulJobsHistoryLimit",
        "failedJobsHistoryLimit", "jobTemplate",
    }  # fmt: skip
    assert (cron["concurrencyPolicy"], cron["timeZone"]) == ("Forbid", job.schedule.timezone)
    pod = cron["jobTemplate"]["spec"]["template"]["spec"]
    accounts = {document["metadata"]["name"] for document in documents if document["kind"] == "ServiceAccount"}
    assert pod["serviceAccountName"] == by_kind["RoleBinding"]["subjects"][0]["name"]
    assert {pod["serviceAccountName"], job.cluster.service_account} == accounts
    assert by_kind["RoleBinding"]["roleRef"]["name"] == by_kind["Role"]["metadata"]["name"]
    assert by_kind["Role"]["rules"][0]["verbs"] == ["create", "get"]
    assert pod["volumes"][0]["configMap"]["name"] == by_kind["ConfigMap"]["metadata"]["name"]
    for container in pod["containers"]:
        for mount in container["volumeMounts"]:
            assert mount["name"] in {volume["name"] for volume in pod["volumes"]}
    ray = json.loads(by_kind["ConfigMap"]["data"]["rayjob.json"])["spec"]
    cluster = ray["rayClusterSpec"]
    assert ray["shutdownAfterJobFinishes"]
    assert ray["activeDeadlineSeconds"] < cron["jobTemplate"]["spec"]["activeDeadlineSeconds"]
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert not cluster["headGroupSpec"]["template"]["spec"].get("tolerations")
    (group,) = cluster["workerGroupSpecs"]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    for spec in (cluster["headGroupSpec"], group):
        assert spec["template"]["spec"]["containers"][0]["env"] == [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}]


@pytest.mark.parametrize(("one", "other"), [("a_b", "a-b"), ("A-b", "a-b"), ("x" * 60, "x" * 61), ("9", "m-9")])
def test_different_jobs_have_different_names(one, other):
    names = [kubernetes.name_of(Job.of({"input": "i", "output": "o", "weights": "w", "name": n})) for n in (one, other)]
    assert len(set(names)) == 2
    assert max(map(len, names)) <= 36


@settings(max_examples=10, deadline=None)
@given(jobs_())
def test_ray_accepts_the_aws_file(drawn):
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = yaml.safe_load(as_yaml([aws.cluster_config(drawn[0])]))
    validate_config(prepare_config(config))
    assert all("nightly" not in command and "3.0.0" not in command for command in config["setup_commands"])
    assert all(
        "RAY_USAGE_STATS_ENABLED=0" in commands[-1]
        for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"])
    )


def test_the_image_is_pinned_and_not_root():
    text = docker.dockerfile()
    assert all(
        ":" in line.split("@")[0] and "latest" not in line for line in text.splitlines() if line.startswith("FROM")
    )
    assert "-c constraints.txt" in text
    assert all(f"COPY {folder} {folder}\n" in text for folder in ("maskfleet", "unet", "jobs", "cluster"))
    assert text.rindex("USER 1000") > text.rindex("RUN")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="this machine does not have systemd")
def test_systemd_accepts_the_timer(tmp_path):
    job = Job.load(scheduled_job(tmp_path / "a $b"))
    argv = [sys.executable, *timers.command(tmp_path / 'a $b/my "job" 100%.toml', None)[1:]]
    for name, text in timers.systemd(job, Crontab.parse(job.schedule.cron), argv, tmp_path / "a $b").items():
        (tmp_path / name).write_text(text)
    units = [str(path) for path in tmp_path.glob("maskfleet-*")]
    assert len(units) == 2
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *units], capture_output=True, text=True, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if "maskfleet" in line]
    assert not complaints
    service = (tmp_path / "maskfleet-nuclei.service").read_text()
    assert f"WorkingDirectory={tmp_path}/a $b\n" in service
    assert "Persistent=true" in (tmp_path / "maskfleet-nuclei.timer").read_text()


def test_the_cron_line_runs_and_skips_an_overlapping_run(tmp_path):
    file = scheduled_job(tmp_path / "a b")
    job = Job.load(file)
    program = "import os, time; time.sleep(2); print('ran 100%', os.path.basename(os.getcwd()))"
    argv = [sys.executable, "-c", program, str(file)]
    (text,) = timers.cron(job, job.schedule.cron, argv, file, tmp_path / "a b").values()
    zone, line = text.splitlines()[-2:]
    assert zone == "CRON_TZ=Europe/Berlin"
    assert not re.search(r"(?<!\\)%", line)
    command = line.removeprefix(job.schedule.cron).replace("\\%", "%")  # as cron passes it to the shell
    both = [subprocess.Popen(["/bin/sh", "-c", command]) for _ in range(2)]
    assert [process.wait(20) for process in both] == [0, 0]
    log = Path(f"{file}.log").read_text().splitlines()
    assert sorted(line.partition(" ")[2] for line in log) == [
        "100% a b",
        "skipped: the previous run is still in progress",
    ]


def test_airflow_gets_one_task_whatever_the_path(tmp_path, monkeypatch):
    job = Job.load(scheduled_job(tmp_path))
    argv = ["maskfleet", "run", "/a b/{{ evil }}'\".toml"]
    (text,) = timers.airflow(job, job.schedule.cron, argv, tmp_path / "a 'b").values()
    made = {}

    class DAG:
        def __init__(self, **more):
            made["dag"] = more

        def __enter__(self):
            return self

        def __exit__(self, *_):
            return None

    modules = {
        name: types.ModuleType(name)
        for name in ("pendulum", "airflow", "airflow.sdk", "airflow.providers", "airflow.providers.standard",
                     "airflow.providers.standard.operators", "airflow.providers.standard.operators.bash")
    }  # fmt: skip
    modules["pendulum"].datetime = lambda *date, tz: (date, tz)
    modules["airflow.sdk"].DAG = DAG
    modules["airflow.providers.standard.operators.bash"].BashOperator = lambda **task: made.update(task=task)  # noqa: PLW0108
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    exec(compile(ast.parse(text), "dag", "exec"), {})
    assert (made["dag"]["schedule"], made["dag"]["max_active_runs"]) == (job.schedule.cron, 1)
    command = made["task"]["bash_command"].removeprefix("{% raw %}").removesuffix("{% endraw %}")
    assert shlex.split(command) == argv
    assert made["task"]["cwd"] == f"{tmp_path}/a 'b"


@pytest.mark.parametrize(
    ("section", "message"),
    [('cron="0 25 * * *"', "'25' is not a valid hour"), ('timezone="Mars/Base"', "is not a time zone")],
)
def test_a_wrong_schedule_is_refused(section, message, tmp_path):
    file = tmp_path / "job.toml"
    file.write_text(f'input="i"\noutput="o"\nweights="w"\n[schedule]\n{section}\n')
    with pytest.raises(JobError, match=message):
        Job.load(file)
