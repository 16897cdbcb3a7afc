import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.unet.inference.decision import decide, moments


def logits_of(batch=2, classes=2, height=19, width=33, seed=0):
    return 3 * torch.randn(batch, classes, height, width, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_the_largest_logit_wins_and_the_first_of_equals(classes):
    logits = logits_of(classes=classes)
    logits[0, :, 3, 4] = 7.0
    decision = decide(logits)
    assert torch.equal(decision.labels, logits.argmax(dim=1).to(torch.uint8))
    best = logits.topk(2, dim=1).values
    assert torch.equal(decision.margin, (best[:, 0] - best[:, 1]).amin(dim=(1, 2)))
    assert decision.margin[0] == 0


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8])
def test_the_margin_of_one_logit_is_its_distance_to_the_threshold(threshold):
    logits = logits_of(classes=1)
    at = np.log(threshold / (1 - threshold))
    decision = decide(logits, [threshold])
    assert torch.equal(decision.labels, (logits[:, 0].sigmoid() > threshold).to(torch.uint8))
    np.testing.assert_allclose(decision.margin, (logits[:, 0] - at).abs().amin(dim=(1, 2)), rtol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 3), st.integers(1, 90), st.integers(1, 300), st.integers(1, 4), st.integers(0, 9))
def test_moments_are_exact(batch, height, width, channels, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (batch, height, width, channels))
    pixels[0] = 255
    total, squares = moments(torch.from_numpy(pixels).float())
    assert np.array_equal(total, pixels.sum(axis=(1, 2)))
    assert np.array_equal(squares, (pixels**2).sum(axis=(1, 2)))


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 5), st.data())
def test_each_class_has_a_threshold_of_its_own(classes, data):
    thresholds = data.draw(st.lists(st.floats(0.05, 0.95), min_size=classes - 1, max_size=classes - 1))
    logits = logits_of(classes=classes, seed=data.draw(st.integers(0, 99)))
    labels = decide(logits, thresholds).labels.numpy()
    probabilities = logits.softmax(dim=1).numpy()
    for index in np.ndindex(labels.shape):
        image, *pixel = index
        found = probabilities[(image, slice(None), *pixel)]
        if min(abs(found[1:] - thresholds)) < 1e-5 or classes == 2:
            continue
        may = [class_ for class_ in range(1, classes) if found[class_] > thresholds[class_ - 1]]
        assert labels[index] == max(may, key=lambda class_: found[class_], default=0)
    if classes == 2:
        assert np.array_equal(labels, (logits[:, 1] - logits[:, 0]).sigmoid().numpy() > thresholds[0])


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize("thresholds", [None, 0.8])
def test_certainty_follows_from_the_probabilities(classes, thresholds):
    logits = 4 * logits_of(batch=3, classes=classes, height=37, width=201)
    decision = decide(logits, thresholds and [thresholds] * max(1, classes - 1))
    both = torch.cat((torch.zeros_like(logits), logits), dim=1) if classes == 1 else logits
    probability = both.double().softmax(dim=1)
    chosen = probability.gather(1, decision.labels.long().unsqueeze(1))[:, 0]
    np.testing.assert_allclose(decision.confidence, chosen.sum(dim=2), rtol=1e-6)
    entropy = -(probability * probability.log()).sum(dim=(1, 2, 3))
    np.testing.assert_allclose(decision.entropy.double().sum(dim=1), entropy, rtol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("classes", [1, 2, 3])
def test_logits_that_are_not_finite_show_in_the_entropy(value, classes):
    logits = logits_of(classes=classes)
    logits[1, 0, 5, 5] = value
    entropy = decide(logits).entropy
    assert entropy[0].isfinite().all()
    assert not entropy[1].isfinite().all()


@pytest.mark.parametrize("classes", [1, 2, 3])
def test_a_decision_does_not_depend_on_the_batch(classes):
    logits = logits_of(batch=7, classes=classes, height=61, width=203)
    together = decide(logits)
    for index in range(7):
        for name, value in decide(logits[index : index + 1])._asdict().items():
            assert torch.equal(value[0], getattr(together, name)[index]), name
