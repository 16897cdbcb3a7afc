"""From the file of a network, of any known kind, to a weights file."""

from maskfleet.unet.checkpoints import pytorch_unet
from maskfleet.unet.programs.network import ProgramNetwork
from maskfleet.unet.programs.pt2 import is_program, read_pt2
from maskfleet.unet.weights import Normalize, checked, save

PROGRAM = "exported program"
"""The `origin` in the metadata of converted programs."""


def convert(
    data: bytes, *, key: str | None = None, normalize: Normalize | None = None, scale: float | None = None
) -> bytes:
    """Convert a checkpoint of a Pytorch-UNet, or a program of `torch.export.save` (.pt2), to a safetensors file.

    Args:
        data: Bytes of the file.
        key: Name of the network, if a checkpoint holds several that differ.
        normalize: See `Weights.normalize`.
        scale: Scale of the images in training, stored in the metadata.

    Raises:
        WeightsError: The file is neither, or cannot be run.
    """
    if not is_program(data):
        return pytorch_unet.convert(data, key=key, normalize=normalize, scale=scale)
    exported = read_pt2(data)
    network = ProgramNetwork(
        exported.program, exported.tensors, n_channels=exported.channels, multiple=exported.multiple
    )
    metadata = {"origin": PROGRAM} | ({} if scale is None else {"scale": f"{scale:g}"})
    return save(network, normalize=checked(normalize, exported.channels), metadata=metadata)
