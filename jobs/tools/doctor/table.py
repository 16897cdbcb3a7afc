"""The table of checks that need no Ray. A check is one function and one line of `CHECKS`."""

from maskfleet.jobs.tools.doctor import credentials, decoding, machine, places, versions
from maskfleet.jobs.tools.doctor.contract import Check

_STORAGE = "check the network, the endpoint (AWS_ENDPOINT_URL_S3) or the mount"
_ROLE = "check the network: a role's credentials come over it"

CHECKS = {
    "versions": Check(versions.versions),
    "faster": Check(versions.faster),
    "system": Check(machine.system),
    "device": Check(machine.device, 60, "check nvidia-smi; a hanging driver needs a restart of the machine"),
    "memory": Check(machine.memory),
    "disk": Check(machine.disk),
    "open files": Check(machine.open_files),
    "decoding": Check(decoding.decoding, 60),
    "input credentials": Check(credentials.input_credentials, 20, _ROLE),
    "credentials": Check(credentials.credentials, 20, _ROLE),
    "input": Check(places.input_rights, 60, _STORAGE),
    "output": Check(places.output_rights, 30, _STORAGE),
    "commits": Check(places.commits, 30, _STORAGE),
    "clock": Check(places.clock, 30, _STORAGE),
}
"""All checks by name, in the order of the report. Those of a job find nothing without one."""
