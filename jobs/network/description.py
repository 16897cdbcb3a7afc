"""What a weights file says of itself, and what follows from its network."""

from typing import Any

from maskfleet.unet.inference.roofline import flops
from maskfleet.unet.weights import Weights

_SIDE = 512


def described(weights: Weights) -> dict[str, Any]:
    """Return the properties of weights as JSON values, in the order for people.

    Grid and halo in px are proven or known for the network; `no_exact_tiles` is the reason if no tile gives the whole
    image's logits. `multiply_adds_per_pixel` counts convolutions and products of matrices.
    """
    model = weights.model
    side = -(-_SIDE // model.grid) * model.grid
    tiles = {"no_exact_tiles": model.untileable} if model.untileable else {"grid": model.grid, "halo": model.halo}
    return {
        "id": weights.id,
        "kind": getattr(model, "kind", "ensemble"),
        "channels": model.n_channels,
        "classes": max(2, model.n_classes),
        "mask_values": None if weights.mask_values is None else list(weights.mask_values),
        "normalize": _normalization(weights),
        **tiles,
        "smallest_side": model.min_side,
        "parameters": sum(tensor.numel() for tensor in model.state_dict().values() if tensor.is_floating_point()),
        "multiply_adds_per_pixel": round(flops(model, side, side) / 2 / side**2),
        "metadata": dict(weights.metadata),
    }


def _normalization(weights: Weights) -> dict[str, Any] | None:
    if weights.input is not None:
        return dict(weights.input.table)
    if weights.normalize is not None:
        mean, std = weights.normalize
        return {"mean": list(mean), "std": list(std)}
    return None
