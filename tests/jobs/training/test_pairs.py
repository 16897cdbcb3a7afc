import numpy as np
import pytest
from conftest import draw_pairs
from PIL import Image

from maskfleet.jobs.errors import JobError
from maskfleet.jobs.job.schema import Job
from maskfleet.jobs.training.pairs import held_back, read_pairs


def job(images, masks, *, output="/nowhere", **settings):
    return Job.of({
        "input": str(images or "/nowhere"),
        "output": str(output),
        "weights": "nuclei",
        "cluster": {"decoders": 1},
        "finetune": {"images": str(images), "masks": str(masks)} | settings,
    })  # fmt: skip


def read(*arguments, classes=2, own=(0, 255), **settings):
    return read_pairs(job(*arguments, **settings), channels=3, classes=classes, own=own)


def test_the_split_follows_content_and_has_its_share():
    contents = [str(number).encode() for number in range(4000)]
    share = np.mean([held_back(content, 0.2) for content in contents])
    assert abs(share - 0.2) < 0.03
    assert all(held_back(content, 0.3) for content in contents if held_back(content, 0.2))


def test_two_folders_become_pairs(tmp_path):
    images, masks = draw_pairs(tmp_path)
    (images / "notes.txt").write_text("left alone")
    pairs = read(images, masks)
    together = sorted([*pairs.training, *pairs.validation])
    assert [pair.key for pair in together] == [f"{number:03}.png" for number in range(12)]
    for pair in together:
        assert (pair.image == np.asarray(Image.open(images / pair.key))).all()
        assert (pair.truth * 255 == np.asarray(Image.open(masks / pair.key))).all()
        back = held_back((images / pair.key).read_bytes(), 0.2)
        assert (pair.key in [held.key for held in pairs.validation]) is back
    assert pairs.values == (0, 255)


def test_names_do_not_move_the_split_and_every_byte_counts(tmp_path):
    images, masks = draw_pairs(tmp_path)
    before = read(images, masks)
    for folder in (images, masks):
        (folder / "000.png").rename(folder / "zzz.png")
    after = read(images, masks)
    assert len(before.validation) == len(after.validation)
    for path in (masks / "001.png", images / "002.png"):
        digest = after.digest
        Image.open(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(path)
        after = read(images, masks)
        assert after.digest != digest


def test_a_pattern_names_the_masks(tmp_path):
    images, masks = draw_pairs(tmp_path)
    (masks / "deep").mkdir()
    for path in masks.glob("*.png"):
        path.rename(masks / "deep" / f"{path.stem}_mask.png")
    pairs = read(images, masks, mask_name="deep/{name}_mask")
    assert len(pairs.training) + len(pairs.validation) == 12


def test_in_a_bucket_too(tmp_path, bucket):
    import s3fs

    images, masks = draw_pairs(tmp_path)
    filesystem = s3fs.S3FileSystem(skip_instance_cache=True)
    for folder in (images, masks):
        filesystem.put(str(folder), f"{bucket}/{folder.name}", recursive=True)
    assert read(f"{bucket}/pairs/", f"{bucket}/truth/").digest == read(images, masks).digest


def test_masks_are_scaled_with_their_images(tmp_path):
    images, masks = draw_pairs(tmp_path)
    pairs = read_pairs(
        job(images, masks).model_copy(update={"inference": Job.of({"input": "a", "output": "b", "weights": "nuclei", "inference": {"scale": 0.5}}).inference}),
        channels=3, classes=2, own=(0, 255),
    )  # fmt: skip
    assert {pair.truth.shape for pair in pairs.training} == {(20, 24), (24, 20)}
    assert all(pair.image.shape[:2] == pair.truth.shape for pair in pairs.training)


def missing_mask(images, masks):
    (masks / "003.png").unlink()


def missing_image(images, masks):
    (images / "003.png").unlink()


def double_mask(images, masks):
    Image.open(masks / "003.png").save(masks / "003.tif")


def double_image(images, masks):
    Image.open(images / "003.png").save(images / "003.tif")


def other_size(images, masks):
    Image.open(masks / "003.png").resize((20, 20)).save(masks / "003.png")


def smeared(images, masks):
    Image.open(masks / "003.png").save(masks / "003.jpg", quality=40)
    (masks / "003.png").unlink()


def beyond(images, masks):
    pixels = np.array(Image.open(masks / "003.png"))
    pixels[0, 0] = 9
    Image.fromarray(pixels).save(masks / "003.png")


def broken(images, masks):
    (images / "003.png").write_bytes((images / "003.png").read_bytes()[:60])


def broken_mask(images, masks):
    (masks / "003.png").write_bytes(b"")


def none(images, masks):
    for path in masks.iterdir():
        path.rename(masks / f"other-{path.name}")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            missing_mask,
            r"image .*/pairs/003.png has no mask 003.\* in .*/truth; add it, set finetune.mask_name, or leave",
        ),
        (missing_image, r"mask .*/truth/003.png has no image in .*/pairs; add it"),
        (double_mask, r"finetune.masks has both .*/truth/003.png and .*/truth/003.tif, .* remove one"),
        (double_image, r"finetune.images has both .*/pairs/003.png and .*/pairs/003.tif, .* remove one"),
        (
            other_size,
            r"mask .*/truth/003.png is 20×20 px and its image .*/003.png 40×48; export the mask at the image's",
        ),
        (smeared, r"mask.*/truth/003.jpg.*JPEG, smoothing or a resize may have smeared it; export it as PNG"),
        (beyond, r"masks show 0, 9, 255 and the weights have 2 classes, .*/003.png"),
        (broken, r"/pairs/003.png cannot be trained on: the image does not decode"),
        (broken_mask, r"/truth/003.png cannot be trained on: the file is empty"),
    ],
)
def test_wrong_pairs_are_named_with_the_file_and_the_remedy(tmp_path, spoil, message):
    images, masks = draw_pairs(tmp_path, 6)
    spoil(images, masks)
    with pytest.raises(JobError, match=message):
        read(images, masks)


def test_a_class_beyond_those_that_are_stated(tmp_path):
    images, masks = draw_pairs(tmp_path, 4)
    beyond(images, masks)
    with pytest.raises(JobError, match=r"mask .*003.png shows 9, which is no class: 0, 255 are"):
        read(images, masks, values=[0, 255])


def test_both_parts_of_the_split_need_pairs(tmp_path):
    images, masks = draw_pairs(tmp_path, 3)
    with pytest.raises(
        JobError, match=r"of 3 pairs 0 are held back for validation, .* change finetune.validation_share"
    ):
        read(images, masks, validation_share=1e-9)


def test_nothing_to_train_on(tmp_path):
    images, masks = draw_pairs(tmp_path, 3)
    none(images, masks)
    with pytest.raises(JobError, match=r"no image in .*/pairs has a mask in .*/truth; correct the folders"):
        read(images, masks, unpaired="skip")
    with pytest.raises(JobError, match="state finetune.images and finetune.masks"):
        read_pairs(job("", ""), channels=3, classes=2, own=None)


def test_what_has_no_partner_is_left_out_where_the_job_says_so(tmp_path):
    images, masks = draw_pairs(tmp_path)
    missing_mask(images, masks)
    (images / "005.png").unlink()
    pairs = read(images, masks, unpaired="skip")
    assert len(pairs.training) + len(pairs.validation) == 10


def test_one_mask_is_of_one_image(tmp_path):
    images, masks = draw_pairs(tmp_path, 4)
    (images / "other").mkdir()
    (images / "000.png").rename(images / "other" / "001.png")
    with pytest.raises(JobError, match=r"mask .*001.png belongs to .*001.png and to .*001.png"):
        read(images, masks, mask_name="{name}")
