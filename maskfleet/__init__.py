"""Turns buckets of images into segmentation masks and Parquet statistics, on Ray, with a U-Net on every GPU.

The names below are the public interface. They are imported on first use, so `import maskfleet` is instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maskfleet.cluster.driver import Fleet
    from maskfleet.jobs.errors import MaskfleetError
    from maskfleet.jobs.job.schema import Job
    from maskfleet.jobs.outputs.output import Output, open_output
    from maskfleet.jobs.outputs.report.run import run
    from maskfleet.jobs.run.summary import RunSummary
    from maskfleet.jobs.tools.preview import Plan, plan
    from maskfleet.unet.inference.segmenter import Segmenter
    from maskfleet.unet.model import UNet
    from maskfleet.unet.programs.export import export_network

__all__ = [
    "Fleet",
    "Job",
    "MaskfleetError",
    "Output",
    "Plan",
    "RunSummary",
    "Segmenter",
    "UNet",
    "export_network",
    "open_output",
    "plan",
    "run",
]

_MODULES = {
    "Fleet": "maskfleet.cluster.driver",
    "Job": "maskfleet.jobs.job.schema",
    "MaskfleetError": "maskfleet.jobs.errors",
    "Output": "maskfleet.jobs.outputs.output",
    "Plan": "maskfleet.jobs.tools.preview",
    "RunSummary": "maskfleet.jobs.run.summary",
    "Segmenter": "maskfleet.unet.inference.segmenter",
    "UNet": "maskfleet.unet.model",
    "export_network": "maskfleet.unet.programs.export",
    "open_output": "maskfleet.jobs.outputs.output",
    "plan": "maskfleet.jobs.tools.preview",
    "run": "maskfleet.jobs.outputs.report.run",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'maskfleet' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
