import io

import pytest
import torch
from conftest import seeded
from hypothesis import given, settings
from hypothesis import strategies as st

from maskfleet.unet import weights
from maskfleet.unet.network import WeightsError


def checkpoint(state) -> bytes:
    sink = io.BytesIO()
    torch.save(state, sink)
    return sink.getvalue()


def test_saved_weights_come_back_with_their_configuration():
    model = seeded(3, n_channels=1, bilinear=True)
    loaded = weights.load(weights.save(model, mask_values=(0, 128, 255), metadata={"dice": "0.9"}))
    assert (loaded.model.n_channels, loaded.model.n_classes, loaded.model.bilinear, loaded.model.width) == (
        1,
        3,
        True,
        4,
    )
    assert loaded.mask_values == (0, 128, 255)
    assert loaded.metadata == {"dice": "0.9"}
    assert not loaded.model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor)


def test_the_id_depends_on_content_alone():
    model = seeded()
    first = weights.load(weights.save(model, metadata={"a": "1"})).id
    assert weights.load(weights.save(model, metadata={"b": "2"})).id == first
    assert weights.load(weights.save(model, mask_values=(0, 9))).id != first
    model.outc.conv.bias[0] += 1e-6
    assert weights.load(weights.save(model)).id != first


def test_a_checkpoint_in_place_of_weights_is_refused_with_the_remedy():
    with pytest.raises(WeightsError, match="maskfleet convert"):
        weights.load(checkpoint(seeded().state_dict()))


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_are_refused_with_a_message(data):
    with pytest.raises(WeightsError):
        weights.load(data)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_truncated_files_are_refused(data):
    good = weights.save(seeded(width=1))
    cut = data.draw(st.integers(0, len(good) - 1))
    with pytest.raises(WeightsError):
        weights.load(good[:cut])


def test_the_builtin_model_loads():
    loaded = weights.load(weights.builtin("nuclei"))
    assert (loaded.model.n_channels, loaded.model.n_classes, loaded.model.width) == (3, 2, 16)
    assert loaded.mask_values == (0, 255)
    assert float(loaded.metadata["dice_mean"]) >= 0.92


def test_equal_networks_with_equal_metadata_give_equal_files():
    metadata = {f"name {number}": f"värde {number}" for number in range(20)}
    files = {weights.save(seeded(), mask_values=(0, 255), metadata=metadata) for _ in range(4)}
    assert len(files) == 1
    loaded = weights.load(files.pop())
    assert loaded.metadata == metadata
    assert all(torch.equal(a, b) for a, b in zip(loaded.model.parameters(), seeded().parameters(), strict=True))


@pytest.mark.parametrize("beginning", [b"PK", b"\x80"])
def test_a_header_whose_length_looks_like_another_file_is_read(beginning):
    length = int.from_bytes(beginning.ljust(2, b"P"), "little")
    data = weights.save(seeded())
    header = data[8 : 8 + int.from_bytes(data[:8], "little")]
    longer = length.to_bytes(8, "little") + header.ljust(length) + data[8 + len(header) :]
    assert len(header) < length
    assert longer.startswith(beginning)
    assert weights.load(longer).id == weights.load(data).id
