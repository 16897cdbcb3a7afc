import pytest
import torch

from maskfleet.unet.model import UNet

BLOCK = [
    *("0.weight", "1.weight", "1.bias", "1.running_mean", "1.running_var", "1.num_batches_tracked"),
    *("3.weight", "4.weight", "4.bias", "4.running_mean", "4.running_var", "4.num_batches_tracked"),
]


def expected_keys(bilinear):
    blocks = ["inc.double_conv", *(f"down{i}.maxpool_conv.1.double_conv" for i in range(1, 5))]
    keys = [f"{block}.{name}" for block in blocks for name in BLOCK]
    for i in range(1, 5):
        if not bilinear:
            keys += [f"up{i}.up.weight", f"up{i}.up.bias"]
        keys += [f"up{i}.conv.double_conv.{name}" for name in BLOCK]
    return [*keys, "outc.conv.weight", "outc.conv.bias"]


@pytest.mark.parametrize(
    ("n_classes", "bilinear", "parameters", "tensors"),
    [(1, False, 31_037_633, 118), (2, False, 31_037_698, 118), (1, True, 17_262_977, 110), (2, True, 17_263_042, 110)],
)
def test_keys_and_parameters_are_those_of_pytorch_unet(n_classes, bilinear, parameters, tensors):
    with torch.device("meta"):
        model = UNet(3, n_classes, bilinear)
    assert list(model.state_dict()) == expected_keys(bilinear)
    assert len(model.state_dict()) == tensors
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_shapes_of_the_up_path():
    with torch.device("meta"):
        transposed, bilinear = UNet(3, 2).state_dict(), UNet(3, 2, bilinear=True).state_dict()
    assert [tuple(transposed[f"up{i}.up.weight"].shape) for i in range(1, 5)] == [
        *((1024, 512, 2, 2), (512, 256, 2, 2), (256, 128, 2, 2), (128, 64, 2, 2))
    ]
    firsts = [tuple(bilinear[f"up{i}.conv.double_conv.0.weight"].shape[:2]) for i in range(1, 5)]
    seconds = [tuple(bilinear[f"up{i}.conv.double_conv.3.weight"].shape[:2]) for i in range(1, 5)]
    assert firsts == [(512, 1024), (256, 512), (128, 256), (64, 128)]
    assert seconds == [(256, 512), (128, 256), (64, 128), (64, 64)]


@pytest.mark.parametrize("bilinear", [False, True])
@pytest.mark.parametrize("size", [(16, 16), (17, 31), (33, 47), (64, 16)])
def test_any_size_from_16_keeps_its_size(size, bilinear):
    model = UNet(1, 3, bilinear, width=2).eval()
    assert model(torch.rand(2, 1, *size)).shape == (2, 3, *size)


def test_smaller_images_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match="at least 16 px, got 40×15; enlarge"):
        UNet(1, 1, width=2)(torch.rand(1, 1, 15, 40))


def test_the_skip_comes_first_and_odd_sizes_are_padded_behind():
    model = UNet(1, 1, width=2).eval()
    seen = {}
    model.up4.conv.double_conv[0].register_forward_pre_hook(lambda _, inputs: seen.update(x=inputs[0]))
    model.inc.register_forward_hook(lambda _, inputs, output: seen.update(skip=output))
    model(torch.rand(1, 1, 17, 19))
    assert torch.equal(seen["x"][:, :2], seen["skip"])
    # 17 → 8 → 16, so one row and one column are missing: diff // 2 = 0 before, 1 after.
    assert seen["x"][0, 2:, 16].abs().sum() == 0
    assert seen["x"][0, 2:, :, 18].abs().sum() == 0
    assert seen["x"][0, 2:, 0].abs().sum() > 0
