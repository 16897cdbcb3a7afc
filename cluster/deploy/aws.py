"""Configuration of a Ray cluster on AWS for `ray up`."""

from typing import Any

from maskfleet.cluster.deploy.kubernetes import name_of, nodes_of
from maskfleet.jobs.job.schema import Job

_START = "ulimit -n 65536; RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token ray start"


def cluster_config(job: Job) -> dict[str, Any]:
    """Return the configuration for `ray up`: a head node without workers, and worker nodes, on spot if allowed.

    All software comes from the image.
    """
    wanted = job.cluster
    least, most = nodes_of(job)
    machine: dict[str, Any] = {"IamInstanceProfile": {"Name": wanted.service_account}}
    if wanted.ami:
        machine["ImageId"] = wanted.ami
    worker = machine | {"InstanceType": wanted.instance}
    if wanted.spot:
        worker["InstanceMarketOptions"] = {"MarketType": "spot"}
    return {
        "cluster_name": name_of(job),
        "max_workers": most,
        "idle_timeout_minutes": 5,
        "provider": {"type": "aws", "region": wanted.region, "cache_stopped_nodes": False},
        "auth": {"ssh_user": "ubuntu"},
        "docker": {"image": wanted.image, "container_name": "maskfleet", "pull_before_run": True},
        "file_mounts": {"/home/ray/.ray/auth_token": "~/.ray/auth_token"},
        "available_node_types": {
            "head": {"resources": {"CPU": 0}, "node_config": machine | {"InstanceType": "m7i.xlarge"}},
            "workers": {
                "min_workers": least,
                "max_workers": most,
                "resources": {"CPU": wanted.node_cpus, "GPU": wanted.node_gpus},
                "node_config": worker,
            },
        },
        "head_node_type": "head",
        # Empty, since Ray's default installs a nightly version of Ray.
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
        "head_start_ray_commands": [
            "ray stop",
            f"{_START} --head --port=6379 --dashboard-host=127.0.0.1 --autoscaling-config=~/ray_bootstrap_config.yaml",
        ],
        "worker_start_ray_commands": ["ray stop", f"{_START} --address=$RAY_HEAD_IP:6379"],
    }
