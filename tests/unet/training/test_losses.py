import pytest
import torch

from maskfleet.unet.training.losses import pytorch_unet_loss, segmentation_loss, soft_dice


def one_hot(target, classes):
    return torch.nn.functional.one_hot(target, classes).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("loss", [segmentation_loss, pytorch_unet_loss])
@pytest.mark.parametrize("classes", [1, 2, 4])
def test_a_correct_and_certain_network_has_no_loss(classes, loss):
    target = torch.arange(64).reshape(1, 8, 8) % max(2, classes)
    sure = (target.unsqueeze(1).float() * 2 - 1) * 50 if classes == 1 else one_hot(target, classes) * 50
    assert loss(sure, target) < 1e-3
    assert loss(-sure, target) > 10


def test_soft_dice_follows_its_definition():
    probability = torch.tensor([[[[0.5, 1.0], [0.0, 0.25]]]])
    truth = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    assert soft_dice(probability, truth, smooth=1.0).item() == pytest.approx((2 * 1.5 + 1) / (1.75 + 2 + 1))


def test_a_class_absent_from_an_image_is_left_out_of_its_dice():
    nothing = torch.zeros(1, 1, 4, 4)
    assert soft_dice(torch.ones(1, 1, 4, 4), nothing).item() == 1
    probability = torch.rand(2, 2, 4, 4)
    truth = torch.stack([torch.ones(2, 4, 4), torch.stack([torch.zeros(4, 4), torch.ones(4, 4)])])
    present = [(probability[0, 0], 16), (probability[0, 1], 16), (probability[1, 1], 16)]
    by_hand = sum((2 * found.sum() + 1) / (found.sum() + size + 1) for found, size in present) / 3
    assert soft_dice(probability, truth).item() == pytest.approx(by_hand.item())


def test_images_with_little_of_a_class_have_equal_weight():
    truth = torch.zeros(2, 1, 8, 8)
    truth[0, 0, 0, 0] = 1
    truth[1] = 1
    missed = soft_dice(truth * torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1), truth)
    assert missed.item() == pytest.approx((1 / 2 + 1) / 2)


def test_pytorch_unets_dice_covers_all_images_and_classes_at_once():
    logits, target = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    probability, truth = logits.softmax(1), one_hot(target, 3)
    dice = (2 * (probability * truth).sum() + 1e-6) / (probability.sum() + truth.sum() + 1e-6)
    entropy = torch.nn.functional.cross_entropy(logits, target)
    assert pytorch_unet_loss(logits, target).item() == pytest.approx((entropy + 1 - dice).item())


def test_pytorch_unets_loss_of_one_class_uses_the_sigmoid():
    logits, target = torch.randn(2, 1, 4, 5), torch.randint(0, 2, (2, 4, 5))
    probability = logits.sigmoid()[:, 0]
    dice = (2 * (probability * target).sum() + 1e-6) / (probability.sum() + target.sum() + 1e-6)
    entropy = torch.nn.functional.binary_cross_entropy(probability, target.float())
    assert pytorch_unet_loss(logits, target).item() == pytest.approx((entropy + 1 - dice).item(), rel=1e-5)


@pytest.mark.parametrize("loss", [segmentation_loss, pytorch_unet_loss])
def test_gradients_flow_to_every_class(loss):
    logits = torch.randn(2, 3, 8, 8, requires_grad=True)
    loss(logits, torch.randint(0, 3, (2, 8, 8), dtype=torch.uint8)).backward()
    assert (logits.grad.abs().sum(dim=(0, 2, 3)) > 0).all()


@pytest.mark.parametrize("loss", [segmentation_loss, pytorch_unet_loss])
@pytest.mark.parametrize("classes", [1, 3])
def test_ignored_pixels_add_nothing(classes, loss):
    logits, target = torch.randn(2, classes, 8, 8, requires_grad=True), torch.randint(0, max(2, classes), (2, 8, 8))
    assert loss(logits, target, ignored=255).item() == pytest.approx(loss(logits, target).item(), rel=1e-6)
    target[:, :3] = 255
    before = loss(logits, target, ignored=255)
    (gradient,) = torch.autograd.grad(before, logits)
    assert not gradient[:, :, :3].any()
    assert gradient[:, :, 3:].all()
    with torch.no_grad():
        logits[:, :, :3] = 50
    assert loss(logits, target, ignored=255).item() == before.item()
    assert loss(logits, torch.full((2, 8, 8), 255), ignored=255).isfinite()
