"""Networks of other libraries, where installed: the program gives their own logits, and their tiles are known.

Their weights are random, with statistics of normalisations as after training. Run with `pytest -m full`.
"""

import importlib.util

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from maskfleet.unet import weights
from maskfleet.unet.programs.export import export_network

pytestmark = pytest.mark.full

_SHIM = []


def installed(*names):
    for name in names:
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")


def smp(architecture, encoder):
    installed("segmentation_models_pytorch", "torchvision")
    with_torchvision()
    import segmentation_models_pytorch

    return getattr(segmentation_models_pytorch, architecture)(encoder, encoder_weights=None, classes=2)


def with_torchvision():
    """Define the operators that torchvision's import asks for; its compiled part needs the CUDA build of torch."""
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _SHIM.append(library)


def monai(name, **settings):
    installed("monai")
    from monai.networks import nets

    return getattr(nets, name)(spatial_dims=2, in_channels=3, out_channels=2, **settings)


def nnunet(name, norm, **blocks):
    installed("dynamic_network_architectures")
    from dynamic_network_architectures.architectures import unet

    return getattr(unet, name)(
        input_channels=3, n_stages=6, features_per_stage=[8, 16, 32, 32, 32, 32], conv_op=nn.Conv2d,
        kernel_sizes=[[3, 3]] * 6, strides=[[1, 1]] + [[2, 2]] * 5, num_classes=2, conv_bias=True, norm_op=norm,
        norm_op_kwargs={"eps": 1e-5, "affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": True},
        deep_supervision=False, **blocks,
    )  # fmt: skip


class Enlarged(nn.Module):
    """A network of transformers, with its logits at the size of the image."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        logits = self.network(pixel_values=x).logits
        return F.interpolate(logits, size=x.shape[-2:], mode="bilinear", align_corners=False)


def segformer():
    installed("transformers", "torchvision")
    with_torchvision()
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    sizes = {"hidden_sizes": [16, 32, 64, 96], "depths": [1, 1, 1, 1], "decoder_hidden_size": 64}
    return Enlarged(SegformerForSemanticSegmentation(SegformerConfig(num_labels=2, **sizes)))


PLAIN = {"n_conv_per_stage": [2] * 6, "n_conv_per_stage_decoder": [2] * 5}
RESIDUAL = {"n_blocks_per_stage": [1, 3, 4, 6, 6, 6], "n_conv_per_stage_decoder": [1] * 5}
NETWORKS = {
    "smp Unet resnet18": (lambda: smp("Unet", "resnet18"), (32, 288)),
    "smp Unet resnet34": (lambda: smp("Unet", "resnet34"), (32, 544)),
    "smp UnetPlusPlus resnet18": (lambda: smp("UnetPlusPlus", "resnet18"), (32, 288)),
    "smp Unet efficientnet-b0": (lambda: smp("Unet", "efficientnet-b0"), "squeeze-and-excitation"),
    "smp FPN resnet18": (lambda: smp("FPN", "resnet18"), "group normalisation"),
    "smp DeepLabV3Plus resnet18": (lambda: smp("DeepLabV3Plus", "resnet18"), "pooling over the whole image"),
    "monai BasicUNet": (lambda: monai("BasicUNet"), "instance normalisation"),
    "monai BasicUNet, batch norm": (lambda: monai("BasicUNet", norm="batch"), (32, 96)),
    "monai UNet": (
        lambda: monai("UNet", channels=(16, 32, 64, 128, 256), strides=(2,) * 4, num_res_units=2, norm="batch"),
        (32, 96),
    ),
    "nnU-Net PlainConv, batch norm": (lambda: nnunet("PlainConvUNet", nn.BatchNorm2d, **PLAIN), (32, 160)),
    "nnU-Net PlainConv": (lambda: nnunet("PlainConvUNet", nn.InstanceNorm2d, **PLAIN), "instance normalisation"),
    "nnU-Net ResEnc": (lambda: nnunet("ResidualEncoderUNet", nn.InstanceNorm2d, **RESIDUAL), "instance normalisation"),
    "transformers Segformer": (segformer, "axes rearranged"),
}


def settled(model):
    """Give normalisations statistics as after training."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
            norm.running_mean.copy_(0.1 * torch.randn(norm.running_mean.shape, generator=generator))
            norm.running_var.copy_(0.5 + torch.rand(norm.running_var.shape, generator=generator))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_librarys_network_gives_its_own_logits(name, tmp_path):
    make, tiles = NETWORKS[name]
    torch.manual_seed(0)
    model = settled(make())
    export_network(model, tmp_path / "w.safetensors", channels=3, multiple=32)
    found = weights.load_local(tmp_path / "w.safetensors").model
    if isinstance(tiles, str):
        assert tiles in found.untileable
    else:
        assert (found.grid, found.halo, found.untileable) == (*tiles, None)
    for shape in ((1, 3, 128, 160), (3, 3, 96, 64)):
        x = torch.rand(shape)
        assert torch.allclose(found(x), model(x), rtol=0, atol=1e-6 * float(model(x).abs().max()))
