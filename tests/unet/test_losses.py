import pytest
import torch

from unet.losses import segmentation_loss, soft_dice


def one_hot(target, classes):
    return torch.nn.functional.one_hot(target, classes).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("classes", [1, 2, 4])
def test_a_right_and_sure_network_loses_nothing(classes):
    target = torch.arange(64).reshape(1, 8, 8) % max(2, classes)
    sure = (target.unsqueeze(1).float() * 2 - 1) * 50 if classes == 1 else one_hot(target, classes) * 50
    assert segmentation_loss(sure, target) < 1e-3
    assert segmentation_loss(-sure, target) > 10


def test_soft_dice_is_its_definition():
    probability = torch.tensor([[[[0.5, 1.0], [0.0, 0.25]]]])
    truth = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    assert soft_dice(probability, truth, smooth=1.0).item() == pytest.approx((2 * 1.5 + 1) / (1.75 + 2 + 1))


def test_an_absent_class_counts_one_if_nothing_is_predicted():
    nothing = torch.zeros(1, 1, 4, 4)
    assert soft_dice(nothing, nothing).item() == 1
    assert soft_dice(torch.ones(1, 1, 4, 4), nothing).item() == pytest.approx(1 / 17)


def test_gradients_flow_to_every_class():
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    segmentation_loss(logits, torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)).backward()
    assert (logits.grad.abs().sum(dim=(0, 2, 3)) > 0).all()
