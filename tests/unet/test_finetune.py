import itertools

import pytest
import torch

from unet.finetune import _rate, finetune
from unet.model import UNet


def batches():
    generator = torch.Generator().manual_seed(1)
    while True:
        target = (torch.rand(2, 1, 8, 8, generator=generator) > 0.6).float()
        target = torch.nn.functional.interpolate(target, (32, 32)).to(torch.uint8)
        yield (target * 200).expand(-1, 3, -1, -1).contiguous(), target[:, 0]


def test_it_learns_and_stops_at_its_schedules_end():
    torch.manual_seed(0)
    model = UNet(3, 2, width=4)
    steps = list(finetune(model, batches(), steps=40, learning_rate=1e-2))
    assert [step.number for step in steps] == list(range(1, 41))
    assert sum(step.loss for step in steps[-5:]) < 0.5 * sum(step.loss for step in steps[:5])
    assert all(step.seconds > 0 for step in steps)


def test_it_ends_with_the_batches():
    assert len(list(finetune(UNet(3, 1, width=2), itertools.islice(batches(), 3), steps=99))) == 3


def test_the_same_seed_gives_the_same_weights():
    def trained():
        torch.manual_seed(0)
        model = UNet(3, 2, width=2)
        list(finetune(model, batches(), steps=4))
        return model.state_dict()

    first, second = trained(), trained()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_rate_warms_up_and_falls_to_zero():
    rates = [_rate(step / 100, 0.1) for step in range(101)]
    assert rates[5] == pytest.approx(0.5)
    assert max(rates) == pytest.approx(1.0)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.0)
