"""Grid and halo from a network's program: stitched tiles equal the whole image in fp64, and a smaller halo does not."""

import pytest
import torch
from drawn_programs import Builder, networks
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maskfleet.unet.inference.tiling import Tiling
from maskfleet.unet.programs.program import Value
from maskfleet.unet.programs.reach import Unproven, reach_of


def reach(program, tensors, multiple, channels=3):
    meta = {name: tensor.to("meta", torch.float32) for name, tensor in tensors.items()}
    return reach_of(program, meta, channels=channels, multiple=multiple)


def whole_and_stitched(program, tensors, x, *, grid, halo, core):
    """Return logits of the whole image, and of its tiles. Sides are multiples of the grid."""
    whole = program.run(x, tensors)
    stitched = torch.full_like(whole, float("nan"))
    tiling = Tiling(grid, halo)
    for rows in tiling.spans(x.shape[2], core):
        for columns in tiling.spans(x.shape[3], core):
            tile = program.run(x[:, :, rows.start : rows.stop, columns.start : columns.stop].contiguous(), tensors)
            place = slice(rows.core_start, rows.core_stop), slice(columns.core_start, columns.core_stop)
            stitched[:, :, *place] = tile[:, :, rows.core, columns.core]
    return whole, stitched


def difference(whole, stitched):
    return float((whole - stitched).abs().max() / whole.abs().max())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=networks(), rows=st.integers(0, 5), columns=st.integers(0, 5), seed=st.integers(0, 99))
def test_stitched_tiles_of_any_network_equal_the_whole_image(drawn, rows, columns, seed):
    program, tensors, multiple = drawn
    found = reach(program, tensors, multiple)
    assert found.grid % multiple == 0
    sides = [3 * found.halo + found.grid * (1 + more) for more in (rows, columns)]
    x = torch.randn(1, 3, *sides, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    whole, stitched = whole_and_stitched(program, tensors, x, grid=found.grid, halo=found.halo, core=found.halo)
    assert difference(whole, stitched) < 1e-12


def encoder(levels):
    """Two 3×3 convolutions a level, as the U-Net has, with transposed convolutions going up."""
    made, skips, x = Builder(), [], Value(0)
    x = made.conv(made.conv(x, 3, 4), 4, 4)
    for _ in range(levels):
        skips.append(x)
        x = made.add("max_pool2d.default", x, [2, 2], [2, 2])
        x = made.conv(made.conv(x, 4, 4), 4, 4)
    for skip in reversed(skips):
        x = made.add("conv_transpose2d.input", x, made.constant(4, 4, 2, 2), None, [2, 2], [0, 0], [0, 0], 1, [1, 1])
        x = made.add("cat.default", [skip, x], 1)
        x = made.conv(made.conv(x, 8, 4), 4, 4)
    return made.program(made.conv(x, 4, 2, 1)), made.tensors


@pytest.mark.parametrize(("levels", "grid", "halo"), [(1, 2, 8), (2, 4, 24), (3, 8, 48), (4, 16, 96)])
def test_the_halo_of_a_u_net_is_known_and_no_larger_than_needed(levels, grid, halo):
    program, tensors = encoder(levels)
    found = reach(program, tensors, grid)
    assert (found.grid, found.halo) == (grid, halo)
    x = torch.randn(1, 3, 2 * halo + 4 * grid, 2 * halo + 3 * grid, dtype=torch.float64)
    assert difference(*whole_and_stitched(program, tensors, x, grid=grid, halo=halo, core=grid)) < 1e-12
    less = whole_and_stitched(program, tensors, x, grid=grid, halo=halo - grid, core=grid)
    assert difference(*less) > 1e-12


def after_a_convolution(add):
    made = Builder()
    return made.program(add(made, made.conv(Value(0), 3, 4))), made.tensors


def squeezed(made, x):
    pooled = made.add("adaptive_avg_pool2d.default", x, [1, 1])
    return made.add("mul.Tensor", x, made.add("sigmoid.default", made.conv(pooled, 4, 4, 1)))


FORBIDDEN = {
    "instance normalisation": lambda made, x: made.add(
        "instance_norm.default",
        x,
        None,
        None,
        None,
        None,
        True,
        0.1,
        1e-5,
        False,
    ),
    "group normalisation": lambda made, x: made.add("group_norm.default", x, 2, None, None, 1e-5, False),
    "pooling over the whole image, as squeeze-and-excitation has": squeezed,
    "a mean over the whole image": lambda made, x: made.add(
        "mul.Tensor",
        x,
        made.add("mean.dim", x, [2, 3], True),
    ),
    "with aligned corners": lambda made, x: made.add(
        "upsample_bilinear2d.vec",
        made.add("max_pool2d.default", x, [2, 2]),
        None,
        True,
        [2.0, 2.0],
    ),
    "no power of two": lambda made, x: made.add(
        "upsample_nearest2d.vec", made.add("max_pool2d.default", x, [3, 3], [3, 3]), None, [3.0, 3.0]
    ),
    "pooling rounds sizes up": lambda made, x: made.add(
        "max_pool2d.default",
        x,
        [2, 2],
        [2, 2],
        [0, 0],
        [1, 1],
        True,
    ),
    "changes the image's size": lambda made, x: made.conv(x, 4, 4, 3, padding=0),
    "has not the image's size": lambda made, x: made.add("max_pool2d.default", x, [2, 2]),
    "pads by its content": lambda made, x: made.conv(
        made.add("pad.default", x, [1, 1, 1, 1], "reflect", None), 4, 4, 3, padding=0
    ),
    "works along the image": lambda made, x: made.add("softmax.int", x, 3),
    "attention": lambda made, x: made.add("scaled_dot_product_attention.default", x, x, x),
}


@pytest.mark.parametrize("reason", FORBIDDEN)
def test_a_layer_that_forbids_tiles_is_named(reason):
    program, tensors = after_a_convolution(FORBIDDEN[reason])
    with pytest.raises(Unproven, match=reason):
        reach(program, tensors, 6)


def test_the_size_of_a_value_may_set_that_of_another():
    def add(made, x):
        low = made.add("max_pool2d.default", x, [2, 2], [2, 2])
        sizes = [made.add("sym_size.int", x, 2), made.add("sym_size.int", x, 3)]
        return made.add("upsample_nearest2d.vec", low, sizes, None)

    assert reach(*after_a_convolution(add), 2).grid == 2


def test_computing_with_the_size_is_not_followed():
    def add(made, x):
        low = made.add("max_pool2d.default", x, [2, 2], [2, 2])
        rows = made.add("operator.floordiv", made.add("sym_size.int", x, 2), 1)
        return made.add("upsample_nearest2d.vec", low, [rows, made.add("sym_size.int", x, 3)], None)

    with pytest.raises(Unproven, match="computes with the image's size"):
        reach(*after_a_convolution(add), 2)
