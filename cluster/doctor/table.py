"""The table of all checks: those of the machine and the job, and those of Ray."""

from maskfleet.cluster.doctor import reach
from maskfleet.jobs.tools.doctor.contract import Check
from maskfleet.jobs.tools.doctor.table import CHECKS as OTHERS

_CLUSTER = "check --address and RAY_ADDRESS, and the network"

CHECKS = {
    **OTHERS,
    "ray": Check(reach.cluster, 60, _CLUSTER),
    "ray access": Check(reach.access, 90, _CLUSTER),
    "shared memory": Check(reach.shared_memory),
}
"""All checks by name, in the order of the report."""
