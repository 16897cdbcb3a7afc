"""Kubernetes objects of a job, as data: a RayJob and its schedule, or a RayCluster. Nothing is applied here.

Fields are those of KubeRay 1.7. Two rules are checked only by its operator, so the code respects them: a time to live
requires shutdownAfterJobFinishes, and names leave room for the suffixes added to them.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from maskfleet.jobs.job.machines import WorkerRange
from maskfleet.jobs.job.schema import Job

_LONGEST_NAME = 36
"""Longest name in characters. KubeRay and Kubernetes add suffixes to it, and their limit is 63 in total."""

_FOLDER = "/etc/maskfleet"
_START_AND_END = 3600
_STOP_SECONDS = 600
_QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_AUTOSCALER = {
    "enableInTreeAutoscaling": True,
    "autoscalerOptions": {"version": "v2", "idleTimeoutSeconds": 60, "upscalingMode": "Default"},
}
_SPOT_TAINTS = ("cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority", "karpenter.sh/capacity-type")

Object = dict[str, Any]

# The pod of the CronJob waits for the end of the RayJob, so the policy "Forbid" prevents overlapping runs.
_CREATE_AND_WAIT = """set -eu
run=$(kubectl create -f /etc/maskfleet/rayjob.json -o name)
echo "$run"
while :; do
  case "$(kubectl get "$run" -o 'jsonpath={.status.jobDeploymentStatus}')" in
    Complete) exit 0 ;;
    Failed) exit 1 ;;
  esac
  sleep 10
done
"""


def name_of(job: Job) -> str:
    """Return the name of a job as a valid Kubernetes name. A changed name gets a hash, so it stays unique."""
    plain = re.sub(r"[^a-z0-9]+", "-", job.name.lower()).strip("-")
    if plain == job.name and len(plain) <= _LONGEST_NAME and plain[:1].isalpha():
        return plain
    mark = hashlib.sha256(job.name.encode()).hexdigest()[:6]
    return f"m-{plain[: _LONGEST_NAME - 9].strip('-')}-{mark}".replace("--", "-")


def cron_job(job: Job, table: Mapping[str, Any], cron_fields: str) -> list[Object]:
    """Return a CronJob creating a RayJob and waiting for its end, with all objects it needs.

    Args:
        job: The job.
        table: Content of the job file, for the pods.
        cron_fields: The five fields of cron.
    """
    name = name_of(job)
    ray_job = _object("ray.io/v1", "RayJob", job, spec=ray_job_spec(job))
    ray_job["metadata"] = {"generateName": f"{name}-", "namespace": job.cluster.namespace, "labels": _queued(job)}
    starter = f"{name}-starter"
    rules = [{"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get"]}]
    container = {
        "name": "start",
        "image": job.cluster.image,
        "command": ["/bin/sh", "-c", _CREATE_AND_WAIT],
        "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}},
        "securityContext": _CONTAINER_SECURITY,
        "volumeMounts": [_MOUNT],
    }
    pod = {
        "serviceAccountName": starter,
        "restartPolicy": "Never",
        "securityContext": _POD_SECURITY,
        "containers": [container],
        "volumes": [_volume(name)],
    }
    spec = {
        "schedule": cron_fields,
        "timeZone": job.schedule.timezone,
        "concurrencyPolicy": "Forbid",
        "startingDeadlineSeconds": job.schedule.start_within,
        "successfulJobsHistoryLimit": 3,
        "failedJobsHistoryLimit": 3,
        "jobTemplate": {
            "spec": {
                "backoffLimit": 0,
                "activeDeadlineSeconds": _deadline(job) + _START_AND_END,
                "template": {"metadata": {"labels": _labels(job)}, "spec": pod},
            }
        },
    }
    account = {"kind": "ServiceAccount", "name": starter, "namespace": job.cluster.namespace}
    return [
        service_account(job),
        _object("v1", "ServiceAccount", job, starter),
        _object("rbac.authorization.k8s.io/v1", "Role", job, starter, rules=rules),
        _object(
            "rbac.authorization.k8s.io/v1", "RoleBinding", job, starter,
            roleRef={"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": starter}, subjects=[account],
        ),
        config_map(job, {"job.json": table, "rayjob.json": ray_job}),
        _object("batch/v1", "CronJob", job, spec=spec),
    ]  # fmt: skip


def ray_cron_job(job: Job, table: Mapping[str, Any], cron_fields: str) -> list[Object]:
    """Return KubeRay's own RayCronJob: alpha, behind a feature gate, and without protection from overlapping runs.

    Args:
        job: The job.
        table: Content of the job file, for the pods.
        cron_fields: The five fields of cron.
    """
    spec = {"schedule": cron_fields, "timeZone": job.schedule.timezone, "jobTemplate": ray_job_spec(job)}
    return [
        service_account(job),
        config_map(job, {"job.json": table}),
        _object("ray.io/v1", "RayCronJob", job, spec=spec),
    ]


def ray_cluster(job: Job) -> list[Object]:
    """Return a permanent cluster for `maskfleet submit`."""
    cluster = _object("ray.io/v1", "RayCluster", job, spec=ray_cluster_spec(job, mounted=False) | _suspended(job))
    cluster["metadata"]["labels"] = _queued(job)
    return [service_account(job), cluster]


def ray_job_spec(job: Job) -> Object:
    """Return the specification of a run with its own cluster, deleted at the end of the run."""
    return {
        "entrypoint": f"maskfleet --log run {_FOLDER}/job.json",
        "runtimeEnvYAML": json.dumps({"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(_STOP_SECONDS)}}),
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": 600,
        "activeDeadlineSeconds": _deadline(job),
        # If the head is lost, a second cluster resumes the run.
        "backoffLimit": 1,
        **_suspended(job),
        "rayClusterSpec": ray_cluster_spec(job, mounted=True),
    }


def ray_cluster_spec(job: Job, *, mounted: bool) -> Object:
    """Return the specification of a cluster: a head node without workers, never on spot, and worker nodes.

    The number of worker nodes follows the work, or is fixed if the job names a queue.

    Args:
        job: The job.
        mounted: Whether the pods mount the job file.
    """
    wanted = job.cluster
    least, most = nodes_of(job)
    least = most if wanted.queue else least  # Kueue reserves a fixed size, and refuses clusters with an autoscaler
    cpus, memory = {"cpu": str(wanted.node_cpus)}, {"memory": f"{wanted.node_memory_gib}Gi"}
    gpus = {"nvidia.com/gpu": str(wanted.node_gpus)} if wanted.node_gpus else {}
    worker = _pod(job, "ray-worker", cpus | memory | gpus, mounted=mounted)
    worker["terminationGracePeriodSeconds"] = 120
    worker["tolerations"] = [
        {"key": key, "operator": "Exists", "effect": "NoSchedule"}
        for key in (*(("nvidia.com/gpu",) if gpus else ()), *(_SPOT_TAINTS if wanted.spot else ()))
    ]
    return {
        "rayVersion": version("ray"),
        **({} if wanted.queue else _AUTOSCALER),
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            "rayStartParams": {"num-cpus": "0"},
            "template": {
                "metadata": {"labels": _labels(job)},
                "spec": _pod(job, "ray-head", {"cpu": "2", "memory": "8Gi"}, mounted=mounted),
            },
        },
        "workerGroupSpecs": [
            {
                "groupName": "spot" if wanted.spot else "workers",
                "replicas": least,
                "minReplicas": least,
                "maxReplicas": most,
                "rayStartParams": {},
                "template": {"metadata": {"labels": _labels(job)}, "spec": worker},
            }
        ],
    }


def nodes_of(job: Job) -> tuple[int, int]:
    """Return the smallest and the largest number of nodes for the workers of a job.

    Always one node for "auto": such a run uses only existing nodes, so the cluster would never grow.
    """
    wanted = job.cluster
    if wanted.workers == "auto":
        return 1, 1
    share = wanted.gpus_per_worker if wanted.gpus_per_worker != "auto" else 1.0
    each = wanted.node_gpus * int(1 / share + 1e-9) if wanted.node_gpus and share else 1
    if isinstance(wanted.workers, WorkerRange):
        return math.ceil(wanted.workers.min / each), math.ceil(wanted.workers.max / each)
    return 0, math.ceil(wanted.workers / each)


def service_account(job: Job) -> Object:
    """Return the service account of the pods. Bind it to a role that may read the input and write the output."""
    made = _object("v1", "ServiceAccount", job)
    made["metadata"]["name"] = job.cluster.service_account
    return made


def config_map(job: Job, files: Mapping[str, Mapping[str, Any]]) -> Object:
    """Return a ConfigMap with files for the pods, as JSON by name."""
    return _object("v1", "ConfigMap", job, data={name: json.dumps(data, indent=1) for name, data in files.items()})


def _object(api: str, kind: str, job: Job, name: str | None = None, **fields: Any) -> Object:
    metadata = {"name": name or name_of(job), "namespace": job.cluster.namespace, "labels": _labels(job)}
    return {"apiVersion": api, "kind": kind, "metadata": metadata, **fields}


def _labels(job: Job) -> dict[str, str]:
    return {"app.kubernetes.io/name": "maskfleet", "app.kubernetes.io/instance": name_of(job)}


def _queued(job: Job) -> dict[str, str]:
    """Return the labels of an object that Kueue admits, if the job names a queue."""
    return _labels(job) | ({_QUEUE_LABEL: job.cluster.queue} if job.cluster.queue else {})


def _suspended(job: Job) -> Object:
    """Return the field that keeps an object waiting for Kueue, if the job names a queue."""
    return {"suspend": True} if job.cluster.queue else {}


def _deadline(job: Job) -> int:
    return job.schedule.hours * 3600


def _pod(job: Job, container: str, resources: Mapping[str, str], *, mounted: bool) -> Object:
    ray = {
        "name": container,
        "image": job.cluster.image,
        "env": [{"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}],
        # Requests equal limits: Ray schedules for the whole pod, and Kubernetes evicts such pods last.
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "securityContext": _CONTAINER_SECURITY,
    }
    pod: Object = {
        "serviceAccountName": job.cluster.service_account,
        "restartPolicy": "Never",  # the autoscaler replaces pods and would not recognize a restarted one
        "securityContext": _POD_SECURITY,
        "containers": [ray],
    }
    if mounted:
        ray["volumeMounts"] = [_MOUNT]
        pod["volumes"] = [_volume(name_of(job))]
    return pod


_POD_SECURITY = {"runAsNonRoot": True, "runAsUser": 1000, "fsGroup": 1000}
_CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
_MOUNT = {"name": "job", "mountPath": _FOLDER, "readOnly": True}


def _volume(name: str) -> Object:
    return {"name": "job", "configMap": {"name": name}}
