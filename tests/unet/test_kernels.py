"""No layer falls back to oneDNN's reference kernels, silently a hundred times as slow."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from maskfleet.unet.precision import native

ROOT = Path(__file__).resolve().parents[2]

FORWARD = """
import sys, numpy as np
from maskfleet.unet.model import UNet
from maskfleet.unet.inference.segmenter import Segmenter
segmenter = Segmenter(UNet(3, 2, width=16), precision=sys.argv[1])
print("BEGIN", flush=True)
segmenter.bare_pass(2, 64, 64)()
segmenter.segment(np.zeros((2, 64, 64, 3), np.uint8))
"""


@pytest.mark.parametrize("precision", [name for name in native(torch.device("cpu")) if name != "fp16"])
def test_the_forward_pass_on_a_cpu_uses_no_reference_kernel(precision):
    environment = os.environ | {"ONEDNN_VERBOSE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", FORWARD, precision], env=environment, capture_output=True, text=True, check=True
    )
    lines = done.stdout.partition("BEGIN")[2].splitlines()
    kernels = [re.split(r"[,:]", line) for line in lines if ",exec," in line]
    convolutions = [line for line in lines if ",exec," in line and "convolution" in line]
    if not convolutions:
        pytest.skip("this build of torch has no oneDNN, or is silent")
    assert not [kernel for kernel in kernels if "ref" in kernel]
