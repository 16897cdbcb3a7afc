"""The Dockerfile of the image for generated clusters."""

from importlib.metadata import version


def dockerfile() -> str:
    """Return the Dockerfile of the image, for a build at the root of the checkout.

    CUDA comes with torch's wheels, and the driver with the node.
    """
    return f"""# Build at the root of the checkout: docker build -t maskfleet:{version("maskfleet")} -f Dockerfile .
FROM nvidia/cuda:12.8.1-base-ubuntu24.04
COPY --from=registry.k8s.io/kubectl:v1.34.1 /bin/kubectl /usr/local/bin/kubectl
# KubeRay's probes use wget.
RUN apt-get update && apt-get install -y --no-install-recommends python3 python3-venv wget rsync \\
    && rm -rf /var/lib/apt/lists/* \\
    && (userdel -r ubuntu || true) && useradd --create-home --uid 1000 ray
WORKDIR /opt/maskfleet
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY maskfleet maskfleet
COPY unet unet
COPY jobs jobs
COPY cluster cluster
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir -c constraints.txt .
ENV PATH=/opt/venv/bin:$PATH RAY_USAGE_STATS_ENABLED=0
USER 1000
WORKDIR /home/ray
"""
